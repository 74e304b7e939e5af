"""equalize: channels are scaled between layers, so that one range fits them all.

    before   %a = Convolution(%x, %u, %b) {act_type=relu}            %c = Convolution(%a, %w)
    after    %a = Convolution(%x, %u * s, %b * s) {act_type=relu}    %c = Convolution(%a, %w / s)

with a factor s > 0 for each channel of %a (DFQ, arXiv 1906.04721; SmoothQuant, arXiv 2211.10438).  Which channels share
their factors, and through which ops, says `qgraph.analysis.scalings`.

    r = largest magnitude of the channel / largest magnitude of the tensor, in the calibration
    s = min(1, h r) ** -alpha                   alpha 0.25, 0.5, 0.75 or 1

A small channel gets more of the codes, and the weights that read it get fewer; so the exponent is the one with the
least noise in the outputs of the readers, with inputs and weights quantized.  It is chosen, with ranges, on one half of
the images.  With these ranges the noise has to be less than without the pass, by a margin, on the other half too, else
the channels are left as they are.  h is HEADROOM there, and in the end times what the halves differ by.

Where neighbouring channels share a scale of their weights (granularity layer and group), the factors that balance the
weights come first, for all layers together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable, Optional

import numpy as np

from qgraph.analysis.channels import Order
from qgraph.analysis.scalings import channel_scalings
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._affine import out_channels, own_weights, per_input, scale_outputs, set_weights
from qgraph.passes._balance import MOST, balanced, on_grid, places_of
from qgraph.passes._readings import CHOOSING, HALVES, JUDGING, Look, Reading, on_the_reference, read_sample
from qgraph.passes.insert_fake_quantize import weight_spec
from qgraph.quant.spec import QSpec
from qgraph.semantics.interpreter import RunOp

Sweep = Callable[[Graph, Sequence[Port], Look], None]
"""(graph, tensors, look): shows `look` what these are in all calibration images, those of `feeds` first."""

HEADROOM = 1.4  # of what the calibration shows of a channel
ALPHAS = (0.25, 0.5, 0.75, 1.0)
GAIN = 0.8  # of the noise may be left
WORSE = 1.05  # times the noise may become in the output of one reader


@register
class Equalize(Pass):
    """Scale channels between the layers that write and read them, so that one range fits a tensor. Free at run time.

    act_bits, weight_bits, granularity: what is quantized later.  between: whether the operands of sums and
    activations are quantized, too.  symmetric: whether without a zero point.  signed_input_limit: as of `calibrate`.
    factors: layer -> factors of its output channels, of an earlier run; nothing is measured then.
    feeds: some calibration images.  sweep: runs all of them [default: those in feeds, by the reference].
    run_op: runs the ops that the reference lacks; a layer that nothing can measure stays as it is.
    Without factors and images the pass does nothing, nor to channels that were scaled before.
    """

    name = "equalize"
    preserves_float = True
    act_bits: int = 8
    weight_bits: int = 8
    granularity: str = "channel"
    between: bool = False
    symmetric: bool = True
    signed_input_limit: int = 0
    factors: Optional[Mapping[str, Sequence[float]]] = None
    feeds: Optional[Mapping[str, np.ndarray]] = None
    sweep: Optional[Sweep] = None
    run_op: Optional[RunOp] = None

    def run(self, g: Graph) -> int:
        if self.factors is not None:
            orders = _free(g) if self.factors else []
            return _apply(g, [(order, found) for order in orders
                              if (found := _given(order, self.factors)) is not None])
        if self.feeds is None or min(map(len, self.feeds.values()), default=0) < len(HALVES):
            return 0
        orders = _free(g)
        weight = QSpec(self.weight_bits, True, narrow=True, granularity=self.granularity)
        layers = {node: weight_spec(node, weight)
                  for order in orders for node in (*order.writers, *(reader for reader, _ in order.readers))}
        if not layers:
            return 0
        operands = {order: _operands(g, order) if self.between else [] for order in orders}
        ports = list(dict.fromkeys([*(g.inputs(node)[0] for node in layers),
                                    *(port for found in operands.values() for port, _ in found)]))
        look = Look(g, layers, ports, min(map(len, self.feeds.values())))
        if self.sweep is None:
            look.add(on_the_reference(g, ports, self.feeds, self.run_op))
        else:
            self.sweep(g, ports, look)
        ranges, act = look.ranges, QSpec(self.act_bits, True)
        reads = QSpec(self.act_bits, None, symmetric=self.symmetric)
        readings = read_sample(g, layers, reads, look, self.signed_input_limit)
        search = _Search(readings, orders, shared=self.granularity != "channel")
        search.steps = {order: [np.abs(ranges[port][CHOOSING, :, part]).max(axis=0) / act.qmax for port, part in found
                                if port in ranges] for order, found in operands.items()}
        return _apply(g, search.run(g))


def _free(g: Graph) -> list[Order]:
    """The channels that were not scaled before."""
    return [order for order in channel_scalings(g) if all(node.scales is None for node, _, _ in order.nodes)]


def _operands(g: Graph, order: Order) -> list[tuple[Port, slice]]:
    """The operands of sums and activations that have these channels, and where in them."""
    starts = {node: start for node, start, _ in order.nodes}
    ports = dict.fromkeys(port for node in starts if ops.info(node.op).combines == ops.SUM or node.op == "LeakyReLU"
                          for port in g.inputs(node))
    return [(port, slice(starts[port.node], starts[port.node] + order.count)) for port in ports if port.node in starts]


class _Search:
    """Factors of all orders, chosen one after the other.

    shared: whether output channels share scales of weights, so that their factors matter there.
    inputs, outputs: layer -> the factors so far of the columns that it reads, of the channels that it writes.
    steps: order -> for each quantized operand in between, the step that each channel would have alone.
    """

    def __init__(self, readings: Mapping[Node, Reading], orders: Sequence[Order], shared: bool) -> None:
        self.readings, self.shared = readings, shared
        self.inputs = {node: np.ones(reading.columns) for node, reading in readings.items()}
        self.outputs = {node: np.ones(out_channels(node, reading.weight)) for node, reading in readings.items()}
        self.steps: Mapping[Order, Sequence[np.ndarray]] = {}
        self.orders = [order for order in orders if all(node in readings for node, _ in order.readers)
                       and (not shared or all(node in readings for node in order.writers))]

    def run(self, g: Graph) -> list[tuple[Order, np.ndarray]]:
        """Orders with the factors of their channels, without those that are left as they are."""
        columns = {node: reading.columns for node, reading in self.readings.items()}
        self.places = {order: places_of(g, order, columns) for order in self.orders}
        self.now = {order: np.ones(order.count) for order in self.orders}
        before = self._total() if self.shared else 0.0
        start = self._balanced() if self.shared else {}
        for order, factors in start.items():
            self._set(order, factors)
        chosen = {order: self._chosen(order, start.get(order)) for order in self.orders}
        if self.shared and self._total() >= before:  # each was judged with the others as they were then
            return []
        return [(order, factors) for order, factors in chosen.items() if (factors != 1).any()]

    def _set(self, order: Order, factors: np.ndarray) -> None:
        self.now[order] = factors
        for node, (columns, repeats) in self.places[order]:
            self.inputs[node][columns] = np.repeat(factors, repeats)
        for node in order.writers:
            if node in self.outputs:
                self.outputs[node] = factors

    # ---- what is measured -------------------------------------------------------------------------------------------

    def _noises(self, order: Order, half: int) -> np.ndarray:
        """Noise over signal of each reader's output, with the factors as they are now."""
        factors = self.now[order]
        squares = np.zeros(order.count)
        for steps in self.steps.get(order, ()):
            squares += ((steps * factors).max() / factors) ** 2 / 12
        if self.shared:
            for node in order.writers:
                squares += self.readings[node].weight_noise(half, self.inputs[node], self.outputs[node])
        noises = []
        for node in dict.fromkeys(node for node, _ in order.readers):
            reading = self.readings[node]
            noise = reading.noise(half, self.inputs[node], self.outputs[node])
            if squares.any():
                read = np.zeros(reading.columns)
                for other, (columns, repeats) in self.places[order]:
                    if other is node:
                        read[columns] = np.repeat(squares, repeats)
                noise += reading.from_inputs(half, read)
            noises.append(noise)
        return np.array(noises)

    def _total(self) -> float:
        return float(sum(self._noises(order, JUDGING).sum() for order in self.orders))

    # ---- candidates -------------------------------------------------------------------------------------------------

    def _chosen(self, order: Order, start: np.ndarray | None) -> np.ndarray:
        """The best factors of an order, which are set; ones if they are not better by a margin."""
        ones = np.ones(order.count)
        bases = [ones] if start is None else [ones, on_grid(np.sqrt(start)), start]
        self._set(order, ones)
        before = self._noises(order, JUDGING)
        best, least = (ones, 0.0), float(self._noises(order, CHOOSING).sum())
        for base in bases:
            for alpha in (0.0, *ALPHAS):
                self._set(order, self._factors(order, base, alpha, halves=1))
                if (noise := float(self._noises(order, CHOOSING).sum())) < least:
                    best, least = (base, alpha), noise
        self._set(order, self._factors(order, *best, halves=1))
        after = self._noises(order, JUDGING)
        if after.sum() > GAIN * before.sum() or (after > WORSE * before).any():
            best = ones, 0.0
        factors = self._factors(order, *best, halves=2)
        self._set(order, factors)
        return factors

    def _factors(self, order: Order, base: np.ndarray, alpha: float, halves: int) -> np.ndarray:
        """base * min(1, h r) ** -alpha with the ranges of one half of the images, or of both."""
        shares = self._shares(order, base)[:halves]
        room = HEADROOM * shares.max(axis=0) / shares.min(axis=0)
        return on_grid(base * np.clip(room * shares.max(axis=0), 1 / MOST, 1) ** -alpha)

    def _shares(self, order: Order, base: np.ndarray) -> np.ndarray:
        """(halves, channels): the largest magnitude, times `base`, over that of the tensor; the most of all readers.

        A channel that is dead in a half counts as the largest, so that it stays as it is.
        """
        shares = np.zeros((len(HALVES), order.count))
        for node, (columns, repeats) in self.places[order]:
            peaks = self.readings[node].peaks * self.inputs[node]
            peaks[:, columns] = self.readings[node].peaks[:, columns] * np.repeat(base, repeats)
            own = peaks[:, columns].reshape(len(peaks), order.count, repeats).max(axis=2)
            shares = np.maximum(shares, own / np.maximum(peaks.max(axis=1, keepdims=True), np.finfo(np.float64).tiny))
        return np.where((shares > 0).all(axis=0), shares, 1.0)

    def _balanced(self) -> dict[Order, np.ndarray]:
        """Factors that balance the weights, with which no tensor gets larger as a whole."""
        weights = {node: reading.weight for node, reading in self.readings.items()}
        return {order: on_grid(factors / self._growth(order, factors))
                for order, factors in balanced(self.places, weights).items()}

    def _growth(self, order: Order, factors: np.ndarray) -> float:
        """How much larger these channels get as a whole."""
        peaks = self._shares(order, np.ones(order.count)).max(axis=0)
        return float((peaks * factors).max() / peaks.max())


