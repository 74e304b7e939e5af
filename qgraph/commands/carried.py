"""Whether a target can carry a network at all: asked before anything is calibrated."""

from __future__ import annotations

from collections.abc import Mapping

from qgraph.commands.network import FloatNetwork
from qgraph.errors import UnsupportedError
from qgraph.ir.graph import Graph, Node
from qgraph.semantics.cut import cuts, flags
from qgraph.targets.base import Shapes


def check_carried(network: FloatNetwork, shapes: Shapes) -> None:
    """Raise UnsupportedError, naming where the network can end, for nodes that its target cannot write."""
    g = network.bare()
    for step in network.float_steps:
        step.run(g)
    if refused := network.target.refused(g, shapes, integer=True):
        raise refusal(network.source, refused)


def refusal(source: Graph, refused: Mapping[Node, str]) -> UnsupportedError:
    """The error to raise. source: the user's network.  refused: nodes of a rewritten form of it -> why."""
    names = {node.name for node in source.dag}
    known = {name for node in refused for name in ((node.name,) if node.name in names else node.origin)}
    others = len(refused) - 1
    text = next(iter(refused.values())) + (f"; {others} further nodes cannot be carried either" if others > 1 else "")
    if ends := cuts(source, known):
        text += f"; the tensors in front: {flags(ends)}"
    return UnsupportedError(text)
