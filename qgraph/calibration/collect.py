"""Runs a float graph on calibration data and gathers the range of every tensor that a target may quantize."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qgraph import engines as runtimes
from qgraph.analysis.observed import observed_ports
from qgraph.data.open import Data
from qgraph.errors import CalibrationError
from qgraph.ir.graph import Graph, Port
from qgraph.options import Progress
from qgraph.quant.observers import Ema, Histogram, MinMax
from qgraph.quant.ranges import choose_range
from qgraph.quant.ranges import method as method_named
from qgraph.quant.spec import QSpec
from qgraph.quant.table import CalibrationTable, Entry


def collect(g: Graph, data: Data, method: str = "naive", *, act_bits: int = 8, act_signed: bool | None = None,
            progress: Progress | None = None, runtime: str = "auto", ports: Iterable[Port] = ()) -> CalibrationTable:
    """The calibration table of a float graph: one or two sweeps over `data`, in memory that does not grow with it.

    method: a key of `qgraph.quant.ranges.METHODS`.  act_bits, act_signed: what the ranges are for.
    runtime: of `qgraph.engines`.  ports: more tensors to observe.
    Raises CalibrationError (nothing to observe, NaN or Inf: tensor and sample are named) and DataError.
    """
    how = method_named(method)
    ports = list(dict.fromkeys([*observed_ports(g), *ports]))
    if not ports:
        raise CalibrationError("nothing to calibrate: the graph has no layer with weights")
    executor = runtimes.runtime("calibrating", runtime)(g, watch=ports, fused=True)
    spec = QSpec(bits=act_bits, signed=act_signed)

    def sweep(observers: Sequence[MinMax | Ema | Histogram], what: str) -> None:
        done = 0
        for batch, values in executor.stream(data):
            for observer, value in zip(observers, values):
                observer.update(value, batch.ids)
            done += len(batch)
            if progress:
                progress(what, done, data.num_items)

    first = [how.first(port.key) for port in ports]
    sweep(first, "ranges")
    if not first[0].images:
        raise CalibrationError(f"{data.name}: no image was read")
    stats: Sequence[MinMax | Ema | Histogram] = first
    if how.sweeps == 2:
        stats = [Histogram.after(s) for s in first]  # type: ignore[arg-type]
        sweep(stats, "histograms")
    entries = {}
    for found, stat in zip(first, stats):
        low, high = choose_range(how.name, stat, spec)
        entries[found.name] = _entry(found, low, high, how.name)
    return CalibrationTable(how.name, act_bits, act_signed, g.digest(), first[0].images, data.preprocess.to_dict(),
                            data.name, entries)


def _entry(found: MinMax | Ema, low: float, high: float, method: str) -> Entry:
    if isinstance(found, Ema):
        return Entry(low, high, low, high, method)
    sample = found.min_id if abs(found.low) > abs(found.high) else found.max_id
    return Entry(found.low, found.high, low, high, method, sample)
