"""Converters to ncnn: layers with weights, poolings, resizes, normalizations, activations, softmax."""

from __future__ import annotations

import numpy as np

from qgraph.analysis.windows import Window, window
from qgraph.ir import ops
from qgraph.ir.graph import Fused, Node
from qgraph.semantics.geometry import deconv_geometry, pool_geometry, resize_output
from qgraph.targets.ncnn.convert import Context, converter
from qgraph.targets.ncnn.files import Value, Weight
from qgraph.targets.ncnn.int8 import int8_parts

_LAYOUTS = ("None", *ops.CHANNEL_FIRST[:2])  # what has three axes is refused
_TAKEN = ("relu", "leaky", "clip", "sigmoid")  # activations that a layer with weights carries itself


def check_layout(c: Context, ranks: tuple[int, ...] = (2,)) -> None:
    layout, rank = c.attr("layout"), len(c.attr("kernel"))
    if layout not in _LAYOUTS or (rank not in ranks and not (c.node.op == "Pooling" and c.attr("global_pool"))):
        found = f"{rank}-D" + ("" if layout == "None" else f", {layout}")
        raise c.refuse(f"found {found}, want {' or '.join(map(str, ranks))}-D, channels first")


# ---- layers with weights --------------------------------------------------------------------------------------------

def _carried(c: Context) -> dict[int, Value]:
    """Parameters 9 and 10: the activation that the node carries, or that is its only reader."""
    act = c.node.fused
    if act is None:
        node = c.take_activation(_TAKEN)
        if node is None:
            return {}
        kind = ops.attr(node, "act_type") if node.op in ("Activation", "LeakyReLU") else node.op
        if kind == "leaky":
            return {9: 2, 10: [float(ops.attr(node, "slope"))]}
        act = Fused("clip", ops.attr(node, "a_min"), ops.attr(node, "a_max")) if kind == "clip" else Fused(kind)
    if act.act == "clip":
        return {9: 3, 10: [float(act.low), float(act.high)]}
    return {9: {"relu": 1, "sigmoid": 4}[act.act]}


def _window(c: Context, seen: Window | None = None) -> dict[int, Value]:
    """Kernel, dilation, stride and padding; ncnn's first number is along the width.

    seen: the part of the kernel that is written, without it all; a side behind that pads as the one before is left out.
    """
    kernel, dilate, stride, pad = (tuple(c.attr(key))[::-1] for key in ("kernel", "dilate", "stride", "pad"))
    before, behind = pad, pad
    if seen is not None:
        kernel, before, behind = seen.kernel[::-1], seen.before[::-1], seen.behind[::-1]
    found: dict[int, Value] = {1: kernel[0], 2: dilate[0], 3: stride[0], 4: before[0]}
    if len(kernel) == 2:
        found.update({11: kernel[1], 12: dilate[1], 13: stride[1], 14: before[1]})
    if before != behind:
        found.update(zip((15, 16), behind))
    return found


def _bias(c: Context) -> np.ndarray | None:
    return c.param(2, "bias") if len(c.ports) > 2 else None


def _weighted(c: Context, kind: str, weight: np.ndarray, params: dict[int, Value], depthwise: bool = False) -> str:
    """The layer, in int8 if its data and weight are quantized. depthwise: as many weight scales as groups."""
    bias = _bias(c)
    parts = int8_parts(c, weight, bias)
    if parts is not None:
        params[8] = 1 if depthwise else 2
    else:
        parts = [Weight(weight, True), *([] if bias is None else [Weight(bias)])]
    return str(c.layer(kind, c.blob(), params={**params, **_carried(c)}, weights=parts))


@converter("Convolution")
def _convolution(c: Context) -> str:
    """Convolution, ConvolutionDepthWise for any groups, or Convolution1D."""
    check_layout(c, (1, 2))
    seen, groups = window(c.graph, c.node), c.attr("num_group")
    weight = seen.of(c.param(1, "weight"))
    params = {0: c.attr("num_filter"), **_window(c, seen), 5: int(len(c.ports) > 2), 6: weight.size}
    if len(c.attr("kernel")) == 1:
        if groups > 1:
            raise c.refuse("grouped 1-D convolutions are not written")
        return _weighted(c, "Convolution1D", weight, params)
    if groups == 1:
        return _weighted(c, "Convolution", weight, params)
    return _weighted(c, "ConvolutionDepthWise", weight, {**params, 7: groups}, depthwise=True)


