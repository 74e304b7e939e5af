"""How far two tensors are apart: SQNR, cosine, the largest error."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qgraph.analysis.exact import NOT_FINITE, as_rows, products, total
from qgraph.arrays import Array


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
        a, b, error = _finite(as_rows(want), as_rows(found))
        self.signal += total(products(a, a))
        self.other += total(products(b, b))
        self.product += total(products(a, b))
        self.noise += total(products(error, error))
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))

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


def _finite(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """a, b, b - a. What is not finite becomes 0 in both, and counts as a large error unless both have the same."""
    bad = ~(np.isfinite(a) & np.isfinite(b))
    if not bad.any():
        return a, b, b - a
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    a, b = np.where(bad, 0.0, a), np.where(bad, 0.0, b)
    return a, b, np.where(bad & ~alike, NOT_FINITE, b - a)
