"""Ops that make values out of nothing but shapes and attributes.

A rule gives [] where the shape cannot be known from shapes alone.
"""

from __future__ import annotations

import math

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, arange_of, axis_of, need
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel


@rule("_ones", "_zeros", "_full")
def _filled_shape(node: Node, shapes: list[Shape]) -> Shape | list[Shape]:
    shape = tuple(ops.attr(node, "shape"))
    return shape if shape and min(shape) > 0 else []  # 0: MXNet takes the shape that a reader wants


@kernel("_ones", "_zeros", "_full")
def _filled(node: Node) -> np.ndarray:
    shape = ops.attr(node, "shape")
    need(node, shape and min(shape) > 0, "shape", shape, "numbers above 0")
    return np.full(shape, ops.attr(node, "value") if node.op == "_full" else float(node.op == "_ones"), np.float32)


@rule("ones_like", "zeros_like")
def _filled_like_shape(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


@rule("_arange")
def _arange_shape(node: Node, shapes: list[Shape]) -> Shape | list[Shape]:
    start, stop, step = arange_of(node)
    if ops.attr(node, "infer_range") and ops.attr(node, "stop") is None:
        return []  # MXNet takes the length that a reader wants
    need(node, step != 0 and (stop - start) / step > 0, "start, stop, step", (start, stop, step), "some numbers")
    return (math.ceil((stop - start) / step) * ops.attr(node, "repeat"),)


@kernel("_arange")
def _arange(node: Node) -> np.ndarray:
    need(node, not ops.attr(node, "infer_range") or ops.attr(node, "stop") is not None, "infer_range", True, "a stop")
    return np.repeat(np.arange(*arange_of(node), dtype=np.float32), ops.attr(node, "repeat"))


@rule("_contrib_arange_like")
def _arange_like_shape(node: Node, shapes: list[Shape]) -> Shape:
    axes = ops.attr(node, "axis")
    return (shapes[0][axis_of(node, axes[0], len(shapes[0]))],) if axes else shapes[0]


@rule("shape_array")
def _shape_array(node: Node, shapes: list[Shape]) -> Shape:
    return (len(shapes[0]),)


@rule("size_array")
def _size_array(node: Node, shapes: list[Shape]) -> Shape:
    return (1,)