@converter("Deconvolution")
def _deconvolution(c: Context) -> str:
    """Deconvolution, or DeconvolutionDepthWise for groups; MXNet's weight has the input channels in front."""
    check_layout(c)
    weight, groups = c.param(1, "weight"), c.attr("num_group")
    rows = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).swapaxes(1, 2)
    pad, adj = c.attr("pad"), c.attr("adj") or (0, 0)
    if any(c.attr("target_shape")):
        pad, adj, _ = deconv_geometry(c.node, c.shape()[1:])
    params = {0: c.attr("num_filter"), **_window(c), 5: int(len(c.ports) > 2), 6: weight.size,
              4: pad[1], 14: pad[0], 18: adj[1], 19: adj[0]}
    if groups > 1:
        params[7] = groups
    kind = "Deconvolution" if groups == 1 else "DeconvolutionDepthWise"
    return _weighted(c, kind, np.ascontiguousarray(rows), params)


@converter("_contrib_ModulatedDeformableConvolution")
def _deformable(c: Context) -> str:
    """DeformableConv2D, of one group."""
    check_layout(c)
    if c.attr("num_group") != 1 or c.attr("num_deformable_group") != 1:
        raise c.refuse("ncnn's deformable convolution has no groups")
    weight = c.param(3, "weight")
    arrays = [Weight(weight, True), *([Weight(c.param(4, "bias"))] if len(c.ports) > 4 else [])]
    return str(c.layer("DeformableConv2D", c.blob(), c.blob(1), c.blob(2), weights=arrays, params={
        0: c.attr("num_filter"), **_window(c), 5: len(arrays) - 1, 6: weight.size}))


@converter("FullyConnected")
def _fully_connected(c: Context) -> str:
    """InnerProduct, behind a Flatten unless the data have one axis; without `flatten` it works on rows."""
    weight = c.param(1, "weight")
    params = {0: c.attr("num_hidden"), 1: int(len(c.ports) > 2), 2: weight.size}
    if c.attr("flatten") and not _is_vector(c):
        c.before("Flatten")
    elif not c.attr("flatten") and len(c.shape()) > 2:
        raise c.refuse(f"without flatten it reads {len(c.shape())} axes, and ncnn's InnerProduct rows of a matrix")
    return _weighted(c, "InnerProduct", weight, params)


def _is_vector(c: Context) -> bool:
    node = c.graph.inputs(c.node)[0].node
    while node.op == "fake_quantize" or node.op in ops.IDENTITIES:
        node = c.graph.inputs(node)[0].node
    return node.op == "Flatten" or (c.knows() and len(c.shape()) == 1) or (
        node.op == "FullyConnected" and bool(ops.attr(node, "flatten")))


# ---- poolings and resizes -------------------------------------------------------------------------------------------

@converter("Pooling")
def _pooling(c: Context) -> str:
    """Pooling: pad_mode 1 is MXNet's convention valid, 0 full."""
    check_layout(c)
    kind, pad, kernel = c.attr("pool_type"), c.attr("pad"), c.attr("kernel")
    if kind not in ("max", "avg"):
        raise c.refuse(f"found pool_type {kind}, and ncnn has max and avg")
    params: dict[int, Value] = {0: int(kind == "avg")}
    if c.attr("global_pool") or (c.knows() and tuple(kernel) == c.shape()[1:] and not any(pad)):
        return _spatial(c, str(c.layer("Pooling", c.blob(), params={**params, 4: 1})))
    full = c.attr("pooling_convention") == "full"
    if c.attr("pooling_convention") not in ("valid", "full"):
        raise c.refuse(f"found pooling_convention {c.attr('pooling_convention')}, want valid or full")
    counts = kind == "avg" and c.attr("count_include_pad") and any(pad)
    if full and counts:
        _, stride, _, out = pool_geometry(c.node, c.shape()[1:])
        if any((n - 1) * s + k > i + 2 * p for n, s, k, i, p in zip(out, stride, kernel, c.shape()[1:], pad)):
            raise c.refuse("an average with count_include_pad, padding and the convention full, whose last window "
                           "reaches beyond the padding, is none that ncnn computes")
    stride = c.attr("stride")
    params.update({1: kernel[1], 2: stride[1], 3: pad[1], 5: int(not full), 6: int(counts),
                   11: kernel[0], 12: stride[0], 13: pad[0], 14: pad[1], 15: pad[0]})
    return str(c.layer("Pooling", c.blob(), params=params))


_ANY_RANK = frozenset({"Flatten", "FullyConnected"})


