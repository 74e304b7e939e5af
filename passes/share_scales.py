"""Give tensors that one integer op reads together one scale."""

from __future__ import annotations

from networkx.utils import UnionFind

from qgraph.analysis.codes import quantizers_behind, ranged, upper_end
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._placing import share_range


@register
class ShareScales(Pass):
    """The inputs of a Concat that are all quantized share one range: the union of what each asked for.

        concat(fq{source=a}(a), fq{source=b}(b))  ->  both {source=a|b}

    Inputs that fused clips end differently stay apart: their ranges must end where the clips do.

    Sets grow over chains of Concat (union-find), so a tensor read by two of them ties both together.
    """

    name = "share-scales"
    requires = ("insert-fake-quantize",)

    def run(self, g: Graph) -> int:
        sets = UnionFind()
        for node in g.nodes("Concat"):
            group = [fq for port in g.inputs(node) for fq in quantizers_behind(g, port)]
            whole = all(quantizers_behind(g, port) for port in g.inputs(node))
            if len(group) > 1 and whole and len({upper_end(g.inputs(fq)[0].node) for fq in group}) == 1:
                sets.union(*group)
        return sum(_unite(g, group) for group in sets.to_sets())


def _unite(g: Graph, group: set[Node]) -> int:
    names: dict[str, None] = {}
    for fq in sorted(group, key=lambda n: n.name):
        names.update(dict.fromkeys(ranged(g, fq)))
    return share_range(group, tuple(names))
