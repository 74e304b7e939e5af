"""Normalizations."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, axis_of, need
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel


@rule("BatchNorm", "_contrib_BatchNormWithReLU", "_contrib_SyncBatchNorm", "InstanceNorm", "LayerNorm")
def _normalization_shape(node: Node, shapes: list[Shape]) -> Shape:
    axis = 1 if node.op == "InstanceNorm" else ops.attr(node, "axis")
    want = (shapes[0][axis_of(node, axis, len(shapes[0]))],)
    for name, shape in zip(ops.info(node.op).inputs[1:], shapes[1:]):
        need(node, shape == want, name, shape, want)
    return shapes[0]


@kernel("BatchNorm", "_contrib_BatchNormWithReLU", "_contrib_SyncBatchNorm")
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


def _normalize(x: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float, gamma: np.ndarray, beta: np.ndarray,
               axis: int) -> np.ndarray:
    """(x - mean) * gamma / sqrt(var + eps) + beta; mean and var broadcast against x, gamma and beta run along axis."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    scale = gamma.reshape(shape) / np.sqrt(var.astype(np.float64) + eps)
    return ((x - mean) * scale + beta.reshape(shape)).astype(np.float32)


@rule("GroupNorm")
def _group_norm_shape(node: Node, shapes: list[Shape]) -> Shape:
    groups, channels = ops.attr(node, "num_groups"), shapes[0][1]
    need(node, groups >= 1 and channels % groups == 0, "num_groups", groups, f"a divisor of {channels} channels")
    need(node, shapes[1] == shapes[2] == (groups,), "gamma and beta", shapes[1:], f"one value for each of {groups}")
    return shapes[0]


@kernel("GroupNorm")
def _group_norm(node: Node, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """gamma and beta have one value for each group."""
    groups = x.reshape(len(x), ops.attr(node, "num_groups"), -1)
    mean, var = (f(groups, axis=2, keepdims=True, dtype=np.float64) for f in (np.mean, np.var))
    return _normalize(groups, mean, var, ops.attr(node, "eps"), gamma, beta, 1).reshape(x.shape)


@rule("L2Normalization")
def _l2_normalization_shape(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


@kernel("L2Normalization")
def _l2_normalization(node: Node, x: np.ndarray) -> np.ndarray:
    axes = {"instance": tuple(range(1, x.ndim)), "channel": (1,), "spatial": tuple(range(2, x.ndim))}
    squares = np.square(x, dtype=np.float64).sum(axes[ops.attr(node, "mode")], keepdims=True)
    return (x / np.sqrt(squares + ops.attr(node, "eps"))).astype(np.float32)


@rule("LRN")
def _lrn_shape(node: Node, shapes: list[Shape]) -> Shape:
    size = ops.attr(node, "nsize")
    need(node, size % 2 == 1 and 0 < size <= 2 * shapes[0][1] + 63, "nsize", size, f"odd, for {shapes[0][1]} channels")
    return shapes[0]


@kernel("LRN")
def _lrn(node: Node, x: np.ndarray) -> np.ndarray:
    alpha, beta, knorm, size = (ops.attr(node, key) for key in ("alpha", "beta", "knorm", "nsize"))
    near = [(0, 0), (size // 2, size // 2), *((0, 0),) * (x.ndim - 2)]
    squares = np.pad(np.square(x, dtype=np.float64), near)
    total = sum(squares[:, i:i + x.shape[1]] for i in range(size))
    return (x * (knorm + alpha / size * total) ** -beta).astype(np.float32)
