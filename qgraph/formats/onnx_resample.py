"""Converters to ONNX: what reads windows or regions of a map, and what gives it another size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qgraph.formats.onnx_convert import Context, converter
from qgraph.formats.onnx_nn import check_layout
from qgraph.geometry import pool_geometry

# ---- pooling --------------------------------------------------------------------------------------------------------


@converter("Pooling")
def _pooling(c: Context, x: str) -> str:
    """MaxPool, AveragePool, LpPool or their global forms; a sum is the average times the size of the window."""
    check_layout(c)
    kind = c.attr("pool_type")
    if c.attr("global_pool"):
        return _global_pool(c, x, kind)
    kernel, pad = c.attr("kernel"), c.attr("pad")
    if kind == "avg" and c.attr("count_include_pad") and c.attr("pooling_convention") != "valid" and any(pad):
        # MXNet counts the padding it was asked for, and not what lies beyond it
        x, more = spatial_pad(c, x, pad, pad), _more(c, (0,) * len(pad))
        return _window(c, "AveragePool", x, [0] * len(pad), more)
    more = _more(c, pad)
    if kind == "max":
        return _window(c, "MaxPool", x, pad, more)
    if kind == "lp":
        return _window(c, "LpPool", x, pad, more, p=c.attr("p_value"))
    if kind == "sum":
        if more is None:
            c.shape()
        total = _window(c, "AveragePool", x, pad, more, count_include_pad=1)
        return str(c.op("Mul", total, c.const(np.float32(math.prod(kernel)))))
    counts = c.attr("count_include_pad") and any(pad)
    return _window(c, "AveragePool", x, pad, more, count_include_pad=1 if counts else None)


def _global_pool(c: Context, x: str, kind: str) -> str:
    if kind == "sum":
        return str(c.op("ReduceSum", x, c.const(list(range(2, len(c.shape()))))))
    if kind == "lp":
        return str(c.op("GlobalLpPool", x, p=c.attr("p_value")))
    return str(c.op("GlobalMaxPool" if kind == "max" else "GlobalAveragePool", x))


def _more(c: Context, pad: Sequence[int]) -> list[int] | None:
    """How far the last window of each axis reaches beyond the padding; None if heights and widths are not known.

    pad: what windows may lie in; one that lies wholly in it has no value in ONNX.
    """
    kernel, stride, convention = c.attr("kernel"), c.attr("stride"), c.attr("pooling_convention")
    if convention == "valid":
        return [0] * len(kernel)
    spatial = c.shape()[2:] if c.knows() else (-1,)
    if -1 in spatial:
        if convention == "full" and all(s + p <= k for k, s, p in zip(kernel, stride, pad)):
            return None  # ceil_mode says the same
        raise c.refuse(f"with pooling_convention {convention} it needs fixed heights and widths (--input-shape)")
    own = c.attr("pad")
    starts = [(n - 1) * s for n, s in zip(pool_geometry(c.node, spatial)[3], stride)]
    if any(start >= i + 2 * own_p - p for start, i, own_p, p in zip(starts, spatial, own, pad)):
        raise c.refuse(f"its last window lies wholly outside of the map {spatial}")
    return [max(0, start + k - i - 2 * p) for start, k, i, p in zip(starts, kernel, spatial, own)]


def _window(c: Context, op: str, x: str, pad: Sequence[int], more: Sequence[int] | None, **attrs: int | None) -> str:
    tail = pad if more is None else [p + m for p, m in zip(pad, more)]
    return str(c.op(op, x, kernel_shape=c.attr("kernel"), strides=c.attr("stride"), pads=[*pad, *tail],
                    ceil_mode=1 if more is None else None, **attrs))


def spatial_pad(c: Context, x: str, before: Sequence[int], after: Sequence[int]) -> str:
    """Zeros around the axes behind the channels."""
    return str(c.op("Pad", x, c.const([0, 0, *before, 0, 0, *after], "pads")))
