"""Statistics of one tensor, gathered batch by batch in constant memory.

    MinMax     smallest and largest value, and the samples that set them
    Ema        exponential moving average of the per-batch mean of per-image minima and maxima
    Histogram  integer counts over a range known beforehand (from a first sweep with MinMax)

``update(batch, ids)`` takes an array whose first axis is the image, and one name per image.  MinMax and Histogram merge
exactly: any split of the images over batches, workers or threads, in any order, gives the same bits.  NaN or Inf
anywhere raises `CalibrationError` with the tensor and the sample, and leaves the observer as it was.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import CalibrationError, OptionError

DEFAULT_BINS = 4096
MAX_BINS = 1 << 20
IMPORTANCE = 1 << 16  # that of the most important channel, in whole numbers: their sums are exact
_CHUNK = 1 << 15  # elements: the scratch arrays (512 KB) stay in the second-level cache


def _per_image(batch: Array, ids: Sequence[str], name: str) -> Array:
    """`batch` as contiguous float32 (images, values); raises when it cannot be divided among `ids`."""
    x = np.ascontiguousarray(batch, np.float32)
    if not len(ids) or x.size % len(ids):
        raise CalibrationError(f"tensor {name}: found shape {x.shape} for {len(ids)} images, want equal parts")
    return x.reshape(len(ids), x.size // len(ids))


def _not_finite(values: Array, image: str, name: str) -> CalibrationError:
    what = "NaN" if np.isnan(values).any() else "Inf"
    return CalibrationError(f"tensor {name}: found {what} for sample {image}, want finite numbers: "
                            "leave the sample out, or look for NaN, Inf or huge values in the parameters")


def _extremes(batch: Array, ids: Sequence[str], name: str) -> tuple[Array, Array]:
    """Per-image minima and maxima, float32 (images,), all finite."""
    x = _per_image(batch, ids, name)
    if not x.size:
        raise CalibrationError(f"tensor {name}: found shape {np.shape(batch)}, want at least one value for each image")
    with np.errstate(invalid="ignore"):
        low, high = x.min(axis=1), x.max(axis=1)
    bad = ~(np.isfinite(low) & np.isfinite(high))
    if bad.any():
        i = int(bad.argmax())
        raise _not_finite(x[i], ids[i], name)
    return low + np.float32(0), high + np.float32(0)  # -0.0 becomes 0.0: min(-0.0, 0.0) depends on the order


class MinMax:
    """Exact range [low, high].  min_id, max_id: the sample that set it (of equal ones the first in sorted order)."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.images = 0
        self.low, self.high = math.inf, -math.inf
        self.min_id = self.max_id = ""

    def update(self, batch: Array, ids: Sequence[str]) -> None:
        low, high = _extremes(batch, ids, self.name)
        self._add(float(low.min()), min(ids[i] for i in np.flatnonzero(low == low.min())),
                  float(high.max()), min(ids[i] for i in np.flatnonzero(high == high.max())), len(ids))

    def merge(self, other: MinMax) -> None:
        if other.images:
            self._add(other.low, other.min_id, other.high, other.max_id, other.images)

    def _add(self, low: float, min_id: str, high: float, max_id: str, images: int) -> None:
        if (low, min_id) < (self.low, self.min_id):
            self.low, self.min_id = low, min_id
        if (-high, max_id) < (-self.high, self.max_id):
            self.high, self.max_id = high, max_id
        self.images += images


