"""Layers with quantizers that go back to float arithmetic."""

from __future__ import annotations

from qgraph.analysis.codes import ranged
from qgraph.ir.graph import Graph, Node


def leave_in_float(g: Graph, layer: Node, trained: frozenset[str]) -> None:
    """layer(fq(x), fq(w), b)  ->  layer(x, w, b); what else reads fq(x) keeps it.

    trained: tensors whose range was chosen in training; their quantizers stay, as the range clips.
    """
    for slot, port in enumerate(g.inputs(layer)):
        if port.node.op == "fake_quantize":
            source = g.inputs(port.node)[0]
            if g.param(source) is not None or (g.has_one_use(port) and trained.isdisjoint(ranged(g, port.node))):
                g.set_input(layer, slot, source)
