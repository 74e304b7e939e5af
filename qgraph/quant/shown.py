"""What people are shown of a histogram: fewer bins, and the ranges that other methods would have chosen from it."""

from __future__ import annotations

from typing import Any

import numpy as np

from qgraph.quant.observers import Histogram
from qgraph.quant.ranges import METHODS, choose_range
from qgraph.quant.spec import QSpec

SHOWN_BINS = 64


def shown_histogram(hist: Histogram, spec: QSpec, chosen: str, low: float, high: float) -> dict[str, Any]:
    """{"low", "high": the ends of the bins, "counts", "zeros": exact ones, which are in no bin, "ranges": {method:
    [low, high]}}, as plain data.

    spec: what ranges are chosen for.  chosen: the method that was asked for, and its range low .. high.
    """
    first, last = _used(hist)
    per_bin = -(-(last - first) // SHOWN_BINS)
    counts = np.add.reduceat(hist.counts[first:last], np.arange(0, last - first, per_bin))
    ranges = {"naive": [hist.low, hist.high], chosen: [low, high]}
    for name, how in METHODS.items():
        if how.bound is not None and not how.weighs_channels and name not in ranges:
            ranges[name] = list(choose_range(name, hist, spec))
    start = float(hist.centres[first]) - hist.width / 2
    return {"low": short(start), "high": short(start + hist.width * per_bin * len(counts)),
            "counts": counts.tolist(), "zeros": int(hist.zeros),
            "ranges": {name: [short(end) for end in ends] for name, ends in ranges.items()}}


def _used(hist: Histogram) -> tuple[int, int]:
    """The bins from the first to behind the last one that holds a value."""
    used = np.flatnonzero(hist.counts)
    return (int(used[0]), int(used[-1]) + 1) if used.size else (hist.middle, hist.middle + 1)


def short(value: float) -> float:
    """For people: six digits."""
    return float(f"{float(value):.6g}")
