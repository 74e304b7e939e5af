"""Give tensors that one integer op reads together one scale."""

from __future__ import annotations

import dataclasses

from qgraph.ir import Graph, Node, Port
from qgraph.rewrite import Pass, register


@register
class ShareScales(Pass):
    """The inputs of a Concat that are all quantized share one range: the union of what each asked for.

        concat(fq{source=a}(a), fq{source=b}(b))  ->  both {source=a|b}

    Sets grow over chains of Concat (union-find), so a tensor read by two of them ties both together.
    """

    name = "share-scales"
    requires = ("insert-fake-quantize",)

    def run(self, g: Graph) -> int:
        parent: dict[Node, Node] = {}

        def find(fq: Node) -> Node:
            while parent.setdefault(fq, fq) is not fq:
                parent[fq] = fq = parent[parent[fq]]
            return fq

        for node in g.nodes("Concat"):
            group = [fq for port in g.inputs(node) for fq in quantizers_behind(g, port)]
            if len(group) > 1 and all(quantizers_behind(g, port) for port in g.inputs(node)):
                for fq in group[1:]:
                    parent[find(fq)] = find(group[0])
        members: dict[Node, list[Node]] = {}
        for fq in parent:
            members.setdefault(find(fq), []).append(fq)
        return sum(_unite(g, group) for group in members.values())


def quantizers_behind(g: Graph, port: Port) -> list[Node]:
    """The fake_quantize nodes whose codes arrive at this port through ops that pass values on."""
    from qgraph.passes.integer_flow import passes_integers

    if port.node.op == "fake_quantize":
        return [port.node]
    if passes_integers(port.node):
        found = [quantizers_behind(g, p) for p in g.inputs(port.node)]
        return [fq for group in found for fq in group] if all(found) else []
    return []


def _unite(g: Graph, group: list[Node]) -> int:
    names: dict[str, None] = {}
    for fq in sorted(group, key=lambda n: n.name):
        assert fq.quant is not None
        names.update(dict.fromkeys((fq.quant.source or g.inputs(fq)[0].key).split("|")))
    source, count = "|".join(names), 0
    for fq in group:
        assert fq.quant is not None
        if fq.quant.source != source:
            fq.quant = dataclasses.replace(fq.quant, source=source)
            count += 1
    return count
