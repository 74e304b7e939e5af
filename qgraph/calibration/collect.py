"""Runs a float graph on calibration data and gathers the range of every tensor that a target may quantize."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qgraph import engines as runtimes
from qgraph.analysis.channels import channel_ends, factors_of
from qgraph.analysis.importance import channel_importance
from qgraph.analysis.observed import observed_ports
from qgraph.arrays import Array
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

log = logging.getLogger("qgraph")


def collect(g: Graph, data: Data, method: str = "naive", *, act_bits: int = 8, act_signed: bool | None = None,
            progress: Progress | None = None, runtime: str = "auto", ports: Iterable[Port] = (),
            wanted: Iterable[str] | None = None) -> CalibrationTable:
    """The calibration table of a float graph: one or two sweeps over `data`, in memory that does not grow with it.

    method: a key of `qgraph.quant.ranges.METHODS`.  act_bits, act_signed: what the ranges are for.
    runtime: of `qgraph.engines`.  ports: more tensors to observe.  wanted: names of those that are quantized [default:
    all]; of the others one that has no range, such as one with Inf, is left out.
    Raises CalibrationError (nothing to observe, NaN or Inf: tensor and sample are named) and DataError.
    """
    how = method_named(method)
    ports = list(dict.fromkeys([*observed_ports(g), *ports]))
    if not ports:
        raise CalibrationError("nothing to calibrate: the graph has no layer with weights")
    executor = runtimes.runtime("calibrating", runtime)(g, watch=ports, fused=True)
    spec = QSpec(bits=act_bits, signed=act_signed)
    needed = {port.key for port in ports} if wanted is None else set(wanted)

    def leave_out(port: Port, error: CalibrationError | FormatError, among: dict[Port, Any]) -> None:
        if port.key in needed:
            raise error
        del among[port]
        log.debug("a tensor without a range, which nothing here quantizes: %s", error)

    fed: dict[str, tuple[int, ...]] = {}  # shapes of the inputs

    def sweep(observers: dict[Port, Any], what: str) -> None:
        done = 0
        for batch, values in executor.stream(data):
            fed.update({name: array.shape for name, array in batch.feeds.items() if not done})
            for port, value in zip(ports, values):
                if port in observers:
                    try:
                        observers[port].update(_by_image(value, len(batch)), batch.ids)
                    except CalibrationError as error:
                        leave_out(port, error, observers)
            done += len(batch)
            if progress:
                progress(what, done, data.num_items)

    first: dict[Port, MinMax | Ema] = {port: how.first(port.key) for port in ports}
    sweep(first, "ranges")
    images = max((seen.images for seen in first.values()), default=0)
    if first and not images:
        raise CalibrationError(f"{data.name}: no image was read")
    stats: dict[Port, Any] = dict(first)
    if how.sweeps == 2:
        importance = channel_importance(g, _shapes(g, fed)) if how.weighs_channels else {}
        stats = {port: Histogram.after(seen, importance=importance.get(port))  # type: ignore[arg-type]
                 for port, seen in first.items()}
        sweep(stats, "histograms")
    entries, histograms = {}, {}
    for port, stat in [*stats.items()]:
        try:
            low, high = choose_range(how.name, stat, spec)
            entries[port.key] = _entry(first[port], low, high, how.name)
            if how.sweeps == 2 and port.key in needed:
                histograms[port.key] = shown_histogram(stat, spec, how.name, low, high)
        except FormatError as error:  # larger than a range may be
            leave_out(port, FormatError(f"tensor {port.key}: {error}"), stats)
    return CalibrationTable(how.name, act_bits, act_signed, g.digest(), images, data.preprocess.to_dict(), data.name,
                            entries, factors_of(g), histograms)


def channel_ranges(g: Graph, data: Data, ports: Sequence[Port], *, progress: Progress | None = None,
                   runtime: str = "auto") -> list[Array]:
    """The ranges of the channels (axis 1) of these tensors, for two halves of the images: one sweep over `data`.

    Each as of `qgraph.analysis.channels.channel_ends`, whatever the batch size; infinite for a half without images.
    """
    executor = runtimes.runtime("calibrating", runtime)(g, watch=ports, fused=True)
    found: list[Array] = []
    done = 0
    for batch, values in executor.stream(data):
        seen = [channel_ends(value, len(batch), done) for value in values]
        found = [np.stack([np.minimum(a[:, 0], b[:, 0]), np.maximum(a[:, 1], b[:, 1])], axis=1)
                 for a, b in zip(found, seen)] or seen
        done += len(batch)
        if progress:
            progress("channels", done, data.num_items)
    return found


def _shapes(g: Graph, inputs: Mapping[str, Sequence[int]]) -> Mapping[Port, Sequence[int]]:
    """Shapes of the tensors for these of the inputs, as far as they can be told."""
    try:
        return infer(g, inputs)
    except GraphError:  # an engine may run what the rules of shapes refuse
        return {}


def _by_image(value: Array, count: int) -> Array:
    """A tensor without the batch axis, such as anchors, is the same for every image."""
    shared = value.shape[:1] in ((), (1,)) or value.size % count
    return np.broadcast_to(value.ravel(), (count, value.size)) if shared else value


def _entry(found: MinMax | Ema, low: float, high: float, method: str) -> Entry:
    if isinstance(found, Ema):
        return Entry(low, high, low, high, method)
    sample = found.min_id if abs(found.low) > abs(found.high) else found.max_id
    return Entry(found.low, found.high, low, high, method, sample)
