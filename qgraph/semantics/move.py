"""Ops that move values: joins and splits, other shapes, parts, copies."""

from __future__ import annotations

import math

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, axis_of, like_range, need, reshape_target, slices, split_sizes
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel

# ---- joins and splits -----------------------------------------------------------------------------------------------

@rule("Concat")
def _concat_shape(node: Node, shapes: list[Shape]) -> Shape:
    axis = axis_of(node, ops.attr(node, "dim"), len(shapes[0]))
    rest = {s[:axis] + s[axis + 1:] for s in shapes}
    need(node, len(rest) == 1 and len({len(s) for s in shapes}) == 1, "shapes", shapes, f"equal ones but for {axis}")
    return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1:])


@kernel("Concat")
def _concat(node: Node, *xs: np.ndarray) -> np.ndarray:
    return np.concatenate(xs, ops.attr(node, "dim"))


@rule("stack")
def _stack_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(set(shapes)) == 1, "shapes", shapes, "equal ones")
    axis = axis_of(node, ops.attr(node, "axis"), len(shapes[0]) + 1)
    return (*shapes[0][:axis], len(shapes), *shapes[0][axis:])


@kernel("stack")
def _stack(node: Node, *xs: np.ndarray) -> np.ndarray:
    return np.stack(xs, ops.attr(node, "axis"))


