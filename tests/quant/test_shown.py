"""What people are shown of a histogram: no value is lost, and the ranges are those that the methods choose."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.quant.observers import Histogram
from qgraph.quant.ranges import choose_range
from qgraph.quant.shown import SHOWN_BINS, shown_histogram
from qgraph.quant.spec import QSpec

SPEC = QSpec(bits=8)


@pytest.mark.parametrize("low, high", [(0.0, 6.0), (-2.0, 6.0), (-1.0, -0.5)])
def test_counts_and_ranges(low: float, high: float) -> None:
    values = np.random.default_rng(1).uniform(low, high, 50_000).astype(np.float32)
    values[0], values[1], values[2:1002] = low, high, 0 if low <= 0 <= high else low
    hist = Histogram(low, high)
    hist.update(values, ["a"])
    found = shown_histogram(hist, SPEC, "kl", *choose_range("kl", hist, SPEC))
    assert sum(found["counts"]) + found["zeros"] == len(values) and 30 < len(found["counts"]) <= SHOWN_BINS
    assert (found["zeros"] >= 1000) is (low <= 0 <= high)
    width = (found["high"] - found["low"]) / len(found["counts"])
    assert found["low"] == pytest.approx(low, abs=width) and found["high"] == pytest.approx(high, abs=width)
    middle = len(found["counts"]) // 2
    at = found["low"] + middle * width
    assert sum(found["counts"][:middle]) == pytest.approx(((values < at) & (values != 0)).sum(), abs=200)
    assert found["ranges"].keys() == {"naive", "kl", "mse", "percentile"}
    for name, ends in found["ranges"].items():
        assert ends == pytest.approx(choose_range(name, hist, SPEC), rel=1e-5), name


def test_a_tensor_that_is_always_zero() -> None:
    hist = Histogram(0.0, 0.0)
    hist.update(np.zeros(8, np.float32), ["a"])
    found = shown_histogram(hist, SPEC, "mse", 0.0, 0.0)
    assert found["counts"] == [0] and found["zeros"] == 8
