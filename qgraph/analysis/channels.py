"""Which tensors share one order of channels, and which parameters would have to be reordered with them.

A convolution may write its output channels in any order if everything that reads them follows: the columns of the next
convolution, a depthwise convolution in between, the other operand of a sum, its part of a concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qgraph.analysis.codes import before_quantizer
from qgraph.arrays import Array
from qgraph.errors import FormatError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams, QSpec

# ops whose output channels are their input channels, in order
_CHANNELWISE = frozenset({"fake_quantize", "Pooling", "Activation", "relu", "clip", "sigmoid", "UpSampling", "Dropout",
                          "_contrib_AdaptiveAvgPooling2D", "_contrib_BilinearResize2D", "_mul_scalar", "_plus_scalar",
                          "hard_sigmoid", "elemwise_add", "elemwise_mul"})


@dataclass(eq=False)
class Order:
    """One free order of channels.

    slices: (parameter node, axis, first index) that follow it.  readers: (dense convolution, its first input channel).
    nodes: (node, first channel, channels in all) whose output follows it.  writers: the layers that make it.
    """

    count: int
    frozen: bool = False
    slices: list[tuple[Node, int, int]] = field(default_factory=list)
    readers: list[tuple[Node, int]] = field(default_factory=list)
    nodes: list[tuple[Node, int, int]] = field(default_factory=list)
    writers: list[Node] = field(default_factory=list)
    merged: Order | None = None

    def root(self) -> Order:
        order = self
        while order.merged is not None:
            order = order.merged
        return order


Parts = list[Order]  # the channels of a tensor, part by part


def channel_orders(g: Graph) -> list[Order]:
    """Every order of channels that may be changed, in topological order of the layers that write them."""
    parts: dict[Port, Parts] = {}
    made: list[Order] = []
    for node in g.toposort():
        _visit(g, node, parts, made)
        written = parts.get(Port(node), [])
        total = sum(counts(written))
        for order, start in starts(written):
            order.nodes.append((node, start, total))
    for head in g.heads:
        freeze(parts.get(head, []))
    return [order for order in made if order.merged is None and not order.frozen and order.readers]


def _visit(g: Graph, node: Node, parts: dict[Port, Parts], made: list[Order]) -> None:
    known = [parts.get(p, []) for p in g.inputs(node)]  # []: of the network's inputs, of parameters, of what mixes
    if node.op == "Convolution" and known and own_params(g, node):
        filters, groups = ops.attr(node, "num_filter"), ops.attr(node, "num_group")
        params = [before_quantizer(g, p).node for p in g.inputs(node)[1:]]
        if groups == 1:
            for order, start in starts(known[0]):
                order.readers.append((node, start))
                order.slices.append((params[0], 1, start))
            order = Order(filters, writers=[node])
            made.append(order)
            order.slices += [(param, 0, 0) for param in params]
            parts[Port(node)] = [order]
            return
        if groups == filters and g.params[params[0].name].shape[1] == 1:
            for order, start in starts(known[0]):
                order.slices += [(param, 0, start) for param in params]
            parts[Port(node)] = known[0]
            return
    if node.op == "Concat" and ops.attr(node, "dim") == 1 and all(known):
        parts[Port(node)] = [order.root() for part in known for order in part]
        return
    if _is_channelwise(node) and known and all(known) and all(counts(part) == counts(known[0]) for part in known):
        for part in known[1:]:
            for a, b in zip(part, known[0]):
                merge(a.root(), b.root())
        parts[Port(node)] = known[0]
        return
    for part in known:
        freeze(part)


def _is_channelwise(node: Node) -> bool:
    if node.op == "UpSampling" and ops.attr(node, "num_args") > 1:  # a concatenation
        return False
    scales = node.quant if isinstance(node.quant, QSpec) else None
    return node.op in _CHANNELWISE and (scales is None or scales.granularity == "tensor")


def own_params(g: Graph, node: Node) -> bool:
    """All parameters belong to this layer alone, and no scale belongs to neighbouring channels."""
    ports = g.inputs(node)[1:]
    if any(p.node.quant is not None and p.node.quant.granularity == "group" for p in ports):
        return False
    chain = [p for port in ports for p in {port, before_quantizer(g, port)}]
    return all(g.has_one_use(p) for p in chain) and all(g.param(before_quantizer(g, p)) is not None for p in ports)


def starts(part: Parts) -> list[tuple[Order, int]]:
    """(order, its first channel in the tensor) of each part."""
    found, start = [], 0
    for order in part:
        found.append((order.root(), start))
        start += order.root().count
    return found


def counts(part: Parts) -> list[int]:
    """The number of channels of each part."""
    return [order.root().count for order in part]


def freeze(part: Parts) -> None:
    """Take the freedom from all these orders."""
    for order in part:
        order.root().frozen = True


def merge(a: Order, b: Order) -> None:
    """Make one of two orders."""
    if a is b:
        return
    b.frozen |= a.frozen
    b.slices += a.slices
    b.readers += a.readers
    b.nodes += a.nodes
    b.writers += a.writers
    a.merged = b


def reorder(g: Graph, order: Order, new: Array) -> None:
    """Let channel i be what channel new[i] was, in every parameter (and its scales) that follows this order.

    The nodes remember it (`Node.layout`), so that their outputs can be compared with the user's model.
    Raises FormatError, before anything is changed, if a node remembers an order of other channels.
    """
    remembered = {node: _remembered(node, total) for node, _, total in order.nodes}
    for node, start, _ in order.nodes:
        before = remembered[node]
        before[start:start + order.count] = before[start + new]
        node.layout = tuple(before.tolist())
    for param, axis, start in order.slices:
        array = g.params[param.name]
        index = np.arange(array.shape[axis])
        index[start:start + order.count] = start + new
        g.params[param.name] = np.ascontiguousarray(np.take(array, index, axis))
        for fq in g.readers(param):
            qp = fq.quant
            if isinstance(qp, QParams) and qp.granularity == "channel" and qp.axis == axis:
                fq.quant = replace(qp, scale=qp.scale[index], zero_point=qp.zero_point[index])


def _remembered(node: Node, channels: int) -> Array:
    if node.layout is not None and len(node.layout) != channels:
        raise FormatError(f"{node}: its channels are in an order of {len(node.layout)}, want {channels}")
    return np.arange(channels) if node.layout is None else np.array(node.layout)


def as_the_users(value: Array, node: Node) -> Array:
    """The output of a node as the user's model has it: passes may have reordered, shifted and scaled its channels."""
    found = in_the_users_order(value, node.layout)
    return unscaled(found - np.float32(node.shift) if node.shift else found, node.scales)


