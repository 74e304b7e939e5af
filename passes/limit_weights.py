"""Give up a part of the weights' range in the output channels whose sums can overflow 16 bits on CPUs without VNNI."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import field
from typing import Optional

import numpy as np

from qgraph.errors import OptionError
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import Pass, register
from qgraph.passes.limit_saturation import NOTICED, Finding
from qgraph.quant.spec import QParams, quantize
from qgraph.semantics.interpreter import RunOp
from qgraph.semantics.saturation import Layer, can_overflow, pair_excess, pairs, sample_layers

log = logging.getLogger("qgraph")
ISAS = ("auto", "vnni", "avx2")
FACTORS = (1.0, 1.125, 1.25, 1.5, 1.75, 2.0)  # on the step; with the last one |code| <= 64: no pair can overflow


@register
class LimitWeights(Pass):
    """Reduce the range of weight codes (reduced range) in the channels that overflow.

        fq{scale s[c]}(w)  ->  fq{scale f[c] s[c]}(w), f >= 1 in the channels c that overflow

    isa "auto": where sums overflow on the sample images, the factor with the smallest error, of rounding and overflow
    together.  "avx2": the smallest factor with which no sum can overflow, whatever the layer reads.  "vnni": nothing,
    such CPUs (and ARM ones) do not overflow.

    A second run with "auto" starts from the new scales, and may lengthen them once more.

    feeds: some calibration images; without them the pass does nothing.  findings: layers that are left to overflow.
    run_op: runs the ops that the reference lacks; a layer that nothing can measure stays as it is.
    """

    name = "limit-weights"
    requires = ("calibrate",)
    rounding: str = "half-even"
    isa: str = "auto"
    feeds: Optional[Mapping[str, np.ndarray]] = None
    run_op: Optional[RunOp] = None
    findings: list = field(default_factory=list, compare=False)

    def run(self, g: Graph) -> int:
        if self.isa not in ISAS:
            raise OptionError(f"isa: found {self.isa!r}, want one of {', '.join(ISAS)}")
        if self.feeds is None or self.isa == "vnni":
            return 0
        by_node: dict[Node, list[Layer]] = {}
        for layer in sample_layers(g, self.feeds, self.rounding, mlas=True, run_op=self.run_op):
            by_node.setdefault(layer.node, []).append(layer)
        count = 0
        for node, layers in by_node.items():
            factors = self._limit(g, node, layers)
            missed = float(np.mean([layer.missed() for layer in layers]))
            if factors is not None:
                count += 1
                log.debug("%s: fewer codes in %d of %d channels of %s", self.name, (factors > 1).sum(), factors.size,
                         node.name)
            if missed > NOTICED:
                self.findings.append(Finding(node.name, missed, 1.0, {}, "in the other channels it costs less than "
                                                                         "fewer codes would"))
        return count

    def _limit(self, g: Graph, node: Node, layers: list[Layer]) -> np.ndarray | None:
        """Change the weight's scale, and layer.w accordingly; the factors, or None if all are 1."""
        weight = g.inputs(node)[1].node
        qp, real = weight.quant, g.params[g.inputs(weight)[0].node.name]
        assert isinstance(qp, QParams)
        shape = (-1, *layers[0].w.shape[1:])
        scale = np.repeat(np.ravel(qp.scale), len(real) // qp.scale.size).astype(np.float64)
        exact = real.reshape(shape) / scale[:, None, None]
        factors = np.ones(len(real))
        choose = _safe_factors if self.isa == "avx2" else _best_factors
        for layer in layers:
            factors[layer.rows] = choose(layer, exact[layer.rows], qp)
        if (factors == 1).all():
            return None
        factors = factors.reshape(qp.scale.size, -1).max(axis=1).reshape(qp.scale.shape)  # shared: that of the worst
        weight.quant = dataclasses.replace(qp, scale=(qp.scale * factors).astype(np.float32))
        codes = quantize(real, weight.quant).reshape(shape)
        for layer in layers:
            layer.w = codes[layer.rows]
        return factors


def _codes(exact: np.ndarray, factor: float, qp: QParams) -> np.ndarray:
    return np.clip(np.rint(exact / factor), qp.qmin, qp.qmax)


def _safe_factors(layer: Layer, exact: np.ndarray, qp: QParams) -> np.ndarray:
    """(O,): the smallest factors with which no sum can overflow. exact: weights in steps, shaped as layer.w."""
    chosen = np.full(len(exact), FACTORS[-1])
    for factor in FACTORS[-2::-1]:
        # the outer one of the two nearest codes may be taken in the end (`round-weights`)
        widest = np.sign(exact) * np.ceil(np.abs(exact) / factor - 1e-4)
        chosen[~can_overflow(pairs(widest, layer.tap_major), layer.top)] = factor
    return chosen


def _best_factors(layer: Layer, exact: np.ndarray, qp: QParams) -> np.ndarray:
    """(O,): the factors with the smallest squared error on the sample, in the channels that overflow on it."""
    chosen = np.ones(len(exact))
    x = pairs(layer.x, layer.tap_major)
    rows = np.flatnonzero((pair_excess(x, pairs(layer.w, layer.tap_major)) != 0).any(axis=0))
    if not len(rows):
        return chosen
    flat = layer.x.reshape(len(layer.x), -1).astype(np.float32)
    want = flat @ exact[rows].reshape(len(rows), -1).astype(np.float32).T
    errors = []
    for factor in FACTORS:
        codes = _codes(exact[rows], factor, qp)
        sums = flat @ codes.reshape(len(rows), -1).astype(np.float32).T
        sums -= pair_excess(x, pairs(codes, layer.tap_major))
        errors.append(((sums * factor - want) ** 2).mean(axis=0))
    chosen[rows] = np.array(FACTORS)[np.argmin(errors, axis=0)]
    return chosen
