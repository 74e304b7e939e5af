"""Choosing layers by what a user types: `--exclude conv0`.

A pattern is a name of the original model (with or without Gluon's ``_fwd`` and the network's prefix), a glob
(``*_dw_*``), an op type (``op:FullyConnected``), ``first`` (the first convolution) or ``last`` (the last layer with
weights).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from qgraph.errors import OptionError, close_names
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node

EXCLUDE = "--exclude"
_SUFFIX = "_fwd"


def names_of(node: Node) -> tuple[str, ...]:
    """Every name the user may know this node by: its own and those of the nodes it was made from."""
    return (node.name, *(name for name in node.origin if name != node.name))


def select_nodes(g: Graph, patterns: tuple[str, ...]) -> dict[Node, str]:
    """Nodes that the patterns name -> the pattern that did.

    Raises OptionError for a pattern that matches nothing and for a short name that is ambiguous, with close names.
    """
    chosen: dict[Node, str] = {}
    for pattern, found in named_by(g, patterns).items():
        for node in found:
            chosen.setdefault(node, pattern)
    return chosen


def named_by(g: Graph, patterns: Sequence[str], what: str = EXCLUDE) -> dict[str, list[Node]]:
    """Pattern -> the nodes that it names, at least one. what: says so in messages, as the flag."""
    nodes = [n for n in g.toposort() if n.op not in ("null", "fake_quantize")]
    layers = [n for n in nodes if ops.kind(n) == ops.COMPUTE]
    return {pattern: _matches(pattern, nodes, layers, what) for pattern in patterns}


def _matches(pattern: str, nodes: list[Node], layers: list[Node], what: str) -> list[Node]:
    if pattern == "first":
        found = [n for n in layers if n.op == "Convolution"][:1] or layers[:1]
    elif pattern == "last":
        found = layers[-1:]
    elif pattern.startswith("op:"):
        op = ops.ALIASES.get(pattern[3:], pattern[3:])
        found = [n for n in nodes if n.op == op]
        if not found:
            raise OptionError(f"{what} {pattern}: no such op here; the ops are "
                              f"{', '.join(sorted({n.op for n in nodes}))}")
    elif any(c in pattern for c in "*?["):
        found = [n for n in nodes if any(fnmatch.fnmatchcase(name, pattern) for name in names_of(n))]
    else:
        found = _by_name(pattern, nodes, what)
    if not found:
        short = {_short(name): name for n in nodes for name in names_of(n)}
        known = [*short, *short.values()]
        close = [short.get(c, c) for c in close_names(pattern, known, 5, 0.5)]
        hint = ", ".join(dict.fromkeys(close)) or ", ".join(n.name for n in layers[:5]) + ", ..."
        raise OptionError(f"{what} {pattern}: matches nothing; close names: {hint}")
    return found


def _short(name: str) -> str:
    return name[: -len(_SUFFIX)] if name.endswith(_SUFFIX) else name


def _by_name(pattern: str, nodes: list[Node], what: str) -> list[Node]:
    exact = [n for n in nodes if pattern in names_of(n)]
    if exact:
        return exact[:1] if all(n is exact[0] for n in exact) else exact
    tails: tuple[Callable[[str], bool], ...] = (lambda name: _short(name) == pattern,
                                                lambda name: _short(name).endswith("_" + pattern))
    for tail in tails:
        found = [n for n in nodes if any(tail(name) for name in names_of(n))]
        if len(found) > 1:
            raise OptionError(f"{what} {pattern}: ambiguous, could be {', '.join(n.name for n in found[:8])}; "
                              f"write the whole name, or a glob such as '*{pattern}*'")
        if found:
            return found
    return []
