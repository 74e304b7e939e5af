"""How far two tensors are apart: SQNR, cosine, the largest error."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qgraph.analysis.exact import NOT_FINITE, PIECE, pieces, rows_of, total
from qgraph.arrays import Array

HUGE = 1e150  # the square of a larger value, or its sum with others, may be beyond float64


@dataclass
class Difference:
    """Sums from which SQNR, cosine and the largest error of one tensor follow.

    They are exact, of rows of the first axis: any split of the images over batches or workers gives the same bits.
    Infinities that both have are left out.
    """

    signal: Fraction = Fraction(0)
    other: Fraction = Fraction(0)
    product: Fraction = Fraction(0)
    noise: Fraction = Fraction(0)
    largest: float = 0.0

    def update(self, want: Array, found: Array) -> None:
        """Add two arrays of one shape. Memory does not grow with them."""
        rows = rows_of(np.asarray(want)), rows_of(np.asarray(found))
        buffers = np.empty((4, min(PIECE, rows[0].size)))
        sums = [np.zeros((4, 0))]
        with np.errstate(over="ignore", invalid="ignore"):
            for part in pieces(rows[0].shape):
                wanted = rows[0][part]
                a, b, error, product = (buffer[:wanted.size].reshape(wanted.shape) for buffer in buffers)
                a[:], b[:] = wanted, rows[1][part]
                of_rows = _sums(a, b, np.subtract(b, a, out=error), product)
                if not np.isfinite(of_rows).all():
                    odd = ~np.isfinite(of_rows).all(axis=0)
                    a[odd], b[odd], error[odd] = _finite(a[odd], b[odd])
                    of_rows = _sums(a, b, error, product)
                sums.append(of_rows)
                self.largest = max(self.largest, float(error.max()), -float(error.min()))
        signal, other, product, noise = map(total, np.concatenate(sums, axis=1))
        self.signal, self.other = self.signal + signal, self.other + other
        self.product, self.noise = self.product + product, self.noise + noise

    def __add__(self, other: Difference) -> Difference:
        return Difference(self.signal + other.signal, self.other + other.other, self.product + other.product,
                          self.noise + other.noise, max(self.largest, other.largest))

    @property
    def sqnr(self) -> float | None:
        """10 log10(signal / noise) in dB; None where both are alike to the last bit."""
        if not self.noise:
            return None
        return 10 * float(np.log10(max(float(self.signal), 1e-300) / float(self.noise)))

    @property
    def cosine(self) -> float:
        size = (float(self.signal) * float(self.other)) ** 0.5
        return min(float(self.product) / size, 1.0) if size else float(self.signal == self.other)

    def to_dict(self) -> dict[str, float | None]:
        return {"sqnr_db": None if self.sqnr is None else round(self.sqnr, 2), "cosine": round(self.cosine, 6),
                "max_error": float(f"{self.largest:.4g}")}


def _sums(a: Array, b: Array, error: Array, product: Array) -> Array:
    """(4, rows): of the squares of a, of b, of a * b, and of the squares of the error. product: memory for it."""
    sums = np.empty((4, len(a)))
    for row, x, y in zip(sums, (a, b, a, error), (a, b, b, error)):
        np.add.reduce(np.multiply(x, y, out=product), axis=1, out=row)
    return sums


def _finite(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """a, b, b - a. What is not finite, or huge, becomes 0 in both, and is a large error unless both have the same."""
    bad = ~((np.abs(a) < HUGE) & (np.abs(b) < HUGE))
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    a, b = np.where(bad, 0.0, a), np.where(bad, 0.0, b)
    return a, b, np.where(bad & ~alike, NOT_FINITE, b - a)
