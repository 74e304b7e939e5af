"""ROIAlign where a box is of no image, which GluonCV's pyramids fill up their levels with."""

from __future__ import annotations

import numpy as np

from qgraph.ir.graph import Graph, Node, Port

_OP = "_contrib_ROIAlign"


def with_zeros(g: Graph) -> Graph:
    """A copy of `g` whose ROIAligns give zeros for boxes of a negative image number; `g` itself if it has none.

        ROIAlign(x, rois)  ->  where(image >= 0, ROIAlign(x, where(image >= 0, rois, any box)), 0)

    That is what MXNet 1.9.1 does on a GPU and means to do on a CPU, where it writes one zero, at a place of another
    box, and leaves the rest as it finds it in memory.
    """
    if not any(node.op == _OP for node in g.dag):
        return g
    twin = g.copy()
    for node in twin.nodes(_OP):
        _give_zeros(twin, node)
    return twin


def _give_zeros(g: Graph, node: Node) -> None:
    def op(kind: str, *inputs: Node | Port, part: str, **attrs: object) -> Node:
        return g.add(kind, inputs, f"{node.name}_{part}", attrs=attrs)

    rois = g.inputs(node)[1]
    image = op("slice_axis", rois, part="image", axis=1, begin=0, end=1)
    there = op("_greater_equal_scalar", op("Reshape", image, part="images", shape="(-1,)"), part="there", scalar=0)
    box = g.add_param(f"{node.name}_box", np.array([[0, 0, 0, 1, 1]], np.float32))
    boxes = op("where", there, rois, op("broadcast_like", box, rois, part="no_box"), part="boxes")
    g.set_input(node, 1, Port(boxes))
    zeros = op("zeros_like", node, part="zeros")
    filled = op("where", there, node, zeros, part="filled")
    g.replace_uses(node, filled, keep=[zeros, filled])
