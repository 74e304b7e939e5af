"""Converters to ONNX of what only moves values: reshapes, slices, joins, copies."""

from __future__ import annotations

import numpy as np

from qgraph import ops
from qgraph.formats.onnx_convert import Context, converter
from qgraph.geometry import axis_of

END = np.iinfo(np.int64).max  # the end of a Slice that runs to the last element


@converter("Flatten")
def _flatten(c: Context, x: str) -> str:
    return c.op("Flatten", x, axis=1)


@converter("Reshape")
def _reshape(c: Context, x: str) -> str:
    """Reshape; codes that ONNX has too need no shapes."""
    codes = c.attr("shape")
    if not c.knows() and not c.attr("reverse") and codes and min(codes) >= -1 and codes.count(-1) <= 1:
        return c.reshape(x, codes)
    return c.reshape(x, c.out_shape())


@converter("transpose")
def _transpose(c: Context, x: str) -> str:
    axes = c.attr("axes")
    if any(a < 0 for a in axes):
        axes = tuple(axis_of(c.node, a, len(axes)) for a in axes)
    return c.op("Transpose", x, perm=list(axes) or None)


@converter("SwapAxis")
def _swap_axis(c: Context, x: str) -> str:
    rank = len(c.shape())
    order = list(range(rank))
    a, b = (axis_of(c.node, c.attr(key), rank) for key in ("dim1", "dim2"))
    order[a], order[b] = b, a
    return c.op("Transpose", x, perm=order)


@converter("expand_dims")
def _expand_dims(c: Context, x: str) -> str:
    return c.op("Unsqueeze", x, c.const([c.attr("axis")], "axes"))


@converter("squeeze")
def _squeeze(c: Context, x: str) -> str:
    axes = list(c.attr("axis")) or [i for i, d in enumerate(c.shape()) if d == 1]
    if c.knows() and len(axes) == len(c.shape()):  # MXNet keeps one axis
        return c.reshape(x, (1,))
    return c.op("Squeeze", x, c.const(axes, "axes")) if axes else c.op("Identity", x)


def cut(c: Context, x: str, axes: list[int], begin: list[int], end: list[int], step: list[int] | None = None) -> str:
    """Slice."""
    lists = [begin, end, axes] + ([step] if step else [])
    return c.op("Slice", x, *(c.const(np.array(v, np.int64), "slice") for v in lists))


@converter("slice_axis")
def _slice_axis(c: Context, x: str) -> str:
    end = ops.parse_tuple(c.attr("end"))
    last = END if not end or end[0] is None else end[0]
    return cut(c, x, [c.attr("axis")], [c.attr("begin")], [last])


@converter("Concat")
def _concat(c: Context, *inputs: str) -> str:
    return c.op("Concat", *inputs, axis=c.attr("dim"))
