"""Differences are exact sums: any split of the rows, in any order, gives the same bits, whatever the values."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.analysis.difference import HUGE, Difference
from qgraph.analysis.exact import NOT_FINITE, PIECE, as_rows, pieces, total

ODD = (np.inf, -np.inf, np.nan, 1e300, 5e-324, 0.0)


def whole(want: np.ndarray, found: np.ndarray) -> Difference:
    difference = Difference()
    difference.update(want, found)
    return difference


def pair(seed: int, *shape: int, odd: int = 0, kind: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Values of many magnitudes, and so many infinities, NaN and the like in each, some at the same places."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape) * 10.0 ** rng.integers(-12, 12, shape)
    b = a + rng.normal(size=shape)
    for array in (a, b):
        places = rng.integers(0, max(1, a.size), odd) if a.size else []
        array.flat[places] = rng.choice(ODD, odd)
    if a.size and odd:
        b.flat[0] = a.flat[0] = ODD[seed % len(ODD)]
    with np.errstate(over="ignore"):
        return a.astype(kind), b.astype(kind)


@settings(max_examples=60)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), odd=st.integers(0, 5), cuts=st.sets(st.integers(1, 8)),
       values=st.sampled_from([1, 3, 1000, PIECE // 4, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5]),
       kind=st.sampled_from([np.float32, np.float64]), shuffle=st.randoms(use_true_random=False))
def test_any_split_and_order_of_the_rows_gives_the_same_bits(seed, rows, odd, cuts, values, kind, shuffle):
    a, b = pair(seed, rows, values, odd=odd, kind=kind)
    bounds = [0, *sorted(cut for cut in cuts if cut < rows), rows]
    parts = [slice(low, high) for low, high in zip(bounds, bounds[1:])]
    shuffle.shuffle(parts)
    one_after_another = Difference()
    for part in parts:
        one_after_another.update(a[part], b[part])
    added = reduce(Difference.__add__, [whole(a[part], b[part]) for part in parts], Difference())
    assert whole(a, b) == one_after_another == added
    order = np.random.default_rng(seed).permutation(rows)
    assert whole(a[order], b[order]) == whole(a, b)


@pytest.mark.parametrize("shape", [(4, 300), (3, PIECE + 7), (2, 3, 5, 7), (50,), ()])
def test_the_sums_are_those_of_the_rows(shape):
    a, b = pair(1, *shape)
    found = whole(a, b)
    for name, product in (("signal", a * a), ("other", b * b), ("product", a * b), ("noise", (b - a) ** 2)):
        exact = float(sum(map(Fraction, product.ravel().tolist())))
        assert float(getattr(found, name)) == pytest.approx(exact, rel=1e-12)
    assert found.largest == np.abs(b - a).max()


def test_neither_the_type_nor_the_layout_in_memory_counts():
    a, b = pair(2, 6, 4, 5, kind=np.float32)
    expected = whole(a, b)
    assert expected == whole(a.astype(np.float64), np.asfortranarray(b))
    assert expected == whole(np.repeat(a, 2, axis=0)[::2], b)
    steps = np.arange(-6, 6).reshape(2, 6)
    assert whole(steps.astype(np.int8), steps.astype(np.int64)).to_dict()["sqnr_db"] is None


def test_the_two_arrays_are_left_as_they_are():
    a, b = pair(3, 3, PIECE, odd=40)
    before = a.copy(), b.copy()
    whole(a, b)
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (4, 0), (0, 0, 3)])
def test_empty_arrays_add_nothing(shape):
    assert whole(np.zeros(shape), np.zeros(shape)) == Difference()
    assert as_rows(np.zeros(shape)).shape[0] == shape[0]


def test_infinities_and_nan_that_both_have_are_left_out():
    a, b = np.array([[1.0, np.inf, -np.inf, np.nan, 2.0]]), np.array([[1.5, np.inf, -np.inf, np.nan, 2.0]])
    assert whole(a, b) == whole(a[:, [0, 4]], b[:, [0, 4]])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e200, -1e308])
def test_infinities_nan_and_what_cannot_be_squared_are_a_large_error_where_only_one_has_them(value):
    rows = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, value, 3.0]])
    for a, b in (rows, rows[::-1]):
        found = whole(a, b)
        assert found.largest == NOT_FINITE and found.noise == Fraction(NOT_FINITE * NOT_FINITE)
        assert found.signal == found.other == found.product == 10 and found.to_dict()["sqnr_db"] < -500


def test_a_large_value_of_one_row_does_not_change_how_another_is_counted():
    """Its square is finite, and it is beyond `HUGE`: it counts, whether a row beside it holds an infinity or not."""
    a, b = np.array([[1.0, 5 * HUGE], [1.0, np.inf]]), np.array([[2.0, 4 * HUGE], [1.0, 3.0]])
    assert whole(a, b) == whole(a[:1], b[:1]) + whole(a[1:], b[1:])
    assert whole(a, b).signal > Fraction(HUGE) ** 2


def test_pieces_cover_every_value_once():
    for shape in ((5, 7), (40, PIECE // 3), (2, 3 * PIECE + 1), (1, PIECE)):
        seen = np.zeros(shape, int)
        for part in pieces(shape):
            assert 0 < seen[part].size <= PIECE
            seen[part] += 1
        assert (seen == 1).all()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30))
def test_totals_are_exact(values):
    assert total(np.array(values)) == sum(map(Fraction, values), Fraction(0))


def test_memory_does_not_grow_with_the_arrays():
    a = np.ones((40, 100, 1000), np.float32)
    tracemalloc.start()
    whole(a, a)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6 < a.nbytes / 5
