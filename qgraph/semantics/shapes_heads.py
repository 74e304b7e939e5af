"""Shape rules of ops that heads and decoders are made of; `qgraph.semantics.shapes` has those of layers.

A rule gives [] where the shape cannot be known from shapes alone.
"""

from __future__ import annotations

import math

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, axis_of, need
from qgraph.semantics.shapes import RULES, rule

_WORDS = ("equal", "not_equal", "greater", "greater_equal", "lesser", "lesser_equal", "logical_and", "logical_or",
          "logical_xor", "mod", "hypot")


# ---- element by element ---------------------------------------------------------------------------------------------

@rule("log", "log2", "log10", "log1p", "expm1", "rsqrt", "cbrt", "rcbrt", "square", "reciprocal", "sign", "floor",
      "ceil", "round", "rint", "trunc", "fix", "negative", "erf", "sin", "cos", "tan", "arcsin", "arccos", "arctan",
      "sinh", "cosh", "arcsinh", "arccosh", "arctanh", "logical_not", "smooth_l1", "_rpower_scalar", "_rmod_scalar",
      "ones_like", "zeros_like", *(f"_{word}_scalar" for word in _WORDS))
def _same(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


rule("_maximum", "_minimum", "_power", *(f"_{word}" for word in _WORDS))(RULES["elemwise_add"])
rule("broadcast_maximum", "broadcast_minimum", "broadcast_power",
     *(f"broadcast_{word}" for word in _WORDS))(RULES["broadcast_add"])
rule("min", "prod")(RULES["sum"])


@rule("where")
def _where(node: Node, shapes: list[Shape]) -> Shape:
    condition, x, y = shapes
    need(node, x == y and condition in (x, x[:1]), "shapes", shapes, "equal ones, or a condition for axis 0")
    return x


@rule("reverse")
def _reverse(node: Node, shapes: list[Shape]) -> Shape:
    for axis in ops.attr(node, "axis"):
        axis_of(node, axis, len(shapes[0]))
    return shapes[0]


# ---- joins and splits -----------------------------------------------------------------------------------------------

@rule("stack")
def _stack(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(set(shapes)) == 1, "shapes", shapes, "equal ones")
    axis = axis_of(node, ops.attr(node, "axis"), len(shapes[0]) + 1)
    return (*shapes[0][:axis], len(shapes), *shapes[0][axis:])


@rule("_split_v2")
def _split_v2(node: Node, shapes: list[Shape]) -> list[Shape]:
    shape, axis = shapes[0], axis_of(node, ops.attr(node, "axis"), len(shapes[0]))
    sizes = split_sizes(node, shape[axis])
    squeeze = ops.attr(node, "squeeze_axis")
    need(node, len(sizes) == node.n_out and min(sizes) > 0 and (not squeeze or set(sizes) == {1}), "parts", sizes,
         f"{node.n_out} parts" + " of 1" * squeeze)
    return [(*shape[:axis], *(() if squeeze else (size,)), *shape[axis + 1:]) for size in sizes]


def split_sizes(node: Node, size: int) -> list[int]:
    """Sizes of the parts that _split_v2 makes of an axis."""
    sections, begins = ops.attr(node, "sections"), list(ops.attr(node, "indices"))
    if sections:
        need(node, size % sections == 0, "sections", sections, f"a divisor of {size}")
        return [size // sections] * sections
    need(node, begins, "indices", begins, "where the parts begin")
    return [end - begin for begin, end in zip(begins, [*begins[1:], size])]


# ---- copies ---------------------------------------------------------------------------------------------------------

@rule("tile")
def _tile(node: Node, shapes: list[Shape]) -> Shape:
    reps = ops.attr(node, "reps")
    rank = max(len(reps), len(shapes[0]))
    left, right = ((1,) * (rank - len(s)) + tuple(s) for s in (shapes[0], reps))
    return tuple(a * b for a, b in zip(left, right))


@rule("repeat")
def _repeat(node: Node, shapes: list[Shape]) -> Shape:
    count, axes = ops.attr(node, "repeats"), ops.attr(node, "axis")
    if not axes:
        return (math.prod(shapes[0]) * count,)
    axis = axis_of(node, axes[0], len(shapes[0]))
    return (*shapes[0][:axis], shapes[0][axis] * count, *shapes[0][axis + 1:])


@rule("broadcast_axis")
def _broadcast_axis(node: Node, shapes: list[Shape]) -> Shape:
    out, axes, sizes = list(shapes[0]), ops.attr(node, "axis"), ops.attr(node, "size")
    need(node, len(axes) == len(sizes), "size", sizes, f"one for each of {axes}")
    for axis, size in zip(axes, sizes):
        axis = axis_of(node, axis, len(out))
        need(node, shapes[0][axis] == 1, f"axis {axis} of", shapes[0], 1)
        out[axis] = size
    return tuple(out)


@rule("broadcast_to")
def _broadcast_to(node: Node, shapes: list[Shape]) -> Shape:
    target = ops.attr(node, "shape")
    need(node, len(target) == len(shapes[0]) and all(t in (0, d) or d == 1 for t, d in zip(target, shapes[0])),
         "shape", target, f"one that {shapes[0]} broadcasts to")
    return tuple(t or d for t, d in zip(target, shapes[0]))


@rule("broadcast_like")
def _broadcast_like(node: Node, shapes: list[Shape]) -> Shape:
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


@rule("reshape_like")
def _reshape_like(node: Node, shapes: list[Shape]) -> Shape:
    (a, b), (i, j) = (like_range(node, side, len(shape)) for side, shape in zip(("lhs", "rhs"), shapes))
    out = (*shapes[0][:a], *shapes[1][i:j], *shapes[0][b:])
    need(node, math.prod(out) == math.prod(shapes[0]), "shapes", shapes, "as many elements")
    return out


def like_range(node: Node, side: str, rank: int) -> tuple[int, int]:
    """The axes of one input that reshape_like exchanges, as begin and end."""
    ends = [ops.attr(node, f"{side}_{key}") for key in ("begin", "end")]
    begin, end = (e[0] if e and e[0] is not None else default for e, default in zip(ends, (0, rank)))
    return begin + rank * (begin < 0), end + rank * (end < 0)


@rule("depth_to_space", "space_to_depth")
def _space_depth(node: Node, shapes: list[Shape]) -> Shape:
    n, c, h, w = shapes[0]
    block = ops.attr(node, "block_size")
    if node.op == "depth_to_space":
        need(node, block > 0 and c % block ** 2 == 0, "channels", c, f"a multiple of {block}**2")
        return (n, c // block ** 2, h * block, w * block)
    need(node, block > 0 and h % block == w % block == 0, "data", shapes[0], f"sides that {block} divides")
    return (n, c * block ** 2, h // block, w // block)


# ---- made values ----------------------------------------------------------------------------------------------------

@rule("_ones", "_zeros", "_full")
def _filled(node: Node, shapes: list[Shape]) -> Shape | list[Shape]:
    shape = tuple(ops.attr(node, "shape"))
    return shape if shape and min(shape) > 0 else []  # 0: MXNet takes the shape that a reader wants


@rule("_arange")
def _arange(node: Node, shapes: list[Shape]) -> Shape | list[Shape]:
    start, stop, step = arange_of(node)
    if ops.attr(node, "infer_range") and ops.attr(node, "stop") == "None":
        return []  # MXNet takes the length that a reader wants
    need(node, step != 0 and (stop - start) / step > 0, "start, stop, step", (start, stop, step), "some numbers")
    return (math.ceil((stop - start) / step) * ops.attr(node, "repeat"),)


def arange_of(node: Node) -> tuple[float, float, float]:
    """start, stop, step of an _arange; one number alone is the stop."""
    start, stop, step = (ops.attr(node, key) for key in ("start", "stop", "step"))
    return (0.0, start, step) if stop == "None" else (start, float(stop), step)


@rule("_contrib_arange_like")
def _arange_like(node: Node, shapes: list[Shape]) -> Shape:
    axes = ops.attr(node, "axis")
    return (shapes[0][axis_of(node, axes[0], len(shapes[0]))],) if axes else shapes[0]


@rule("shape_array")
def _shape_array(node: Node, shapes: list[Shape]) -> Shape:
    return (len(shapes[0]),)


@rule("size_array")
def _size_array(node: Node, shapes: list[Shape]) -> Shape:
    return (1,)


# ---- indices --------------------------------------------------------------------------------------------------------

@rule("take")
def _take(node: Node, shapes: list[Shape]) -> Shape:
    axis = axis_of(node, ops.attr(node, "axis"), len(shapes[0]))
    return (*shapes[0][:axis], *shapes[1], *shapes[0][axis + 1:])


@rule("Embedding")
def _embedding(node: Node, shapes: list[Shape]) -> Shape:
    want = (ops.attr(node, "input_dim"), ops.attr(node, "output_dim"))
    need(node, shapes[1] == want, "weight", shapes[1], want)
    return (*shapes[0], want[1])


@rule("pick")
def _pick(node: Node, shapes: list[Shape]) -> Shape:
    return _without(shapes[0], one_axis(node, len(shapes[0])), ops.attr(node, "keepdims"))


@rule("argmax", "argmin")
def _argmax(node: Node, shapes: list[Shape]) -> Shape:
    keep, rank = ops.attr(node, "keepdims"), len(shapes[0])
    if not ops.attr(node, "axis"):
        return (1,) * rank if keep else (1,)
    return _without(shapes[0], one_axis(node, rank), keep)


def one_axis(node: Node, rank: int) -> int:
    """The axis of an op that works along one."""
    axes = ops.attr(node, "axis")
    need(node, len(axes) == 1, "axis", axes, "one axis")
    return axis_of(node, axes[0], rank)


def _without(shape: Shape, axis: int, keep: bool) -> Shape:
    return (*shape[:axis], *((1,) if keep else ()), *shape[axis + 1:]) or (1,)


@rule("gather_nd")
def _gather_nd(node: Node, shapes: list[Shape]) -> Shape:
    data, indices = shapes
    need(node, indices[0] <= len(data), "indices", indices, f"at most {len(data)} in axis 0")
    return (*indices[1:], *data[indices[0]:]) or (1,)


@rule("one_hot")
def _one_hot(node: Node, shapes: list[Shape]) -> Shape:
    return (*shapes[0], ops.attr(node, "depth"))


@rule("topk", "sort", "argsort")
def _sorted(node: Node, shapes: list[Shape]) -> Shape | list[Shape]:
    shape: Shape = shapes[0] if ops.attr(node, "axis") else (math.prod(shapes[0]),)
    axis = one_axis(node, len(shape)) if ops.attr(node, "axis") else 0
    if node.op != "topk" or ops.attr(node, "ret_typ") == "mask":
        return shapes[0] if node.op == "topk" else shape
    count = ops.attr(node, "k")
    need(node, count <= shape[axis], "k", count, f"at most {shape[axis]}")
    out = (*shape[:axis], count if count > 0 else shape[axis], *shape[axis + 1:])
    return [out, out] if ops.attr(node, "ret_typ") == "both" else out


@rule("_contrib_box_decode")
def _box_decode(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) == 3 and shapes[1] == (1, *shapes[0][1:]) and shapes[0][2] == 4, "shapes", shapes,
         "(N, boxes, 4) and (1, boxes, 4)")
    return shapes[0]


# ---- products and norms ---------------------------------------------------------------------------------------------

@rule("norm")
def _norm(node: Node, shapes: list[Shape]) -> Shape:
    rank, keep = len(shapes[0]), ops.attr(node, "keepdims")
    axes = tuple(axis_of(node, a, rank) for a in ops.attr(node, "axis")) or tuple(range(rank))
    return tuple(1 if i in axes else d for i, d in enumerate(shapes[0]) if keep or i not in axes) or (1,)


@rule("batch_dot")
def _batch_dot(node: Node, shapes: list[Shape]) -> Shape:
    a, b = (_turned(node, side, shape) for side, shape in zip("ab", shapes))
    need(node, len(a) == len(b) >= 3 and a[:-2] == b[:-2] and a[-1] == b[-2], "shapes", shapes, "ones that multiply")
    return (*a[:-1], b[-1])


def _turned(node: Node, side: str, shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2]) if ops.attr(node, f"transpose_{side}") else shape


@rule("dot")
def _dot(node: Node, shapes: list[Shape]) -> Shape:
    """Axes of a but the last (transposed: the first), then axes of b but the first (transposed: the last)."""
    a, b = shapes
    if ops.attr(node, "transpose_a"):
        a = (*a[1:], a[0])
    if ops.attr(node, "transpose_b"):
        b = (b[-1], *b[:-1])
    need(node, a[-1] == b[0], "shapes", shapes, "ones that multiply")
    return (*a[:-1], *b[1:]) or (1,)
