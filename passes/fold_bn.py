"""fold-bn: a BatchNorm right behind a Convolution, Deconvolution or FullyConnected goes into its weights.

    before   %bn = BatchNorm(%conv, gamma, beta, mean, var)      %conv = Convolution(%x, %w)
    after    %conv = Convolution(%x, %w', %b')

    s  = gamma / sqrt(var + eps)          gamma = 1 under fix_gamma, MXNet's default
    W' = W * s            per output channel
    b' = beta + (b - mean) * s            b = 0 where there was no bias

computed in float64.  Refused, with the reason in the log: other readers of the convolution or of its weight or bias, a
head on the convolution, an activation fused into it, a BatchNorm over another axis, values that are not finite.
"""

from __future__ import annotations

from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import MatchFail, P, RewritePass, register
from qgraph.passes._affine import bn_affine, out_channels, own_weights, reads_channel_axis, scale_outputs, set_weights


@register
class FoldBN(RewritePass):
    """Convolution/Deconvolution/FullyConnected -> BatchNorm  becomes one node with other weights."""

    name = "fold-bn"
    pattern = P("BatchNorm", P(("Convolution", "Deconvolution", "FullyConnected"), "x", "w", ..., name="conv"),
                "gamma", "beta", "mean", "var", name="bn")

    def rewrite(self, g: Graph, conv: Node, bn: Node, **_: Port) -> None:
        if conv.fused is not None:
            raise MatchFail(conv, f"has a fused {conv.fused.act}")
        if not reads_channel_axis(bn, conv):
            raise MatchFail(bn, f"normalizes axis {bn.attrs.get('axis', 1)}, which is not sure to be the channels of "
                                f"{conv}")
        scale, shift = bn_affine(g, bn)
        weight, bias = own_weights(g, conv)
        if out_channels(conv, weight) != len(scale):
            raise MatchFail(bn, f"has {len(scale)} channels, {conv} has {out_channels(conv, weight)}")
        set_weights(g, conv, scale_outputs(conv, weight, scale), shift if bias is None else shift + bias * scale)
        g.replace(bn, Port(conv))
