"""What each op computes, in NumPy, with MXNet's inference semantics: one function per op.

To teach the interpreter an op::

    @kernel("MyOp")
    def my_op(node, x, *more):        # the inputs as float32 arrays, in slot order
        return x * float(node.attrs["factor"])      # one array, or a list of arrays for several outputs

Kernels of ops whose values pass through (`qgraph.ir.ops.kind`: pooling with max, reshape, ...) also run on integer
codes, given as whole float32 numbers with the zero point subtracted; they must only move values and fill with 0.
"""

from __future__ import annotations

import math
from typing import Callable, Union

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.registry import enter
from qgraph.semantics.geometry import axis_of, pool_geometry, reduced_axes, reshape_target, resize_output, slices
from qgraph.semantics.linear import LINEAR, along_channels, window

Kernel = Callable[..., Union[np.ndarray, list[np.ndarray]]]
KERNELS: dict[str, Kernel] = {}


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Register a function as the kernel of these ops."""
    return enter(KERNELS, names)


# ---- activations ----------------------------------------------------------------------------------------------------

def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, x.dtype.type(0))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x.ravel().tolist()], x.dtype).reshape(x.shape)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": _sigmoid,
    "log_sigmoid": lambda x: -_softplus(-x),
    "tanh": np.tanh,
    "softrelu": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "mish": lambda x: x * np.tanh(_softplus(x)),
}


def activate(node: Node, x: np.ndarray) -> np.ndarray:
    """The node's own or fused activation: act_type "" (none), "clip" with a_min and a_max, or one of `ACTIVATIONS`."""
    act = ops.attr(node, "act_type")
    if act == "":
        return x
    if act == "clip":
        return np.minimum(np.maximum(x, ops.attr(node, "a_min")), ops.attr(node, "a_max"))  # np.clip is slow
    if act not in ACTIVATIONS:
        raise UnsupportedError(f"{node}: found act_type {act!r}, want clip or one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[act](x)


@kernel("Activation")
def _activation(node: Node, x: np.ndarray) -> np.ndarray:
    return activate(node, x)


@kernel("LeakyReLU")
def _leaky_relu(node: Node, x: np.ndarray, *gamma: np.ndarray) -> np.ndarray:
    act = ops.attr(node, "act_type")
    slope = np.array(ops.attr(node, "slope"), np.float32)
    if act == "prelu":
        slope = gamma[0].reshape((-1,) + (1,) * (x.ndim - 2) if gamma[0].size > 1 else ())
    if act in ("leaky", "prelu"):
        return np.where(x > 0, x, x * slope)
    if act == "gelu":
        return x * (1 + _erf(x / np.float32(math.sqrt(2)))) / 2
    if act == "elu":
        return np.where(x > 0, x, slope * np.expm1(np.minimum(x, 0)))
    if act == "selu":
        return np.float32(1.0507009873554805) * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    raise UnsupportedError(f"{node}: found act_type {act!r}, want leaky, prelu, elu, selu or gelu")


_SIMPLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": ACTIVATIONS["relu"], "sigmoid": _sigmoid, "tanh": np.tanh, "exp": np.exp, "sqrt": np.sqrt, "abs": np.abs}
_WITH_SCALAR: dict[str, Callable[[np.ndarray, np.float32], np.ndarray]] = {
    "_plus_scalar": lambda x, s: x + s, "_minus_scalar": lambda x, s: x - s, "_rminus_scalar": lambda x, s: s - x,
    "_mul_scalar": lambda x, s: x * s, "_div_scalar": lambda x, s: x / s, "_rdiv_scalar": lambda x, s: s / x,
    "_maximum_scalar": np.maximum, "_minimum_scalar": np.minimum, "_power_scalar": np.power}
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@kernel(*_SIMPLE)
def _simple(node: Node, x: np.ndarray) -> np.ndarray:
    return _SIMPLE[node.op](x)


@kernel(*_WITH_SCALAR)
def _with_scalar(node: Node, x: np.ndarray) -> np.ndarray:
    return _WITH_SCALAR[node.op](x, np.float32(ops.attr(node, "scalar")))


@kernel(*(f"{family}_{name}" for name in _BINARY for family in ("elemwise", "broadcast")))
def _binary(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = _BINARY[node.op.split("_")[1]](x, y)
    return activate(node, out) if node.op == "elemwise_add" else out


@kernel("add_n")
def _add_n(node: Node, *xs: np.ndarray) -> np.ndarray:
    return sum(xs[1:], xs[0])


@kernel("clip")
def _clip(node: Node, x: np.ndarray) -> np.ndarray:
    return np.clip(x, np.float32(ops.attr(node, "a_min")), np.float32(ops.attr(node, "a_max")))


@kernel("hard_sigmoid")
def _hard_sigmoid(node: Node, x: np.ndarray) -> np.ndarray:
    return np.clip(np.float32(ops.attr(node, "alpha")) * x + np.float32(ops.attr(node, "beta")), 0, 1)


@kernel(*ops.IDENTITIES)
def _identity(node: Node, x: np.ndarray) -> np.ndarray:
    return x


@kernel("LogisticRegressionOutput")
def _logistic(node: Node, x: np.ndarray) -> np.ndarray:
    return _sigmoid(x)


@kernel("Cast")
def _cast(node: Node, x: np.ndarray) -> np.ndarray:
    dtype = ops.attr(node, "dtype")
    if dtype not in ("float16", "float32", "float64", "int8", "uint8", "int32", "int64"):
        raise UnsupportedError(f"{node}: found dtype {dtype!r}, want a float or integer one")
    return x.astype(dtype).astype(np.float32)


# ---- multiply by weights --------------------------------------------------------------------------------------------

@kernel(*LINEAR)
def _linear(node: Node, x: np.ndarray, w: np.ndarray, *bias: np.ndarray) -> np.ndarray:
    dtype = np.float64 if node.wide else np.float32
    out = LINEAR[node.op](node, x.astype(dtype, copy=False), w.astype(dtype, copy=False))
    if bias:
        out += along_channels(node, bias[0], out.ndim)
    return activate(node, out.astype(np.float32, copy=False))


# ---- pooling and resizing -------------------------------------------------------------------------------------------

@kernel("Pooling")
def _pooling(node: Node, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) if node.wide else x
    how, spatial = ops.attr(node, "pool_type"), x.shape[2:]
    if how not in ("max", "avg", "sum"):
        raise UnsupportedError(f"{node}: found pool_type {how!r}, want max, avg or sum")
    size, stride, pad, out = pool_geometry(node, spatial)
    if ops.attr(node, "global_pool"):
        axes = tuple(range(2, x.ndim))
        if how == "max":
            return x.max(axes, keepdims=True)
        return getattr(x, {"avg": "mean", "sum": "sum"}[how])(axes, keepdims=True, dtype=np.float64).astype(np.float32)
    # pad behind so far that the last window fits, which the "full" convention may put outside
    behind = [max(0, s * (n - 1) + k - i - p) for i, n, k, s, p in zip(spatial, out, size, stride, pad)]
    fill = np.finfo(np.float32).min if how == "max" else 0
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pad, behind)], constant_values=fill) if any((*pad, *behind)) else x
    ones, total = (1,) * len(spatial), None
    for tap in np.ndindex(*size):
        view = padded[window(tap, stride, ones, out)]
        if total is None:
            total = view.copy()
        else:
            (np.maximum if how == "max" else np.add)(total, view, out=total)
    assert total is not None
    return total / _pool_divisor(node, spatial, size, stride, pad, out) if how == "avg" else total