@rule("SliceChannel")
def _slice_channel_shape(node: Node, shapes: list[Shape]) -> list[Shape]:
    axis, count = axis_of(node, ops.attr(node, "axis"), len(shapes[0])), ops.attr(node, "num_outputs")
    size = shapes[0][axis]
    need(node, count == node.n_out and size % count == 0, "num_outputs", count, f"{node.n_out}, a divisor of {size}")
    need(node, not ops.attr(node, "squeeze_axis") or size == count, "squeeze_axis", True, f"{size} outputs")
    middle = () if ops.attr(node, "squeeze_axis") else (size // count,)
    return [(*shapes[0][:axis], *middle, *shapes[0][axis + 1:])] * count


@kernel("SliceChannel")
def _slice_channel(node: Node, x: np.ndarray) -> list[np.ndarray]:
    axis = axis_of(node, ops.attr(node, "axis"), x.ndim)
    parts = np.split(x, ops.attr(node, "num_outputs"), axis)
    return [part.squeeze(axis) for part in parts] if ops.attr(node, "squeeze_axis") else parts


@rule("_split_v2")
def _split_v2_shape(node: Node, shapes: list[Shape]) -> list[Shape]:
    shape, axis = shapes[0], axis_of(node, ops.attr(node, "axis"), len(shapes[0]))
    sizes = split_sizes(node, shape[axis])
    squeeze = ops.attr(node, "squeeze_axis")
    need(node, len(sizes) == node.n_out and min(sizes) > 0 and (not squeeze or set(sizes) == {1}), "parts", sizes,
         f"{node.n_out} parts" + " of 1" * squeeze)
    return [(*shape[:axis], *(() if squeeze else (size,)), *shape[axis + 1:]) for size in sizes]


@kernel("_split_v2")
def _split_v2(node: Node, x: np.ndarray) -> list[np.ndarray]:
    axis = axis_of(node, ops.attr(node, "axis"), x.ndim)
    parts = np.split(x, np.cumsum(split_sizes(node, x.shape[axis]))[:-1], axis)
    return [part.squeeze(axis) for part in parts] if ops.attr(node, "squeeze_axis") else parts


# ---- other shapes ---------------------------------------------------------------------------------------------------

@rule("Flatten")
def _flatten_shape(node: Node, shapes: list[Shape]) -> Shape:
    return (shapes[0][0], math.prod(shapes[0][1:]))


@kernel("Flatten")
def _flatten(node: Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


@rule("Reshape")
def _reshape_shape(node: Node, shapes: list[Shape]) -> Shape:
    return reshape_target(node, shapes[0])


@kernel("Reshape")
def _reshape(node: Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(reshape_target(node, x.shape))


@rule("reshape_like")
def _reshape_like_shape(node: Node, shapes: list[Shape]) -> Shape:
    return _reshaped(node, *shapes)


def _reshaped(node: Node, shape: Shape, like: Shape) -> Shape:
    (a, b), (i, j) = like_range(node, "lhs", len(shape)), like_range(node, "rhs", len(like))
    out = (*shape[:a], *like[i:j], *shape[b:])
    need(node, math.prod(out) == math.prod(shape), "shapes", (shape, like), "as many elements")
    return out


@kernel("reshape_like")
def _reshape_like(node: Node, x: np.ndarray, like: np.ndarray) -> np.ndarray:
    return x.reshape(_reshaped(node, x.shape, like.shape))


@rule("transpose")
def _transpose_shape(node: Node, shapes: list[Shape]) -> Shape:
    rank = len(shapes[0])
    axes = ops.attr(node, "axes") or tuple(range(rank))[::-1]
    need(node, sorted(axis_of(node, a, rank) for a in axes) == list(range(rank)), "axes", axes, f"{rank} axes")
    return tuple(shapes[0][a] for a in axes)


@kernel("transpose")
def _transpose(node: Node, x: np.ndarray) -> np.ndarray:
    return x.transpose(ops.attr(node, "axes") or None)


@rule("SwapAxis")
def _swap_axis_shape(node: Node, shapes: list[Shape]) -> Shape:
    out, rank = list(shapes[0]), len(shapes[0])
    a, b = (axis_of(node, ops.attr(node, key), rank) for key in ("dim1", "dim2"))
    out[a], out[b] = out[b], out[a]
    return tuple(out)


@kernel("SwapAxis")
def _swap_axis(node: Node, x: np.ndarray) -> np.ndarray:
    return x.swapaxes(ops.attr(node, "dim1"), ops.attr(node, "dim2"))


@rule("expand_dims")
def _expand_dims_shape(node: Node, shapes: list[Shape]) -> Shape:
    axis = axis_of(node, ops.attr(node, "axis"), len(shapes[0]) + 1)
    return (*shapes[0][:axis], 1, *shapes[0][axis:])


@kernel("expand_dims")
def _expand_dims(node: Node, x: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, ops.attr(node, "axis"))


@rule("squeeze")
def _squeeze_shape(node: Node, shapes: list[Shape]) -> Shape:
    rank = len(shapes[0])
    axes = [axis_of(node, a, rank) for a in ops.attr(node, "axis")] or [i for i in range(rank) if shapes[0][i] == 1]
    need(node, all(shapes[0][a] == 1 for a in axes), "squeezed shape", shapes[0], f"1 in axes {axes}")
    return tuple(d for i, d in enumerate(shapes[0]) if i not in axes) or (1,)


@kernel("squeeze")
def _squeeze(node: Node, x: np.ndarray) -> np.ndarray:
    return np.atleast_1d(np.squeeze(x, ops.attr(node, "axis") or None))


@rule("depth_to_space", "space_to_depth")
def _space_depth_shape(node: Node, shapes: list[Shape]) -> Shape:
    n, c, h, w = shapes[0]
    block = ops.attr(node, "block_size")
    if node.op == "depth_to_space":
        need(node, block > 0 and c % block ** 2 == 0, "channels", c, f"a multiple of {block}**2")
        return (n, c // block ** 2, h * block, w * block)
    need(node, block > 0 and h % block == w % block == 0, "data", shapes[0], f"sides that {block} divides")
    return (n, c * block ** 2, h // block, w // block)


@kernel("depth_to_space", "space_to_depth")
def _space_depth(node: Node, x: np.ndarray) -> np.ndarray:
    """The offsets in a block are in front of the channels."""
    n, c, h, w = x.shape
    block = ops.attr(node, "block_size")
    if node.op == "depth_to_space":
        parts = x.reshape(n, block, block, c // block ** 2, h, w)
        return parts.transpose(0, 3, 4, 1, 5, 2).reshape(n, c // block ** 2, h * block, w * block)
    parts = x.reshape(n, c, h // block, block, w // block, block)
    return parts.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * block ** 2, h // block, w // block)


@rule("reverse")
def _reverse_shape(node: Node, shapes: list[Shape]) -> Shape:
    for axis in ops.attr(node, "axis"):
        axis_of(node, axis, len(shapes[0]))
    return shapes[0]


@kernel("reverse")
def _reverse(node: Node, x: np.ndarray) -> np.ndarray:
    return np.flip(x, ops.attr(node, "axis"))


# ---- parts and copies -----------------------------------------------------------------------------------------------

@rule("slice", "slice_axis", "slice_like", "Crop")
def _slice_shape(node: Node, shapes: list[Shape]) -> Shape:
    return tuple(len(range(*cut.indices(d))) for cut, d in zip(slices(node, shapes), shapes[0]))


@kernel("slice", "slice_axis", "slice_like", "Crop")
def _slice(node: Node, *xs: np.ndarray) -> np.ndarray:
    return xs[0][slices(node, [x.shape for x in xs])]


@rule("Pad")
def _pad_shape(node: Node, shapes: list[Shape]) -> Shape:
    width = ops.attr(node, "pad_width")
    need(node, len(width) == 2 * len(shapes[0]) and min(width) >= 0, "pad_width", width,
         f"{2 * len(shapes[0])} numbers of at least 0")
    return tuple(d + a + b for d, a, b in zip(shapes[0], width[::2], width[1::2]))


@kernel("Pad")
def _pad(node: Node, x: np.ndarray) -> np.ndarray:
    mode, width = ops.attr(node, "mode"), ops.attr(node, "pad_width")
    pairs = list(zip(width[::2], width[1::2]))
    if mode == "constant":
        return np.pad(x, pairs, constant_values=np.float32(ops.attr(node, "constant_value")))
    if mode not in ("edge", "reflect"):
        raise UnsupportedError(f"{node}: found mode {mode!r}, want constant, edge or reflect")
    return np.pad(x, pairs, mode)


@rule("tile")
def _tile_shape(node: Node, shapes: list[Shape]) -> Shape:
    reps = ops.attr(node, "reps")
    rank = max(len(reps), len(shapes[0]))
    left, right = ((1,) * (rank - len(s)) + tuple(s) for s in (shapes[0], reps))
    return tuple(a * b for a, b in zip(left, right))


@kernel("tile")
def _tile(node: Node, x: np.ndarray) -> np.ndarray:
    return np.tile(x, ops.attr(node, "reps"))


@rule("repeat")
def _repeat_shape(node: Node, shapes: list[Shape]) -> Shape:
    count, axes = ops.attr(node, "repeats"), ops.attr(node, "axis")
    if not axes:
        return (math.prod(shapes[0]) * count,)
    axis = axis_of(node, axes[0], len(shapes[0]))
    return (*shapes[0][:axis], shapes[0][axis] * count, *shapes[0][axis + 1:])


@kernel("repeat")
def _repeat(node: Node, x: np.ndarray) -> np.ndarray:
    axes = ops.attr(node, "axis")
    return np.repeat(x, ops.attr(node, "repeats"), axes[0] if axes else None)


@rule("broadcast_axis")
def _broadcast_axis_shape(node: Node, shapes: list[Shape]) -> Shape:
    out, axes, sizes = list(shapes[0]), ops.attr(node, "axis"), ops.attr(node, "size")
    need(node, len(axes) == len(sizes), "size", sizes, f"one for each of {axes}")
    for axis, size in zip(axes, sizes):
        axis = axis_of(node, axis, len(out))
        need(node, shapes[0][axis] == 1, f"axis {axis} of", shapes[0], 1)
        out[axis] = size
    return tuple(out)


@rule("broadcast_to")
def _broadcast_to_shape(node: Node, shapes: list[Shape]) -> Shape:
    target = ops.attr(node, "shape")
    need(node, len(target) == len(shapes[0]) and all(t in (0, d) or d == 1 for t, d in zip(target, shapes[0])),
         "shape", target, f"one that {shapes[0]} broadcasts to")
    return tuple(t or d for t, d in zip(target, shapes[0]))


@rule("broadcast_like")
def _broadcast_like_shape(node: Node, shapes: list[Shape]) -> Shape:
    left, right = (ops.attr(node, key) for key in ("lhs_axes", "rhs_axes"))
    need(node, len(left) == len(right), "axes", (left, right), "as many of each")
    if not left:
        need(node, len(shapes[0]) == len(shapes[1]), "shapes", shapes, "ones of the same rank")
        left = right = tuple(range(len(shapes[0])))
    out = list(shapes[0])
    for a, b in zip(left, right):
        a, size = axis_of(node, a, len(out)), shapes[1][axis_of(node, b, len(shapes[1]))]
        need(node, shapes[0][a] in (1, size), "shapes", shapes, f"1 or {size} in axis {a}")
        out[a] = size
    return tuple(out)


@kernel("broadcast_axis", "broadcast_to", "broadcast_like")
def _broadcast(node: Node, *xs: np.ndarray) -> np.ndarray:
    shape = _BROADCASTS[node.op](node, [x.shape for x in xs])
    assert isinstance(shape, tuple)
    return np.broadcast_to(xs[0], shape).copy()


_BROADCASTS = {"broadcast_axis": _broadcast_axis_shape, "broadcast_to": _broadcast_to_shape,
               "broadcast_like": _broadcast_like_shape}
