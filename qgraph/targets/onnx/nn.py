"""Converters to ONNX: layers with weights, normalizations, activations and outputs."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.semantics.geometry import axis_of, deconv_geometry
from qgraph.targets.onnx.convert import Context, converter
from qgraph.targets.onnx.windows import written_window

_KEEPS_RANK = ops.IDENTITIES | {"fake_quantize", "Activation", "LeakyReLU", "BatchNorm", "clip", "relu", "sigmoid",
                                "tanh"}


def is_matrix(c: Context, slot: int = 0) -> bool:
    """The input is known to have two axes, by its shape or by the layer that it comes from."""
    if c.knows(slot):
        return len(c.shape(slot)) == 2
    node = c.graph.inputs(c.node)[slot].node
    while node.op in _KEEPS_RANK:
        node = c.graph.inputs(node)[0].node
    return node.op == "Flatten" or (node.op == "FullyConnected" and bool(ops.attr(node, "flatten")))


def check_layout(c: Context) -> None:
    if not ops.channels_first(c.node):
        raise c.refuse(f"found layout {c.attr('layout')}, and only layouts with the channels in axis 1 can be written")


# ---- layers with weights --------------------------------------------------------------------------------------------

@converter("Convolution")
def _convolution(c: Context, x: str, weight: str, *bias: str) -> str:
    """Conv, which pads each side by itself."""
    check_layout(c)
    seen = written_window(c.graph, c.node)
    return c.activation(c.op(
        "Conv", x, weight, *bias, kernel_shape=seen.kernel, strides=c.attr("stride"), dilations=c.attr("dilate"),
        pads=[*seen.before, *seen.behind], group=c.attr("num_group")))


@converter("Deconvolution")
def _deconvolution(c: Context, x: str, weight: str, *bias: str) -> str:
    """ConvTranspose; `target_shape` becomes pads and output_padding."""
    check_layout(c)
    pad, adj = c.attr("pad"), c.attr("adj")
    if any(c.attr("target_shape")):
        spatial = c.shape()[2:]
        if -1 in spatial:
            raise c.refuse("target_shape needs fixed heights and widths")
        pad, adj, _ = deconv_geometry(c.node, spatial)
    return c.activation(c.op(
        "ConvTranspose", x, weight, *bias, kernel_shape=c.attr("kernel"), strides=c.attr("stride"),
        dilations=c.attr("dilate"), pads=[*pad, *pad], output_padding=adj or None, group=c.attr("num_group")))


@converter("FullyConnected")
def _fully_connected(c: Context, x: str, weight: str, *bias: str) -> str:
    """Gemm, behind Flatten unless the data have two axes; without `flatten` the leading axes come back by Reshape."""
    matrix, flatten = is_matrix(c), c.attr("flatten")
    rows = x if matrix else c.op("Flatten", x, axis=1 if flatten else -1)
    out = c.op("Gemm", rows, weight, *bias, transB=1)
    if not (matrix or flatten):
        lead = c.op("Shape", x, end=-1)
        out = c.op("Reshape", out, c.op("Concat", lead, c.const([c.attr("num_hidden")]), axis=0))
    return c.activation(out)


# ---- normalizations -------------------------------------------------------------------------------------------------

@converter("BatchNorm", "_contrib_SyncBatchNorm")
def _batch_norm(c: Context, x: str, gamma: str, beta: str, mean: str, var: str) -> str:
    """BatchNormalization with the stored statistics; over the last axis it is Mul and Add."""
    if c.attr("output_mean_var"):
        raise c.refuse("output_mean_var gives statistics of the batch, which are for training")
    arrays = [c.value(slot) for slot in range(1, 5)]
    axis = c.attr("axis")
    if axis < 0 and c.knows():
        axis += len(c.shape())
    if axis == 1:
        if c.attr("fix_gamma"):
            if arrays[3] is None:
                raise c.refuse("its moving variance is computed, and it must be a parameter")
            gamma = c.const(np.ones_like(arrays[3], np.float32), "gamma")
        return str(c.op("BatchNormalization", x, gamma, beta, mean, var, epsilon=c.attr("eps")))
    if any(array is None for array in arrays):
        raise c.refuse(f"over axis {axis} its gamma, beta and statistics must be parameters")
    scales, offsets, means, variances = (np.asarray(array, np.float64) for array in arrays)
    if c.attr("fix_gamma"):
        scales = np.ones_like(scales)
    factor = scales / np.sqrt(variances + c.attr("eps"))
    behind = 0 if axis == -1 else len(c.shape()) - axis - 1
    factor, offset = (v.astype(np.float32).reshape(-1, *[1] * behind) for v in (factor, offsets - means * factor))
    return str(c.op("Add", c.op("Mul", x, c.const(factor, "scale")), c.const(offset, "offset")))


@converter("_contrib_BatchNormWithReLU")
def _batch_norm_relu(c: Context, *inputs: str) -> str:
    return str(c.op("Relu", str(_batch_norm(c, *inputs))))


@converter("InstanceNorm")
def _instance_norm(c: Context, x: str, gamma: str, beta: str) -> str:
    """InstanceNormalization."""
    return str(c.op("InstanceNormalization", x, gamma, beta, epsilon=c.attr("eps")))


@converter("GroupNorm")
def _group_norm(c: Context, x: str, gamma: str, beta: str) -> str:
    """InstanceNormalization of the groups: in MXNet gamma and beta have one value for each."""
    groups = c.op("Reshape", x, c.const([0, c.attr("num_groups"), -1], "groups"))
    return str(c.op("Reshape", c.op("InstanceNormalization", groups, gamma, beta, epsilon=c.attr("eps")),
                    c.op("Shape", x)))


@converter("LayerNorm")
def _layer_norm(c: Context, x: str, gamma: str, beta: str) -> str:
    """LayerNormalization; an axis that is not the last is brought there and back."""
    axis, order = c.attr("axis"), None
    if axis != -1:
        rank = len(c.shape())
        order = [a for a in range(rank) if a != axis % rank] + [axis % rank]
    if order is None or order == sorted(order):
        return str(c.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=c.attr("eps")))
    out = c.op("LayerNormalization", c.op("Transpose", x, perm=order), gamma, beta, axis=-1, epsilon=c.attr("eps"))
    return str(c.op("Transpose", out, perm=[order.index(a) for a in range(len(order))]))


@converter("L2Normalization")
def _l2_normalization(c: Context, x: str) -> str:
    """x / sqrt(sum of squares + eps)."""
    mode = c.attr("mode")
    axes = [1] if mode == "channel" else list(range(1 if mode == "instance" else 2, len(c.shape())))
    squares = c.op("ReduceSumSquare", x, c.const(axes, "axes"))
    return str(c.op("Div", x, c.op("Sqrt", c.op("Add", squares, c.const(np.float32(c.attr("eps")))))))


@converter("LRN")
def _lrn(c: Context, x: str) -> str:
    """LRN."""
    return str(c.op("LRN", x, alpha=c.attr("alpha"), beta=c.attr("beta"), bias=c.attr("knorm"), size=c.attr("nsize")))


# ---- activations ----------------------------------------------------------------------------------------------------

_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus", "softsign": "Softsign",
                "mish": "Mish"}


def activate(c: Context, x: str, kind: str) -> str:
    if kind == "log_sigmoid":
        return str(c.op("Neg", c.op("Softplus", c.op("Neg", x))))
    if kind not in _ACTIVATIONS:
        raise c.refuse(f"found act_type {kind!r}, want log_sigmoid or one of {', '.join(_ACTIVATIONS)}")
    return str(c.op(_ACTIVATIONS[kind], x))


@converter("Activation")
def _activation(c: Context, x: str) -> str:
    """The op of its act_type."""
    return activate(c, x, c.attr("act_type"))


@converter("relu", "sigmoid", "tanh", "softsign")
def _named_activation(c: Context, x: str) -> str:
    """The op of that name."""
    return activate(c, x, c.node.op)


@converter("LeakyReLU")
def _leaky_relu(c: Context, x: str, *gamma: str) -> str:
    """LeakyRelu, PRelu, Elu, Selu or Gelu; at inference rrelu is the leaky one of its mean slope."""
    kind = c.attr("act_type")
    if kind == "prelu":
        return str(c.op("PRelu", x, _slope(c, gamma[0])))
    if kind in ("leaky", "elu"):
        return str(c.op("LeakyRelu" if kind == "leaky" else "Elu", x, alpha=c.attr("slope")))
    if kind == "rrelu":
        return str(c.op("LeakyRelu", x, alpha=(c.attr("lower_bound") + c.attr("upper_bound")) / 2))
    if kind not in ("selu", "gelu"):
        raise c.refuse(f"found act_type {kind!r}, want leaky, prelu, rrelu, elu, selu or gelu")
    return str(c.op(kind.capitalize(), x))


def _slope(c: Context, gamma: str) -> str:
    """One slope for each channel, in the shape that broadcasts."""
    array = c.value(1)
    behind = 0 if is_matrix(c) or (array is not None and array.size == 1) else len(c.shape()) - 2
    if behind <= 0:
        return gamma
    shape = [-1, *[1] * behind]
    return c.reshape(gamma, shape) if array is None else c.const(array.reshape(shape), "slope")


@converter("hard_sigmoid")
def _hard_sigmoid(c: Context, x: str) -> str:
    """HardSigmoid."""
    return str(c.op("HardSigmoid", x, alpha=c.attr("alpha"), beta=c.attr("beta")))


@converter("clip")
def _clip(c: Context, x: str) -> str:
    """Clip."""
    return str(c.op("Clip", x, *(c.const(np.float32(c.attr(key))) for key in ("a_min", "a_max"))))


# ---- softmax and outputs --------------------------------------------------------------------------------------------

@converter("softmax", "log_softmax", "softmin")
def _softmax(c: Context, x: str, *length: str) -> str:
    """Softmax or LogSoftmax, of data divided by `temperature`, negated for softmin; 0 beyond the length of a row."""
    temperature = 1.0 if c.attr("temperature") is None else c.attr("temperature")
    if c.node.op == "softmin":
        temperature = -temperature
    if temperature != 1.0:
        x = c.op("Div", x, c.const(np.float32(temperature)))
    op = "LogSoftmax" if c.node.op == "log_softmax" else "Softmax"
    if not c.attr("use_length"):
        return str(c.op(op, x, axis=c.attr("axis")))
    axis = axis_of(c.node, c.attr("axis"), len(c.shape()))
    places = np.arange(_fixed_length(c, axis), dtype=np.float32).reshape([-1] + [1] * (len(c.shape()) - axis - 1))
    inside = c.op("Less", c.const(places, "places"), c.op("Unsqueeze", length[0], c.const([axis], "axis")))
    least = c.const(np.finfo(np.float32).min, "least")
    found = c.op(op, c.op("Where", inside, x, least), axis=axis)
    return str(c.op("Where", inside, found, c.const(np.float32(0), "none")))


def _fixed_length(c: Context, axis: int) -> int:
    if c.shape()[axis] == -1:
        raise c.refuse(f"axis {axis} depends on the batch size")
    return c.shape()[axis]


@converter("SoftmaxActivation")
def _softmax_activation(c: Context, x: str) -> str:
    """Softmax over the channels, or over the last axis."""
    return str(c.op("Softmax", x, axis=1 if c.attr("mode") == "channel" else -1))


@converter("SoftmaxOutput")
def _softmax_output(c: Context, x: str) -> str:
    """Softmax over the channels, the last axis, or everything but the batch."""
    if c.attr("multi_output") or c.attr("preserve_shape"):
        return str(c.op("Softmax", x, axis=1 if c.attr("multi_output") else -1))
    if is_matrix(c):
        return str(c.op("Softmax", x, axis=1))
    if c.knows() and len(c.shape()) == 4:
        raise c.refuse("on four axes MXNet's own kernels disagree about its meaning; multi_output or preserve_shape "
                       "make it clear")
    return str(c.op("Reshape", c.op("Softmax", c.op("Flatten", x), axis=1), c.op("Shape", x)))


@converter("LogisticRegressionOutput")
def _logistic(c: Context, x: str) -> str:
    """Sigmoid."""
    return str(c.op("Sigmoid", x))


@converter(*ops.IDENTITIES)
def _identity(c: Context, x: str) -> str:
    """Nothing: readers get its input."""
    return x
