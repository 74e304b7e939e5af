"""Weight scales large enough for the biases behind them."""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph.analysis.codes import quantizers_behind
from qgraph.ir import ops
from qgraph.ir.graph import Graph
from qgraph.ir.rewrite import Pass, register
from qgraph.quant.spec import QParams, per_axis

_LARGEST = 2.0 ** 30  # half of int32: the other half is for the products


@register
class FitBias(Pass):
    """conv(fq{s_x}(x), fq{s_w}(w), b)  ->  the same with s_w = max(s_w, |b| / (s_x * 2^30)).

    For engines whose biases are int32 codes with the scale s_x * s_w in every layer. Only channels whose weights are
    tiny beside their bias change: a product, of 127^2 steps at most, is then below 2e-5 of it.
    """

    name = "fit-bias"
    requires = ("calibrate",)

    def run(self, g: Graph) -> int:
        count = 0
        for node in g.nodes():
            inputs = g.inputs(node)
            if ops.kind(node) != ops.COMPUTE or len(inputs) < 3:
                continue
            fq, bias, data = inputs[1].node, g.param(inputs[2]), quantizers_behind(g, inputs[0])
            qp, weight = fq.quant, g.param(g.inputs(fq)[0]) if fq.op == "fake_quantize" else None
            if bias is None or weight is None or not data or not isinstance(qp, QParams):
                continue
            step = data[0].quant
            if not isinstance(step, QParams):
                continue
            own = np.broadcast_to(per_axis(qp.scale, qp, weight.shape), weight.shape).reshape(len(weight), -1)[:, 0]
            with np.errstate(over="ignore"):
                least = np.maximum(np.abs(bias.astype(np.float64)) / (float(step.scale) * _LARGEST), 1e-37 / step.scale)
            if (own < least).any():
                wider = np.maximum(own, least.astype(np.float32))
                fq.quant = dataclasses.replace(qp, granularity="channel", axis=0, scale=wider,
                                               zero_point=np.zeros(len(wider), np.int64))
                count += 1
        return count
