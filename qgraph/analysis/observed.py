"""The tensors whose ranges calibration gathers."""

from __future__ import annotations

from qgraph.analysis.codes import ranged
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams

_DECODING = frozenset({
    "topk", "sort", "argsort", "argmax", "argmin", "gather_nd", "one_hot", "_contrib_box_nms", "_contrib_box_decode",
    "_contrib_box_iou", "_contrib_bipartite_matching", "_contrib_MultiBoxPrior", "_contrib_MultiBoxTarget",
    "_contrib_MultiBoxDetection", "_contrib_Proposal", "_contrib_MultiProposal"})
"""Ops that choose boxes or make them: behind the last layer with weights no target has them, or what follows, in
codes."""


def observed_ports(g: Graph) -> list[Port]:
    """Every tensor that any target may quantize: what layers with weights, sums and products read and write, averages.

    The set depends on the graph only, so that one table serves every target and every exclusion.
    """
    ports: dict[Port, None] = {}
    decoded = _decoded(g)
    for node in g.toposort():
        if node in decoded:
            continue
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


def _decoded(g: Graph) -> set[Node]:
    """Nodes behind an op of `_DECODING`, or of that kind, whose values reach no layer with weights."""
    order = g.toposort()
    read: set[Node] = set()  # by a layer, maybe through others
    for node in reversed(order):
        if node in read or ops.kind(node) == ops.COMPUTE:
            read.add(node)
            read.update(port.node for port in g.inputs(node))
    found: set[Node] = set()
    for node in order:
        if node not in read and (node.op in _DECODING or any(port.node in found for port in g.inputs(node))):
            found.add(node)
    return found


def wanted_ranges(g: Graph) -> list[str]:
    """The observed tensors whose ranges the quantizers of a graph ask for; those with numbers need none."""
    wanted: dict[str, None] = {}
    for fq in g.nodes("fake_quantize"):
        if fq.quant is not None and not isinstance(fq.quant, QParams) and g.param(g.inputs(fq)[0]) is None:
            wanted.update(dict.fromkeys(ranged(g, fq)))
    return list(wanted)
