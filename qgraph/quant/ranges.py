"""From the statistics of a tensor to the range that its integer codes cover: `choose_range`.

    naive       what was observed
    ema         the moving average of `Ema`
    kl          the range after whose clipping and quantization the distribution is nearest (Kullback-Leibler)
    mse         the range with the smallest expected squared error
    percentile  the range that holds 99.99 % of the magnitudes
    auto        of these, and of a search, the range with the smallest error in what the readers of the tensor compute

kl, mse, percentile and auto read a `Histogram`; each finds a bound t > 0, and the range is the observed one cut to
[-t, t].  A tensor that is always zero keeps its observed range.  All are deterministic: no BLAS, ties go to the wider
range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Union

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import CalibrationError, OptionError, suggest
from qgraph.quant.observers import Ema, Histogram, MinMax
from qgraph.quant.spec import QSpec, with_range

Stats = Union[MinMax, Ema, Histogram]
_CANDIDATES = 1024  # most bounds that kl tries
_FLOOR, _SEARCHED = 0.3, 30  # where the search of auto begins, in observed bounds; and how many it tries
_ONE_SIDED = 3.0  # how much worse than an error of rounding auto counts one of clipping, of the same size


def _resolve(spec: QSpec, low: float) -> QSpec:
    """`spec` with the signedness "auto" settled by the smallest value seen."""
    return replace(spec, signed=low < 0) if spec.signed is None else spec


# ---- kl -------------------------------------------------------------------------------------------------------------

def kl_divergences(
    counts: Array, starts: Array, stops: Array, levels: int
) -> tuple[Array, Array]:
    """KL(P || Q) of quantizing the slice counts[start:stop] to `levels` equal levels, for each of n slices at once.

    P: the slice, with all that lies outside of it added to its first and last bin (clipping), normalized.
    Q: the slice alone; the mass of each level spread evenly over the bins of the level where P is not zero, normalized.
       A level that is empty but for clipped values counts as half a value (else the divergence is infinite).

    As in TensorRT and MXNet; but exact zeros are not in `counts` (see `Histogram`), and from each divergence goes its
    expectation under pure sampling noise, (bins used - levels used) / (2 n) (Miller-Madow).  The narrowest slice has
    one bin a level, and so no such noise; without the correction small samples clip far too hard (20,000 values of
    Student's t: 9 times the squared error of min/max).

    counts: int64 (bins,), not all zero; starts, stops: int64 (n,), stop - start >= levels.
    Returns (divergence, standard error under noise), float64 (n,).
    With prefix sums of h, of h > 0 and of h log h it costs n * levels, whatever the number of bins:
        KL = 1/N * (sum p log p - sum over levels P_level * log(Q_level / bins of the level)) - log(N / inside)
    """
    def xlogx(v: Array) -> Array:
        product: Array = v * np.log(np.maximum(v, 1))
        return product

    def prefix(v: Array) -> Array:
        return np.concatenate([[0], np.cumsum(v)])

    mass, used, plogp = prefix(counts), prefix(counts > 0), prefix(xlogx(counts.astype(np.float64)))
    total = float(mass[-1])
    edges = starts[:, None] + (stops - starts)[:, None] * np.arange(levels + 1) // levels
    inner = np.diff(mass[edges], axis=1).astype(np.float64)
    width = np.diff(used[edges], axis=1).astype(np.float64)
    outer = inner.copy()
    entropy = plogp[stops] - plogp[starts]
    for level, edge, clipped in ((0, starts, mass[starts]), (-1, stops - 1, mass[-1] - mass[stops])):
        here = counts[edge]
        outer[:, level] += clipped
        width[:, level] += (here == 0) & (clipped > 0)
        entropy += xlogx((here + clipped).astype(np.float64)) - xlogx(here.astype(np.float64))
    cross = (outer * np.log(np.maximum(inner, 0.5) / np.maximum(width, 1))).sum(axis=1)
    divergence = (entropy - cross) / total - np.log(total / np.maximum(inner.sum(axis=1), 0.5))
    freedom = width.sum(axis=1) - (width > 0).sum(axis=1)
    return divergence - freedom / (2 * total), np.sqrt(freedom / 2) / total


def _magnitudes(hist: Histogram, spec: QSpec) -> Array:
    """Counts of |value| by bin, from zero up; only of the positive values if `spec` has no negative codes."""
    size = hist.counts[hist.middle :].copy()
    if hist.two_sided and spec.signed:
        size[1:] += hist.counts[: hist.middle][::-1]
    return size


def _costs(hist: Histogram, spec: QSpec, bounds: Array) -> Array:
    """Approximate summed squared error for each bound: clipping at the bins' centres, and step^2 / 12 for the rest."""
    size = _magnitudes(hist, spec).astype(np.float64)
    centre = hist.centres[hist.middle :]
    at = np.searchsorted(centre, bounds, side="right")
    beyond = [np.append(np.cumsum((size * centre**n)[::-1])[::-1], 0.0)[at] for n in (0, 1, 2)]
    clipping = beyond[2] - 2 * bounds * beyond[1] + bounds**2 * beyond[0]
    rounding = (bounds / spec.qmax) ** 2 / 12 * (size.sum() - beyond[0])
    costs: Array = clipping + rounding
    return costs


def kl_bound(hist: Histogram, spec: QSpec) -> float:
    """The widest bound whose divergence is within one standard error of the smallest one.

    Only bounds that cost no more squared error than min/max does: the divergence counts what is clipped, not how far,
    and it is blind where the last bin is a spike already (the constants of dead channels among relu6 outputs:
    everything above the spike was clipped at no cost in divergence, and a trained MobileNet v1 fell to chance).
    Falls back to min/max where the histogram says nothing: fewer bins than codes (12 bits and more), or a spike.
    """
    spec = _resolve(spec, hist.low)
    mirrored = bool(spec.signed) and hist.two_sided
    counts = hist.counts if mirrored or not hist.two_sided else hist.counts[hist.middle :]
    levels = 2 * spec.qmax + 1 if mirrored else spec.qmax + 1
    n = len(counts)
    if n < levels or not counts.any() or not hist.bound:
        return hist.bound
    if mirrored:  # slices around the middle bin
        most, least = n // 2, max(levels // 2, 1)
        half = np.arange(most, least - 1, -max(1, -(-(most - least) // _CANDIDATES)))
        starts, stops = most - half, most + half + 1
        bounds = (half + 0.5) * hist.width
    else:
        stops = np.arange(n, levels - 1, -max(1, -(-(n - levels) // _CANDIDATES)))
        starts = np.zeros_like(stops)
        bounds = (stops - (0.5 if hist.two_sided else 0.0)) * hist.width
    divergence, error = kl_divergences(counts, starts, stops, levels)
    costs = _costs(hist, spec, np.append(bounds, hist.bound))
    divergence[1:][costs[1:-1] > costs[-1]] = np.inf
    best = int(divergence.argmin())
    first = int((divergence <= divergence[best] + error[best] + 1e-12).argmax())  # candidates are widest first
    return hist.bound if first == 0 else float(bounds[first])


# ---- mse, percentile ------------------------------------------------------------------------------------------------

def squared_errors(hist: Histogram, bounds: Array, spec: QSpec, weighted: bool = False) -> Array:
    """Mean squared error, of rounding and of clipping, for each bound; exact zeros have none.

    bounds: float64 (n,), > 0.  weighted: by the importance of the channels, in a unit of its own.
    Returns float64 (n,).
    Values are taken as evenly spread within their bin, and the error is integrated exactly; at the bins' centres alone
    it would vanish where the step is a multiple of the bin's width.  With u = x / step and k = clip(round(u)):
        integral of (u - k)^2 from 0 to u = k / 12 + (u - k)^3 / 3
    """
    edges = np.append(hist.centres - hist.width / 2, hist.centres[-1] + hist.width / 2)
    weight = (hist.weighted if weighted else hist.counts).astype(np.float64)
    result = np.empty(len(bounds))
    code, rest, cube = np.empty_like(edges), np.empty_like(edges), np.empty_like(edges)
    for i, bound in enumerate(bounds):  # row by row, which stays in the cache: faster than all rows at once
        step, least, most = _grid(hist, spec, float(bound))
        np.divide(edges, step, out=rest)
        np.rint(rest, out=code)
        np.clip(code, least, most, out=code)
        np.subtract(rest, code, out=rest)
        np.multiply(rest, rest, out=cube)
        np.multiply(cube, rest, out=cube)
        np.multiply(code, 0.25, out=code)
        np.add(cube, code, out=cube)
        result[i] = (np.diff(cube) * weight).sum() * (step / 3) * (step * (step / hist.width))
    means: Array = result / (weight.sum() + (0 if weighted else hist.zeros))
    return means


def _grid(hist: Histogram, spec: QSpec, bound: float) -> tuple[float, int, int]:
    """(step, lowest code, highest code) for a range that is cut to this bound; codes less the zero point."""
    if spec.symmetric:
        spec = _resolve(spec, hist.low)
        return bound / spec.qmax, spec.qmin, spec.qmax
    found = with_range(spec, max(hist.low, -bound), min(hist.high, bound))
    zero = int(found.zero_point)
    return float(found.scale), found.qmin - zero, found.qmax - zero


def mse_bound(hist: Histogram, spec: QSpec) -> float:
    """Best of 65 bounds, from the observed one down to 1/256 of it, then of 32 around that one.

    A gain of less than 1 % over min/max is the grain of the histogram: then it stays min/max.
    """
    if not hist.counts.any() or not hist.bound:
        return hist.bound
    ratios = 2.0 ** -(np.arange(65) / 8)
    errors = squared_errors(hist, hist.bound * ratios, spec)
    near = ratios[int(errors.argmin())] * 2.0 ** -(np.arange(-16, 17) / 128)
    near = near[near < 1]
    finer = squared_errors(hist, hist.bound * near, spec)
    best = int(finer.argmin())
    return hist.bound if finer[best] >= 0.99 * errors[0] else float(hist.bound * near[best])


def percentile_bound(hist: Histogram, spec: QSpec, percent: float = 99.99) -> float:
    """Upper edge of the bin where `percent` of the magnitudes other than zero are reached (never 0)."""
    spec = _resolve(spec, hist.low)
    size = _magnitudes(hist, spec)
    if not size.any():
        return hist.bound
    reached = np.cumsum(size)
    # ceil(total * percent / 100), at least one value
    need = max(1, -int(-int(reached[-1]) * percent // 100))
    k = int(np.searchsorted(reached, need))
    return min(hist.bound, (k + (0.5 if hist.two_sided else 1.0)) * hist.width)


# ---- auto ------------------------------------------------------------------------------------------------------------

def clipping_errors(hist: Histogram, bounds: Array) -> Array:
    """The part of the mean squared error that clipping makes, for each bound, by the importance of the channels."""
    weight = hist.weighted.astype(np.float64)
    beyond = np.abs(hist.centres) - bounds[:, None]
    means: Array = (np.square(np.maximum(beyond, 0)) * weight).sum(axis=1) / max(weight.sum(), 1.0)
    return means


def auto_bound(hist: Histogram, spec: QSpec) -> float:
    """The bound with the smallest squared error, each channel weighed by its importance to the tensor's readers.

    Tried are the bounds of min/max, kl, mse and percentile, and a search from `_FLOOR` times the observed one up to it.
    Errors of clipping have one sign, so that those of neighbours add up where those of rounding cancel out: they count
    `_ONE_SIDED` times.  A gain of less than 1 % over min/max is the grain of the histogram: then it stays min/max.
    """
    if not hist.weighted.any() or not hist.bound:
        return hist.bound
    methods = [bound_of(name, hist, spec) for name in ("kl", "mse", "percentile")]
    bounds = np.array([hist.bound, *methods, *(hist.bound * np.linspace(_FLOOR, 1, _SEARCHED, endpoint=False))])
    bounds = bounds[bounds > 0]
    errors = auto_errors(hist, bounds, spec)
    least = errors.min()
    return hist.bound if least >= 0.99 * errors[0] else float(bounds[errors == least].max())


def auto_errors(hist: Histogram, bounds: Array, spec: QSpec) -> Array:
    """What `auto_bound` minimizes, in a unit of its own, for each bound."""
    errors: Array = squared_errors(hist, bounds, spec, weighted=True)
    errors += (_ONE_SIDED - 1) * clipping_errors(hist, bounds)
    return errors


# ---- the table ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Method:
    """How a range is found.

    sweeps: passes over the images; the first gathers `first`, a second one a `Histogram` over the range found by it.
    bound: (Histogram, QSpec) -> t > 0; None means the range of the statistics itself.
    per_bits: the range depends on the number of bits, so it cannot serve another one.
    weighs_channels: the histogram counts each channel by its importance, too.
    """

    name: str
    help: str
    first: type[MinMax] | type[Ema] = MinMax
    bound: Callable[[Histogram, QSpec], float] | None = None
    per_bits: bool = False
    weighs_channels: bool = False

    @property
    def sweeps(self) -> int:
        return 1 if self.bound is None else 2


METHODS = {m.name: m for m in (
    Method("naive", "smallest and largest value observed"),
    Method("ema", "moving average of the per-batch mean of per-image extremes", first=Ema),
    Method("kl", "smallest loss of information (entropy)", bound=kl_bound, per_bits=True),
    Method("percentile", "99.99 % of the magnitudes", bound=percentile_bound),
    Method("mse", "smallest squared error", bound=mse_bound, per_bits=True),
    Method("auto", "smallest error of what reads the tensor", bound=auto_bound, per_bits=True, weighs_channels=True),
)}
ALIASES = {"minmax": "naive", "entropy": "kl"}


def method(name: str) -> Method:
    """The `Method` of that name or alias; `OptionError` lists the names."""
    found = METHODS.get(ALIASES.get(name, name))
    if found is None:
        hint = suggest(name, [*METHODS, *ALIASES], "; did you mean {}?")
        raise OptionError(f"calibration method: found {name!r}, want one of {', '.join(METHODS)}{hint}")
    return found


def bound_of(name: str, hist: Histogram, spec: QSpec) -> float:
    """The bound by one of the methods that read a histogram; each is looked for once."""
    find = METHODS[name].bound
    assert find is not None
    if (name, spec) not in hist.bounds:
        hist.bounds[name, spec] = find(hist, spec)
    return hist.bounds[name, spec]


def choose_range(name: str, stats: Stats, spec: QSpec) -> tuple[float, float]:
    """(low, high) for a tensor with `stats` that is quantized by `spec`; low <= high, finite.

    stats: `Histogram` for the methods of two sweeps, `Ema` for ema, `MinMax` (or `Histogram`) for naive.
    """
    how = method(name)
    wanted = Histogram if how.bound else Ema if how.first is Ema else (MinMax, Histogram)
    if not isinstance(stats, wanted):
        raise CalibrationError(f"tensor {stats.name}: method {how.name} cannot read a {type(stats).__name__}")
    if not stats.images:
        raise CalibrationError(f"tensor {stats.name}: no image was observed; give calibration data")
    if how.bound is None:
        return stats.low, stats.high
    assert isinstance(stats, Histogram)
    bound = bound_of(how.name, stats, spec)
    return min(max(stats.low, -bound), bound), max(min(stats.high, bound), -bound)
