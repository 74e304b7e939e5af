"""What an int8 model of Tengine cannot have: refused before anything is calibrated."""

from __future__ import annotations

from collections.abc import Callable

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.targets.tengine import nn as tengine_nn  # noqa: F401  (the import fills the table)
from qgraph.targets.tengine.convert import CONVERTERS, FLOAT_ONLY, missing


def check_integer(g: Graph, node: Node, refuse: Callable[[Graph, Node], str]) -> None:
    """Raise UnsupportedError, with the way out, for a node that has no int8 form.

    refuse: why a layer with weights stays in float, as `Target.refuse`.
    """
    if node.op not in CONVERTERS:
        raise missing(node)
    if node.op in FLOAT_ONLY:
        raise UnsupportedError(float_only(node))
    if ops.kind(node) == ops.COMPUTE and g.inputs(node)[1].node.op != "fake_quantize":
        why = refuse(g, node) or "excluded, trained in float, or its weight is computed"
        raise UnsupportedError(stays_in_float(node, why))


def stays_in_float(node: Node, why: str) -> str:
    """Why an int8 model cannot have this layer, and what to do."""
    return (f"{node}: stays in float ({why}), and Tengine's int8 models are so from inputs to outputs: freeze without "
            "--exclude, end the model before it (--outputs NAME), or keep all of it in float (qgraph convert --to "
            "tengine)")


def float_only(node: Node) -> str:
    """Why an int8 model cannot have this node, and what to do."""
    return (f"{node}: Tengine has no int8 form of it that is known to work, and its int8 models are so from inputs to "
            "outputs; end the model before it (--outputs NAME), or keep all of it in float (qgraph convert --to "
            "tengine)")
