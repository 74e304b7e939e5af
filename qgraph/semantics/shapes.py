"""Shape inference: one rule per op, integers only, nothing is allocated.

`infer` fills a table Port -> shape in one linear walk.

To teach it an op, write a rule::

    @rule("MyOp")
    def my_op(node, shapes):          # shapes of the inputs, in slot order
        return shapes[0]              # the output's shape, or a list of shapes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Callable, Union

from qgraph.errors import GraphError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.registry import enter
from qgraph.semantics.geometry import (
    MAX_RANK,
    Shape,
    axis_of,
    conv_output,
    deconv_geometry,
    need,
    pool_geometry,
    reduced_axes,
    reshape_target,
    resize_output,
    slices,
    spatial_attrs,
)

Rule = Callable[[Node, list[Shape]], Union[Shape, list[Shape]]]

MAX_ELEMENTS = 1 << 31
MAX_WORK = 1 << 28  # elements of an input blown up by its padding, unless the input itself is of that order
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a shape rule for these ops."""
    return enter(RULES, names)


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


def value_nodes(g: Graph) -> set[Node]:
    """The nodes that some output's value depends on at inference."""
    found: set[Node] = set()
    pending = [head.node for head in g.heads]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [port.node for port in value_inputs(g, node)]
    return found


def _check(node: Node, shape: Shape) -> None:
    if len(shape) > MAX_RANK or any(not isinstance(d, int) or d < 1 for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise GraphError(f"{node}: found shape {shape}, want dimensions of at least 1, at most {MAX_RANK} of them and "
                         "at most 2**31 elements")


def _check_work(node: Node, data: Shape, spatial: Sequence[int]) -> None:
    """Refuse what would make a kernel allocate far more than the data hold, such as a pad of a million."""
    need(node, math.prod(data[:2]) * math.prod(spatial) <= max(MAX_WORK, 4 * math.prod(data)), "padded shape",
         (*data[:2], *spatial), f"at most 2**28 elements for data of {data}")


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
    _, stride, dilate, pad = spatial_attrs(node, len(kernel))
    _check_work(node, data, [max(i, s * (i - 1) + 2 * d * k if node.op == "Deconvolution" else i + 2 * p)
                             for i, k, s, d, p in zip(data[2:], kernel, stride, dilate, pad)])
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
    kernel, stride, pad, spatial = pool_geometry(node, shapes[0][2:])
    _check_work(node, shapes[0], [max(i + 2 * p, s * (n - 1) + k)
                                  for i, k, s, p, n in zip(shapes[0][2:], kernel, stride, pad, spatial)])
    return (*shapes[0][:2], *spatial)


@rule("fake_quantize", "Activation", "clip", "relu", "sigmoid", "tanh", "softsign", "exp", "sqrt", "abs",
      "hard_sigmoid", "_plus_scalar", "_minus_scalar", "_rminus_scalar", "_mul_scalar", "_div_scalar", "_rdiv_scalar",
      "_maximum_scalar", "_minimum_scalar", "_power_scalar", "SoftmaxActivation", "SoftmaxOutput",
      "LinearRegressionOutput", "LogisticRegressionOutput", "Dropout", "BlockGrad", "_copy", "identity", "make_loss",
      "Cast", "L2Normalization", "LeakyReLU")
def _same(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


@rule("softmax", "log_softmax", "softmin")
def _softmax(node: Node, shapes: list[Shape]) -> Shape:
    axis_of(node, ops.attr(node, "axis"), len(shapes[0]))
    return shapes[0]


@rule("LRN")
def _lrn(node: Node, shapes: list[Shape]) -> Shape:
    size = ops.attr(node, "nsize")
    need(node, size % 2 == 1 and 0 < size <= 2 * shapes[0][1] + 63, "nsize", size, f"odd, for {shapes[0][1]} channels")
    return shapes[0]


@rule("BatchNorm", "_contrib_BatchNormWithReLU", "_contrib_SyncBatchNorm", "InstanceNorm", "LayerNorm")
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
    left, right = ((1,) * (max(map(len, shapes)) - len(s)) + s for s in shapes)
    need(node, all(a == b or 1 in (a, b) for a, b in zip(left, right)), "shapes", shapes, "ones that broadcast")
    return tuple(max(a, b) for a, b in zip(left, right))


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
    if len(shapes) > 1 and ops.attr(node, "mode") == "like":
        return (*shapes[0][:2], *shapes[1][2:])
    return (*shapes[0][:2], *resize_output(node, shapes[0][2:]))


@rule("GroupNorm")
def _group_norm(node: Node, shapes: list[Shape]) -> Shape:
    groups, channels = ops.attr(node, "num_groups"), shapes[0][1]
    need(node, groups >= 1 and channels % groups == 0, "num_groups", groups, f"a divisor of {channels} channels")
    need(node, shapes[1] == shapes[2] == (groups,), "gamma and beta", shapes[1:], f"one value for each of {groups}")
    return shapes[0]


@rule("ROIPooling", "_contrib_ROIAlign")
def _roi(node: Node, shapes: list[Shape]) -> Shape:
    data, rois = shapes
    need(node, len(data) == 4 and len(rois) == 2 and rois[1] == 5, "data and rois", shapes, "4 axes, and rows of 5")
    return (rois[0], data[1], *ops.attr(node, "pooled_size"))


@rule("_contrib_DeformableConvolution", "_contrib_ModulatedDeformableConvolution")
def _deformable(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) == 4, "data", shapes[0], "4 axes")
    return (shapes[0][0], ops.attr(node, "num_filter"), *conv_output(node, shapes[0][2:]))


@rule("sum", "mean", "max")
def _reduce(node: Node, shapes: list[Shape]) -> Shape:
    axes, keep = reduced_axes(node, len(shapes[0])), ops.attr(node, "keepdims")
    return tuple(1 if i in axes else d for i, d in enumerate(shapes[0]) if keep or i not in axes) or (1,)


import qgraph.semantics.shapes_heads  # noqa: E402,F401  (the import fills the table)
