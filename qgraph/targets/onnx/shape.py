"""Converters to ONNX of what only moves values, reads shapes or makes constants: reshapes, slices, joins, copies."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.semantics.geometry import arange_of, axis_of, like_range, split_sizes
from qgraph.targets.onnx.convert import Context, converter
from qgraph.targets.onnx.math import BOOL, scalar, to_float

LAST, FIRST = np.iinfo(np.int64).max, np.iinfo(np.int64).min  # ends of a Slice that runs to an end of the axis


def dims(c: Context, x: str, start: int, end: int) -> str:
    """Part of a tensor's shape, when the model runs."""
    return c.op("Shape", x, start=start, end=end)


# ---- reshapes -------------------------------------------------------------------------------------------------------


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
    return c.op("Transpose", x, perm=list(c.attr("axes")) or None)


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


@converter("reshape_like")
def _reshape_like(c: Context, x: str, like: str) -> str:
    if not any(c.attr(key) for key in ("lhs_begin", "lhs_end", "rhs_begin", "rhs_end")):
        return c.op("Reshape", x, c.op("Shape", like))
    rank = len(c.shape())
    (a, b), (i, j) = like_range(c.node, "lhs", rank), like_range(c.node, "rhs", len(c.shape(1)))
    parts = [dims(c, tensor, start, end) for tensor, start, end in ((x, 0, a), (like, i, j), (x, b, rank))
             if start < end]
    return c.op("Reshape", x, c.op("Concat", *parts, axis=0))


@converter("depth_to_space", "space_to_depth")
def _depth_to_space(c: Context, x: str) -> str:
    op = "DepthToSpace" if c.node.op == "depth_to_space" else "SpaceToDepth"
    return c.op(op, x, blocksize=c.attr("block_size"))


# ---- slices ---------------------------------------------------------------------------------------------------------

def _cut(c: Context, x: str, axes: list[int], begin: list[int], end: list[int], step: list[int] | None = None) -> str:
    lists = [begin, end, axes] + ([step] if step else [])
    return c.op("Slice", x, *(c.const(np.array(v, np.int64), "slice") for v in lists))


@converter("slice")
def _slice(c: Context, x: str) -> str:
    begin, end = c.attr("begin"), c.attr("end")
    step = [s or 1 for s in c.attr("step")] or [1] * len(begin)
    ends = [(0, LAST) if s > 0 else (LAST, FIRST) for s in step]
    return _cut(c, x, list(range(len(begin))), [e[0] if b is None else b for b, e in zip(begin, ends)],
                [e[1] if b is None else b for b, e in zip(end, ends)], step)


@converter("slice_axis")
def _slice_axis(c: Context, x: str) -> str:
    end = ops.parse_tuple(c.attr("end"))
    last = LAST if not end or end[0] is None else end[0]
    return _cut(c, x, [c.attr("axis")], [c.attr("begin")], [last])


@converter("slice_like")
def _slice_like(c: Context, x: str, like: str) -> str:
    """Slice; to lengths known now, or to those that the other tensor has when the model runs."""
    axes = list(c.attr("axes"))
    if not axes:
        axes = list(range(len(c.shape(1))))
    if c.knows(1):
        lengths = [c.shape(1)[a] for a in axes]
        if -1 not in lengths:
            return _cut(c, x, axes, [0] * len(axes), lengths)
    parts = [c.op("Gather", c.op("Shape", like), c.const([a], "axis")) for a in axes]
    ends = c.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
    return c.op("Slice", x, c.const([0] * len(axes), "slice"), ends, c.const(axes, "slice"))


@converter("reverse")
def _reverse(c: Context, x: str) -> str:
    axes = list(c.attr("axis"))
    return _cut(c, x, axes, [-1] * len(axes), [FIRST] * len(axes), [-1] * len(axes))


@converter("SliceChannel")
def _slice_channel(c: Context, x: str) -> list[str]:
    count = c.attr("num_outputs")
    return _squeezed(c, c.op("Split", x, n_out=count, axis=c.attr("axis"), num_outputs=count), count)


@converter("_split_v2")
def _split_v2(c: Context, x: str) -> list[str]:
    size = c.shape()[c.attr("axis")]
    if size == -1:
        raise c.refuse("it splits an axis that depends on the batch size")
    sizes = split_sizes(c.node, size)
    return _squeezed(c, c.op("Split", x, c.const(sizes, "sizes"), n_out=len(sizes), axis=c.attr("axis")), len(sizes))


def _squeezed(c: Context, parts: str | list[str], count: int) -> list[str]:
    found = [parts] if isinstance(parts, str) else parts
    axis = c.const([c.attr("axis")], "axis")
    return [c.op("Squeeze", part, axis) for part in found] if c.attr("squeeze_axis") else found


