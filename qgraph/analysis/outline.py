"""A network without its parameters and quantizers: what is drawn of it."""

from __future__ import annotations

from typing import Any

from qgraph.analysis.codes import before_quantizer
from qgraph.ir.graph import Graph

MOST_NODES = 2000


def outline(g: Graph) -> list[dict[str, Any]] | None:
    """[{"name", "op", "reads": numbers of nodes in front}] in topological order; None of a network too large to draw.

    What comes from parameters alone, such as anchors, is left out.
    """
    numbers: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for node in g.toposort():
        if g.is_param(node) or node.op == "fake_quantize":
            continue
        sources = [before_quantizer(g, port).node.name for port in g.inputs(node)]
        reads = list(dict.fromkeys(numbers[name] for name in sources if name in numbers))
        if reads or node.op == "null":
            numbers[node.name] = len(rows)
            rows.append({"name": node.name, "op": node.op, "reads": reads})
    return rows if len(rows) <= MOST_NODES else None
