"""What a network needs of each target: its ops, how they would run there, and where integers stop flowing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qgraph.analysis.codes import combines_codes, passes_integers, quantizers_behind
from qgraph.analysis.finding import ERROR, NOTE, Finding, listed
from qgraph.commands.line import pipeline, split, split_at_table
from qgraph.errors import QGraphError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import run_pass
from qgraph.options import FreezeOptions
from qgraph.targets.base import Shapes
from qgraph.targets.registry import get_target

INT, FLOAT, FOLDED, REFUSED = "int8", "float", "folded", "refused"
_UNSEEN = ("null", "fake_quantize")
_ACTIVATIONS = {"Activation", "LeakyReLU", "hard_sigmoid", *ops.UNARY}


@dataclass
class Needs:
    """ops: op -> how each node of it would run.  broken: nodes in float between integer layers, in order.

    refused: why the target cannot carry the network, or "".
    """

    target: str
    ops: dict[str, Counter[str]] = field(default_factory=dict)
    broken: list[Node] = field(default_factory=list)
    refused: str = ""

    def cell(self, op: str) -> str:
        """``int8``, or ``int8 3, float 1``; folded for an op that is gone behind the float passes."""
        if not self.ops:
            return REFUSED
        counts = self.ops.get(op, Counter())
        if len(counts) < 2:
            return next(iter(counts), FOLDED)
        return ", ".join(f"{how} {count}" for how, count in counts.items())


def needs_of(source: Graph, shapes: Shapes, target: str, options: FreezeOptions) -> Needs:
    """How `freeze` would place quantizers for a target; nothing is calibrated, no weight is changed."""
    found = Needs(target)
    float_steps, quantizing = split(pipeline(replace(options, target=target, effort="fast")))
    g = source.copy()
    try:
        for step in float_steps:
            run_pass(step, g)
        refused = get_target(target).refused(g, shapes, integer=True)
        for step in split_at_table(quantizing)[0]:
            run_pass(step, g)
    except QGraphError as error:
        found.refused = str(error)
        return found
    names = {node.name: why for node, why in refused.items()}
    found.refused = next(iter(names.values()), "")
    integer: set[Node] = set()
    everything = get_target(target).all_integers
    for node in g.toposort():
        if node.op in _UNSEEN:
            continue
        how = REFUSED if node.name in names else INT if _is_integer(g, node, everything) else FLOAT
        if how == INT:
            integer.add(node)
        found.ops.setdefault(node.op, Counter())[how] += 1
    found.broken = _between(g, integer)
    return found


def findings_of(needs: Sequence[Needs], asked: bool) -> list[Finding]:
    """asked: the user named the targets, so that a refusal is an error."""
    found = [Finding("refused", ERROR if asked else NOTE, (row.target,), row.refused,
                     f"qgraph freeze --target {row.target} refuses the network",
                     "end the network before these ops (--outputs), or take another target")
             for row in needs if row.refused]
    flows = [row for row in needs if not row.refused and get_target(row.target).quantizes_between]
    best = min(flows, key=lambda row: len(row.broken), default=None)
    for row in flows:
        if not row.broken or best is None:
            continue
        kinds = ", ".join(f"{count} {op}" for op, count in Counter(node.op for node in row.broken).items())
        names = tuple(node.name for node in row.broken)
        other = (f"--target {best.target} has {len(best.broken) or 'none'} of them; "
                 if len(best.broken) < len(row.broken) else "")
        acts = "relu or clip in place of another activation folds into the layer in front (train again); "
        found.append(Finding("integer-flow", NOTE, names,
                             f"for {row.target}: {kinds} in float between integer layers: {listed(names)}",
                             "codes become floats before such an op and codes again behind it: slower, and rounded "
                             "twice", f"{other}{acts if _ACTIVATIONS & {n.op for n in row.broken} else ''}see the "
                             "table below for each op"))
    return found


def _is_integer(g: Graph, node: Node, everything: bool) -> bool:
    """Whether the kernels run this node on codes, by the quantizers around it.

    Sums, products, poolings and ops that move values do; of other ops only those of a target that quantizes everything.
    """
    inputs = g.inputs(node)
    if ops.kind(node) == ops.COMPUTE:
        return _is_integer_layer(g, node)
    data = [port for port in inputs if g.param(port) is None]
    coded = [bool(quantizers_behind(g, port)) for port in data]
    moves = ops.kind(node) in (ops.PASS, ops.AVERAGE) or node.op in ops.IDENTITIES or combines_codes(node)
    if not any(coded) or not (moves or everything):
        return False
    readers = g.readers(node)
    written = bool(readers) and all(reader.op == "fake_quantize" for reader in readers)
    if all(coded):
        return written or passes_integers(node)
    # a sum may be added to the accumulator of the layer that writes its other operand
    fused = [_is_integer_layer(g, port.node) and g.has_one_use(port) for port, done in zip(data, coded) if not done]
    return written and ops.info(node.op).combines == ops.SUM and all(fused)


def _is_integer_layer(g: Graph, node: Node) -> bool:
    inputs = g.inputs(node)
    return (ops.kind(node) == ops.COMPUTE and len(inputs) > 1 and inputs[1].node.op == "fake_quantize"
            and bool(quantizers_behind(g, inputs[0])))


def _between(g: Graph, integer: set[Node]) -> list[Node]:
    """Nodes in float, without weights of their own, that both read from and lead to integer layers with weights."""
    order = g.toposort()
    layers = {node for node in integer if ops.kind(node) == ops.COMPUTE}
    behind: set[Node] = set()
    for node in order:
        if any(port.node in behind or port.node in layers for port in g.inputs(node)):
            behind.add(node)
    before: set[Node] = set()
    for node in reversed(order):
        if any(reader in before or reader in layers for reader in g.readers(node)):
            before.add(node)
    return [node for node in order if node in behind and node in before and node not in integer
            and node.op not in _UNSEEN and ops.kind(node) != ops.COMPUTE]
