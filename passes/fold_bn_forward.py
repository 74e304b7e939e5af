"""fold-bn-forward: a BatchNorm right before a Convolution or FullyConnected goes into *its* weights, where exact.

    before   %conv = Convolution(%bn, %w, %b)      %bn = BatchNorm(%x, gamma, beta, mean, var)
    after    %conv = Convolution(%x, %w', %b')

    BatchNorm(x) = s * x + t     with s, t as in fold-bn
    W' = W * s   per input channel            b' = b + sum over input channels and kernel of W * t

Exact when the convolution does not pad, or t is zero: its padding is zero *behind* the BatchNorm.  Runs after fold-bn,
for what has no convolution in front of it (such as the BatchNorm on the data of ResNet v2).
"""

from __future__ import annotations

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import MatchFail, P, RewritePass, register
from qgraph.passes._affine import absorb, absorb_input_affine, bn_affine, own_weights, set_weights


@register
class FoldBNForward(RewritePass):
    """BatchNorm -> Convolution/FullyConnected  becomes one node with other weights, where exact."""

    name = "fold-bn-forward"
    pattern = P(("Convolution", "FullyConnected"), P("BatchNorm", "x", "gamma", "beta", "mean", "var", name="bn"), "w",
                ..., name="conv")

    def rewrite(self, g: Graph, x: Port, conv: Node, bn: Node, **_: Port) -> None:
        axis = ops.attr(bn, "axis")
        if conv.op == "FullyConnected":
            # flattened, axis 1 owns blocks of columns; the last axis is the columns only where nothing is flattened
            fits = axis == (1 if ops.attr(conv, "flatten") else -1)
        else:
            fits = axis % (len(ops.attr(conv, "kernel")) + 2) == 1 and ops.channels_first(conv)
        if not fits:
            raise MatchFail(bn, f"normalizes axis {axis}, which is not sure to be the input channels of {conv}")
        scale, shift = bn_affine(g, bn)
        weight, bias = own_weights(g, conv)
        if conv.op == "FullyConnected" and not ops.attr(conv, "flatten") and weight.shape[1] != len(scale):
            raise MatchFail(bn, f"has {len(scale)} channels, {conv} reads {weight.shape[1]}")
        set_weights(g, conv, *absorb_input_affine(conv, weight, bias, scale, shift))
        absorb(g, conv, bn)
        g.set_input(conv, 0, x)