def _spatial(c: Context, vector: str) -> str:
    """ncnn's global pooling gives a vector: it gets its height and width of 1 back, unless nobody cares."""
    pending: list[Node] = [c.node]
    while pending:
        node = pending.pop()
        for reader in c.graph.readers(node):
            if reader.op == "fake_quantize" or reader.op in ops.IDENTITIES:
                pending.append(reader)
            elif reader.op not in _ANY_RANK:
                return str(c.layer("Reshape", vector, params={0: 1, 1: 1, 2: -1}))
        if any(head.node is node for head in c.graph.heads):
            return str(c.layer("Reshape", vector, params={0: 1, 1: 1, 2: -1}))
    return vector


@converter("_contrib_AdaptiveAvgPooling2D")
def _adaptive_pooling(c: Context) -> str:
    """Pooling, adaptive."""
    height, width = resize_output(c.node, ())
    if (height, width) == (1, 1):
        return _spatial(c, str(c.layer("Pooling", c.blob(), params={0: 1, 4: 1})))
    return str(c.layer("Pooling", c.blob(), params={0: 1, 7: 1, 8: width, 18: height}))


@converter("_contrib_BilinearResize2D")
def _bilinear(c: Context) -> str:
    """Interp, bilinear, to a fixed size."""
    height, width = c.out_shape()[1:]
    return str(c.layer("Interp", c.blob(), params={0: 2, 3: height, 4: width, 6: int(c.attr("align_corners"))}))


