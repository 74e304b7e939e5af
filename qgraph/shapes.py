"""Shape inference: one rule per op, integers only, nothing is allocated.

`infer` fills a table Port -> shape in one linear walk.  The geometry functions (windows, slices, reshape codes) are
also what the NumPy kernels of `qgraph.runtimes` use, so shapes and values cannot disagree.

To teach it an op, write a rule::

    @rule("MyOp")
    def my_op(node, shapes):          # shapes of the inputs, in slot order
        return shapes[0]              # the output's shape, or a list of shapes
"""

from __future__ import annotations

import math
from typing import Callable, Mapping, Sequence, Union

from qgraph import ops
from qgraph.errors import GraphError
from qgraph.ir import Graph, Node, Port

Shape = tuple[int, ...]
Rule = Callable[[Node, list[Shape]], Union[Shape, list[Shape]]]

MAX_ELEMENTS = 1 << 31
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a shape rule for these ops."""
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function
    return add


def infer(g: Graph, input_shapes: Mapping[str, Sequence[int]]) -> dict[Port, Shape]:
    """Shape of every output that can be known from the parameters and the shapes of the inputs, by name.

    Outputs of an op without a rule, and what depends on them, are missing.  Raises GraphError, naming the node, where
    shapes contradict each other or the attributes, and for a shape that nobody can mean (a dimension below 1, more
    than 2**31 elements).
    """
    known: dict[Port, Shape] = {}
    for node in g.toposort():
        if node.op == "null":
            shape = g.params[node.name].shape if node.name in g.params else input_shapes.get(node.name)
            if shape is not None:
                known[Port(node)] = tuple(int(d) for d in shape)
                if node.name not in g.params:
                    _check(node, known[Port(node)])
            continue
        inputs = value_inputs(g, node)
        if node.op not in RULES or any(port not in known for port in inputs):
            continue
        shapes = [known[port] for port in inputs]
        try:
            found = RULES[node.op](node, shapes)
        except (TypeError, ValueError, IndexError, ArithmeticError) as error:  # such as a kernel of (1.5, 3)
            raise GraphError(f"{node}: found {node.attrs}, want attributes that fit inputs of {shapes}") from error
        for index, shape in enumerate(found if isinstance(found, list) else [found]):
            _check(node, shape)
            known[Port(node, index)] = shape
    return known


def value_inputs(g: Graph, node: Node) -> list[Port]:
    """The inputs that the node's value depends on at inference: all of them but a training label."""
    names = ops.info(node.op).inputs
    ports = g.inputs(node)
    return ports[:names.index("label")] if "label" in names else ports


