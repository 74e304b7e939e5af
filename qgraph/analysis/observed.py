"""The tensors whose ranges calibration gathers."""

from __future__ import annotations

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port


def observed_ports(g: Graph) -> list[Port]:
    """Every tensor that any target may quantize: what layers with weights, sums and products read and write, averages.

    The set depends on the graph only, so that one table serves every target and every exclusion.
    """
    ports: dict[Port, None] = {}
    for node in g.toposort():
        if ops.kind(node) == ops.COMPUTE:
            data = g.inputs(node)[0]
            if g.param(data) is None:
                ports[data] = None
            ports[Port(node)] = None
        elif ops.info(node.op).combines == ops.CONCAT or ops.kind(node) == ops.AVERAGE:
            ports[Port(node)] = None
        elif ops.info(node.op).combines:
            ports.update((p, None) for p in g.inputs(node) if g.param(p) is None)
            ports[Port(node)] = None
    return list(ports)
