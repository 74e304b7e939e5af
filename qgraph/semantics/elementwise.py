"""Ops that work element by element: activations, arithmetic with numbers and between tensors."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, need
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import ACTIVATIONS, activate, activation, kernel, sigmoid


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x.ravel().tolist()], x.dtype).reshape(x.shape)


def _mod(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The remainder with the sign of y, 0 for y = 0."""
    return np.where(y == 0, np.float32(0), np.mod(x, y))


_UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{name: getattr(np, name) for name in (
        "tanh", "exp", "sqrt", "abs", "log", "log2", "log10", "log1p", "expm1", "cbrt", "square", "reciprocal", "sign",
        "floor", "ceil", "trunc", "negative", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh",
        "arcsinh", "arccosh", "arctanh", "logical_not")},
    "relu": ACTIVATIONS["relu"], "sigmoid": sigmoid, "softsign": ACTIVATIONS["softsign"], "erf": _erf, "fix": np.trunc,
    "rsqrt": lambda x: 1 / np.sqrt(x), "rcbrt": lambda x: 1 / np.cbrt(x),
    "rint": lambda x: np.ceil(x - np.float32(0.5)), "round": lambda x: np.trunc(x + np.copysign(np.float32(0.5), x))}
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add, "plus": np.add, "sub": np.subtract, "minus": np.subtract, "mul": np.multiply, "div": np.divide,
    "lesser": np.less, "lesser_equal": np.less_equal, "mod": _mod,
    **{name: getattr(np, name) for name in ("power", "maximum", "minimum", "hypot", "equal", "not_equal", "greater",
                                            "greater_equal", "logical_and", "logical_or", "logical_xor")}}


# ---- one tensor -----------------------------------------------------------------------------------------------------

@rule("fake_quantize", "Activation", "LeakyReLU", "clip", "hard_sigmoid", "Cast", *ops.IDENTITIES, *ops.UNARY,
      *ops.WITH_SCALAR)
def _same_shape(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


@kernel("Activation")
def _activation(node: Node, x: np.ndarray) -> np.ndarray:
    return activation(node, ops.attr(node, "act_type"))(x)


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
    if act == "rrelu":  # at inference the leaky one of its mean slope
        return np.where(x > 0, x, x * np.float32((ops.attr(node, "lower_bound") + ops.attr(node, "upper_bound")) / 2))
    raise UnsupportedError(f"{node}: found act_type {act!r}, want leaky, prelu, rrelu, elu, selu or gelu")


@kernel(*_UNARY)
def _unary(node: Node, x: np.ndarray) -> np.ndarray:
    return _UNARY[node.op](x).astype(np.float32, copy=False)


_REVERSED = tuple(f"_r{word}_scalar" for word in ("minus", "div", "power", "mod"))


@kernel(*(op for op in ops.WITH_SCALAR if op != "smooth_l1"))
def _with_scalar(node: Node, x: np.ndarray) -> np.ndarray:
    number = np.array(ops.attr(node, "scalar"), np.float32)
    if node.op in _REVERSED:
        return _BINARY[node.op[2:-len("_scalar")]](number, x)
    return _BINARY[node.op[1:-len("_scalar")]](x, number).astype(np.float32, copy=False)


@kernel("smooth_l1")
def _smooth_l1(node: Node, x: np.ndarray) -> np.ndarray:
    square, size = np.float32(ops.attr(node, "scalar")) ** 2, np.abs(x)
    return np.where(size < 1 / square, square * x * x / 2, size - np.float32(0.5) / square)


@kernel("clip")
def _clip(node: Node, x: np.ndarray) -> np.ndarray:
    return np.clip(x, np.float32(ops.attr(node, "a_min")), np.float32(ops.attr(node, "a_max")))


@kernel("hard_sigmoid")
def _hard_sigmoid(node: Node, x: np.ndarray) -> np.ndarray:
    return np.clip(np.float32(ops.attr(node, "alpha")) * x + np.float32(ops.attr(node, "beta")), 0, 1)


@kernel(*ops.IDENTITIES)
def _identity(node: Node, x: np.ndarray) -> np.ndarray:
    return x


@kernel("Cast")
def _cast(node: Node, x: np.ndarray) -> np.ndarray:
    dtype = ops.attr(node, "dtype")
    if dtype not in ("float16", "float32", "float64", "int8", "uint8", "int32", "int64"):
        raise UnsupportedError(f"{node}: found dtype {dtype!r}, want a float or integer one")
    return x.astype(dtype).astype(np.float32)


# ---- several tensors ------------------------------------------------------------------------------------------------

@rule("add_n", *ops.ELEMWISE)
def _elemwise_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(set(shapes)) == 1, "shapes", shapes, "equal ones")
    return shapes[0]


@rule(*ops.BROADCAST)
def _broadcast_shape(node: Node, shapes: list[Shape]) -> Shape:
    left, right = ((1,) * (max(map(len, shapes)) - len(s)) + s for s in shapes)
    need(node, all(a == b or 1 in (a, b) for a, b in zip(left, right)), "shapes", shapes, "ones that broadcast")
    return tuple(max(a, b) for a, b in zip(left, right))


@kernel(*ops.ELEMWISE, *ops.BROADCAST)
def _binary(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = _BINARY[node.op.split("_", 1)[1]](x, y).astype(np.float32, copy=False)
    return activate(node, out)


@kernel("add_n")
def _add_n(node: Node, *xs: np.ndarray) -> np.ndarray:
    return sum(xs[1:], xs[0])


@rule("where")
def _where_shape(node: Node, shapes: list[Shape]) -> Shape:
    condition, x, y = shapes
    need(node, x == y and condition in (x, x[:1]), "shapes", shapes, "equal ones, or a condition for axis 0")
    return x


@kernel("where")
def _where(node: Node, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)) != 0, x, y)
