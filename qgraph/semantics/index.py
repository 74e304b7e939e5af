"""Ops that look up values, find them or put them in order."""

from __future__ import annotations

import math

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, axis_of, need, one_axis
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel


@rule("take")
def _take_shape(node: Node, shapes: list[Shape]) -> Shape:
    axis = axis_of(node, ops.attr(node, "axis"), len(shapes[0]))
    return (*shapes[0][:axis], *shapes[1], *shapes[0][axis + 1:])


@kernel("take")
def _take(node: Node, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    mode = ops.attr(node, "mode")
    return x.take(indices.astype(np.int64), ops.attr(node, "axis"), mode="wrap" if mode == "wrap" else "clip")


@rule("Embedding")
def _embedding_shape(node: Node, shapes: list[Shape]) -> Shape:
    want = (ops.attr(node, "input_dim"), ops.attr(node, "output_dim"))
    need(node, shapes[1] == want, "weight", shapes[1], want)
    return (*shapes[0], want[1])


@kernel("Embedding")
def _embedding(node: Node, indices: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight.take(indices.astype(np.int64), 0, mode="clip")


@rule("pick")
def _pick_shape(node: Node, shapes: list[Shape]) -> Shape:
    return _without(shapes[0], one_axis(node, len(shapes[0])), ops.attr(node, "keepdims"))


@rule("batch_take")
def _batch_take_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) == 2 and shapes[1] == shapes[0][:1], "shapes", shapes, "(rows, columns) and (rows,)")
    return shapes[1]


@rule("argmax", "argmin")
def _argmax_shape(node: Node, shapes: list[Shape]) -> Shape:
    keep, rank = ops.attr(node, "keepdims"), len(shapes[0])
    if not ops.attr(node, "axis"):
        return (1,) * rank if keep else (1,)
    return _without(shapes[0], one_axis(node, rank), keep)


def _without(shape: Shape, axis: int, keep: bool) -> Shape:
    return (*shape[:axis], *((1,) if keep else ()), *shape[axis + 1:]) or (1,)


@rule("gather_nd")
def _gather_nd_shape(node: Node, shapes: list[Shape]) -> Shape:
    data, indices = shapes
    need(node, indices[0] <= len(data), "indices", indices, f"at most {len(data)} in axis 0")
    return (*indices[1:], *data[indices[0]:]) or (1,)


@rule("one_hot")
def _one_hot_shape(node: Node, shapes: list[Shape]) -> Shape:
    return (*shapes[0], ops.attr(node, "depth"))


@rule("topk", "sort", "argsort")
def _sorted_shape(node: Node, shapes: list[Shape]) -> Shape | list[Shape]:
    shape: Shape = shapes[0] if ops.attr(node, "axis") else (math.prod(shapes[0]),)
    axis = one_axis(node, len(shape)) if ops.attr(node, "axis") else 0
    if node.op != "topk" or ops.attr(node, "ret_typ") == "mask":
        return shapes[0] if node.op == "topk" else shape
    count = ops.attr(node, "k")
    need(node, count <= shape[axis], "k", count, f"at most {shape[axis]}")
    out = (*shape[:axis], count if count > 0 else shape[axis], *shape[axis + 1:])
    return [out, out] if ops.attr(node, "ret_typ") == "both" else out
