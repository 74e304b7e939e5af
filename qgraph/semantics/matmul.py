"""Products of matrices."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, need
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel


@rule("dot")
def _dot_shape(node: Node, shapes: list[Shape]) -> Shape:
    """Axes of a but the last (transposed: the first), then axes of b but the first (transposed: the last)."""
    a, b = shapes
    if ops.attr(node, "transpose_a"):
        a = (*a[1:], a[0])
    if ops.attr(node, "transpose_b"):
        b = (b[-1], *b[:-1])
    need(node, a[-1] == b[0], "shapes", shapes, "ones that multiply")
    return (*a[:-1], *b[1:]) or (1,)


@kernel("dot")
def _dot(node: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if ops.attr(node, "transpose_a"):
        a = np.moveaxis(a, 0, -1)
    if ops.attr(node, "transpose_b"):
        b = np.moveaxis(b, -1, 0)
    return np.atleast_1d(np.tensordot(a, b, 1))


@rule("batch_dot")
def _batch_dot_shape(node: Node, shapes: list[Shape]) -> Shape:
    a, b = (_turned(node, side, shape) for side, shape in zip("ab", shapes))
    need(node, len(a) == len(b) >= 3 and a[:-2] == b[:-2] and a[-1] == b[-2], "shapes", shapes, "ones that multiply")
    return (*a[:-1], b[-1])


def _turned(node: Node, side: str, shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2]) if ops.attr(node, f"transpose_{side}") else shape


@kernel("batch_dot")
def _batch_dot(node: Node, *factors: np.ndarray) -> np.ndarray:
    a, b = (x.swapaxes(-1, -2) if ops.attr(node, f"transpose_{side}") else x for side, x in zip("ab", factors))
    return np.matmul(a, b)
