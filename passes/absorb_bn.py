"""absorb-bn: a BatchNorm behind a layer goes into the scales of its weight; the codes, rounded without it, stay.

    before   %bn = BatchNorm(%conv, gamma, beta, mean, var)      %conv = Convolution(%x, fq(%w) {s8 tensor scale=t})
    after    %conv = Convolution(%x, fq(%w') {s8 channel scale=t|s|}, %b')

    s  = gamma / sqrt(var + eps)          gamma = 1 under fix_gamma, MXNet's default
    W' = codes * sign(s) * t |s|          per output channel; zeros where s is zero
    b' = beta + (b - mean) * s            b = 0 where there was no bias

Behind a layer that computes in float it is fold-bn.  This is how `--no-merge-bn` is written: weights are rounded as
they are, and what is left of the BatchNorm is one multiplication, which the scales ask for anyway.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph.analysis.codes import channel_scales
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port, Rounded
from qgraph.ir.rewrite import MatchFail, RewritePass, register
from qgraph.passes._affine import bn_affine, out_channels, reads_channel_axis, scale_outputs
from qgraph.passes.fold_bn import FoldBN
from qgraph.quant.spec import QParams, dequantize, quantize


@register
class AbsorbBN(RewritePass):
    """Layer with quantized weights -> BatchNorm  becomes one layer with other scales and another bias.

    rounding: how weights are rounded, a key of `qgraph.quant.spec.ROUNDING`.
    """

    name = "absorb-bn"
    pattern = FoldBN.pattern
    preserves_float = False
    requires = ("calibrate",)
    rounding: str = "half-even"

    def rewrite(self, g: Graph, conv: Node, bn: Node, **_: Port) -> None:
        fq = g.inputs(conv)[1].node
        if fq.op != "fake_quantize":
            FoldBN().rewrite(g, conv, bn)
            return
        source, params = g.inputs(fq)[0], fq.quant
        weight = g.param(source)
        if weight is None or not isinstance(params, QParams):
            raise MatchFail(conv, "its weight is not a parameter with calibrated codes")
        own = channel_scales(conv, params, weight.shape)
        if own is None or (conv.op == "Deconvolution" and ops.attr(conv, "num_group") > 1):
            raise MatchFail(conv, "its weight cannot have one scale for each output channel")
        scale, shift = bn_affine(g, bn)
        if not reads_channel_axis(bn, conv) or out_channels(conv, weight) != len(scale):
            raise MatchFail(bn, f"does not normalize the channels of {conv}")
        bias = self._bias(g, conv)
        scales = np.where(scale == 0, own, own * np.abs(scale)).astype(np.float32)
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise MatchFail(bn, "the scales of the weight are not finite, or vanish")
        spec = dataclasses.replace(params.spec, granularity="channel", axis=ops.info(conv.op).out_axis, groups=1)
        changed = spec.with_numbers(scales)
        codes = scale_outputs(conv, quantize(weight, params, self.rounding), np.sign(scale).astype(np.int32))
        stored = g.add_param(f"{source.node.name}_bn", dequantize(codes, changed), origin=(source.node.name,))
        g.set_input(conv, 1, g.add("fake_quantize", [stored], f"{fq.name}_bn", quant=changed, origin=fq.origin))
        moved = (shift if bias is None else shift + bias * scale).astype(np.float32)
        name = f"{conv.name}_bias" if bias is None else f"{g.inputs(conv)[2].node.name}_bn"
        g.set_input(conv, 2, g.add_param(name, moved, origin=conv.origin or (conv.name,)))
        conv.attrs["no_bias"] = "False"
        conv.rounded = Rounded(params.dtype, params.granularity)
        g.replace(bn, Port(conv))

    @staticmethod
    def _bias(g: Graph, conv: Node) -> np.ndarray | None:
        if len(g.inputs(conv)) < 3:
            return None
        bias = g.param(g.inputs(conv)[2])
        if bias is None:
            raise MatchFail(conv, "its bias is not a parameter")
        return bias.astype(np.float64)
