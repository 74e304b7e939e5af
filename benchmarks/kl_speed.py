"""Time of the range search per tensor and of `Histogram.update` per value.  Run with OMP_NUM_THREADS=1.

    python -m benchmarks.kl_speed
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from qgraph.quant.observers import Histogram, MinMax
from qgraph.quant.ranges import METHODS, choose_range
from qgraph.quant.spec import QSpec


def seconds(work: Callable[[], object], repeat: int = 15) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    rng = np.random.default_rng(0)
    signed = rng.laplace(size=(16, 64, 56, 56)).astype(np.float32)
    tensors = {"relu": np.maximum(signed, 0), "relu6": np.clip(signed * 3, 0, 6), "signed": signed}
    ids = [f"image {i}" for i in range(len(signed))]
    print(f"{'tensor':8}{'bins':>6}{'MinMax ns/value':>17}{'Histogram ns/value':>20}"
          + "".join(f"{m + ' ms':>15}" for m in ("kl", "mse", "percentile")))
    for name, batch in tensors.items():
        for bins in (2048, 4096, 8192):
            sweep = MinMax(name)
            sweep.update(batch, ids)
            hist = Histogram.after(sweep, bins)
            hist.update(batch, ids)
            first = seconds(lambda s=sweep, b=batch: s.update(b, ids), 7) / batch.size * 1e9  # type: ignore[misc]
            second = seconds(lambda h=hist, b=batch: h.update(b, ids), 7) / batch.size * 1e9  # type: ignore[misc]
            ms = {m: seconds(lambda m=m, h=hist: choose_range(m, h, QSpec())) * 1e3  # type: ignore[misc]
                  for m in METHODS if METHODS[m].bound}
            print(f"{name:8}{bins:6}{first:17.2f}{second:20.2f}{ms['kl']:15.2f}{ms['mse']:15.2f}{ms['percentile']:15.2f}")


if __name__ == "__main__":
    main()
