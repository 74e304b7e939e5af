"""Shape inference: one rule per op, integers only, nothing is allocated.

`infer` fills a table Port -> shape in one linear walk.  The rules lie above the kernels, a file per family of ops.

To teach it an op, write a rule::

    @rule("MyOp")
    def my_op(node, shapes):          # shapes of the inputs, in slot order
        return shapes[0]              # the output's shape, or a list of shapes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Callable, Union

from qgraph.errors import GraphError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.registry import enter
from qgraph.semantics.geometry import MAX_RANK, Shape

Rule = Callable[[Node, list[Shape]], Union[Shape, list[Shape]]]

MAX_ELEMENTS = 1 << 31
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a shape rule for these ops."""
    return enter(RULES, names)


def infer(g: Graph, input_shapes: Mapping[str, Sequence[int]]) -> dict[Port, Shape]:
    """Shape of every output that can be known from the parameters and the shapes of the inputs, by name.

    Outputs of an op without a rule, and what depends on them, are missing.  Raises GraphError, naming the node, where
    shapes contradict each other or the attributes, and for a shape that nobody can mean (a dimension below 1, more
    than 2**31 elements).
    """
    known: dict[Port, Shape] = {}
    for node in g.toposort():
        if node.op == "null":
            shape = g.params[node.name].shape if node.name in g.params else input_shapes.get(node.name)
            if shape is not None:
                known[Port(node)] = tuple(int(d) for d in shape)
                if node.name not in g.params:
                    _check(node, known[Port(node)])
            continue
        inputs = value_inputs(g, node)
        if node.op not in RULES or any(port not in known for port in inputs):
            continue
        shapes = [known[port] for port in inputs]
        try:
            found = RULES[node.op](node, shapes)
        except (TypeError, ValueError, IndexError, ArithmeticError) as error:  # such as a kernel of (1.5, 3)
            raise GraphError(f"{node}: found {node.attrs}, want attributes that fit inputs of {shapes}") from error
        for index, shape in enumerate(found if isinstance(found, list) else [found]):
            _check(node, shape)
            known[Port(node, index)] = shape
    return known


def value_inputs(g: Graph, node: Node) -> list[Port]:
    """The inputs that the node's value depends on at inference: no training label, nor states that begin with zeros."""
    names = ops.info(node.op).inputs
    ports = g.inputs(node)
    if node.op == "RNN" and all(port.node.op == "_zeros" for port in ports[2:]):
        return ports[:2]  # Gluon leaves it to MXNet to find their shape
    return ports[:names.index("label")] if "label" in names else ports


def value_nodes(g: Graph) -> set[Node]:
    """The nodes that some output's value depends on at inference."""
    found: set[Node] = set()
    pending = [head.node for head in g.heads]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [port.node for port in value_inputs(g, node)]
    return found


def _check(node: Node, shape: Shape) -> None:
    if len(shape) > MAX_RANK or any(not isinstance(d, int) or d < 1 for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise GraphError(f"{node}: found shape {shape}, want dimensions of at least 1, at most {MAX_RANK} of them and "
                         "at most 2**31 elements")
