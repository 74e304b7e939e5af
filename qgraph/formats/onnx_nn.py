"""Converters to ONNX: layers with weights, normalizations, activations and outputs."""

from __future__ import annotations

import numpy as np

from qgraph import ops
from qgraph.formats.onnx_convert import Context, converter
from qgraph.geometry import deconv_geometry

_KEEPS_RANK = ops.IDENTITIES | {"fake_quantize", "Activation", "LeakyReLU", "BatchNorm", "clip", "relu", "sigmoid",
                                "tanh"}
_LAYOUTS = ("None", "NCW", "NCHW", "NCDHW")


def is_matrix(c: Context, slot: int = 0) -> bool:
    """The input is known to have two axes, by its shape or by the layer that it comes from."""
    if c.knows(slot):
        return len(c.shape(slot)) == 2
    node = c._ports[slot].node
    while node.op in _KEEPS_RANK:
        node = c._emitter.g.inputs(node)[0].node
    return node.op == "Flatten" or (node.op == "FullyConnected" and bool(ops.attr(node, "flatten")))


def check_layout(c: Context) -> None:
    layout = c.attr("layout")
    if layout not in _LAYOUTS:
        raise c.refuse(f"found layout {layout}, and only layouts with the channels in axis 1 can be written")


# ---- layers with weights --------------------------------------------------------------------------------------------

@converter("Convolution")
def _convolution(c: Context, x: str, weight: str, *bias: str) -> str:
    """Conv."""
    check_layout(c)
    pad = c.attr("pad")
    return c.activation(c.op(
        "Conv", x, weight, *bias, kernel_shape=c.attr("kernel"), strides=c.attr("stride"), dilations=c.attr("dilate"),
        pads=[*pad, *pad], group=c.attr("num_group")))


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


# ---- activations ----------------------------------------------------------------------------------------------------

_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus", "softsign": "Softsign"}


def activate(c: Context, x: str, kind: str) -> str:
    if kind not in _ACTIVATIONS:
        raise c.refuse(f"found act_type {kind!r}, want one of {', '.join(_ACTIVATIONS)}")
    return str(c.op(_ACTIVATIONS[kind], x))


@converter("Activation")
def _activation(c: Context, x: str) -> str:
    """The op of its act_type."""
    return activate(c, x, c.attr("act_type"))


@converter("relu", "sigmoid", "tanh", "softsign")
def _named_activation(c: Context, x: str) -> str:
    """The op of that name."""
    return activate(c, x, c.node.op)


@converter("clip")
def _clip(c: Context, x: str) -> str:
    """Clip."""
    return str(c.op("Clip", x, *(c.const(np.float32(c.attr(key))) for key in ("a_min", "a_max"))))


# ---- softmax and outputs --------------------------------------------------------------------------------------------

@converter("softmax", "log_softmax", "softmin")
def _softmax(c: Context, x: str) -> str:
    """Softmax or LogSoftmax, of data divided by `temperature`, negated for softmin."""
    if c.attr("use_length"):
        raise c.refuse("use_length masks every row in its own way")
    temperature = 1.0 if c.attr("temperature") == "None" else float(c.attr("temperature"))
    if c.node.op == "softmin":
        temperature = -temperature
    if temperature != 1.0:
        x = c.op("Div", x, c.const(np.float32(temperature)))
    return str(c.op("LogSoftmax" if c.node.op == "log_softmax" else "Softmax", x, axis=c.attr("axis")))


def _softmax_of_rows(c: Context, x: str) -> str:
    """Softmax over everything but the batch."""
    if is_matrix(c):
        return str(c.op("Softmax", x, axis=1))
    return str(c.op("Reshape", c.op("Softmax", c.op("Flatten", x), axis=1), c.op("Shape", x)))


@converter("SoftmaxActivation")
def _softmax_activation(c: Context, x: str) -> str:
    """Softmax over the channels, or over everything but the batch."""
    return str(c.op("Softmax", x, axis=1)) if c.attr("mode") == "channel" else _softmax_of_rows(c, x)


@converter("SoftmaxOutput")
def _softmax_output(c: Context, x: str) -> str:
    """Softmax, as its layer gives without a label."""
    if c.attr("preserve_shape"):
        return str(c.op("Softmax", x, axis=-1))
    return str(c.op("Softmax", x, axis=1)) if c.attr("multi_output") else _softmax_of_rows(c, x)


@converter("LogisticRegressionOutput")
def _logistic(c: Context, x: str) -> str:
    """Sigmoid."""
    return str(c.op("Sigmoid", x))


@converter(*ops.IDENTITIES)
def _identity(c: Context, x: str) -> str:
    """Nothing: readers get its input."""
    return x
