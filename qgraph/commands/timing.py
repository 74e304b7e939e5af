"""How long models take: forward passes side by side, in alternation, without those that warm up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

from qgraph.arrays import Array
from qgraph.engines import thread_count
from qgraph.targets.base import Executor, Feeds

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class ResidentSize:
    """Bytes of this process in memory; None where there is no /proc that tells them."""

    def __init__(self) -> None:
        self._watched = False

    def now(self) -> int | None:
        return self._read("VmRSS")

    def restart(self) -> None:
        """Forget the peak."""
        try:
            _RESET.write_text("5")
        except OSError:  # not every container lets a process write this
            self._watched = False
        else:
            self._watched = True

    def peak(self) -> int | None:
        """The largest size since `restart`; the present one where the system does not let the peak be forgotten."""
        return self._read("VmHWM" if self._watched else "VmRSS")

    def _read(self, field: str) -> int | None:
        try:
            lines = _STATUS.read_text().splitlines()
        except OSError:
            return None
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)


class _Times:
    """Of one executor. seconds: per image, of each round that counts.  kept, peak: bytes beyond those before its first
    round, if they are known.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.kept = self.peak = 0
        self.known = True


class Timing:
    """Times forward passes of executors on the same batches.

    A round runs each of them on one batch, in turn from the first to the last and from the last to the first (A B B A):
    a machine that slows down does so for all.  The first `warm_up` rounds are not counted, and as many after each
    change of the inputs' shapes, where engines compile again.
    clock: gives seconds.  memory: of this process.
    """

    def __init__(self, executors: Mapping[str, Executor], *, warm_up: int = 1,
                 clock: Callable[[], float] = time.perf_counter, memory: ResidentSize | None = None) -> None:
        self._executors, self._warm_up, self._clock = dict(executors), warm_up, clock
        self._memory = memory or ResidentSize()
        self._times = {name: _Times() for name in self._executors}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._cold = self.rounds = self._turn = 0
        self.batch_size: int | None = None

    def run(self, feeds: Feeds) -> dict[str, list[Array]]:
        """A round. Returns the outputs of each executor."""
        shapes = {name: np.shape(array) for name, array in feeds.items()}
        if shapes != self._shapes:
            self._shapes, self._cold = shapes, self._warm_up
        images = max(1, len(next(iter(feeds.values()))))
        order = list(self._executors)[::-1 if self._turn % 2 else 1]
        self._turn += 1
        found = {name: self._pass(name, feeds, images) for name in order}
        if self._cold:
            self._cold -= 1
        else:
            self.rounds += 1
            self.batch_size = max(self.batch_size or 0, images)
        return {name: found[name] for name in self._executors}

    def _pass(self, name: str, feeds: Feeds, images: int) -> list[Array]:
        times, executor = self._times[name], self._executors[name]
        self._memory.restart()
        before = self._memory.now()
        started = self._clock()
        outputs = executor.run(feeds)
        seconds = self._clock() - started
        peak, after = self._memory.peak(), self._memory.now()
        if before is None or peak is None or after is None:
            times.known = False
        else:
            times.peak = max(times.peak, times.kept + peak - before)
            times.kept += after - before
        if not self._cold:
            times.seconds.append(seconds / images)
        return outputs

    def to_dict(self) -> dict[str, Any]:
        """{"batch_size", "threads", "warm_up", "rounds", "models": {name: {"ms_per_image" (median), "ms_spread"
        (interquartile range), "images_per_s", "memory_growth_mb" (MiB), "ratio" (of the medians, to the first)}}}.

        memory_growth_mb is the peak of its own rounds, from its first on.  None: no round was counted, the number of
        threads is the engine's own choice, or the system does not tell its memory.
        """
        first: float | None = None
        models: dict[str, dict[str, float | None]] = {}
        for name, times in self._times.items():
            row: dict[str, float | None] = dict.fromkeys(("ms_per_image", "ms_spread", "images_per_s"))
            ratio = None
            if times.seconds:
                low, median, high = (float(value) for value in np.percentile(times.seconds, (25, 50, 75)))
                first = median if first is None else first
                row = {"ms_per_image": round(1000 * median, 4), "ms_spread": round(1000 * (high - low), 4),
                       "images_per_s": round(1 / median, 2) if median else None}
                ratio = round(median / first, 4) if first else None
            models[name] = {**row, "memory_growth_mb": round(times.peak / 2**20, 1) if times.known else None,
                            "ratio": ratio}
        return {"batch_size": self.batch_size, "threads": thread_count() or None, "warm_up": self._warm_up,
                "rounds": self.rounds, "models": models}