def _pool_divisor(node: Node, spatial: tuple, size: tuple, stride: tuple, pad: tuple, out: tuple) -> np.ndarray:
    """How many elements each window averages over: those inside the (padded) input, as MXNet counts them."""
    margin = pad if ops.attr(node, "count_include_pad") else (0,) * len(pad)
    divisor = np.ones((), np.float32)
    for i, k, s, p, m, n in zip(spatial, size, stride, pad, margin, out):
        start = np.arange(n) * s - p
        count = np.minimum(start + k, i + m) - np.maximum(start, -m)
        divisor = np.multiply.outer(divisor, np.maximum(count, 1).astype(np.float32))
    return divisor


@kernel("_contrib_AdaptiveAvgPooling2D")
def _adaptive_pooling(node: Node, x: np.ndarray) -> np.ndarray:
    out = x.astype(np.float64)
    for axis, count in zip((2, 3), resize_output(node, x.shape[2:])):
        size = x.shape[axis]
        means = [out.take(range(i * size // count, -(-(i + 1) * size // count)), axis).mean(axis) for i in range(count)]
        out = np.stack(means, axis)
    return out.astype(np.float32)


@kernel("_contrib_BilinearResize2D")
def _bilinear(node: Node, x: np.ndarray) -> np.ndarray:
    aligned = node.attrs.get("align_corners", "True").lower() in ("true", "1")
    for axis, count in zip((2, 3), resize_output(node, x.shape[2:])):
        size = x.shape[axis]
        if aligned:
            place = np.arange(count) * ((size - 1) / (count - 1) if count > 1 else 0.0)
        else:
            place = np.maximum((np.arange(count) + 0.5) * (size / count) - 0.5, 0)
        low = np.minimum(place.astype(np.int64), size - 1)
        high = np.minimum(low + 1, size - 1)
        part = (place - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


@kernel("UpSampling")
def _up_sampling(node: Node, *xs: np.ndarray) -> np.ndarray:
    if ops.attr(node, "sample_type") != "nearest":
        raise UnsupportedError(f"{node}: found sample_type bilinear, want nearest")
    height, width = (d * ops.attr(node, "scale") for d in xs[0].shape[2:])
    return np.concatenate([x.repeat(height // x.shape[2], 2).repeat(width // x.shape[3], 3) for x in xs], 1)


# ---- moving values --------------------------------------------------------------------------------------------------

@kernel("Concat")
def _concat(node: Node, *xs: np.ndarray) -> np.ndarray:
    return np.concatenate(xs, ops.attr(node, "dim"))


@kernel("Flatten")
def _flatten(node: Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


@kernel("Reshape")
def _reshape(node: Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(reshape_target(node, x.shape))


@kernel("transpose")
def _transpose(node: Node, x: np.ndarray) -> np.ndarray:
    return x.transpose(ops.attr(node, "axes") or None)


@kernel("SwapAxis")
def _swap_axis(node: Node, x: np.ndarray) -> np.ndarray:
    return x.swapaxes(ops.attr(node, "dim1"), ops.attr(node, "dim2"))


@kernel("expand_dims")
def _expand_dims(node: Node, x: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, ops.attr(node, "axis"))


@kernel("squeeze")
def _squeeze(node: Node, x: np.ndarray) -> np.ndarray:
    return np.atleast_1d(np.squeeze(x, ops.attr(node, "axis") or None))


@kernel("slice", "slice_axis", "slice_like", "Crop")
def _slice(node: Node, *xs: np.ndarray) -> np.ndarray:
    return xs[0][slices(node, [x.shape for x in xs])]


@kernel("SliceChannel")
def _slice_channel(node: Node, x: np.ndarray) -> list[np.ndarray]:
    axis = axis_of(node, ops.attr(node, "axis"), x.ndim)
    parts = np.split(x, ops.attr(node, "num_outputs"), axis)
    return [part.squeeze(axis) for part in parts] if ops.attr(node, "squeeze_axis") else parts


@kernel("Pad")
def _pad(node: Node, x: np.ndarray) -> np.ndarray:
    mode, width = ops.attr(node, "mode"), ops.attr(node, "pad_width")
    pairs = list(zip(width[::2], width[1::2]))
    if mode == "constant":
        return np.pad(x, pairs, constant_values=np.float32(ops.attr(node, "constant_value")))
    if mode not in ("edge", "reflect"):
        raise UnsupportedError(f"{node}: found mode {mode!r}, want constant, edge or reflect")
    return np.pad(x, pairs, mode)


# ---- normalization and reductions -----------------------------------------------------------------------------------

def _normalize(x: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float, gamma: np.ndarray, beta: np.ndarray,
               axis: int) -> np.ndarray:
    """(x - mean) * gamma / sqrt(var + eps) + beta; mean and var broadcast against x, gamma and beta run along axis."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    scale = gamma.reshape(shape) / np.sqrt(var.astype(np.float64) + eps)
    return ((x - mean) * scale + beta.reshape(shape)).astype(np.float32)


@kernel("BatchNorm", "_contrib_BatchNormWithReLU")
def _batch_norm(node: Node, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray,
                var: np.ndarray) -> np.ndarray:
    axis = axis_of(node, ops.attr(node, "axis"), x.ndim)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    gamma = np.ones_like(gamma) if ops.attr(node, "fix_gamma") else gamma
    out = _normalize(x, mean.reshape(shape), var.reshape(shape), ops.attr(node, "eps"), gamma, beta, axis)
    return np.maximum(out, 0) if node.op == "_contrib_BatchNormWithReLU" else out


@kernel("InstanceNorm")
def _instance_norm(node: Node, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    axes = tuple(range(2, x.ndim))
    mean, var = (f(x, axis=axes, keepdims=True, dtype=np.float64) for f in (np.mean, np.var))
    return _normalize(x, mean, var, ops.attr(node, "eps"), gamma, beta, 1)


@kernel("LayerNorm")
def _layer_norm(node: Node, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    axis = axis_of(node, ops.attr(node, "axis"), x.ndim)
    mean, var = (f(x, axis=axis, keepdims=True, dtype=np.float64) for f in (np.mean, np.var))
    return _normalize(x, mean, var, ops.attr(node, "eps"), gamma, beta, axis)


@kernel("L2Normalization")
def _l2_normalization(node: Node, x: np.ndarray) -> np.ndarray:
    axes = {"instance": tuple(range(1, x.ndim)), "channel": (1,), "spatial": tuple(range(2, x.ndim))}
    squares = np.square(x, dtype=np.float64).sum(axes[ops.attr(node, "mode")], keepdims=True)
    return (x / np.sqrt(squares + ops.attr(node, "eps"))).astype(np.float32)


@kernel("LRN")
def _lrn(node: Node, x: np.ndarray) -> np.ndarray:
    alpha, beta, knorm, size = (ops.attr(node, key) for key in ("alpha", "beta", "knorm", "nsize"))
    near = [(0, 0), (size // 2, size // 2), *((0, 0),) * (x.ndim - 2)]
    squares = np.pad(np.square(x, dtype=np.float64), near)
    total = sum(squares[:, i:i + x.shape[1]] for i in range(size))
    return (x * (knorm + alpha / size * total) ** -beta).astype(np.float32)


@kernel("sum", "mean", "max")
def _reduce(node: Node, x: np.ndarray) -> np.ndarray:
    axes, keep = reduced_axes(node, x.ndim), ops.attr(node, "keepdims")
    out = x.max(axes, keepdims=keep) if node.op == "max" else getattr(x, node.op)(axes, keepdims=keep, dtype=np.float64)
    return np.atleast_1d(out).astype(np.float32)


def _softmax(x: np.ndarray, axis: int, log: bool = False) -> np.ndarray:
    shifted = x - x.max(axis, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis, keepdims=True)
    return shifted - np.log(total) if log else powers / total


@kernel("softmax", "log_softmax")
def _softmax_op(node: Node, x: np.ndarray) -> np.ndarray:
    temperature = node.attrs.get("temperature", "None")
    x = x if temperature == "None" else x / np.float32(float(temperature))
    return _softmax(x, ops.attr(node, "axis"), node.op == "log_softmax")


@kernel("SoftmaxActivation")
def _softmax_activation(node: Node, x: np.ndarray) -> np.ndarray:
    return _softmax(x, 1 if ops.attr(node, "mode") == "channel" else -1)


@kernel("SoftmaxOutput")
def _softmax_output(node: Node, x: np.ndarray) -> np.ndarray:
    if ops.attr(node, "multi_output"):
        return _softmax(x, 1)
    if ops.attr(node, "preserve_shape"):
        return _softmax(x, -1)
    return _softmax(x.reshape(len(x), -1), 1).reshape(x.shape)
