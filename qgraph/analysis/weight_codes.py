"""What the codes of a layer's weight look like, channel by channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from qgraph.analysis.codes import channel_scales
from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.quant.spec import QParams, per_axis

SHOWN_CHANNELS = 256
DEAD, DOMINATING = 1e-6, 8.0
"""Largest weight of a channel beside the median of its layer: below it is dead, above it dominates."""


def weight_codes(g: Graph, layer: Node) -> dict[str, Any] | None:
    """{"channels", "per": how many of them a number below stands for, "largest": weight of each channel, "scales": of
    each, or one, "dead", "dominating": how many, "codes": how many the weight uses, of "of"}.

    Of several channels that share a number it is the largest.  None where the weight has no codes here.
    """
    fq = g.inputs(layer)[1].node
    qp, weight = fq.quant, g.param(g.inputs(fq)[0]) if fq.op == "fake_quantize" else None
    if weight is None or not isinstance(qp, QParams) or not weight.size:
        return None
    scale = per_axis(qp.scale, qp, weight.shape)
    codes = np.rint(weight / scale).astype(np.int64) + per_axis(qp.zero_point, qp, weight.shape).astype(np.int64)
    counts = np.bincount((np.clip(codes, qp.qmin, qp.qmax) - qp.qmin).ravel(), minlength=qp.qmax - qp.qmin + 1)
    largest = np.abs(_by_channel(layer, weight)).max(axis=1)
    usual = float(np.median(largest[largest > 0])) if largest.any() else 0.0
    per = -(-len(largest) // SHOWN_CHANNELS)
    scales = channel_scales(layer, qp, weight.shape)
    scales = qp.scale.ravel() if scales is None else scales
    alike = bool((scales == scales[0]).all())
    return {"channels": len(largest), "per": per, "largest": _shown(largest, per),
            "scales": [_short(scales[0])] if alike else _shown(np.asarray(scales, np.float64), per),
            "dead": int((largest <= DEAD * usual).sum()), "dominating": int((largest > DOMINATING * usual).sum()),
            "codes": int(np.count_nonzero(counts)), "of": len(counts)}


def _by_channel(layer: Node, weight: Array) -> Array:
    """(output channels, rest)"""
    if layer.op != "Deconvolution":
        return weight.reshape(len(weight), -1)
    groups = ops.attr(layer, "num_group")
    rows = weight.reshape(groups, len(weight) // groups, *weight.shape[1:]).swapaxes(1, 2)
    return rows.reshape(groups * weight.shape[1], -1)


def _shown(values: Array, per: int) -> list[float]:
    return [_short(value) for value in np.maximum.reduceat(values, np.arange(0, len(values), per))]


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")