def _check(node: Node, shape: Shape) -> None:
    if any(d < 1 for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise GraphError(f"{node}: found shape {shape}, want dimensions of at least 1 and at most 2**31 elements")


def need(node: Node, ok: object, what: str, found: object, want: object) -> None:
    """Raise GraphError ``"<node>: found <what> <found>, want <want>"`` unless `ok`."""
    if not ok:
        raise GraphError(f"{node}: found {what} {found}, want {want}")


# ---- geometry, shared with the kernels ------------------------------------------------------------------------------

def axis_of(node: Node, axis: int, rank: int) -> int:
    """A possibly negative axis, as 0..rank-1."""
    need(node, -rank <= axis < rank, "axis", axis, f"one of {rank} axes")
    return axis % rank


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
    if convention == "valid":
        return kernel, stride, pad, tuple(r // s + 1 for r, s in zip(room, stride))
    if convention == "full":
        return kernel, stride, pad, tuple(-(-r // s) + 1 for r, s in zip(room, stride))
    return kernel, stride, pad, tuple(-(-(i + 2 * p) // s) for i, p, s in zip(spatial, pad, stride))


def reshape_target(node: Node, shape: Shape) -> Shape:
    """Result of MXNet's Reshape: 0 copies a dimension, -1 is inferred, -2 copies the rest, -3 merges two, -4 splits."""
    codes, source = list(ops.attr(node, "shape")), list(shape)
    reverse = ops.attr(node, "reverse")
    need(node, codes and all(isinstance(c, int) for c in codes) and not (reverse and -4 in codes),
         "shape", tuple(codes), "whole numbers, no -4 together with reverse")
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


def reduced_axes(node: Node, rank: int) -> Shape:
    """Axes that sum, mean or max runs over; none given means all."""
    axes = tuple(axis_of(node, a, rank) for a in ops.attr(node, "axis")) or tuple(range(rank))
    if ops.attr(node, "exclude") and ops.attr(node, "axis"):
        axes = tuple(a for a in range(rank) if a not in axes)
    return axes


def resize_output(node: Node, spatial: Shape) -> Shape:
    """Height and width of an adaptive pooling or a bilinear resize."""
    if node.op == "_contrib_AdaptiveAvgPooling2D":
        size = ops.attr(node, "output_size") or (1,)
        return (size * 2)[:2] if len(size) == 1 else size
    need(node, node.attrs.get("mode", "size") == "size", "mode", node.attrs.get("mode"), "size")
    sizes, scales = ("height", "width"), ("scale_height", "scale_width")
    given = [ops.attr(node, key) if node.attrs.get(key, "None") != "None" else 0.0 for key in scales]
    need(node, all(0 <= f < 1 << 31 for f in given), "scale", given, "finite factors")
    return tuple(int(i * f) if f else ops.attr(node, key) for i, f, key in zip(spatial, given, sizes))


def broadcast(node: Node, shapes: list[Shape]) -> Shape:
    """NumPy's broadcasting of two shapes."""
    left, right = ((1,) * (max(map(len, shapes)) - len(s)) + s for s in shapes)
    need(node, all(a == b or 1 in (a, b) for a, b in zip(left, right)), "shapes", f"{shapes[0]} and {shapes[1]}",
         "ones that broadcast")
    return tuple(max(a, b) for a, b in zip(left, right))


# ---- rules ----------------------------------------------------------------------------------------------------------

def _bias(node: Node, shapes: list[Shape], count: int) -> None:
    need(node, 2 <= len(shapes) <= 3, "number of inputs", len(shapes), "data, weight and maybe bias")
    if len(shapes) == 3:
        need(node, shapes[2] == (count,), "bias", shapes[2], (count,))


@rule("Convolution", "Deconvolution")
def _convolution(node: Node, shapes: list[Shape]) -> Shape:
    data, weight = shapes[:2]
    kernel, filters, groups = (ops.attr(node, key) for key in ("kernel", "num_filter", "num_group"))
    need(node, len(data) == len(kernel) + 2 and kernel, "data", data, f"{len(kernel) + 2} axes for kernel {kernel}")
    need(node, groups >= 1 and data[1] % groups == 0 and filters % groups == 0, "num_group", groups,
         f"a divisor of {data[1]} channels and {filters} filters")
    if node.op == "Convolution":
        want, spatial = (filters, data[1] // groups, *kernel), conv_output(node, data[2:])
    else:
        want, spatial = (data[1], filters // groups, *kernel), deconv_geometry(node, data[2:])[2]
    need(node, weight == want, "weight", weight, want)
    _bias(node, shapes, filters)
    return (data[0], filters, *spatial)


@rule("FullyConnected")
def _fully_connected(node: Node, shapes: list[Shape]) -> Shape:
    data, units = shapes[0], ops.attr(node, "num_hidden")
    lead = data[:1] if ops.attr(node, "flatten") else data[:-1]
    want = (units, math.prod(data[len(lead):]))
    need(node, shapes[1] == want, "weight", shapes[1], want)
    _bias(node, shapes, units)
    return (*lead, units)


@rule("Pooling")
def _pooling(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) >= 3, "data", shapes[0], "at least 3 axes")
    return (*shapes[0][:2], *pool_geometry(node, shapes[0][2:])[3])


@rule("fake_quantize", "Activation", "clip", "relu", "sigmoid", "tanh", "exp", "sqrt", "abs", "hard_sigmoid",
      "_plus_scalar", "_minus_scalar", "_rminus_scalar", "_mul_scalar", "_div_scalar", "_rdiv_scalar",
      "_maximum_scalar", "_minimum_scalar", "_power_scalar", "softmax", "log_softmax", "SoftmaxActivation",
      "SoftmaxOutput", "LinearRegressionOutput", "LogisticRegressionOutput", "Dropout", "BlockGrad", "_copy",
      "identity", "make_loss", "Cast", "L2Normalization", "LRN", "LeakyReLU")
def _same(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


@rule("BatchNorm", "InstanceNorm", "LayerNorm")
def _normalization(node: Node, shapes: list[Shape]) -> Shape:
    axis = 1 if node.op == "InstanceNorm" else ops.attr(node, "axis")
    want = (shapes[0][axis_of(node, axis, len(shapes[0]))],)
    for name, shape in zip(ops.info(node.op).inputs[1:], shapes[1:]):
        need(node, shape == want, name, shape, want)
    return shapes[0]


@rule("elemwise_add", "elemwise_sub", "elemwise_mul", "elemwise_div", "add_n")
def _elementwise(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(set(shapes)) == 1, "shapes", shapes, "equal ones")
    return shapes[0]


@rule("broadcast_add", "broadcast_sub", "broadcast_mul", "broadcast_div")
def _broadcast(node: Node, shapes: list[Shape]) -> Shape:
    return broadcast(node, shapes)


@rule("Concat")
def _concat(node: Node, shapes: list[Shape]) -> Shape:
    axis = axis_of(node, ops.attr(node, "dim"), len(shapes[0]))
    rest = {s[:axis] + s[axis + 1:] for s in shapes}
    need(node, len(rest) == 1 and len({len(s) for s in shapes}) == 1, "shapes", shapes, f"equal ones but for {axis}")
    return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1:])


@rule("Flatten")
def _flatten(node: Node, shapes: list[Shape]) -> Shape:
    return (shapes[0][0], math.prod(shapes[0][1:]))


@rule("Reshape")
def _reshape(node: Node, shapes: list[Shape]) -> Shape:
    return reshape_target(node, shapes[0])


@rule("transpose")
def _transpose(node: Node, shapes: list[Shape]) -> Shape:
    rank = len(shapes[0])
    axes = ops.attr(node, "axes") or tuple(range(rank))[::-1]
    need(node, sorted(axis_of(node, a, rank) for a in axes) == list(range(rank)), "axes", axes, f"{rank} axes")
    return tuple(shapes[0][a] for a in axes)


@rule("SwapAxis")
def _swap_axis(node: Node, shapes: list[Shape]) -> Shape:
    out, rank = list(shapes[0]), len(shapes[0])
    a, b = (axis_of(node, ops.attr(node, key), rank) for key in ("dim1", "dim2"))
    out[a], out[b] = out[b], out[a]
    return tuple(out)


@rule("expand_dims")
def _expand_dims(node: Node, shapes: list[Shape]) -> Shape:
    axis = axis_of(node, ops.attr(node, "axis"), len(shapes[0]) + 1)
    return (*shapes[0][:axis], 1, *shapes[0][axis:])


@rule("squeeze")
def _squeeze(node: Node, shapes: list[Shape]) -> Shape:
    rank = len(shapes[0])
    axes = [axis_of(node, a, rank) for a in ops.attr(node, "axis")] or [i for i in range(rank) if shapes[0][i] == 1]
    need(node, all(shapes[0][a] == 1 for a in axes), "squeezed shape", shapes[0], f"1 in axes {axes}")
    return tuple(d for i, d in enumerate(shapes[0]) if i not in axes) or (1,)


@rule("slice", "slice_axis", "slice_like", "Crop")
def _slice(node: Node, shapes: list[Shape]) -> Shape:
    return tuple(len(range(*cut.indices(d))) for cut, d in zip(slices(node, shapes), shapes[0]))


@rule("SliceChannel")
def _slice_channel(node: Node, shapes: list[Shape]) -> list[Shape]:
    axis, count = axis_of(node, ops.attr(node, "axis"), len(shapes[0])), ops.attr(node, "num_outputs")
    size = shapes[0][axis]
    need(node, count == node.n_out and size % count == 0, "num_outputs", count, f"{node.n_out}, a divisor of {size}")
    need(node, not ops.attr(node, "squeeze_axis") or size == count, "squeeze_axis", True, f"{size} outputs")
    middle = () if ops.attr(node, "squeeze_axis") else (size // count,)
    return [(*shapes[0][:axis], *middle, *shapes[0][axis + 1:])] * count


@rule("Pad")
def _pad(node: Node, shapes: list[Shape]) -> Shape:
    width = ops.attr(node, "pad_width")
    need(node, len(width) == 2 * len(shapes[0]) and min(width) >= 0, "pad_width", width,
         f"{2 * len(shapes[0])} numbers of at least 0")
    return tuple(d + a + b for d, a, b in zip(shapes[0], width[::2], width[1::2]))


@rule("UpSampling")
def _up_sampling(node: Node, shapes: list[Shape]) -> Shape:
    scale, nearest = ops.attr(node, "scale"), ops.attr(node, "sample_type") == "nearest"
    batch, _, height, width = shapes[0]
    images = shapes if nearest else shapes[:1]  # a bilinear one has a weight as its second input
    need(node, scale >= 1, "scale", scale, "at least 1")
    need(node, all((height * scale) % s[2] == 0 and (width * scale) % s[3] == 0 for s in images), "shapes", shapes,
         f"divisors of the first, times {scale}")
    return (batch, sum(s[1] for s in images), height * scale, width * scale)


@rule("_contrib_AdaptiveAvgPooling2D", "_contrib_BilinearResize2D")
def _resize(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) == 4, "data", shapes[0], "4 axes")
    return (*shapes[0][:2], *resize_output(node, shapes[0][2:]))


@rule("sum", "mean", "max")
def _reduce(node: Node, shapes: list[Shape]) -> Shape:
    axes, keep = reduced_axes(node, len(shapes[0])), ops.attr(node, "keepdims")
    return tuple(1 if i in axes else d for i, d in enumerate(shapes[0]) if keep or i not in axes) or (1,)
