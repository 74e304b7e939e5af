"""Converters to ONNX of what looks up, sorts or decodes: the tails of detectors."""

from __future__ import annotations

import numpy as np

from qgraph.semantics.geometry import axis_of, one_axis
from qgraph.targets.onnx.convert import Context, converter
from qgraph.targets.onnx.math import scalar, to_float, to_index
from qgraph.targets.onnx.shape import dims

# ---- looking up -----------------------------------------------------------------------------------------------------

def _bounded(c: Context, indices: str, length: str, mode: str) -> str:
    """Whole indices inside an axis of that length, as MXNet's modes clip and wrap want."""
    index = to_index(c, indices)
    if mode == "wrap":
        return c.op("Mod", index, length)
    last = c.op("Sub", length, c.const(np.int64(1), "one"))
    return c.op("Max", c.op("Min", index, last), c.const(np.int64(0), "zero"))


def _length(c: Context, x: str, slot: int, axis: int) -> str:
    """Length of an axis, as an int64 scalar."""
    length = c.shape(slot)[axis]
    if length != -1:
        return c.const(np.int64(length), "length")
    return c.op("Squeeze", dims(c, x, axis, axis + 1))


@converter("take")
def _take(c: Context, x: str, indices: str) -> str:
    axis = axis_of(c.node, c.attr("axis"), len(c.shape()))
    mode = c.attr("mode")
    index = to_index(c, indices) if mode == "raise" else _bounded(c, indices, _length(c, x, 0, axis), mode)
    return c.op("Gather", x, index, axis=axis)


@converter("Embedding")
def _embedding(c: Context, indices: str, weight: str) -> str:
    length = c.const(np.int64(c.attr("input_dim")), "length")
    return c.op("Gather", weight, _bounded(c, indices, length, "clip"), axis=0)


@converter("pick")
def _pick(c: Context, x: str, indices: str) -> str:
    """GatherElements of one element along the axis."""
    rank = len(c.shape())
    axis = one_axis(c.node, rank)
    axes = c.const([axis], "axis")
    index = _bounded(c, indices, _length(c, x, 0, axis), c.attr("mode"))
    if len(c.shape(1)) < rank:
        index = c.op("Unsqueeze", index, axes)
    found = c.op("GatherElements", x, index, axis=axis)
    return found if c.attr("keepdims") else c.op("Squeeze", found, axes)


@converter("batch_take")
def _batch_take(c: Context, x: str, indices: str) -> str:
    """One number of each row."""
    axes = c.const([1], "axis")
    index = c.op("Unsqueeze", _bounded(c, indices, _length(c, x, 0, 1), "clip"), axes)
    return c.op("Squeeze", c.op("GatherElements", x, index, axis=1), axes)


@converter("gather_nd")
def _gather_nd(c: Context, x: str, indices: str) -> str:
    """GatherND, which has the axis of coordinates last."""
    rank = len(c.shape(1))
    return c.op("GatherND", x, to_index(c, c.op("Transpose", indices, perm=[*range(1, rank), 0])))


@converter("one_hot")
def _one_hot(c: Context, indices: str) -> str:
    """Indices that are out of range have no 1."""
    codes = c.const(np.arange(c.attr("depth")), "codes")
    found = c.op("Equal", c.op("Unsqueeze", to_index(c, indices), c.const([-1], "axis")), codes)
    return c.op("Where", found, scalar(c, c.attr("on_value")), scalar(c, c.attr("off_value")))


# ---- sorting --------------------------------------------------------------------------------------------------------

def _sorted(c: Context, x: str, count: int = 0) -> list[str]:
    """The first values in order and their indices, all for a count of 0; without an axis of all elements in one row."""
    axis = 0
    if c.attr("axis"):
        axis = one_axis(c.node, len(c.shape()))
        count = count or c.shape()[axis]
    else:
        x = c.reshape(x, (-1,))
    number = c.const([count], "k") if count > 0 else dims(c, x, axis, axis + 1)
    return c.op("TopK", x, number, n_out=2, axis=axis, largest=int(not c.attr("is_ascend")), sorted=1)


@converter("topk")
def _topk(c: Context, x: str) -> str | list[str]:
    kind, count = c.attr("ret_typ"), max(c.attr("k"), 0)
    if kind not in ("indices", "value", "both", "mask"):
        raise c.refuse(f"found ret_typ {kind}, want indices, value, both or mask")
    values, indices = _sorted(c, x, count)
    if kind == "mask":
        zero, one = (c.op("Expand", scalar(c, value), c.op("Shape", like)) for value, like in ((0, x), (1, values)))
        if c.attr("axis"):
            return c.op("ScatterElements", zero, indices, one, axis=one_axis(c.node, len(c.shape())))
        found = c.op("ScatterElements", c.reshape(zero, (-1,)), indices, one, axis=0)
        return c.op("Reshape", found, c.op("Shape", x))
    if kind == "value":
        return values
    return to_float(c, indices) if kind == "indices" else [values, to_float(c, indices)]


@converter("sort", "argsort")
def _sort(c: Context, x: str) -> str:
    values, indices = _sorted(c, x)
    return values if c.node.op == "sort" else to_float(c, indices)


@converter("argmax", "argmin")
def _argmax(c: Context, x: str) -> str:
    op, keep = "ArgMax" if c.node.op == "argmax" else "ArgMin", int(c.attr("keepdims"))
    if c.attr("axis"):
        axis = one_axis(c.node, len(c.shape()))
        found = to_float(c, c.op(op, x, axis=axis, keepdims=keep))
        return found if keep or len(c.shape()) > 1 else c.reshape(found, (1,))
    found = to_float(c, c.op(op, c.reshape(x, (-1,)), axis=0, keepdims=1))
    return c.reshape(found, [1] * len(c.shape())) if keep else found


# ---- boxes ----------------------------------------------------------------------------------------------------------

@converter("_contrib_box_decode")
def _box_decode(c: Context, offsets: str, anchors: str) -> str:
    """Centre = offset * std * size + the anchor's; half size = exp(offset * std) * the anchor's; both as corners."""
    def halves(x: str) -> list[str]:
        return c.op("Split", x, n_out=2, axis=2, num_outputs=2)

    std = c.const(np.array([c.attr(f"std{i}") for i in range(4)], np.float32), "std")
    shift, scale = halves(c.op("Mul", offsets, std))
    first, second = halves(anchors)
    half = scalar(c, 0.5)
    if c.attr("format") == "corner":
        size = c.op("Sub", second, first)
        centre = c.op("Add", first, c.op("Mul", size, half))
    else:
        centre, size = first, second
    if c.attr("clip") > 0:
        scale = c.op("Min", scale, scalar(c, c.attr("clip")))
    middle = c.op("Add", c.op("Mul", shift, size), centre)
    reach = c.op("Mul", c.op("Mul", c.op("Exp", scale), size), half)
    return c.op("Concat", c.op("Sub", middle, reach), c.op("Add", middle, reach), axis=2)
