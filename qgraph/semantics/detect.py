"""Ops of detectors: windows at boxes, and boxes."""

from __future__ import annotations

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, need
from qgraph.semantics.infer import rule


@rule("ROIPooling", "_contrib_ROIAlign")
def _roi_shape(node: Node, shapes: list[Shape]) -> Shape:
    data, rois = shapes
    need(node, len(data) == 4 and len(rois) == 2 and rois[1] == 5, "data and rois", shapes, "4 axes, and rows of 5")
    return (rois[0], data[1], *ops.attr(node, "pooled_size"))


@rule("_contrib_box_decode")
def _box_decode_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) == 3 and shapes[1] == (1, *shapes[0][1:]) and shapes[0][2] == 4, "shapes", shapes,
         "(N, boxes, 4) and (1, boxes, 4)")
    return shapes[0]
