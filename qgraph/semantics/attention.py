"""Attention with the heads' queries, keys and values interleaved in one tensor, time first: (length, batch, width)."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, need
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel

PARTS = {"_contrib_interleaved_matmul_selfatt_qk": 3, "_contrib_interleaved_matmul_selfatt_valatt": 3,
         "_contrib_interleaved_matmul_encdec_qk": 2, "_contrib_interleaved_matmul_encdec_valatt": 2}
"""Op -> how many tensors are interleaved in the one that has keys and values."""


def head_width(node: Node, shape: Shape, parts: int) -> int:
    """Width of a head in a tensor of that many parts."""
    heads = ops.attr(node, "heads")
    need(node, len(shape) == 3 and heads > 0 and shape[2] % (heads * parts) == 0, "data", shape,
         f"3 axes, the last of {heads} heads of {parts}")
    return shape[2] // (heads * parts)


@rule("_contrib_interleaved_matmul_selfatt_qk", "_contrib_interleaved_matmul_encdec_qk")
def _scores_shape(node: Node, shapes: list[Shape]) -> Shape:
    for index, shape in enumerate(shapes):
        head_width(node, shape, PARTS[node.op] if index == len(shapes) - 1 else 1)
    queries, both = shapes[0], shapes[-1]
    return (queries[1] * ops.attr(node, "heads"), queries[0], both[0])


@rule("_contrib_interleaved_matmul_selfatt_valatt", "_contrib_interleaved_matmul_encdec_valatt")
def _values_shape(node: Node, shapes: list[Shape]) -> Shape:
    (length, batch, _), heads = shapes[0], ops.attr(node, "heads")
    width = head_width(node, shapes[0], PARTS[node.op])
    need(node, len(shapes[1]) == 3 and shapes[1][::2] == (batch * heads, length), "attention", shapes[1],
         f"({batch * heads}, any, {length})")
    return (shapes[1][1], batch, heads * width)


def _heads(node: Node, x: np.ndarray, part: int, parts: int) -> np.ndarray:
    """One part, as (batch * heads, length, width of a head)."""
    length, batch, _ = x.shape
    split = x.reshape(length, batch * ops.attr(node, "heads"), parts, -1)
    return split[:, :, part].swapaxes(0, 1)


@kernel("_contrib_interleaved_matmul_selfatt_qk", "_contrib_interleaved_matmul_encdec_qk")
def _scores(node: Node, *xs: np.ndarray) -> np.ndarray:
    """Queries times keys, divided by the root of a head's width."""
    parts = PARTS[node.op]
    queries = _heads(node, xs[0], 0, parts if len(xs) == 1 else 1)
    keys = _heads(node, xs[-1], parts - 2, parts)
    return np.matmul(queries / np.float32(np.sqrt(queries.shape[-1])), keys.swapaxes(1, 2))


@kernel("_contrib_interleaved_matmul_selfatt_valatt", "_contrib_interleaved_matmul_encdec_valatt")
def _values(node: Node, x: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Attention times values, the heads side by side again."""
    parts = PARTS[node.op]
    found = np.matmul(attention, _heads(node, x, parts - 1, parts))
    return found.swapaxes(0, 1).reshape(found.shape[1], x.shape[1], -1)


@rule("_contrib_div_sqrt_dim")
def _div_sqrt_dim_shape(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


@kernel("_contrib_div_sqrt_dim")
def _div_sqrt_dim(node: Node, x: np.ndarray) -> np.ndarray:
    return x / np.float32(np.sqrt(x.shape[-1]))
