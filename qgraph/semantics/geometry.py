"""Windows, slices and reshape codes: the arithmetic on shapes that shape rules and NumPy kernels share.

One place, so that shapes and values cannot disagree.  No arrays; every function raises GraphError, naming the node,
for attributes that do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qgraph.errors import GraphError
from qgraph.ir import ops
from qgraph.ir.graph import Node

Shape = tuple[int, ...]
MAX_RANK = 32
MAX_WORK = 1 << 28  # elements of an input blown up by its padding, unless the input itself is of that order


def need(node: Node, ok: object, what: str, found: object, want: object) -> None:
    """Raise GraphError ``"<node>: found <what> <found>, want <want>"`` unless `ok`."""
    if not ok:
        raise GraphError(f"{node}: found {what} {found}, want {want}")


def axis_of(node: Node, axis: int, rank: int) -> int:
    """A possibly negative axis, as 0..rank-1."""
    need(node, -rank <= axis < rank, "axis", axis, f"one of {rank} axes")
    return axis % rank


def one_axis(node: Node, rank: int) -> int:
    """The axis of an op that works along one."""
    axes = ops.attr(node, "axis")
    need(node, len(axes) == 1, "axis", axes, "one axis")
    return axis_of(node, axes[0], rank)


def spatial_attrs(node: Node, rank: int) -> tuple[Shape, Shape, Shape, Shape]:
    """kernel, stride, dilate, pad of a (de)convolution or a pooling over `rank` axes; checked."""
    kernel, stride, pad = (ops.attr(node, key) for key in ("kernel", "stride", "pad"))
    dilate = ops.attr(node, "dilate") if "dilate" in ops.info(node.op).defaults else (1,) * rank
    for key, value, low in (("kernel", kernel, 1), ("stride", stride, 1), ("dilate", dilate, 1), ("pad", pad, 0)):
        need(node, len(value) == rank and all(isinstance(v, int) and low <= v < 1 << 31 for v in value),
             key, value, f"{rank} whole numbers of at least {low}")
    return kernel, stride, dilate, pad


def conv_output(node: Node, spatial: Shape) -> Shape:
    """Spatial output shape of a Convolution."""
    kernel, stride, dilate, pad = spatial_attrs(node, len(spatial))
    return tuple((i + 2 * p - d * (k - 1) - 1) // s + 1
                 for i, k, s, d, p in zip(spatial, kernel, stride, dilate, pad))


def deconv_geometry(node: Node, spatial: Shape) -> tuple[Shape, Shape, Shape]:
    """pad, adj, spatial output shape of a Deconvolution; `target_shape` decides pad and adj if it is given."""
    kernel, stride, dilate, pad = spatial_attrs(node, len(spatial))
    adj, target = ops.attr(node, "adj") or (0,) * len(spatial), ops.attr(node, "target_shape")
    full = tuple(s * (i - 1) + d * (k - 1) + 1 for i, k, s, d in zip(spatial, kernel, stride, dilate))
    if target and any(target):
        surplus = tuple(f - t for f, t in zip(full, target))
        need(node, len(target) == len(spatial) and min(surplus) >= 0, "target_shape", target, f"at most {full}")
        pad, adj = tuple((v + 1) // 2 for v in surplus), tuple(v % 2 for v in surplus)
    need(node, len(adj) == len(spatial) and all(0 <= a < s for a, s in zip(adj, stride)), "adj", adj,
         f"{len(spatial)} numbers below the stride {stride}")
    return pad, adj, tuple(f - 2 * p + a for f, p, a in zip(full, pad, adj))


def pool_geometry(node: Node, spatial: Shape) -> tuple[Shape, Shape, Shape, Shape]:
    """kernel, stride, pad, spatial output shape of a Pooling."""
    if ops.attr(node, "global_pool"):
        ones = (1,) * len(spatial)
        return spatial, ones, (0,) * len(spatial), ones
    kernel, stride, _, pad = spatial_attrs(node, len(spatial))
    convention = ops.attr(node, "pooling_convention")
    need(node, convention in ("valid", "full", "same"), "pooling_convention", convention, "valid, full or same")
    room = [i + 2 * p - k for i, k, p in zip(spatial, kernel, pad)]
    need(node, all(k <= i + 2 * p for i, k, p in zip(spatial, kernel, pad)), "kernel", kernel,
         f"one inside the padded {spatial}")
    need(node, math.prod(kernel) <= max(1 << 12, 16 * math.prod(spatial)), "kernel", kernel,
         f"one of the order of {spatial}")
    if convention == "valid":
        return kernel, stride, pad, tuple(r // s + 1 for r, s in zip(room, stride))
    if convention == "full":
        return kernel, stride, pad, tuple(-(-r // s) + 1 for r, s in zip(room, stride))
    return kernel, stride, pad, tuple(-(-(i + 2 * p) // s) for i, p, s in zip(spatial, pad, stride))


def check_work(node: Node, data: Shape, spatial: Sequence[int]) -> None:
    """Refuse what would make a kernel allocate far more than the data hold, such as a pad of a million."""
    need(node, math.prod(data[:2]) * math.prod(spatial) <= max(MAX_WORK, 4 * math.prod(data)), "padded shape",
         (*data[:2], *spatial), f"at most 2**28 elements for data of {data}")


def reshape_target(node: Node, shape: Shape) -> Shape:
    """Result of MXNet's Reshape: 0 copies a dimension, -1 is inferred, -2 copies the rest, -3 merges two, -4 splits."""
    codes, source = list(ops.attr(node, "shape")), list(shape)
    reverse = ops.attr(node, "reverse")
    need(node, 0 < len(codes) <= 2 * MAX_RANK and all(isinstance(c, int) for c in codes)
         and not (reverse and -4 in codes), "shape", tuple(codes), "whole numbers, no -4 together with reverse")
    if reverse:
        codes, source = codes[::-1], source[::-1]
    out: list[int] = []
    position = 0

    def take(count: int) -> list[int]:
        nonlocal position
        need(node, position + count <= len(source), "shape", tuple(codes), f"codes that fit an input of {shape}")
        position += count
        return source[position - count:position]

    index = 0
    while index < len(codes):
        code = codes[index]
        if code == 0:
            out += take(1)
        elif code == -2:
            out += take(len(source) - position)
        elif code == -3:
            out.append(math.prod(take(2)))
        elif code == -4:
            need(node, index + 2 < len(codes), "shape", tuple(codes), "two numbers behind each -4")
            (whole,), parts = take(1), codes[index + 1:index + 3]
            known = max(1, -math.prod(parts)) if -1 in parts else 0
            out += [whole // known if p == -1 else p for p in parts]
            need(node, math.prod(out[-2:]) == whole, "shape", tuple(codes), f"a split of {whole}")
            index += 2
        else:
            need(node, code >= -1, "shape code", code, "-4 or more")
            out.append(code)
            position = min(position + 1, len(source))
        index += 1
    if -1 in out:
        need(node, out.count(-1) == 1, "shape", tuple(codes), "at most one -1")
        out[out.index(-1)] = math.prod(shape) // max(1, -math.prod(out))
    need(node, math.prod(out) == math.prod(shape) and min(out) > 0, "shape", tuple(codes),
         f"{math.prod(shape)} elements, as the input {shape} has")
    return tuple(out[::-1] if reverse else out)


def like_range(node: Node, side: str, rank: int) -> tuple[int, int]:
    """The axes of one input that reshape_like exchanges, as begin and end."""
    ends = [ops.attr(node, f"{side}_{key}") for key in ("begin", "end")]
    begin, end = (e[0] if e and e[0] is not None else default for e, default in zip(ends, (0, rank)))
    return begin + rank * (begin < 0), end + rank * (end < 0)


def slices(node: Node, shapes: list[Shape]) -> tuple[slice, ...]:
    """What `slice`, `slice_axis`, `slice_like` and `Crop` cut out of their first input."""
    shape = shapes[0]
    cut = [slice(None)] * len(shape)
    if node.op == "slice":
        begin, end, step = (ops.attr(node, key) for key in ("begin", "end", "step"))
        need(node, len(begin) == len(end) <= len(shape) and 0 not in step, "begin/end/step", (begin, end, step),
             f"as many of each, at most {len(shape)}")
        for i, (b, e) in enumerate(zip(begin, end)):
            cut[i] = slice(b, e, step[i] if i < len(step) else None)
    elif node.op == "slice_axis":
        end = ops.parse_tuple(ops.attr(node, "end"))
        cut[axis_of(node, ops.attr(node, "axis"), len(shape))] = slice(ops.attr(node, "begin"), end[0] if end else None)
    elif node.op == "slice_like":
        for a in ops.attr(node, "axes") or range(len(shape)):
            need(node, len(shape) == len(shapes[1]) or -len(shapes[1]) <= a < len(shapes[1]), "shape_like", shapes[1],
                 f"an axis {a}")
            cut[axis_of(node, a, len(shape))] = slice(0, shapes[1][a])
    else:  # Crop: the last two axes, to the size of the second input or of h_w
        need(node, len(shape) == 4, "data", shape, "4 axes")
        size = shapes[1][2:] if len(shapes) > 1 else ops.attr(node, "h_w")
        offset = ops.attr(node, "offset")
        if ops.attr(node, "center_crop"):
            offset = tuple((i - n) // 2 for i, n in zip(shape[2:], size))
        need(node, len(size) == len(offset) == 2 and all(o >= 0 and o + n <= i for o, n, i in
                                                         zip(offset, size, shape[2:])),
             "crop", (offset, size), f"one inside {shape}")
        cut[2:] = [slice(o, o + n) for o, n in zip(offset, size)]
    return tuple(cut)


def split_sizes(node: Node, size: int) -> list[int]:
    """Sizes of the parts that _split_v2 makes of an axis."""
    sections, begins = ops.attr(node, "sections"), list(ops.attr(node, "indices"))
    if sections:
        need(node, size % sections == 0, "sections", sections, f"a divisor of {size}")
        return [size // sections] * sections
    need(node, begins, "indices", begins, "where the parts begin")
    return [end - begin for begin, end in zip(begins, [*begins[1:], size])]


def reduced_axes(node: Node, rank: int) -> Shape:
    """Axes that sum, mean or max runs over; none given means all."""
    axes = tuple(axis_of(node, a, rank) for a in ops.attr(node, "axis")) or tuple(range(rank))
    if ops.attr(node, "exclude") and ops.attr(node, "axis"):
        axes = tuple(a for a in range(rank) if a not in axes)
    return axes


_RESIZED: dict[str, Callable[[int, float], int]] = {  # mode -> size of an axis and its factor -> its new size
    "size": lambda size, factor: int(size * factor),
    "odd_scale": lambda size, factor: int((size - size % 2) * factor) + size % 2,
    "to_even_down": lambda size, factor: size - size % 2,
    "to_even_up": lambda size, factor: size + size % 2,
    "to_odd_down": lambda size, factor: size - (size + 1) % 2,
    "to_odd_up": lambda size, factor: size + (size + 1) % 2,
}


def resize_output(node: Node, *spatial: Shape) -> Shape:
    """Height and width of an adaptive pooling or a bilinear resize. spatial: those of its inputs."""
    if node.op == "_contrib_AdaptiveAvgPooling2D":
        size = ops.attr(node, "output_size") or (1,)
        return (size * 2)[:2] if len(size) == 1 else size
    mode, sides = ops.attr(node, "mode"), ("height", "width")
    need(node, mode in (*_RESIZED, "like"), "mode", mode, f"like or one of {', '.join(_RESIZED)}")
    if mode == "like":
        need(node, len(spatial) == 2, "number of inputs", len(spatial), "2 for mode like")
        return spatial[1]
    factors = [ops.attr(node, f"scale_{side}") or 0.0 for side in sides]
    need(node, all(0 <= f < 1 << 31 for f in factors), "scale", factors, "finite factors")
    return tuple(ops.attr(node, side) if mode == "size" and not factor else _RESIZED[mode](size, factor)
                 for size, factor, side in zip(spatial[0], factors, sides))


def arange_of(node: Node) -> tuple[float, float, float]:
    """start, stop, step of an _arange; one number alone is the stop."""
    start, stop, step = (ops.attr(node, key) for key in ("start", "stop", "step"))
    return (0.0, start, step) if stop is None else (start, stop, step)
