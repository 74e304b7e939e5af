"""Sums that do not depend on the order of what is added: of floats, kept as fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from qgraph.arrays import Array

NOT_FINITE = 1e30  # an infinite error counts as this much, so that sums stay numbers


def total(values: Array) -> Fraction:
    """The exact sum of finite floats."""
    return sum(map(Fraction, np.asarray(values, np.float64).ravel().tolist()), Fraction(0))


def products(a: Array, b: Array) -> Array:
    """Row for row the sum of a * b: the same bits, however many rows there are. a, b: float64 (rows, values)."""
    sums: Array = np.add.reduce(a * b, axis=1)
    return sums


def as_rows(array: Array) -> Array:
    """float64 (rows, values): a row for each index of the first axis, which is the images where a model has a batch."""
    values = np.ascontiguousarray(array, np.float64)
    return values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
