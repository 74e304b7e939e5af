"""Where a network can end in front of nodes that something cannot carry."""

from __future__ import annotations

from collections.abc import Callable, Collection

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.semantics.infer import value_inputs, value_nodes


def refused_by(g: Graph, carry: Callable[[Node], None]) -> dict[Node, str]:
    """Node -> why `carry` raises UnsupportedError for it. What depends on such a node is not asked for."""
    reached = value_nodes(g)
    found: dict[Node, str] = {}
    lost: set[Node] = set()
    for node in g.toposort():
        if node not in reached:
            continue
        if any(port.node in lost for port in value_inputs(g, node)):
            lost.add(node)
            continue
        try:
            carry(node)
        except UnsupportedError as error:
            found[node] = str(error)
            lost.add(node)
    return found


def cuts(g: Graph, names: Collection[str]) -> list[str]:
    """The tensors in front of the nodes of these names, and the outputs that depend on none of them, in order.

    Only what is computed from the network's inputs counts, and not where a node reads no more than its shape.
    """
    reached = value_nodes(g)
    order = [node for node in g.toposort() if node in reached]
    computed: set[Node] = set()
    lost: set[Node] = set()
    found: dict[str, None] = {}
    for node in order:
        ports = value_inputs(g, node)
        blind = ops.SHAPE_ONLY.get(node.op, ())
        read = [port for slot, port in enumerate(ports) if slot not in blind]
        if node.op == "null" and node.name not in g.params or any(port.node in computed for port in read):
            computed.add(node)
        if node.name in names or any(port.node in lost for port in ports):
            lost.add(node)
            found.update((port.key, None) for port in read
                         if port.node in computed and port.node not in lost and port.node.op != "null")
    found.update((head.key, None) for head in g.heads
                 if head.node in computed and head.node not in lost and head.node.op != "null")
    return list(found)


def flags(names: Collection[str]) -> str:
    """As on the command line."""
    return " ".join(f"--outputs {name}" for name in names)