class Ema:
    """v <- momentum * v + (1 - momentum) * batch mean, from the first batch's mean on; for minima and maxima.

    Depends on the order and the size of the batches, by definition.  `merge` appends the other's batches after ours,
    equal to one run over all of them up to rounding (float64).
    """

    def __init__(self, name: str = "", momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise OptionError(f"momentum: found {momentum}, want 0 <= momentum < 1")
        self.name, self.momentum = name, momentum
        self.images = self.batches = 0
        self._first = self._value = np.zeros(2)  # (low, high) of the first batch; of the average

    @property
    def low(self) -> float:
        return float(self._value[0])

    @property
    def high(self) -> float:
        return float(self._value[1])

    def update(self, batch: Array, ids: Sequence[str]) -> None:
        low, high = _extremes(batch, ids, self.name)
        one = Ema(self.name, self.momentum)
        one._first = one._value = np.array([low.mean(dtype=np.float64), high.mean(dtype=np.float64)])
        one.images, one.batches = len(ids), 1
        self.merge(one)

    def merge(self, other: Ema) -> None:
        if not other.batches:
            return
        if self.momentum != other.momentum:
            raise CalibrationError(f"tensor {self.name}: momentum {self.momentum} does not merge with {other.momentum}")
        if self.batches:
            # the other began with weight 1 for its first batch; as a continuation m**k of that is ours
            self._value = other._value + self.momentum**other.batches * (self._value - other._first)
        else:
            self._first, self._value = other._first, other._value
        self.images += other.images
        self.batches += other.batches


class _Scratch(threading.local):
    """Work space of `Histogram.update`, one per thread."""

    def __init__(self) -> None:
        self.real = np.empty(_CHUNK, np.float32)
        self.code = np.empty(_CHUNK, np.int32)
        self.index = np.empty(_CHUNK, np.intp)


_scratch = _Scratch()


class Histogram:
    """Counts of values in equal bins: over [0, high] if low >= 0, else over [-m, m] with m = max(|low|, |high|).

    low, high: the exact range, found by an earlier sweep.  Values outside of it count in the edge bins.
    bins: their number; two-sided, one more if it is even, so that zero is the centre of the middle one.
    counts: int64 (bins,), without the exact zeros; those are in `zeros`.  Half of a ReLU's output is zero, any
        symmetric grid represents it exactly, and in the first bin it would outweigh everything else.
    importance: (channels,) what the error of a channel (axis 1) counts beside that of the others; None is all alike.
    weighted: int64 (bins,), the same values by their importance, in units of 1 / `IMPORTANCE` of the largest one.
    bounds: what was found from the counts, by method and what is quantized; empty again when values are added.
    """

    def __init__(self, low: float, high: float, bins: int = DEFAULT_BINS, name: str = "",
                 importance: Array | None = None) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise CalibrationError(f"tensor {name}: found range [{low}, {high}], want finite, ordered; any image read?")
        if not 2 <= bins <= MAX_BINS:
            raise OptionError(f"bins: found {bins}, want 2 to {MAX_BINS}")
        self.name, self.low, self.high = name, float(low), float(high)
        self.two_sided = low < 0
        self.bins = bins | 1 if self.two_sided else bins
        self.bound = max(abs(self.low), abs(self.high)) if self.two_sided else self.high
        self.width = self.bound * (2 if self.two_sided else 1) / self.bins
        self.counts = np.zeros(self.bins, np.int64)
        self.zeros = self.images = 0
        self.bounds: dict[tuple[str, Any], float] = {}
        self._parts = None if importance is None else _whole_parts(importance)
        self.weighted = self.counts if self._parts is None else np.zeros(self.bins, np.int64)
        # bins per unit; 0, which puts all in the zero bin, when float32 cannot express it (a range below 1e-35)
        per_unit = 1 / self.width if self.width > 1e-37 else 0.0
        self._scale = np.float32(per_unit if per_unit < 1e37 else 0.0)
        self._offset = np.float32(self.bins / 2 if self.two_sided else 0)

    @classmethod
    def after(cls, sweep: MinMax, bins: int = DEFAULT_BINS, importance: Array | None = None) -> Histogram:
        """The histogram for a second sweep over the images that `sweep` has seen."""
        return cls(sweep.low, sweep.high, bins, sweep.name, importance)

    @property
    def middle(self) -> int:
        """Index of the bin that zero belongs to."""
        return self.bins // 2 if self.two_sided else 0

    @property
    def centres(self) -> Array:
        """Real value of each bin's centre, float64 (bins,)."""
        k = np.arange(self.bins, dtype=np.float64)
        return (k - self.middle if self.two_sided else k + 0.5) * self.width

    def update(self, batch: Array, ids: Sequence[str]) -> None:
        """2 to 3 ns a value: multiply, int32, bincount, in pieces that stay in the cache; with importance twice that.
        """
        x = _per_image(batch, ids, self.name)
        flat = x.reshape(-1)
        parts = None if self._parts is None else _spread(self._parts, x.shape[1], min(flat.size, _CHUNK))
        places = self.bins + 1  # the last for what ends on the upper edge, or a rounding beyond it
        counts, weighted = np.zeros(places, np.int64), np.zeros(places)
        zeros = 0
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, flat.size, _CHUNK):
                values = flat[start : start + _CHUNK]
                n = len(values)
                real, code, index = _scratch.real[:n], _scratch.code[:n], _scratch.index[:n]
                np.multiply(values, self._scale, out=real)
                if self.two_sided:
                    np.add(real, self._offset, out=real)
                # truncation below does for a rounding beyond the edges what clip does, which is slow; also when NaN
                if not (real.min() > -1 and real.max() < places):
                    finite = np.isfinite(values)
                    if not finite.all():
                        i = (start + int(finite.argmin())) // x.shape[1]
                        raise _not_finite(x[i], ids[i], self.name)
                    np.clip(real, 0, self.bins - 1, out=real)
                np.copyto(code, real, casting="unsafe")  # truncates; float32 -> int32 is much faster than -> int64
                np.copyto(index, code)
                counts += np.bincount(index, minlength=places)
                there = values != 0
                zeros += n - int(np.count_nonzero(there))
                if parts is not None:
                    first = start % x.shape[1]
                    weighted += np.bincount(index, parts[first : first + n] * there, places)
        for found in (counts, weighted):
            found[-2] += found[-1]
        counts[self.middle] -= zeros
        self._add(counts[:-1], weighted[:-1].astype(np.int64), zeros, len(ids))

    def merge(self, other: Histogram) -> None:
        mine, theirs = (self.low, self.high, self.bins), (other.low, other.high, other.bins)
        if mine != theirs:
            raise CalibrationError(f"tensor {self.name}: histogram (low, high, bins) {theirs} does not fit {mine}")
        self._add(other.counts, other.weighted, other.zeros, other.images)

    def _add(self, counts: Array, weighted: Array, zeros: int, images: int) -> None:
        self.counts += counts
        if self._parts is not None:
            self.weighted += weighted
        self.zeros += zeros
        self.images += images
        self.bounds.clear()


def _whole_parts(importance: Array) -> Array:
    """Whole numbers up to `IMPORTANCE`, float64: sums of them below 2^53 are exact, in any order."""
    largest = float(importance.max(initial=0.0))
    parts = np.rint(importance.astype(np.float64) / largest * IMPORTANCE) if largest > 0 else np.ones(len(importance))
    return np.asarray(parts, np.float64)


def _spread(parts: Array, values: int, more: int) -> Array:
    """The part of each value of an image, and of so many `more` of the next ones. values: of an image.

    Where the values are not those of the channels, as in a map of another form, all count alike.
    """
    image = np.repeat(parts, values // len(parts)) if values % len(parts) == 0 else np.full(values, float(IMPORTANCE))
    return np.resize(image, values + more)
