"""What became of a node of the user's, pass by pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from qgraph.arrays import Array
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, run_pass


@dataclass
class Step:
    """What one pass did with the node. name: of the pass."""

    name: str
    changes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Look:
    """How a node that carries the name looks."""

    op: str
    attrs: tuple[tuple[str, str], ...]
    fused: str
    bits: tuple[str, ...]  # of the quantizers at its inputs, "" without
    read: tuple[str, ...]  # names of what it reads, past quantizers
    arrays: tuple[str, ...]  # digests of its parameters


def history(g: Graph, steps: Iterable[Pass], name: str) -> list[Step]:
    """Run the passes on `g`, in place; those that changed a node of this name, or one that it became a part of."""
    found: list[Step] = []
    looks = {node.name: _look(g, node) for node in carriers(g, name)}
    for step in steps:
        run_pass(step, g)
        now = {node.name: _look(g, node) for node in carriers(g, name)}
        if now != looks:
            found.append(Step(step.name, list(_changes(name, looks, now))))
        looks = now
    return found


def carriers(g: Graph, name: str) -> list[Node]:
    """The nodes that have this name, or were made from the node that had it."""
    return [node for node in g.toposort() if node.op not in ("null", "fake_quantize")
            and (node.name == name or name in node.origin)]


def _changes(name: str, before: dict[str, _Look], after: dict[str, _Look]) -> Iterable[str]:
    for gone in before.keys() - after.keys():
        if not after:
            yield f"{gone} is taken out"
    for fresh in sorted(after.keys() - before.keys()):
        yield (f"becomes {fresh} ({after[fresh].op})" if len(after) == 1 and name not in after
               else f"{fresh} ({after[fresh].op}) is made of it")
    for kept in after.keys() & before.keys():
        yield from _between(before[kept], after[kept])


def _between(old: _Look, new: _Look) -> Iterable[str]:
    if old.op != new.op:
        yield f"{old.op} becomes {new.op}"
    changed = [key for key, _ in set(new.attrs) ^ set(old.attrs)]
    if changed:
        yield f"new attributes: {', '.join(sorted(set(changed)))}"
    if old.fused != new.fused:
        yield f"computes {new.fused} too" if new.fused else f"no longer computes {old.fused}"
    if old.bits != new.bits and any(new.bits):
        yield f"its inputs are quantized: {' x '.join(bits or 'float' for bits in new.bits[:2])}"
    if old.read != new.read:
        yield f"reads {', '.join(new.read) or 'nothing'}"
    if old.arrays != new.arrays:
        yield "its parameters have new values"


def _look(g: Graph, node: Node) -> _Look:
    inputs = g.inputs(node)
    bits = tuple(port.node.quant.dtype if port.node.op == "fake_quantize" and port.node.quant is not None else ""
                 for port in inputs)
    sources = [_behind(g, port) for port in inputs]
    arrays = [g.param(port) for port in sources]
    fused = "" if node.fused is None else node.fused.act
    return _Look(node.op, tuple(sorted(node.attrs.items())), fused, bits,
                 tuple(port.key for port, array in zip(sources, arrays) if array is None),
                 tuple(_digest(array) for array in arrays if array is not None))


def _behind(g: Graph, port: Port) -> Port:
    while port.node.op == "fake_quantize":
        port = g.inputs(port.node)[0]
    return port


def _digest(array: Array) -> str:
    return hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()


def told(steps: Sequence[Step]) -> list[dict[str, str]]:
    """As plain data."""
    return [{"pass": step.name, "what": "; ".join(step.changes)} for step in steps]
