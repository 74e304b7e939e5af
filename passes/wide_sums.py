"""wide-sums: what adds floats, in front of a quantizer, is marked to do it in float64."""

from __future__ import annotations

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import Pass, register


@register
class WideSums(Pass):
    """Mark layers with weights that do not multiply codes, and averages, on which an activation's quantizer depends.

    A float32 sum depends on the order of its terms, which differs between engines and CPUs.  Where a value lies at the
    edge between two codes, the order decides the code, and one code changes many behind it.  A sum in float64 that is
    rounded to float32 is the same everywhere, so the simulation computes the reference's values.
    """

    name = "wide-sums"
    requires = ("calibrate",)

    def run(self, g: Graph) -> int:
        leads_on: set[Node] = set()
        count = 0
        for node in reversed(g.toposort()):
            starts = node.op == "fake_quantize" and g.param(g.inputs(node)[0]) is None
            if not starts and not any(reader in leads_on for reader in g.readers(node)):
                continue
            leads_on.add(node)
            if not node.wide and _adds_floats(g, node):
                node.wide = True
                count += 1
        return count


def _adds_floats(g: Graph, node: Node) -> bool:
    if ops.kind(node) == ops.COMPUTE:
        return any(port.node.op != "fake_quantize" for port in g.inputs(node)[:2])
    return ops.kind(node) == ops.AVERAGE
