"""Near ties: values that are equal but for rounding, between which two correct engines choose differently.

Behind such a choice (`qgraph.ir.ops.JUMPS`) outputs differ by all of their size, and nobody is wrong.  So the two are
compared piece by piece: what the choices read, and then what comes out where both choose between the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.types import type_of

_ORDERS = ("topk", "argsort")


def jumps(node: Node) -> bool:
    """Whether the least change of an input can change the node's value by all of its size."""
    if node.op == "Cast":
        return "int" in str(ops.attr(node, "dtype"))
    return ops.ALIASES.get(node.op, node.op) in ops.JUMPS


def fed_in_front_of_jumps(g: Graph, known: Callable[[Node], bool]) -> tuple[Graph, dict[str, Node]]:
    """A copy whose jumping nodes read inputs of their own, and new input -> the node of `g` whose value it stands for.

        topk(scale(conv(x)))  ->  topk(fed), scale(conv(x)); fed: the value of scale

    known: of nodes of `g`, whose values can be fed.  In front of a node that is not, those that it reads are fed.
    What is fed are heads of the copy, behind those that it has.
    """
    twin = g.copy()
    mine = {node.name: node for node in g.dag}
    fed: dict[Node, Node] = {}
    computed: set[Node] = set()
    for node in twin.toposort():
        if node.op == "null" and node.name not in twin.params or any(p.node in computed for p in twin.inputs(node)):
            computed.add(node)
    pending = [node for node in twin.toposort() if jumps(node)]
    done: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in done:
            continue
        done.add(node)
        for slot, port in enumerate(twin.inputs(node)):
            source = port.node
            if source.op == "null" or source not in computed or type_of(twin, port) != "float32":
                continue  # what is no float follows from a choice, or from shapes
            if source.n_out == 1 and known(mine[source.name]):
                if source not in fed:
                    fed[source] = twin.add("null", name=f"{source.name}_fed")
                twin.set_input(node, slot, Port(fed[source]))
            else:
                pending.append(source)
    twin.heads = list(dict.fromkeys([*twin.heads, *map(Port, fed)]))
    return twin, {new.name: mine[source.name] for source, new in fed.items()}


def behind_equal_values(g: Graph, fed: Mapping[str, Array]) -> tuple[set[Node], str]:
    """The nodes that depend on the order of values that are exactly equal, which MXNet leaves open, and the first of
    those that order them, or "".

    fed: the inputs of `fed_in_front_of_jumps`.
    """
    found: set[Node] = set()
    first = ""
    for node in g.toposort():
        ports = g.inputs(node)
        orders = node.op in _ORDERS and ports[0].node.name in fed and _has_equals(node, fed[ports[0].node.name])
        if orders or any(port.node in found for port in ports):
            found.add(node)
            first = first or str(node)
    return found, first


def _has_equals(node: Node, values: Array) -> bool:
    """Whether equal values are among those that it chooses, or where it stops to choose."""
    axes = ops.attr(node, "axis")
    values = np.sort(values, axis=axes[0] if axes else None)
    values = np.moveaxis(values, axes[0], -1) if axes else values
    if not ops.attr(node, "is_ascend"):
        values = values[..., ::-1]
    k = ops.attr(node, "k") if node.op == "topk" else 0
    if k > 0:
        values = values[..., :k + 1]
    return bool((values[..., 1:] == values[..., :-1]).any())
