"""Reductions over axes."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, axis_of, reduced_axes
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel


@rule("sum", "mean", "max", "min", "prod")
def _reduce_shape(node: Node, shapes: list[Shape]) -> Shape:
    axes, keep = reduced_axes(node, len(shapes[0])), ops.attr(node, "keepdims")
    return tuple(1 if i in axes else d for i, d in enumerate(shapes[0]) if keep or i not in axes) or (1,)


@kernel("sum", "mean", "max", "min", "prod")
def _reduce(node: Node, x: np.ndarray) -> np.ndarray:
    axes, keep = reduced_axes(node, x.ndim), ops.attr(node, "keepdims")
    more = {} if node.op in ("max", "min") else {"dtype": np.float64}
    return np.atleast_1d(getattr(x, node.op)(axes, keepdims=keep, **more)).astype(np.float32)


@rule("norm")
def _norm_shape(node: Node, shapes: list[Shape]) -> Shape:
    rank, keep = len(shapes[0]), ops.attr(node, "keepdims")
    axes = tuple(axis_of(node, a, rank) for a in ops.attr(node, "axis")) or tuple(range(rank))
    return tuple(1 if i in axes else d for i, d in enumerate(shapes[0]) if keep or i not in axes) or (1,)


@kernel("norm")
def _norm(node: Node, x: np.ndarray) -> np.ndarray:
    axes, keep = ops.attr(node, "axis") or None, ops.attr(node, "keepdims")
    size = np.abs(x).astype(np.float64)
    out = size.sum(axes, keepdims=keep) if ops.attr(node, "ord") == 1 else np.sqrt((size ** 2).sum(axes, keepdims=keep))
    return np.atleast_1d(out).astype(np.float32)
