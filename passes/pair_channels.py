"""Reorder channels so that the products which an AVX2 CPU adds in 16 bits do not overflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Optional

import numpy as np

from qgraph.analysis.channels import Order, channel_orders, reorder
from qgraph.ir.graph import Graph
from qgraph.ir.rewrite import Pass, register
from qgraph.semantics.interpreter import RunOp
from qgraph.semantics.saturation import Layer, beyond, can_saturate, sample_layers

log = logging.getLogger("qgraph")
_SWEEPS = 4
_PARTNERS = 24  # calm pairs that a hot pair tries to trade a channel with


@register
class PairChannels(Pass):
    """Reorder channels so that fewer pairs of products overflow (mxnet, onnx). Exact, and free at run time.

        conv1 -> conv2  becomes  the same with the channels between them in another order

    `vpmaddubsw` adds the products of input channels 2k and 2k + 1 and saturates at int16 (see
    `qgraph.semantics.saturation`).  Which channels are neighbours is ours to choose: wherever pairs overflow on the
    sample images, channels are traded between hot and calm pairs while that lowers the mean amount that saturation
    takes away.

    feeds: some calibration images; without them the pass does nothing.  active: False where nothing saturates.
    run_op: runs the ops that the reference lacks; a layer that nothing can measure stays as it is.
    """

    name = "pair-channels"
    requires = ("calibrate",)
    rounding: str = "mxnet"
    active: bool = True
    feeds: Optional[Mapping[str, np.ndarray]] = None
    run_op: Optional[RunOp] = None

    def run(self, g: Graph) -> int:
        if not self.active:
            return 0
        if self.feeds is None:
            log.info("%s: no images, so nothing is known about saturation", self.name)
            return 0
        layers = {layer.node: layer for layer in sample_layers(g, self.feeds, self.rounding, run_op=self.run_op)}
        count = 0
        for order in channel_orders(g):
            readers = [(layers[node], start) for node, start in order.readers if node in layers]
            if not readers or any(start % 2 for _, start in readers) or order.count < 4 or order.count % 2:
                continue
            new = _Trade(order, readers).run()
            if new is None:
                continue
            reorder(g, order, new)
            for layer, start in readers:
                part = slice(start, start + order.count)
                layer.x[:, part], layer.w[:, part] = layer.x[:, start + new], layer.w[:, start + new]
            count += 1
        return count


class _Part:
    """What one layer reads of an order of channels.

    x: codes (C, taps, positions).  w: codes (C, taps, O).  high, low: the most that each product can be on the sample.
    heat: (C,), the largest product of each channel.
    """

    def __init__(self, layer: Layer, channels: slice) -> None:
        self.x = np.ascontiguousarray(layer.x[:, channels].transpose(1, 2, 0), np.float32)
        self.w = np.ascontiguousarray(layer.w[:, channels].transpose(1, 2, 0), np.float32)
        self.unit = layer.unit
        top = self.x.max(axis=2, keepdims=True)
        self.high, self.low = np.maximum(self.w, 0) * top, np.minimum(self.w, 0) * top
        self.heat = np.maximum(self.high, -self.low).max(axis=(1, 2))

    def taken(self, i: int, j: int) -> float:
        """Mean of what saturation takes from a pair; only of the products that can overflow anything is computed."""
        risky = can_saturate(self.high[i] + self.high[j], self.low[i] + self.low[j])
        rows = np.flatnonzero(risky.any(axis=0))
        if not len(rows):
            return 0.0
        lost = np.zeros((self.x.shape[2], len(rows)), np.float32)
        for tap in np.flatnonzero(risky.any(axis=1)):
            lost += beyond(self.x[[i, j], tap].T @ self.w[[i, j], tap][:, rows])
        return float(np.abs(lost * self.unit[rows]).sum()) / (len(lost) * len(self.unit))


class _Trade:
    """Local search over the pairs of one order of channels. Deterministic."""

    def __init__(self, order: Order, readers: list[tuple[Layer, int]]) -> None:
        self.count = order.count
        self.parts = [_Part(layer, slice(start, start + order.count)) for layer, start in readers]
        self.known: dict[tuple[int, int], float] = {}
        self.heat = np.max([part.heat for part in self.parts], axis=0)

    def cost(self, i: int, j: int) -> float:
        """Mean over outputs and positions of what saturation takes from the pair (i, j), in output codes."""
        key = (min(i, j), max(i, j))
        if key not in self.known:
            self.known[key] = sum(part.taken(*key) for part in self.parts)
        return self.known[key]

    def run(self) -> np.ndarray | None:
        """The new order, or None if no trade helps."""
        pairs = [[i, i + 1] for i in range(0, self.count, 2)]
        traded = False
        for _ in range(_SWEEPS):
            costs = [self.cost(*pair) for pair in pairs]
            hot = [k for k in np.argsort(-np.array(costs), kind="stable") if costs[k] > 0]
            if not hot:
                break
            calm = sorted(range(len(pairs)), key=lambda k: (self.heat[pairs[k]].sum(), k))
            improved = False
            for k in hot:
                improved |= self._trade(k, calm, pairs)
            traded |= improved
            if not improved:
                break
        return np.array(pairs).ravel() if traded else None

    def _trade(self, hot: int, calm: list[int], pairs: list[list[int]]) -> bool:
        best, choice = 0.0, None
        a, b = pairs[hot]
        for k in calm[:_PARTNERS]:
            if k == hot:
                continue
            c, d = pairs[k]
            now = self.cost(a, b) + self.cost(c, d)
            for first, second in (([a, c], [b, d]), ([a, d], [b, c])):
                gain = now - self.cost(*first) - self.cost(*second)
                if gain > best * (1 + 1e-9) + 1e-12:
                    best, choice = gain, (k, first, second)
            if now - best < 1e-12:
                break
        if choice is None:
            return False
        k, pairs[hot], pairs[k] = choice
        return True
