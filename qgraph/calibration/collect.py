"""Runs a float graph on calibration data and gathers the range of every tensor that a target may quantize."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qgraph.analysis.channels import factors_of
from qgraph.analysis.importance import channel_importance
from qgraph.analysis.observed import observed_ports
from qgraph.calibration.sweep import Observer, Watched, observe
from qgraph.data.open import Data
from qgraph.errors import CalibrationError, FormatError, GraphError
from qgraph.ir.graph import Graph, Port
from qgraph.options import Progress
from qgraph.quant.observers import Ema, Histogram, MinMax
from qgraph.quant.ranges import choose_range
from qgraph.quant.ranges import method as method_named
from qgraph.quant.shown import shown_histogram
from qgraph.quant.spec import QSpec
from qgraph.quant.table import CalibrationTable, Entry
from qgraph.semantics.infer import infer
from qgraph.workers import Here, Workers

log = logging.getLogger("qgraph")


class Asked(NamedTuple):
    """How the range of a tensor is chosen. method: a key of `qgraph.quant.ranges.METHODS`.  bits: of its codes."""

    method: str
    bits: int


def collect(g: Graph, data: Data, method: str = "naive", *, act_bits: int = 8, act_signed: bool | None = None,
            symmetric: bool = True, progress: Progress | None = None, runtime: str = "auto", ports: Iterable[Port] = (),
            wanted: Iterable[str] | None = None, asked: Mapping[str, Asked] | None = None,
            workers: Workers | None = None) -> CalibrationTable:
    """The calibration table of a float graph: one or two sweeps over `data`, in memory that does not grow with it.

    method: a key of `qgraph.quant.ranges.METHODS`.  act_bits, act_signed, symmetric: what the ranges are for.
    runtime: of `qgraph.engines`.  ports: more tensors to observe.  wanted: names of those that are quantized [default:
    all]; of the others one that has no range, such as one with Inf, is left out.
    asked: tensor -> what is not as `method` and `act_bits` say.
    workers: who observes; the table does not depend on them. Moving averages (ema) are gathered in this process.
    Raises CalibrationError (nothing to observe, NaN or Inf: tensor and sample are named) and DataError.
    """
    how = method_named(method)
    ports = list(dict.fromkeys([*observed_ports(g), *ports]))
    if not ports:
        raise CalibrationError("nothing to calibrate: the graph has no layer with weights")
    workers = workers or Here()
    ways = {port: (asked or {}).get(port.key, Asked(how.name, act_bits)) for port in ports}
    how_of = {port: method_named(way.method) for port, way in ways.items()}
    watched = Watched(g, ports, runtime, as_batched=any(one.first is Ema for one in how_of.values()))
    needed = {port.key for port in ports} if wanted is None else set(wanted)

    def leave_out(port: Port, error: CalibrationError | FormatError, among: dict[Port, Any]) -> None:
        if port.key in needed:
            raise error
        del among[port]
        log.debug("a tensor without a range, which nothing here quantizes: %s", error)

    blank: dict[Port, Observer] = {port: how_of[port].first(port.key) for port in ports}
    first, fed = observe(watched, blank, needed, data, workers, "ranges", progress)
    images = max((seen.images for seen in first.values()), default=0)
    if first and not images:
        raise CalibrationError(f"{data.name}: no image was read")
    stats = dict(first)
    if any(how_of[port].sweeps == 2 for port in first):
        weighs = any(how_of[port].weighs_channels for port in first)
        importance = channel_importance(g, _shapes(g, fed)) if weighs else {}
        empty: dict[Port, Observer] = {
            port: Histogram.after(seen, importance=importance.get(port) if how_of[port].weighs_channels else None)
            for port, seen in first.items() if how_of[port].sweeps == 2}
        seen_again, _ = observe(watched, empty, needed, data, workers, "histograms", progress)
        stats = {port: seen_again.get(port, seen) for port, seen in first.items()
                 if port in seen_again or how_of[port].sweeps == 1}
    entries, histograms = {}, {}
    for port, stat in [*stats.items()]:
        way = ways[port]
        spec = QSpec(bits=way.bits, signed=act_signed, symmetric=symmetric)
        try:
            low, high = choose_range(way.method, stat, spec)
            entries[port.key] = _entry(first[port], low, high, way.method, way.bits if way.bits != act_bits else None)
            if how_of[port].sweeps == 2 and port.key in needed:
                histograms[port.key] = shown_histogram(stat, spec, way.method, low, high)
        except FormatError as error:  # larger than a range may be
            leave_out(port, FormatError(f"tensor {port.key}: {error}"), stats)
    return CalibrationTable(how.name, act_bits, act_signed, g.digest(), images, data.preprocess.to_dict(), data.name,
                            entries, factors_of(g), histograms)


def _shapes(g: Graph, inputs: Mapping[str, Sequence[int]]) -> Mapping[Port, Sequence[int]]:
    """Shapes of the tensors for these of the inputs, as far as they can be told."""
    try:
        return infer(g, inputs)
    except GraphError:  # an engine may run what the rules of shapes refuse
        return {}


def _entry(found: MinMax | Ema, low: float, high: float, method: str, bits: int | None) -> Entry:
    if isinstance(found, Ema):
        return Entry(low, high, low, high, method, bits=bits)
    sample = found.min_id if abs(found.low) > abs(found.high) else found.max_id
    return Entry(found.low, found.high, low, high, method, sample, bits)
