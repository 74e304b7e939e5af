"""Quantize every value of a graph, for engines whose int8 models are so from inputs to outputs."""

from __future__ import annotations

import dataclasses

from networkx.utils import UnionFind

from qgraph.analysis.codes import before_quantizer
from qgraph.analysis.observed import observed_ports
from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._placing import activation_spec, ensure_quantizer
from qgraph.quant.spec import QParams, QSpec, with_range
from qgraph.semantics.infer import value_inputs, value_nodes
from qgraph.targets.registry import get_target

_KNOWN = {"softmax": (0.0, 1.0), "SoftmaxActivation": (0.0, 1.0), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
"""Op, or act_type of an Activation -> between what its values lie, whatever it reads."""
_WITHIN = frozenset({"LeakyReLU", "mean", "_contrib_AdaptiveAvgPooling2D", "Pooling"})
"""Ops whose values lie within the range of what they read."""
_CLIPS = frozenset({"clip", "relu", "_copy", "identity"})


@register
class QuantizeEverything(Pass):
    """Place quantizers for an engine without floats (tengine): on every value, inputs and outputs among them.

        conv(fq(x), fq(w)) -> pool -> softmax    becomes    fq(softmax(fq(pool(fq(conv(fq(x), fq(w)))))))

    The output of a maximum, a Reshape, a relu or a clip has the scale of its input.  The shared range is taken after
    the clipping op, so no codes are spent on values it discards.  A value that calibration does not observe takes the
    range of its input, or the known range of a softmax.

    Raises UnsupportedError, with the way out, for a node that has no int8 form in the target.

    target: its name, of `qgraph.targets`.
    """

    name = "quantize-everything"
    requires = ("insert-fake-quantize",)
    target: str = "tengine"

    def run(self, g: Graph) -> int:
        target, reached = get_target(self.target), value_nodes(g)
        for node in g.toposort():
            if node in reached and node.op not in ("null", "fake_quantize"):
                target.check_integer(g, node)
        act = activation_spec(g)
        return _Everything(g, act, reached, self.target).run() if act is not None else 0


class _Everything:
    def __init__(self, g: Graph, act: QSpec, reached: set[Node], target: str) -> None:
        self.g, self.act, self.reached, self.target, self.count = g, act, reached, target, 0
        self.observed = {self._bare(port).key for port in observed_ports(g)}
        self.order = [n for n in g.toposort() if n in self.reached and n.op != "fake_quantize" and not g.is_param(n)]
        self.values = {node: [self._bare(p) for p in value_inputs(g, node) if not g.is_param(self._bare(p).node)]
                       for node in self.order}
        self.heads = {self._bare(head) for head in g.heads}

    def _bare(self, port: Port) -> Port:
        return before_quantizer(self.g, port)

    def run(self) -> int:
        readers: dict[Node, list[Node]] = {node: [] for node in self.order}
        groups: dict[Node, list[Node]] = {}
        sets = UnionFind(self.order)  # of nodes whose values share a scale
        for node in self.order:
            for port in self.values[node]:
                readers[port.node].append(node)
            if self._keeps_scale(node):
                sets.union(node, self.values[node][0].node)
        for node in self.order:
            groups.setdefault(sets[node], []).append(node)
        for group in groups.values():
            whole = any(Port(node) in self.heads for node in group)
            asked = [node for node in group
                     if Port(node) in self.heads or not all(map(self._keeps_scale, readers[node]))]
            self._quantize(group, asked or group, whole)
        return self.count

    def _keeps_scale(self, node: Node) -> bool:
        """Every value that it writes is one that it reads, or an end of its own."""
        if not self.values.get(node):
            return False
        return (ops.kind(node) == ops.PASS or node.op in _CLIPS
                or (node.op == "Activation" and ops.attr(node, "act_type") == "relu"))

    def _quantize(self, group: list[Node], asked: list[Node], whole: bool) -> None:
        """One range for all of them, from the values that somebody asks for."""
        names = [name for node in asked for name in self._source(node)]
        spec: QSpec = dataclasses.replace(self.act, source=tuple(dict.fromkeys(names)), whole=whole)
        if not names:
            ends = [self._ends(node) for node in asked]
            spec = with_range(self.act, min(low for low, _ in ends), max(high for _, high in ends))
        for node in group:
            fq, changed = ensure_quantizer(self.g, Port(node), spec)
            self.count += changed
            if not isinstance(fq.quant, QParams) and fq.quant != spec:
                fq.quant = spec
                self.count += 1

    def _source(self, node: Node) -> list[str]:
        """The observed tensor whose range this value's lies in; nothing where the range is known without."""
        if Port(node).key in self.observed:
            return [Port(node).key]
        if _known(node) is not None:
            return []
        if self.values[node] and (node.op in _WITHIN or self._keeps_scale(node)):
            return self._source(self.values[node][0].node)
        raise UnsupportedError(f"{node}: calibration does not look at what it writes, and target {self.target} gives "
                               "every value a range; end the model before it (--outputs NAME)")

    def _ends(self, node: Node) -> tuple[float, float]:
        while _known(node) is None:
            node = self.values[node][0].node
        found = _known(node)
        assert found is not None
        return found


def _known(node: Node) -> tuple[float, float] | None:
    return _KNOWN.get(ops.attr(node, "act_type") if node.op == "Activation" else node.op)
