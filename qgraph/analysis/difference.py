"""How far two tensors are apart: SQNR, cosine, the largest error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qgraph.arrays import Array


@dataclass
class Difference:
    """Sums over batches, from which SQNR, cosine and the largest error of one tensor follow."""

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    largest: float = 0.0

    def update(self, want: Array, found: Array) -> None:
        a, b = want.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.product += float(a @ b)
        error = a - b
        self.noise += float(error @ error)
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))

    @property
    def sqnr(self) -> float | None:
        """10 log10(signal / noise) in dB; None where both are alike to the last bit."""
        if self.noise == 0.0:
            return None
        return 10 * float(np.log10(max(self.signal, 1e-300) / self.noise))

    @property
    def cosine(self) -> float:
        size = (self.signal * self.other) ** 0.5
        return min(self.product / size, 1.0) if size else float(self.signal == self.other)

    def to_dict(self) -> dict[str, float | None]:
        return {"sqnr_db": None if self.sqnr is None else round(self.sqnr, 2), "cosine": round(self.cosine, 6),
                "max_error": float(f"{self.largest:.4g}")}
