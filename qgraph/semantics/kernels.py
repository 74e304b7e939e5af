"""The table of kernels: what each op computes, in NumPy, with MXNet's inference semantics; and activations.

The kernels lie below the shape rules, a file per family of ops.

To teach the interpreter an op::

    @kernel("MyOp")
    def my_op(node, x, *more):        # the inputs as float32 arrays, in slot order
        return x * float(node.attrs["factor"])      # one array, or a list of arrays for several outputs

Kernels of ops whose values pass through (`qgraph.ir.ops.kind`: pooling with max, reshape, ...) also run on integer
codes, given as whole float32 numbers with the zero point subtracted; they must only move values and fill with 0.
"""

from __future__ import annotations

from typing import Callable, Union

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir.graph import Node
from qgraph.registry import enter

Kernel = Callable[..., Union[np.ndarray, list[np.ndarray]]]
KERNELS: dict[str, Kernel] = {}


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Register a function as the kernel of these ops."""
    return enter(KERNELS, names)


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, x.dtype.type(0))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: -_softplus(-x),
    "tanh": np.tanh,
    "softrelu": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "mish": lambda x: x * np.tanh(_softplus(x)),
}


def activate(node: Node, x: np.ndarray) -> np.ndarray:
    """The activation fused into the node, if there is one: a clip, or one of `ACTIVATIONS`."""
    act = node.fused
    if act is None:
        return x
    if act.act == "clip":
        return np.minimum(np.maximum(x, float(act.low)), float(act.high))  # np.clip is slow
    return activation(node, act.act)(x)


def activation(node: Node, kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of that name, for a node that is or carries it."""
    if kind not in ACTIVATIONS:
        raise UnsupportedError(f"{node}: found act_type {kind!r}, want clip or one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]