# ---- the rewrite ----------------------------------------------------------------------------------------------------

def _given(order: Order, factors: Mapping[str, Sequence[float]]) -> np.ndarray | None:
    """The factors of an earlier run, None if there are none for this many channels."""
    found = next((factors[node.name] for node in order.writers if node.name in factors), ())
    return np.array(found) if len(found) == order.count else None


def _apply(g: Graph, chosen: Sequence[tuple[Order, np.ndarray]]) -> int:
    """Scale weights and biases; the nodes remember it (`Node.scales`), so that they can be compared with the user's."""
    channels = {node: total for order, _ in chosen for node, _, total in order.nodes}
    read: dict[Node, np.ndarray] = {}
    written: dict[Node, np.ndarray] = {}
    for order, factors in chosen:
        for node, start in order.readers:
            every = read.setdefault(node, np.ones(channels[g.inputs(node)[0].node]))
            every[start:start + order.count] = factors
        written.update(dict.fromkeys(order.writers, factors))
        for node, start, total in order.nodes:
            scales = np.ones(total) if node.scales is None else np.array(node.scales)
            scales[start:start + order.count] *= factors
            node.scales = tuple(scales.tolist())
    for node in {**read, **written}:
        weight, bias = own_weights(g, node)
        if node in read:
            weight = weight * per_input(node, weight, 1 / read[node])
        if node in written:
            weight = scale_outputs(node, weight, written[node])
            bias = None if bias is None else bias * written[node]
        set_weights(g, node, weight, bias)
    return len(chosen)
