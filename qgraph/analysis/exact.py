"""Sums that do not depend on the order of what is added: of floats, kept as fractions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from qgraph.arrays import Array

NOT_FINITE = 1e30  # an infinite error counts as this much, so that sums stay numbers
PIECE = 16384  # values that are looked at at once: four such arrays of float64 stay in the processor's cache


def total(values: Array) -> Fraction:
    """The exact sum of finite floats."""
    ratios = [value.as_integer_ratio() for value in np.asarray(values, np.float64).ravel().tolist()]
    bits = max((below.bit_length() for _, below in ratios), default=1)  # every denominator is a power of two
    return Fraction(sum(above << bits - below.bit_length() for above, below in ratios), 1 << bits - 1)


def products(a: Array, b: Array) -> Array:
    """Row for row the sum of a * b: the same bits, however many rows there are. a, b: float64 (rows, values)."""
    sums: Array = np.add.reduce(a * b, axis=1)
    return sums


def as_rows(array: Array) -> Array:
    """float64 (rows, values): a row for each index of the first axis, which is the images where a model has a batch."""
    return rows_of(np.asarray(array, np.float64))


def rows_of(array: Array) -> Array:
    """`as_rows` in the array's own type."""
    shape = array.shape or (1,)
    return np.ascontiguousarray(array).reshape(shape[0], math.prod(shape[1:]))


def pieces(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Parts of (rows, values) that are small: some whole rows, or a part of one that is long.

    Where a row is parted depends on its length alone, so sums of its parts are the same, however many rows there are.
    """
    rows, values = shape
    step = max(1, PIECE // max(1, values))
    return ((slice(row, row + step), slice(start, start + PIECE))
            for row in range(0, rows, step) for start in range(0, values, PIECE))
