"""Patterns: small trees of ops, matched from the last node upward.

    P("BatchNorm", P("Convolution", "x", "w", ..., name="conv"), "gamma", "beta", "mean", "var", name="bn")

A string binds the `Port` read in that slot, and the same string twice must be the same Port; ``...`` ends the list of
inputs; a nested P must be read by this node only and not be a head, unless ``shared=True``.  Keyword arguments are
attributes: strings are compared as MXNet would read them ("6" matches "6.0").  A miss has a reason (`MatchFail`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port

if TYPE_CHECKING:
    from types import EllipsisType  # of Python 3.10

Binding = dict[str, Union[Node, Port]]


class MatchFail(Exception):
    """Why a pattern did not match or a rewrite was refused: ``conv3:Convolution: has other readers``."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"{node}: {reason}")
        self.node = node
        self.reason = reason


class P:
    """One node of a pattern: an op (or several, as a tuple), its inputs, its attributes."""

    def __init__(self, op: str | tuple[str, ...], *inputs: str | P | EllipsisType, name: str = "", shared: bool = False,
                 **attrs: str) -> None:
        self.ops = (op,) if isinstance(op, str) else op
        self.inputs = tuple(wanted for wanted in inputs if isinstance(wanted, (str, P)))
        self.open_ended = ... in inputs[-1:]
        self.name, self.shared, self.attrs = name, shared, attrs

    def match(self, g: Graph, node: Node) -> Binding:
        """Names bound to Nodes (``name=``) and Ports (strings). Raises MatchFail."""
        bound: Binding = {}
        self._match(g, node, bound)
        return bound

    def _match(self, g: Graph, node: Node, bound: Binding) -> None:
        if node.op not in self.ops:
            raise MatchFail(node, f"is not {' or '.join(self.ops)}")
        for key, want in self.attrs.items():
            if not _same(node, key, want):
                raise MatchFail(node, f"has {key}={node.attrs.get(key)}, want {want}")
        if self.name:
            bound[self.name] = node
        ports = g.inputs(node)
        if len(ports) < len(self.inputs) or (len(ports) > len(self.inputs) and not self.open_ended):
            raise MatchFail(node, f"has {len(ports)} inputs, want {len(self.inputs)}{' or more' * self.open_ended}")
        for port, wanted in zip(ports, self.inputs):
            if isinstance(wanted, str):
                if bound.setdefault(wanted, port) != port:
                    raise MatchFail(node, f"reads two different values as {wanted!r}")
                continue
            if not wanted.shared:
                if g.is_head(port):
                    raise MatchFail(port.node, "is a head")
                if not g.has_one_use(port):
                    raise MatchFail(port.node, "has other readers")
            wanted._match(g, port.node, bound)


def _same(node: Node, key: str, want: str) -> bool:
    if key not in ops.info(node.op).defaults:
        return node.attrs.get(key) == want
    return bool(ops.attr(node, key) == ops.attr(Node(node.op, node.name, {key: want}), key))
