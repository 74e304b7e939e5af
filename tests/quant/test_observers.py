"""Statistics and range search: exact merging, agreement with slow and obvious implementations, degenerate tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import CalibrationError, OptionError
from qgraph.quant.observers import IMPORTANCE, Ema, Histogram, MinMax
from qgraph.quant.ranges import (
    METHODS,
    auto_bound,
    auto_errors,
    choose_range,
    kl_divergences,
    method,
    mse_bound,
    percentile_bound,
    squared_errors,
)
from qgraph.quant.spec import QSpec, fake_quantize, with_range

HISTOGRAM_METHODS = [m for m in METHODS if METHODS[m].bound]


def names(n: int) -> list[str]:
    return [f"img_{i:05d}" for i in range(n)]


def histogram_of(values: np.ndarray, bins: int = 2048, name: str = "t") -> Histogram:
    batch = np.asarray(values, np.float32).reshape(1, -1)
    sweep = MinMax(name)
    sweep.update(batch, ["one"])
    hist = Histogram.after(sweep, bins)
    hist.update(batch, ["one"])
    return hist


def state(o) -> tuple:
    if isinstance(o, MinMax):
        return (o.low, o.high, math.copysign(1, o.low), math.copysign(1, o.high), o.min_id, o.max_id, o.images)
    return (o.counts.tobytes(), o.zeros, o.images)


# ---- merging and order ----------------------------------------------------------------------------------------------

@given(st.integers(0, 2**32), st.integers(1, 24), st.integers(1, 6), st.booleans(), st.integers(2, 70), st.randoms())
@settings(max_examples=80)
def test_any_split_and_order_gives_the_same_bits(seed, images, workers, signed, bins, random):
    rng = np.random.default_rng(seed)
    x = rng.integers(-4 if signed else 0, 5, (images, 3, 7)).astype(np.float32) * np.float32(0.37)  # ties, -0.0
    x[x == 0] = rng.choice(np.array([0.0, -0.0], np.float32), int((x == 0).sum()))
    ids = names(images)

    def gather(make, parts, merge_order):
        done = []
        for part in parts:
            one = make()
            for batch in np.array_split(part, random.randint(1, len(part))) if len(part) else []:
                one.update(x[batch], [ids[i] for i in batch])
            done.append(one)
        total = make()
        for k in merge_order:
            total.merge(done[k])
        return total

    whole = MinMax("t")
    whole.update(x, ids)
    order = list(range(images))
    random.shuffle(order)
    parts = np.array_split(np.array(order), workers)
    merge_order = list(range(workers))
    random.shuffle(merge_order)
    assert state(gather(lambda: MinMax("t"), parts, merge_order)) == state(whole)
    assert whole.max_id == min(i for i, one in zip(ids, x) if one.max() == whole.high)

    hist = Histogram.after(whole, bins)
    hist.update(x, ids)
    assert state(gather(lambda: Histogram.after(whole, bins), parts, merge_order)) == state(hist)
    assert hist.counts.sum() + hist.zeros == x.size and hist.zeros == (x == 0).sum()


@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([(3, 7), (3, 12_000), (4,)]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_weighted_counts_are_those_of_the_channels(seed, images, shape, signed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, *shape)).astype(np.float32) - (0 if signed else -9)
    x[rng.random(x.shape) < 0.3] = 0
    ids, importance = names(images), rng.random(shape[0]) ** 8
    sweep = MinMax("t")
    sweep.update(x, ids)
    plain, weighted = Histogram.after(sweep, 64), Histogram.after(sweep, 64, importance)
    for part in np.array_split(rng.permutation(images), rng.integers(1, images + 1)):
        one = Histogram.after(sweep, 64, importance)
        one.update(x[part], [ids[i] for i in part])
        weighted.merge(one)
    plain.update(x, ids)
    assert state(weighted) == state(plain) and plain.weighted is plain.counts
    wanted = np.zeros(plain.bins, np.int64)
    for channel, part in enumerate(np.rint(importance / importance.max() * IMPORTANCE)):
        alone = Histogram.after(sweep, 64)
        alone.update(x[:, channel], ids)
        wanted += int(part) * alone.counts
    assert (weighted.weighted == wanted).all()


def test_a_map_of_another_form_counts_all_channels_alike():
    x = np.random.default_rng(3).normal(size=(2, 5)).astype(np.float32)
    hist = Histogram(-3.0, 3.0, 16, importance=np.array([1.0, 0.0]))
    hist.update(x, names(2))
    assert (hist.weighted == IMPORTANCE * hist.counts).all()


def test_histogram_counts_agree_with_numpy_across_chunks():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 40_000)).astype(np.float32)
    two = histogram_of(x, 100)
    assert two.bins == 101 and two.centres[two.middle] == 0
    wanted, _ = np.histogram(x.astype(np.float64), 101, (-two.bound, two.bound))
    assert np.abs(two.counts - wanted).sum() <= 20  # float32 puts a value at an edge one bin further
    relu = np.maximum(x, 0)
    one = histogram_of(relu, 100)
    wanted, _ = np.histogram(relu[relu > 0].astype(np.float64), 100, (0, one.high))
    assert np.abs(one.counts - wanted).sum() <= 20 and one.zeros == (relu == 0).sum()


def test_non_contiguous_and_other_dtypes_count_the_same():
    x = np.random.default_rng(2).standard_normal((4, 6, 10))
    plain = histogram_of(x)
    sweep = MinMax("t")
    sweep.update(x.transpose(2, 1, 0)[::-1], names(10))
    assert (sweep.low, sweep.high) == (plain.low, plain.high)
    again = Histogram.after(sweep, 2048)
    again.update(x.transpose(2, 1, 0)[::-1], names(10))
    assert (again.counts == plain.counts).all()


def test_a_tensor_that_grows_after_the_first_batch():
    batches = [np.full((1, 10), v, np.float32) * np.linspace(0, 1, 10, dtype=np.float32) for v in (0, 0.004, 8000)]
    sweep = MinMax("t")
    for i, b in enumerate(batches):
        sweep.update(b, [f"s{i}"])
    assert (sweep.low, sweep.high, sweep.max_id) == (0, 8000, "s2")
    hist = Histogram.after(sweep, 64)
    for i, b in enumerate(batches):
        hist.update(b, [f"s{i}"])
    assert len(hist.counts) == 64 and hist.counts.sum() + hist.zeros == 30


def test_values_outside_of_the_range_count_in_the_edge_bins():
    for low, lowest in ((-1.0, -50.0), (0.0, -3e38)):
        hist = Histogram(low, 1.0, 11)
        hist.update(np.array([[lowest, 3e38, 7.0]], np.float32), ["a"])
        assert hist.counts[0] == 1 and hist.counts[-1] == 2 and hist.counts.sum() == 3


# ---- errors ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bad, word", [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
@pytest.mark.parametrize("make", [MinMax, Ema, lambda n: Histogram(0, 1, 16, n), lambda n: Histogram(-1, 1, 16, n)])
def test_not_finite_names_tensor_and_sample_and_changes_nothing(make, bad, word):
    observer = make("conv0_output")
    x = np.full((5, 30_000), 0.5, np.float32)
    observer.update(x, names(5))
    before = state(observer) if not isinstance(observer, Ema) else (observer.low, observer.high, observer.images)
    x[3, 29_999] = bad
    with pytest.raises(CalibrationError, match=f"conv0_output.*{word}.*img_00003"):
        observer.update(x, names(5))
    after = state(observer) if not isinstance(observer, Ema) else (observer.low, observer.high, observer.images)
    assert before == after


def test_misuse_is_named():
    with pytest.raises(CalibrationError, match="7.*images"):
        MinMax("t").update(np.zeros((4, 3)), names(7))
    with pytest.raises(CalibrationError, match="at least one value"):
        MinMax("t").update(np.zeros((4, 0)), names(4))
    with pytest.raises(CalibrationError, match="any image read"):
        Histogram.after(MinMax("t"))
    with pytest.raises(CalibrationError, match="does not fit"):
        Histogram(0, 1).merge(Histogram(0, 2))
    with pytest.raises(CalibrationError, match="no image"):
        choose_range("naive", MinMax("t"), QSpec())
    with pytest.raises(CalibrationError, match="cannot read a MinMax"):
        choose_range("kl", MinMax("t"), QSpec())
    with pytest.raises(OptionError, match="did you mean entropy"):
        method("entrpy")
    assert method("minmax").name == "naive" and method("entropy").name == "kl"
    assert [METHODS[m].sweeps for m in ("naive", "ema", "kl", "percentile", "mse")] == [1, 1, 2, 2, 2]


# ---- ema ------------------------------------------------------------------------------------------------------------

def test_ema_is_the_originals():
    rng = np.random.default_rng(3)
    batches = [rng.standard_normal((4, 9)).astype(np.float32) for _ in range(7)]
    ema, wanted = Ema("t"), None
    for b in batches:
        ema.update(b, names(4))
        mean = b.max(axis=1).astype(np.float64).mean()
        wanted = mean if wanted is None else 0.9 * wanted + 0.1 * mean
    assert ema.high == pytest.approx(wanted, rel=1e-12)
    assert choose_range("ema", ema, QSpec()) == (ema.low, ema.high)
    for cut in range(8):
        first, second = Ema("t"), Ema("t")
        for i, b in enumerate(batches):
            (first if i < cut else second).update(b, names(4))
        first.merge(second)
        assert (first.low, first.high, first.images) == (pytest.approx(ema.low), pytest.approx(ema.high), 28)


# ---- kl -------------------------------------------------------------------------------------------------------------

def brute_force_kl(h: np.ndarray, start: int, stop: int, levels: int) -> float:
    """The docstring of kl_divergences, one bin at a time."""
    part = [int(c) for c in h[start:stop]]
    p = list(part)
    p[0] += int(h[:start].sum())
    p[-1] += int(h[stop:].sum())
    q, used, filled = [0.0] * len(p), 0, 0
    for k in range(levels):
        inside = range(k * len(p) // levels, (k + 1) * len(p) // levels)
        nonzero = [i for i in inside if p[i]]
        used, filled = used + len(nonzero), filled + bool(nonzero)
        for i in nonzero:
            q[i] = max(sum(part[j] for j in inside), 0.5) / len(nonzero)
    n, inner = sum(p), max(sum(part), 0.5)
    kl = sum(a / n * math.log((a / n) / (b / inner)) for a, b in zip(p, q) if a)
    return kl - (used - filled) / (2 * n)


@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(12, 80), st.booleans())
@settings(max_examples=150)
def test_kl_agrees_with_brute_force(seed, levels, bins, two_sided):
    rng = np.random.default_rng(seed)
    h = (rng.exponential(size=bins) ** rng.integers(1, 6) * rng.integers(0, 2, bins) * 20).astype(np.int64)
    h[rng.integers(bins)] += 1
    if two_sided:
        half = np.arange(levels // 2 + 1, (bins - 1) // 2 + 1)
        starts, stops = bins // 2 - half, np.minimum(bins // 2 + half + 1, bins)
    else:
        stops = np.arange(levels, bins + 1)
        starts = np.zeros_like(stops)
    fast, _ = kl_divergences(h, starts, stops, levels)
    slow = [brute_force_kl(h, a, b, levels) for a, b in zip(starts, stops)]
    np.testing.assert_allclose(fast, slow, rtol=1e-9, atol=1e-9)


DISTRIBUTIONS = {
    "half-normal": lambda r, n: np.abs(r.standard_normal(n)),
    "relu": lambda r, n: np.maximum(r.standard_normal(n), 0),
    "exponential": lambda r, n: r.exponential(size=n),
    "laplace": lambda r, n: r.laplace(size=n),
    "normal": lambda r, n: r.standard_normal(n),
    "uniform": lambda r, n: r.random(n),
    "relu6": lambda r, n: np.clip(r.standard_normal(n) * 5, 0, 6),
    "relu6, 0.8 % at the top": lambda r, n: np.clip(r.standard_normal(n) * 2.5, 0, 6),
}


@pytest.mark.parametrize("count", [300, 20_000, 1_000_000])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_thresholds_are_sane(name, count):
    hist = histogram_of(DISTRIBUTIONS[name](np.random.default_rng(4), count), 4096)
    tried = np.array([max(map(abs, choose_range(m, hist, QSpec()))) for m in ("kl", "mse")])
    kl, mse = squared_errors(hist, tried, QSpec())
    best = min(squared_errors(hist, hist.bound * np.linspace(0.05, 1, 96), QSpec()).min(), mse)
    assert mse <= 1.01 * best
    assert kl <= 1.5 * best + 1e-12
    if name.startswith("relu6"):
        assert choose_range("kl", hist, QSpec()) == (0, 6) and choose_range("mse", hist, QSpec()) == (0, 6)


@pytest.mark.parametrize("bits", [4, 8])
def test_kl_cuts_a_heavy_tail_and_keeps_the_bulk(bits):
    x = np.abs(np.random.default_rng(5).standard_t(3, 3_000_000))
    hist = histogram_of(x, 4096)
    low, high = choose_range("kl", hist, QSpec(bits=bits))
    errors = squared_errors(hist, np.array([high, hist.bound, mse_bound(hist, QSpec(bits=bits))]), QSpec(bits=bits))
    assert low >= 0 and np.quantile(x, 0.99) < high < 0.6 * hist.bound
    assert errors[0] <= 5 * errors[2]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(9, 17))
def test_kl_of_many_bits_clips_next_to_nothing(bits, signed):
    """Where codes are as fine as the bins, and finer, it is min/max."""
    x = np.random.default_rng(6).standard_t(4, 200_000)
    spec = QSpec(bits=bits, signed=signed)
    hist = histogram_of(x if signed else np.abs(x), 4096)
    low, high = choose_range("kl", hist, spec)
    errors = squared_errors(hist, np.array([max(-low, high), hist.bound]), spec)
    assert errors[0] <= errors[1]
    assert bits <= 12 or (low, high) == (hist.low, hist.high)


@pytest.mark.parametrize("sign", [1, -1])
def test_kl_does_not_clip_everything_onto_a_spike(sign):
    rng = np.random.default_rng(9)
    x = np.concatenate([np.full(900_000, 0.48), np.clip(rng.standard_normal(100_000) * 4, 0, 6), [sign * 0.1]])
    hist = histogram_of(x, 4096)
    assert choose_range("kl", hist, QSpec())[1] > 5.9


def test_the_exact_zeros_do_not_matter():
    rng = np.random.default_rng(6)
    x = rng.exponential(size=200_000)
    with_zeros = np.concatenate([x, np.zeros(5_000_000)])
    for m in HISTOGRAM_METHODS:
        assert choose_range(m, histogram_of(x), QSpec())[1] == choose_range(m, histogram_of(with_zeros), QSpec())[1]


# ---- mse, percentile ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("signed, low", [(None, 0), (None, -1), (True, 0), (False, -1)])
@pytest.mark.parametrize("bits", [3, 8])
def test_squared_errors_are_those_of_the_arithmetic(signed, low, bits):
    rng = np.random.default_rng(7)
    hist = histogram_of(rng.standard_normal(3000) if low else rng.exponential(size=3000), 256)
    spec = QSpec(bits=bits, signed=signed)
    inside = (np.arange(400) + 0.5) / 400 - 0.5  # values spread evenly over each bin
    points = (hist.centres[:, None] + inside * hist.width).astype(np.float32)
    for bound in (0.07 * hist.bound, 0.31 * hist.bound, 0.77 * hist.bound, hist.bound):
        qp = with_range(spec, min(low, 0) * bound, bound)
        real = fake_quantize(points, qp).astype(np.float64)
        wanted = (((points - real) ** 2).mean(axis=1) * hist.counts).sum() / 3000
        assert squared_errors(hist, np.array([bound]), spec)[0] == pytest.approx(wanted, rel=2e-3)
    thousand = squared_errors(hist, hist.bound * np.linspace(0.01, 1, 1000), spec).min()
    assert squared_errors(hist, np.array([mse_bound(hist, spec)]), spec)[0] <= 1.02 * thousand


def test_percentile_holds_its_part_of_the_magnitudes():
    rng = np.random.default_rng(8)
    for x in (rng.standard_normal(100_000), rng.exponential(size=100_000)):
        hist = histogram_of(x, 8192)
        bound = percentile_bound(hist, QSpec(), 99.0)
        assert abs(np.quantile(np.abs(x), 0.99) - bound) <= 2 * hist.width
        assert percentile_bound(hist, QSpec(), 100.0) == pytest.approx(hist.bound, abs=hist.width)


# ---- auto -----------------------------------------------------------------------------------------------------------

def two_channels(importance: np.ndarray | None, tail: float = 1.0) -> Histogram:
    """A heavy-tailed channel, and a narrow one."""
    rng = np.random.default_rng(11)
    x = np.stack([rng.standard_t(3, 40_000) * tail, rng.standard_normal(40_000) * 0.1]).astype(np.float32)[None]
    sweep = MinMax("t")
    sweep.update(x, ["one"])
    hist = Histogram.after(sweep, importance=importance)
    hist.update(x, ["one"])
    return hist


def test_auto_looks_at_the_channels_that_count():
    all_alike, first, second = (auto_bound(two_channels(w), QSpec()) for w in (
        None, np.array([1.0, 1e-9]), np.array([1e-9, 1.0])))
    assert second < all_alike <= first


@pytest.mark.parametrize("bits", [4, 8])
def test_auto_is_no_worse_than_the_others(bits):
    spec = QSpec(bits=bits)
    for importance in (None, np.array([1.0, 0.2]), np.array([0.01, 1.0])):
        hist = two_channels(importance)
        bounds = [hist.bound, *(METHODS[m].bound(hist, spec) for m in ("kl", "mse", "percentile", "auto"))]
        *others, found = auto_errors(hist, np.array(bounds), spec)
        assert found <= min(others) and found < 0.99 * others[0]


@pytest.mark.parametrize("signed", [True, False])
def test_clipping_counts_three_times(signed):
    rng = np.random.default_rng(12)
    x = (rng.normal(size=(1, 2, 3000)) if signed else rng.exponential(size=(1, 2, 3000))).astype(np.float32)
    sweep = MinMax("t")
    sweep.update(x, ["one"])
    importance = np.array([1.0, 0.25])
    hist = Histogram.after(sweep, importance=importance)
    hist.update(x, ["one"])
    spec, bounds = QSpec(bits=6), hist.bound * np.array([0.2, 0.5, 0.9])
    wanted = []
    for bound in bounds:
        exact = x.astype(np.float64)
        kept = np.clip(exact, -bound, bound)
        error = np.square(fake_quantize(x, with_range(spec, -bound if signed else 0, bound)) - exact)
        error += 2 * np.square(exact - kept)
        wanted.append((error[0] * importance[:, None]).mean(axis=1).sum() / importance.sum())
    np.testing.assert_allclose(auto_errors(hist, bounds, spec), wanted, rtol=0.02)


def test_auto_keeps_the_range_where_nothing_counts():
    x = np.zeros((1, 2, 50), np.float32)
    x[0, 1] = np.linspace(0, 9, 50)
    sweep = MinMax("t")
    sweep.update(x, ["one"])
    hist = Histogram.after(sweep, importance=np.array([1.0, 0.0]))
    hist.update(x, ["one"])
    assert choose_range("auto", hist, QSpec(bits=2)) == (0.0, 9.0)


# ---- degenerate tensors ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("spec", [
    QSpec(), QSpec(signed=True, narrow=True), QSpec(bits=2), QSpec(bits=16), QSpec(bits=4, signed=True),
])
@pytest.mark.parametrize("how", HISTOGRAM_METHODS)
@pytest.mark.parametrize("values", [
    [5.0] * 100, [-5.0] * 100, [1e-30], [3e38, -3e38], [3e38, 1.0], [1e-42, 1e-45], [1e-36] * 9,
    [0.001] * 99_999 + [1000.0], [-0.001] * 99_999 + [1000.0], [0.0] * 9 + [2.0], [-1.0, 1.0], [4.9, 5.0],
], ids=lambda v: f"{len(v)}x{v[0]}..{v[-1]}")
def test_degenerate_tensors_have_a_usable_range(values, how, spec):
    hist = histogram_of(np.array(values, np.float32), 512)
    low, high = choose_range(how, hist, spec)
    assert math.isfinite(low) and math.isfinite(high) and low <= high
    assert hist.low <= low and high <= hist.high or max(-low, high) <= hist.bound
    assert max(-low, high) > 0 or max(values) <= 0
    with_range(spec, low, high)
    if len(set(values)) == 1:  # a constant is kept, whatever the method
        assert max(abs(low), abs(high)) == pytest.approx(abs(values[0]), rel=0.02)


@pytest.mark.parametrize("how", HISTOGRAM_METHODS)
def test_all_zero_keeps_the_observed_range(how):
    assert choose_range(how, histogram_of(np.zeros(50)), QSpec()) == (0.0, 0.0)


@pytest.mark.parametrize("how", HISTOGRAM_METHODS)
@given(values=st.lists(st.floats(-2.0**100, 2.0**100, width=32), min_size=1, max_size=40), bits=st.integers(2, 10),
       signed=st.sampled_from([None, True, False]), bins=st.integers(2, 300))
@settings(max_examples=60)
def test_any_tensor_gets_an_ordered_finite_range_inside_the_observed_one(how, values, bits, signed, bins):
    hist = histogram_of(np.array(values, np.float32), bins)
    low, high = choose_range(how, hist, QSpec(bits=bits, signed=signed))
    assert -hist.bound <= low <= high <= max(hist.bound, 0)
    assert (low, high) == choose_range(how, hist, QSpec(bits=bits, signed=signed))
