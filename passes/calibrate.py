"""Put numbers on every decision: activations from a calibration table, weights from their own values."""

from __future__ import annotations

import dataclasses
from typing import Optional

from qgraph.analysis.codes import nonnegative, quantizers_behind, ranged
from qgraph.errors import CalibrationError
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import Pass, register
from qgraph.quant.spec import QParams, with_range
from qgraph.quant.table import CalibrationTable
from qgraph.quant.weights import weight_params


@register
class Calibrate(Pass):
    """fake_quantize{spec} -> fake_quantize{spec, scale, zero_point}.

    An activation takes the range of its source tensors in `table`; a weight takes the smallest range that covers it,
    per tensor, group or channel.  An online activation stays a spec; "auto" makes it signed unless its ops cannot write
    negative values.  signed_input_limit: largest code of a weight whose layer reads signed codes; 0 sets no limit.
    """

    name = "calibrate"
    requires = ("insert-fake-quantize",)
    signed_input_limit: int = 0
    table: Optional[CalibrationTable] = None

    def run(self, g: Graph) -> int:
        open_nodes = [n for n in g.nodes("fake_quantize") if not isinstance(n.quant, QParams)]
        activations = [n for n in open_nodes if g.param(g.inputs(n)[0]) is None and not _online(n)]
        weights = [n for n in open_nodes if g.param(g.inputs(n)[0]) is not None]
        if activations and self.table is None:
            raise CalibrationError("calibrate: no calibration table; collect one with qgraph.calibration.collect")
        ranges: dict[tuple[tuple[str, ...], bool], tuple[float, float]] = {}
        for node in activations:
            assert node.quant is not None and self.table is not None
            asked = (ranged(g, node), node.quant.whole)
            if asked not in ranges:  # all inputs of a Concat ask for the ranges of all of them
                ranges[asked] = united_range(*asked, self.table)
            node.quant = with_range(node.quant, *ranges[asked])
        for node in weights:
            assert node.quant is not None
            spec = node.quant
            if self.signed_input_limit and any(_reads_signed(g, layer) for layer in g.readers(node)):
                spec = dataclasses.replace(spec, limit=min(spec.qmax, self.signed_input_limit))
            weight = g.param(g.inputs(node)[0])
            assert weight is not None
            node.quant = weight_params(node.origin[0] if node.origin else node.name, weight, spec)
        return len(activations) + len(weights) + _settle_signs(g, [n for n in open_nodes if _online(n)])


def _online(node: Node) -> bool:
    return node.quant is not None and node.quant.online


def _settle_signs(g: Graph, online: list[Node]) -> int:
    undecided = [n for n in online if n.quant is not None and n.quant.signed is None]
    positive = nonnegative(g) if undecided else set()
    for node in undecided:
        assert node.quant is not None
        node.quant = dataclasses.replace(node.quant, signed=g.inputs(node)[0] not in positive)
    return len(undecided)


def united_range(tensors: tuple[str, ...], whole: bool, table: CalibrationTable) -> tuple[float, float]:
    """From the lowest to the highest value of these tensors, as chosen or (`whole`) as observed."""
    table.require(tensors)
    entries = [table.entries[name] for name in tensors]
    ranges = [(e.min, e.max) if whole else (e.low, e.high) for e in entries]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _reads_signed(g: Graph, layer: Node) -> bool:
    return any(fq.quant is not None and fq.quant.signed for fq in quantizers_behind(g, g.inputs(layer)[0]))
