"""Biases as the integers that the accumulator adds."""

from __future__ import annotations

import numpy as np

from qgraph.analysis.codes import channel_scales, quantizer_name, quantizers_behind
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import Pass, register
from qgraph.quant.spec import QParams, QSpec

_LEAST_STEP = 2.0 ** -8  # of data whose range is not known yet


@register
class QuantizeBias(Pass):
    """conv(fq(x), fq(w), b) -> conv(fq(x), fq(w), fq{s32 scale=scale_x*scale_w}(b)).

    Where the bias of one channel would not fit (its weights are tiny beside it) the bias of the whole layer stays in
    float, as the engines' own rule would change the weights (MXNet lowers their scale).  Where the range of x comes
    from the batch that is being run, so do the steps of the bias: fq{s32 online}(b).

    limit: the largest code.
    """

    name = "quantize-bias"
    requires = ("calibrate",)
    limit: int = 2**31 - 1

    def run(self, g: Graph) -> int:
        count = 0
        for node in g.nodes():
            inputs = g.inputs(node)
            if ops.kind(node) != ops.COMPUTE or len(inputs) < 3 or g.param(inputs[2]) is None:
                continue
            spec = self._spec(g, node)
            if spec is not None:
                g.set_input(node, 2, g.add("fake_quantize", [inputs[2]], quantizer_name(inputs[2]), quant=spec,
                                           origin=(inputs[2].node.name,)))
                count += 1
        return count

    def _spec(self, g: Graph, node: Node) -> QSpec | QParams | None:
        data, weight, bias = g.inputs(node)
        quantizers = quantizers_behind(g, data)
        weight_params = weight.node.quant
        if not quantizers or not isinstance(weight_params, QParams):
            return None
        array, act = g.param(g.inputs(weight.node)[0]), quantizers[0].quant
        scales = None if array is None else channel_scales(node, weight_params, array.shape)
        online = act is not None and act.online
        step = np.float64(act.scale) if isinstance(act, QParams) else _LEAST_STEP
        if scales is None or not (online or isinstance(act, QParams)):
            return None
        scale = scales * step
        scale32 = scale.astype(np.float32)
        if (scale32 <= 0).any() or (np.abs(g.params[bias.node.name]) > scale * self.limit).any():
            return None
        if online:
            return QSpec(bits=32, signed=True, online=True)
        return QParams(bits=32, signed=True, granularity="channel", axis=0, scale=scale32)