@converter("UpSampling")
def _up_sampling(c: Context) -> str:
    """Interp, nearest; the bilinear one of MXNet is a depthwise Deconvolution with the weight that it reads."""
    scale = c.attr("scale")
    if c.attr("sample_type") == "nearest":
        if len(c.ports) > 1:
            raise c.refuse("of several inputs is not written")
        return str(c.layer("Interp", c.blob(), params={0: 1, 1: float(scale), 2: float(scale)}))
    weight = c.param(1, "weight")
    kernel, pad = 2 * scale - scale % 2, -(-(scale - 1) // 2)
    params: dict[int, Value] = {0: len(weight), 1: kernel, 3: scale, 4: pad, 6: weight.size, 7: len(weight)}
    return str(c.layer("DeconvolutionDepthWise", c.blob(), params=params, weights=[Weight(weight, True)]))


# ---- normalizations -------------------------------------------------------------------------------------------------

@converter("BatchNorm", "_contrib_SyncBatchNorm")
def _batch_norm(c: Context) -> str:
    """BatchNorm with the stored statistics, over axis 1."""
    if c.attr("output_mean_var"):
        raise c.refuse("output_mean_var gives statistics of the batch, which are for training")
    if c.axis(c.attr("axis")) != 0:
        raise c.refuse(f"found axis {c.attr('axis')}, and ncnn normalizes over axis 1")
    gamma, beta, mean, var = (c.param(slot, "statistics") for slot in range(1, 5))
    if c.attr("fix_gamma"):
        gamma = np.ones_like(gamma)
    arrays = [Weight(array) for array in (gamma, mean, var, beta)]
    return str(c.layer("BatchNorm", c.blob(), params={0: gamma.size, 1: float(c.attr("eps"))}, weights=arrays))


@converter("InstanceNorm")
def _instance_norm(c: Context) -> str:
    gamma, beta = c.param(1, "gamma"), c.param(2, "beta")
    return str(c.layer("InstanceNorm", c.blob(), params={0: gamma.size, 1: float(c.attr("eps"))},
                       weights=[Weight(gamma), Weight(beta)]))


@converter("GroupNorm")
def _group_norm(c: Context) -> str:
    """GroupNorm, whose gamma and beta ncnn has for each channel, MXNet for each group."""
    groups, channels = c.attr("num_groups"), c.shape()[0]
    weights = [Weight(np.repeat(c.param(slot, "gamma or beta"), channels // groups)) for slot in (1, 2)]
    return str(c.layer("GroupNorm", c.blob(), params={0: groups, 1: channels, 2: float(c.attr("eps"))},
                       weights=weights))


@converter("LayerNorm")
def _layer_norm(c: Context) -> str:
    if c.attr("axis") not in (-1, len(c.shape())):
        raise c.refuse(f"found axis {c.attr('axis')}, and ncnn normalizes over the last")
    gamma, beta = c.param(1, "gamma"), c.param(2, "beta")
    return str(c.layer("LayerNorm", c.blob(), params={0: gamma.size, 1: float(c.attr("eps"))},
                       weights=[Weight(gamma), Weight(beta)]))


@converter("L2Normalization")
def _l2_normalization(c: Context) -> str:
    """Normalize: x / sqrt(sum of squares + eps)."""
    mode = c.attr("mode")
    params: dict[int, Value] = {0: int(mode != "channel"), 1: 1, 2: float(c.attr("eps")), 3: 1,
                                4: int(mode != "spatial"), 9: 0}
    return str(c.layer("Normalize", c.blob(), params=params, weights=[Weight(np.ones(1, np.float32))]))


@converter("LRN")
def _lrn(c: Context) -> str:
    return str(c.layer("LRN", c.blob(), params={0: 0, 1: c.attr("nsize"), 2: c.attr("alpha"), 3: c.attr("beta"),
                                                4: c.attr("knorm")}))


# ---- activations ----------------------------------------------------------------------------------------------------

_ACTIVATIONS = {"relu": "ReLU", "sigmoid": "Sigmoid", "tanh": "TanH", "softrelu": "Softplus", "mish": "Mish"}


@converter("Activation", "relu", "sigmoid", "tanh", "softsign")
def _activation(c: Context) -> str:
    """The layer of that activation; softsign is x / (1 + |x|)."""
    kind = c.attr("act_type") if c.node.op == "Activation" else c.node.op
    if kind == "softsign":
        x = c.blob()
        size = c.layer("BinaryOp", c.layer("UnaryOp", x, params={0: 0}), params={0: 0, 1: 1, 2: 1.0})
        return str(c.layer("BinaryOp", x, size, params={0: 3}))
    if kind not in _ACTIVATIONS:
        raise c.refuse(f"found act_type {kind!r}, want softsign or one of {', '.join(_ACTIVATIONS)}")
    return str(c.layer(_ACTIVATIONS[kind], c.blob()))


@converter("LeakyReLU")
def _leaky_relu(c: Context) -> str:
    """ReLU with a slope, PReLU, ELU, SELU or GELU; at inference rrelu is the leaky one of its mean slope."""
    kind, x = c.attr("act_type"), c.blob()
    if kind == "prelu":
        slope = c.param(1, "slope")
        return str(c.layer("PReLU", x, params={0: slope.size}, weights=[Weight(slope)]))
    if kind in ("leaky", "rrelu"):
        slope = c.attr("slope") if kind == "leaky" else (c.attr("lower_bound") + c.attr("upper_bound")) / 2
        return str(c.layer("ReLU", x, params={0: float(slope)}))
    if kind == "elu":
        return str(c.layer("ELU", x, params={0: float(c.attr("slope"))}))
    if kind not in ("selu", "gelu"):
        raise c.refuse(f"found act_type {kind!r}, want leaky, prelu, rrelu, elu, selu or gelu")
    return str(c.layer(kind.upper(), x))


@converter("hard_sigmoid")
def _hard_sigmoid(c: Context) -> str:
    return str(c.layer("HardSigmoid", c.blob(), params={0: float(c.attr("alpha")), 1: float(c.attr("beta"))}))


@converter("clip")
def _clip(c: Context) -> str:
    return str(c.layer("Clip", c.blob(), params={0: float(c.attr("a_min")), 1: float(c.attr("a_max"))}))


# ---- softmax and outputs --------------------------------------------------------------------------------------------

@converter("softmax", "log_softmax", "softmin")
def _softmax(c: Context) -> str:
    """Softmax, of data divided by `temperature`, negated for softmin."""
    if c.attr("use_length"):
        raise c.refuse("use_length masks every row in its own way")
    factor = 1.0 if c.attr("temperature") is None else 1.0 / c.attr("temperature")
    if c.node.op == "softmin":
        factor = -factor
    x = c.blob()
    if factor != 1.0:
        x = c.layer("BinaryOp", x, params={0: 2, 1: 1, 2: factor})
    axis = c.attr("axis")
    out = c.layer("Softmax", x, params={0: -1 if axis == -1 else c.axis(axis), 1: 1})
    return str(c.layer("UnaryOp", out, params={0: 8}) if c.node.op == "log_softmax" else out)


@converter("SoftmaxActivation", "SoftmaxOutput")
def _softmax_output(c: Context) -> str:
    """Softmax over the channels, the last axis, or everything but the batch."""
    if c.node.op == "SoftmaxActivation":
        first = c.attr("mode") == "channel"
    elif c.attr("multi_output") or c.attr("preserve_shape"):
        first = c.attr("multi_output")
    elif _is_vector(c):
        first = True
    else:
        raise c.refuse("it is over several axes; multi_output or preserve_shape say over which")
    return str(c.layer("Softmax", c.blob(), params={0: 0 if first else -1, 1: 1}))


@converter("LogisticRegressionOutput")
def _logistic(c: Context) -> str:
    return str(c.layer("Sigmoid", c.blob()))


@converter(*ops.IDENTITIES)
def _identity(c: Context) -> str:
    """Nothing: readers get its input."""
    return c.blob()
