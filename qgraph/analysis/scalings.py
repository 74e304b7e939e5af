"""Which channels may be multiplied by positive factors, and which layers would have to undo that.

A layer may write its output channels s times as large if everything that reads them divides its weights by s: the next
convolutions and dense layers.  A relu, a pooling, a concatenation in between keep the factors, a sum wants the same
ones in all its operands, and any other reader of the tensor (a sigmoid, a clip, an output of the network) forbids them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qgraph.analysis.channels import Order, Parts, counts, freeze, merge, own_params, starts
from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port

_POOLINGS = frozenset({"max", "avg", "sum"})
_LAYERS = frozenset({"Convolution", "Deconvolution", "FullyConnected"})


def channel_scalings(g: Graph) -> list[Order]:
    """The channels that share their factors, in topological order of the layers that write them.

    Order.readers: (layer, its first input channel).  Every layer is one that owns its parameters.
    """
    walk = _Walk(g)
    for node in g.toposort():
        walk.visit(node)
    for head in g.heads:
        freeze(walk.parts.get(head, []))
    return [order for order in walk.made if order.merged is None and not order.frozen and order.readers]


class _Walk:
    """parts: tensor -> its channels; none where these have no factors.  flat: tensors in which a channel is several
    neighbouring values of axis 1."""

    def __init__(self, g: Graph) -> None:
        self.g, self.made = g, list[Order]()
        self.parts: dict[Port, Parts] = {}
        self.flat: set[Port] = set()

    def visit(self, node: Node) -> None:
        inputs = self.g.inputs(node)
        known = [self.parts.get(port, []) for port in inputs]
        flat = any(port in self.flat for port in inputs)
        written = self._written(node, inputs, known, flat)
        if written:
            self.parts[Port(node)] = written
            total = sum(counts(written))
            for order, start in starts(written):
                order.nodes.append((node, start, total))
            if flat and node.op not in _LAYERS or node.op == "Flatten":
                self.flat.add(Port(node))

    def _written(self, node: Node, inputs: list[Port], known: list[Parts], flat: bool) -> Parts:
        """The channels of the output; the inputs that lose their freedom are frozen."""
        if node.op in _LAYERS and inputs:
            return self._layer(node, known, flat)
        if any(known) and (node.fused is None or node.fused.act == "relu"):
            if node.op == "Concat" and ops.attr(node, "dim") == 1 and all(known) and not flat:
                return [order.root() for part in known for order in part]
            if ops.info(node.op).combines == ops.SUM and all(known) and self._are_alike(inputs, known):
                for part in known[1:]:
                    for a, b in zip(part, known[0]):
                        merge(a.root(), b.root())
                return known[0]
            if ops.info(node.op).combines == ops.PRODUCT and (part := self._times_constant(inputs, known)):
                return part
            if known[0] and not any(known[1:]) and _is_homogeneous(node):
                return known[0]
        for slot, part in enumerate(known):
            if slot not in ops.SHAPE_ONLY.get(node.op, ()):
                freeze(part)
        return []

    def _layer(self, node: Node, known: list[Parts], flat: bool) -> Parts:
        own = len(known) > 1 and own_params(self.g, node)
        if not (own and self._reads_channels(node, sum(counts(known[0])), flat)):
            freeze(known[0])
        else:
            for order, start in starts(known[0]):
                order.readers.append((node, start))
        for part in known[1:]:
            freeze(part)
        if not own or (node.fused is not None and node.fused.act != "relu"):
            return []
        if node.op == "FullyConnected" and not ops.attr(node, "flatten"):
            return []  # its channels are in the last axis
        order = Order(ops.attr(node, "num_hidden" if node.op == "FullyConnected" else "num_filter"), writers=[node])
        self.made.append(order)
        return [order]

    def _reads_channels(self, node: Node, channels: int, flat: bool) -> bool:
        shape = self.g.params[self.g.inputs(node)[1].node.name].shape
        if not channels:
            return False
        if node.op == "FullyConnected":
            return bool(ops.attr(node, "flatten")) and shape[1] % channels == 0
        inputs = shape[0] if node.op == "Deconvolution" else shape[1] * ops.attr(node, "num_group")
        return not flat and bool(inputs == channels)

    def _are_alike(self, inputs: list[Port], known: list[Parts]) -> bool:
        return (all(counts(part) == counts(known[0]) for part in known)
                and len({port in self.flat for port in inputs}) == 1)

    def _times_constant(self, inputs: list[Port], known: list[Parts]) -> Parts:
        """The channels of a product with a parameter that has one value, or one for each channel."""
        for part, other in zip(known, inputs[::-1]):
            constant = self.g.param(other)
            if part and constant is not None and len(inputs) == 2 and _is_per_channel(constant, sum(counts(part))):
                return part
        return []


def _is_per_channel(constant: Array, channels: int) -> bool:
    return constant.size == 1 or (constant.ndim > 1 and constant.shape[1] in (1, channels))


def _pads_no_channels(node: Node) -> bool:
    zeros = ops.attr(node, "mode") != "constant" or ops.attr(node, "constant_value") == 0
    return zeros and not any(ops.attr(node, "pad_width")[:4])


_HOMOGENEOUS: Mapping[str, Callable[[Node], bool]] = {
    "Activation": lambda node: ops.attr(node, "act_type") == "relu",
    "relu": lambda node: True,
    "LeakyReLU": lambda node: ops.attr(node, "act_type") in ("leaky", "prelu"),
    "Pooling": lambda node: ops.attr(node, "pool_type") in _POOLINGS and ops.channels_first(node),
    "_contrib_AdaptiveAvgPooling2D": lambda node: True,
    "_contrib_BilinearResize2D": lambda node: True,
    "UpSampling": lambda node: ops.attr(node, "sample_type") == "nearest" and ops.attr(node, "num_args") == 1,
    "Pad": _pads_no_channels,
    "Flatten": lambda node: True,
    "_mul_scalar": lambda node: True,
    "_div_scalar": lambda node: True,
}
"""f(s x) = s f(x), channel by channel, for s > 0."""


def _is_homogeneous(node: Node) -> bool:
    if node.op in ops.IDENTITIES:
        return True
    return node.op in _HOMOGENEOUS and _HOMOGENEOUS[node.op](node)
