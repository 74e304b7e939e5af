"""The channels of a Gluon network scaled between its layers, so that few bits fit them: where training starts.

    before   conv1(x, u)   BatchNorm(gamma, beta)            relu   conv2(., w)
    after    conv1(x, u)   BatchNorm(s * gamma, s * beta)    relu   conv2(., w / s)

with the factors s that the pass `equalize` finds on the network with its BatchNorms folded.  Its outputs stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from qgraph.analysis.channels import Order, factors_of
from qgraph.analysis.scalings import channel_scalings
from qgraph.calibration.sweep import watched_pieces
from qgraph.errors import CalibrationError, OptionError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import PassManager
from qgraph.options import FreezeOptions
from qgraph.passes import PIPELINES
from qgraph.passes._affine import own_weights, per_input, scale_outputs
from qgraph.passes._balance import columns_of, places_of
from qgraph.passes._readings import Look
from qgraph.passes.equalize import Equalize
from qgraph.qat.layer import QuantizeArgs
from qgraph.quant.spec import as_granularity

SAMPLED = 64  # images on which factors are judged; ranges are those of all


def equalized(g: Graph, args: Sequence[QuantizeArgs], calib_data: object, num_calib: int = 512
              ) -> dict[str, np.ndarray]:
    """Parameter -> its new value, of those that change.

    g: the float network.  args: of its layers; what most of them are quantized to is what the factors are for.
    calib_data: what `qgraph.open_data` takes, of which so many images are read.
    Channels are left where it does not pay, where an op that is not homogeneous (relu6, a sigmoid) or an output of the
    network shows them, and where their BatchNorm has no gamma or is not directly behind their convolution.
    Raises OptionError and DataError for data that cannot be opened, CalibrationError where there are no images.
    """
    if isinstance(calib_data, bool):
        raise OptionError(f"equalize: found {calib_data}, want calibration images: an array, or what open_data takes")
    folded = g.copy()
    PassManager(PIPELINES["float"]).run(folded)
    options = FreezeOptions(num_calib=num_calib, batch_size=SAMPLED)
    data = options.open(calib_data, {node.name: () for node in g.data_inputs()}, num_calib)
    batch = next(iter(data), None)
    if batch is None:
        raise CalibrationError(f"equalize: {data.name}: no image was read")

    def sweep(watched: Graph, ports: Sequence[Port], look: Look) -> None:
        for piece in watched_pieces(watched, data, ports, images=data.num_items):
            look.add(piece)

    (in_width, wt_width, quant_type), _ = Counter((one.in_width, one.wt_width, one.quant_type) for one in args
                                                  ).most_common(1)[0]
    tried = folded.copy()
    Equalize().with_fields(act_bits=in_width, weight_bits=wt_width, granularity=as_granularity(quant_type), sweep=sweep,
                           feeds=batch.feeds).run(tried)
    factors = factors_of(tried)
    return _scaled(g, folded, {order: np.array(factors[order.writers[0].name]) for order in channel_scalings(folded)
                               if order.writers[0].name in factors})


def _scaled(g: Graph, folded: Graph, factors: dict[Order, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of `g` with these channels of its folded form scaled, as far as `g` lets them be."""
    twins = _Twins(g)
    factors = {order: found for order, found in factors.items() if twins.know(order)}
    columns = {node: columns_of(node, own_weights(folded, node)[0]) for order in factors for node, _ in order.readers}
    read = {node: np.ones(count) for node, count in columns.items()}
    changed: dict[str, np.ndarray] = {}
    for order, found in factors.items():
        for node, (part, repeats) in places_of(folded, order, columns):
            read[node][part] = np.repeat(found, repeats)
        for node in order.writers:
            layer, bn = twins.of(node)
            for port in g.inputs(layer)[1:] if bn is None else g.inputs(bn)[1:3]:
                array = g.params[port.node.name]
                changed[port.node.name] = array * found if array.ndim == 1 else scale_outputs(layer, array, found)
    for node, found in read.items():
        layer, _ = twins.of(node)
        name = g.inputs(layer)[1].node.name
        weight = changed.get(name, g.params[name])
        changed[name] = weight * per_input(layer, weight, 1 / found)
    return {name: array.astype(np.float32) for name, array in changed.items()}


class _Twins:
    """Layers of the folded graph as they were in `g`."""

    def __init__(self, g: Graph) -> None:
        self._g, self._nodes = g, {node.name: node for node in g.nodes()}

    def of(self, folded: Node) -> tuple[Node, Node | None]:
        """(the layer, the BatchNorm that was folded into it)"""
        layer, *others = [self._nodes[name] for name in folded.origin or (folded.name,)]
        return layer, next((node for node in others if node.op == "BatchNorm"), None)

    def know(self, order: Order) -> bool:
        return all(map(self._is_plain, [*order.writers, *(node for node, _ in order.readers)])) and all(
            bn is None or not ops.attr(bn, "fix_gamma") for _, bn in map(self.of, order.writers))

    def _is_plain(self, folded: Node) -> bool:
        """A layer, with at most a BatchNorm, directly behind it."""
        norms = [name for name in folded.origin or () if self._nodes[name].op == "BatchNorm"]
        layer, bn = self.of(folded)
        return ops.kind(layer) == ops.COMPUTE and len(norms) <= 1 and (
            bn is None or self._g.inputs(bn)[0].node is layer)