def channel_ends(value: Array, images: int, first: int = 0) -> Array:
    """(halves, 2, channels) lowest and highest values of a tensor (N, channels, ...), float64.

    Halves: the images with an even number, and with an odd one.  first: the number of the first.  images: how many; a
    tensor of another size belongs to both halves.
    """
    axes = (0, *range(2, value.ndim))
    parts = [value[(half - first) % 2::2] if len(value) == images else value for half in range(2)]
    return np.array([[part.min(axis=axes, initial=np.inf), part.max(axis=axes, initial=-np.inf)]
                     for part in parts], np.float64)


def factors_of(g: Graph) -> dict[str, list[float]]:
    """Node -> the factors of its output channels, of those that are not the user's."""
    return {node.name: list(node.scales) for node in g.toposort() if node.scales is not None}


def unscaled(value: Array, scales: Sequence[float] | Array | None) -> Array:
    """Channels (axis 1; flattened ones own neighbouring values) without their factors: `Node.scales`, or a file's."""
    if scales is None or value.ndim < 2 or value.shape[1] % len(scales):
        return value
    factors = np.repeat(np.asarray(scales, np.float32), value.shape[1] // len(scales))
    real: Array = value / factors.reshape(-1, *[1] * (value.ndim - 2))
    return real


def in_the_users_order(value: Array, order: Sequence[int] | Array | None) -> Array:
    """Channels (axis 1) of an array as the user's model has them. order: `Node.layout`, or what a file says."""
    if order is None or value.ndim < 2 or value.shape[1] != len(order):
        return value
    back = np.empty_like(value)
    back[:, np.asarray(order)] = value
    return back
