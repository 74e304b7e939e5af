"""What the traced graph of a Gluon network says about its blocks: who reads whom, and what cannot be negative."""

from __future__ import annotations

from dataclasses import dataclass, field

from qgraph.analysis.codes import nonnegative
from qgraph.errors import UnsupportedError
from qgraph.formats.gluon import flatten, input_names
from qgraph.formats.mxnet import load
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.qat.statistic import mx
from qgraph.qat.types import Block, Layer, Symbol

CHANNEL_FIRST = ("NCW", "NCHW", "NCDHW")


@dataclass
class Network:
    """layers: name of a weight -> nodes that compute with it.  norms: name of a gamma -> BatchNorm nodes.

    positive: what is never negative.  why: why the network could not be traced, or "".
    """

    graph: Graph
    layers: dict[str, list[Node]] = field(default_factory=dict)
    norms: dict[str, list[Node]] = field(default_factory=dict)
    positive: set[Port] = field(default_factory=set)
    why: str = ""

    def bn_behind(self, layer: Layer) -> tuple[str, str]:
        """(name of the gamma of the BatchNorm that normalizes what the block computes, "") or ("", why there is none).

        Both must be called once, with nobody else reading in between.
        """
        if self.why:
            return "", self.why
        g, nodes = self.graph, self.layers.get(layer.weight.name, [])
        if len(nodes) != 1:
            return "", f"the network calls it {len(nodes)} times"
        node = nodes[0]
        if node.op == "FullyConnected" or ops.attr(node, "layout") not in CHANNEL_FIRST:
            return "", "only convolutions with the channels on axis 1 are folded"
        readers = [v for v, _ in g.uses(node)]
        if len(readers) != 1 or g.is_head(node):
            others = ", ".join(map(str, readers)) or "nobody"
            return "", f"its output is read by {others}{' and is an output of the network' if g.is_head(node) else ''}"
        bn = readers[0]
        if bn.op != "BatchNorm":
            return "", f"its output is read by {bn}, which is no BatchNorm"
        gamma = g.inputs(bn)[1].node.name
        if len(self.norms[gamma]) != 1:
            return "", f"the network calls its BatchNorm {bn.name} {len(self.norms[gamma])} times"
        if ops.attr(bn, "axis") % (len(ops.attr(node, "kernel")) + 2) != 1:
            return "", f"{bn.name} does not normalize channels"
        return gamma, ""

    def nonnegative(self, layer: Layer) -> bool | None:
        """Whether everything that the block reads is known not to be negative; None without a graph."""
        nodes = [] if self.why else self.layers.get(layer.weight.name, [])
        return all(self.graph.inputs(n)[0] in self.positive for n in nodes) if nodes else None


def examine(net: Block) -> Network:
    """Trace the network with symbols. One that cannot be traced gives a Network that knows nothing, and says why."""
    try:
        symbol = trace(net)
    except UnsupportedError as error:
        return Network(Graph(), why=str(error))
    graph = load(symbol)
    found = Network(graph, positive=nonnegative(graph))
    for node in found.graph.toposort():
        inputs = found.graph.inputs(node)
        if ops.kind(node) == ops.COMPUTE and inputs[1].node.op == "null":
            found.layers.setdefault(inputs[1].node.name, []).append(node)
        elif node.op == "BatchNorm":
            found.norms.setdefault(inputs[1].node.name, []).append(node)
    return found


def trace(net: Block) -> Symbol:
    """The network as one symbol."""
    if not isinstance(net, mx.gluon.HybridBlock):
        raise UnsupportedError(f"the network is a {type(net).__name__}, of which there is no graph (want a "
                               "gluon.HybridBlock)")
    try:
        outputs = flatten(net.forward(*[mx.sym.var(name) for name in input_names(net)]))
    except (AttributeError, LookupError, TypeError, ValueError, AssertionError, NotImplementedError,
            mx.MXNetError) as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise UnsupportedError(f"{type(net).__name__} cannot be traced with symbols: {type(error).__name__}: "
                               f"{first_line}") from error
    return outputs[0] if len(outputs) == 1 else mx.sym.Group(outputs)