# ---- joins and copies -----------------------------------------------------------------------------------------------

@converter("Concat")
def _concat(c: Context, *inputs: str) -> str:
    return c.op("Concat", *inputs, axis=c.attr("dim"))


@converter("stack")
def _stack(c: Context, *inputs: str) -> str:
    axis = c.const([c.attr("axis")], "axis")
    return c.op("Concat", *(c.op("Unsqueeze", x, axis) for x in inputs), axis=c.attr("axis"))


@converter("tile")
def _tile(c: Context, x: str) -> str:
    """Tile; the shorter of shape and repetitions gets ones in front."""
    rank, reps = len(c.shape()), list(c.attr("reps"))
    if len(reps) > rank:
        x = c.op("Unsqueeze", x, c.const(list(range(len(reps) - rank)), "axes"))
    return c.op("Tile", x, c.const([1] * (rank - len(reps)) + reps, "reps"))


@converter("repeat")
def _repeat(c: Context, x: str) -> str:
    """Each element by itself: an axis of copies behind the axis, merged into it."""
    axes, out = c.attr("axis"), c.out_shape()
    if not axes:
        x, rank, axis = c.reshape(x, (-1,)), 1, 0
    else:
        rank = len(c.shape())
        axis = axis_of(c.node, axes[0], rank)
    reps = [1] * (rank + 1)
    reps[axis + 1] = c.attr("repeats")
    return c.reshape(c.op("Tile", c.op("Unsqueeze", x, c.const([axis + 1], "axes")), c.const(reps, "reps")), out)


@converter("broadcast_axis")
def _broadcast_axis(c: Context, x: str) -> str:
    target = [1] * len(c.shape())
    for axis, size in zip(c.attr("axis"), c.attr("size")):
        target[axis] = size
    return c.op("Expand", x, c.const(target, "shape"))


@converter("broadcast_to")
def _broadcast_to(c: Context, x: str) -> str:
    return c.op("Expand", x, c.const([d or 1 for d in c.attr("shape")], "shape"))


@converter("broadcast_like")
def _broadcast_like(c: Context, x: str, like: str) -> str:
    left, right = c.attr("lhs_axes"), c.attr("rhs_axes")
    if not left:
        return c.op("Expand", x, c.op("Shape", like))
    rank, other = len(c.shape()), len(c.shape(1))
    parts = [c.const([1], "one")] * rank
    for a, b in zip(left, right):
        axis = axis_of(c.node, b, other)
        parts[a] = dims(c, like, axis, axis + 1)
    return c.op("Expand", x, c.op("Concat", *parts, axis=0))


@converter("where")
def _where(c: Context, condition: str, x: str, y: str) -> str:
    """Where; a condition of one axis chooses along axis 0."""
    if c.knows(0) and len(c.shape(0)) == 1 and len(c.shape(1)) > 1:
        condition = c.reshape(condition, (-1, *[1] * (len(c.shape(1)) - 1)))
    return c.op("Where", c.op("Cast", condition, to=BOOL), x, y)


# ---- shapes and constants -------------------------------------------------------------------------------------------

@converter("shape_array")
def _shape_array(c: Context, x: str) -> str:
    return to_float(c, c.op("Shape", x))


@converter("size_array")
def _size_array(c: Context, x: str) -> str:
    return c.reshape(to_float(c, c.op("Size", x)), (1,))


@converter("zeros_like", "ones_like")
def _like(c: Context, x: str) -> str:
    return c.op("Expand", scalar(c, float(c.node.op == "ones_like")), c.op("Shape", x))


@converter("_zeros", "_ones", "_full")
def _filled(c: Context) -> str:
    value = c.attr("value") if c.node.op == "_full" else float(c.node.op == "_ones")
    return c.const(np.full(_positive(c, c.attr("shape")), value, np.float32))


def _positive(c: Context, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or min(shape) < 1:
        raise c.refuse(f"found shape {shape}, which only its reader knows")
    return shape


@converter("_arange")
def _arange(c: Context) -> str:
    (length,) = c.out_shape()
    start, _, step = arange_of(c.node)
    return c.const(_range(length, start, step, c.attr("repeat")))


def _range(length: int, start: float, step: float, repeat: int) -> np.ndarray:
    return np.float32(start) + (np.arange(length) // repeat).astype(np.float32) * np.float32(step)


@converter("_contrib_arange_like")
def _arange_like(c: Context, x: str) -> str:
    shape = c.out_shape()
    if -1 in shape:
        raise c.refuse("its length depends on the batch size")
    return c.const(_range(int(np.prod(shape)), c.attr("start"), c.attr("step"), c.attr("repeat")).reshape(shape))
