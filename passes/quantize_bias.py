"""Biases as the integers that the accumulator adds."""

from __future__ import annotations

import numpy as np

from qgraph import ops
from qgraph.integers import channel_scales, quantizer_name, quantizers_behind
from qgraph.ir import Graph
from qgraph.quant.spec import QParams
from qgraph.rewrite import Pass, register

_LARGEST = 2**31 - 1


@register
class QuantizeBias(Pass):
    """conv(fq(x), fq(w), b) -> conv(fq(x), fq(w), fq{s32 scale=scale_x*scale_w}(b)).

    Where the bias of one channel would not fit int32 (its weights are tiny beside it) the bias of the whole layer stays
    in float, as the engines' own rule would change the weights (MXNet lowers their scale).
    """

    name = "quantize-bias"
    requires = ("calibrate",)

    def run(self, g: Graph) -> int:
        count = 0
        for node in g.nodes():
            inputs = g.inputs(node)
            if ops.kind(node) != ops.COMPUTE or len(inputs) < 3:
                continue
            weight, bias = inputs[1].node.quant, g.param(inputs[2])
            data = quantizers_behind(g, inputs[0])
            if bias is None or not data or not isinstance(weight, QParams) or not isinstance(data[0].quant, QParams):
                continue
            array = g.param(g.inputs(inputs[1].node)[0])
            scales = None if array is None else channel_scales(node, weight, array.shape)
            if scales is None:
                continue
            scale = np.float64(data[0].quant.scale) * scales
            scale32 = scale.astype(np.float32)
            if (scale32 <= 0).any() or (np.abs(bias) > scale * _LARGEST).any():
                continue
            params = QParams(bits=32, signed=True, granularity="channel", axis=0, scale=scale32)
            g.set_input(node, 2, g.add("fake_quantize", [inputs[2]], quantizer_name(inputs[2]), quant=params,
                                       origin=(inputs[2].node.name,)))
            count += 1
        return count
