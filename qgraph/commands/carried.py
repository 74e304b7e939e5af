"""Whether a target can carry a network at all: asked before anything is calibrated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from qgraph.commands.network import FloatNetwork
from qgraph.errors import MissingDependencyError, QGraphError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import run_pass
from qgraph.semantics.cut import cuts, flags
from qgraph.targets.base import Shapes
from qgraph.targets.registry import formats, get_target


def check_carried(network: FloatNetwork, shapes: Shapes) -> None:
    """Raise UnsupportedError, naming where the network can end, for nodes that its target cannot write."""
    g = network.bare()
    try:
        for step in network.float_steps:
            run_pass(step, g)
        g.verify()
    except QGraphError:  # the run of these passes that is checked says it better
        return
    if refused := network.target.refused(g, shapes, integer=True):
        raise refusal(network.source, refused, lambda: takers(g, shapes, integer=True))


def refusal(source: Graph, refused: Mapping[Node, str], takers: Callable[[], Sequence[str]]) -> UnsupportedError:
    """The error to raise. source: the user's network.  refused: nodes of a rewritten form of it -> why.

    takers: names of the targets that carry the network whole, asked for where no layer is in front.
    """
    names = {node.name for node in source.dag}
    known = {name for node in refused for name in ((node.name,) if node.name in names else node.origin)}
    others = len(refused) - 1
    text = next(iter(refused.values())) + (f"; {others} further nodes cannot be carried either" if others > 1 else "")
    ends = cuts(source, known)
    if _has_layers(source, ends):
        text += f"; the tensors in front: {flags(ends)}"
    elif able := takers():
        text += f"; no layer with weights is in front of it, but {' and '.join(able)} can carry the whole network"
    return UnsupportedError(text)


def _has_layers(g: Graph, ends: Sequence[str]) -> bool:
    """Whether some layer with weights is needed for these tensors."""
    pending = [node for node in g.dag if any(Port(node, index).key in ends for index in range(node.n_out))]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if ops.kind(node) == ops.COMPUTE:
            return True
        fresh = {port.node for port in g.inputs(node)} - seen
        seen |= fresh
        pending += fresh
    return False


def takers(g: Graph, shapes: Shapes, *, integer: bool) -> list[str]:
    """The targets that carry this graph. integer: frozen, not in float."""
    found = []
    for name in formats():
        with contextlib.suppress(MissingDependencyError):
            if not get_target(name).refused(g, shapes, integer=integer):
                found.append(name)
    return found
