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

_UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": ACTIVATIONS["relu"], "sigmoid": sigmoid, "tanh": np.tanh, "exp": np.exp, "sqrt": np.sqrt, "abs": np.abs}
_WITH_SCALAR: dict[str, Callable[[np.ndarray, np.float32], np.ndarray]] = {
    "_plus_scalar": lambda x, s: x + s, "_minus_scalar": lambda x, s: x - s, "_rminus_scalar": lambda x, s: s - x,
    "_mul_scalar": lambda x, s: x * s, "_div_scalar": lambda x, s: x / s, "_rdiv_scalar": lambda x, s: s / x,
    "_maximum_scalar": np.maximum, "_minimum_scalar": np.minimum, "_power_scalar": np.power}
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


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
    raise UnsupportedError(f"{node}: found act_type {act!r}, want leaky, prelu, elu, selu or gelu")


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x.ravel().tolist()], x.dtype).reshape(x.shape)


@kernel(*_UNARY)
def _unary(node: Node, x: np.ndarray) -> np.ndarray:
    return _UNARY[node.op](x)


@kernel(*_WITH_SCALAR)
def _with_scalar(node: Node, x: np.ndarray) -> np.ndarray:
    return _WITH_SCALAR[node.op](x, np.float32(ops.attr(node, "scalar")))


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


@kernel(*(f"{family}_{name}" for name in _BINARY for family in ("elemwise", "broadcast")))
def _binary(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = _BINARY[node.op.split("_")[1]](x, y)
    return activate(node, out)


@kernel("add_n")
def _add_n(node: Node, *xs: np.ndarray) -> np.ndarray:
    return sum(xs[1:], xs[0])


@rule("where")
def _where_shape(node: Node, shapes: list[Shape]) -> Shape:
    condition, x, y = shapes
    need(node, x == y and condition in (x, x[:1]), "shapes", shapes, "equal ones, or a condition for axis 0")
    return x
