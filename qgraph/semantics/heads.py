"""Softmax in its forms, and the outputs that training ends in."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, axis_of, need
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel, sigmoid


@rule("softmax", "log_softmax", "softmin")
def _softmax_shape(node: Node, shapes: list[Shape]) -> Shape:
    axis = axis_of(node, ops.attr(node, "axis"), len(shapes[0]))
    if ops.attr(node, "use_length"):
        want = (*shapes[0][:axis], *shapes[0][axis + 1:])
        need(node, len(shapes) == 2 and shapes[1] == want, "lengths", shapes[1:], [want])
    return shapes[0]


@kernel("softmax", "log_softmax", "softmin")
def _softmax(node: Node, x: np.ndarray, *length: np.ndarray) -> np.ndarray:
    """use_length: over the first so many values; the others become 0."""
    temperature, axis = ops.attr(node, "temperature"), ops.attr(node, "axis")
    x = x if temperature is None else x / np.float32(temperature)
    x = -x if node.op == "softmin" else x
    if not ops.attr(node, "use_length"):
        return softmax(x, axis, node.op == "log_softmax")
    places = np.arange(x.shape[axis]).reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    inside = places < np.expand_dims(length[0], axis)
    return np.where(inside, softmax(np.where(inside, x, np.finfo(np.float32).min), axis, node.op == "log_softmax"), 0)


@rule("SoftmaxActivation", "SoftmaxOutput", "LogisticRegressionOutput")
def _output_shape(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


@kernel("SoftmaxActivation")
def _softmax_activation(node: Node, x: np.ndarray) -> np.ndarray:
    return softmax(x, 1 if ops.attr(node, "mode") == "channel" else -1)


@kernel("SoftmaxOutput")
def _softmax_output(node: Node, x: np.ndarray) -> np.ndarray:
    if ops.attr(node, "multi_output"):
        return softmax(x, 1)
    if ops.attr(node, "preserve_shape"):
        return softmax(x, -1)
    return softmax(x.reshape(len(x), -1), 1).reshape(x.shape)


@kernel("LogisticRegressionOutput")
def _logistic(node: Node, x: np.ndarray) -> np.ndarray:
    return sigmoid(x)


def softmax(x: np.ndarray, axis: int, log: bool = False) -> np.ndarray:
    shifted = x - x.max(axis, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis, keepdims=True)
    return shifted - np.log(total) if log else powers / total
