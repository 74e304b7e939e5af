"""The values of the reference interpreter, in as little memory as they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qgraph.quant.spec import QParams, dequantize, per_axis
from qgraph.threads import side_by_side

BLOCK = 1 << 20  # elements of what is computed at once: small enough for the second-level caches


class Tensor:
    """A value: float32 `real`, or with `qp` the integer `codes` that stand for it.

    Of codes only the smallest integers that hold them are kept; every other form is computed when it is asked for.

    centered: codes minus zero point, as whole float32 numbers (exact up to 16 bits).
    follows: a bias that is rounded to the steps of the sum that it meets.
    """

    __slots__ = ("qp", "follows", "_real", "_kept")

    def __init__(self, real: np.ndarray | None = None, *, codes: np.ndarray | None = None,
                 centered: np.ndarray | None = None, qp: QParams | None = None, follows: bool = False) -> None:
        self.follows, self.qp, self._real = follows, qp, real
        if centered is not None:
            assert qp is not None
            codes = centered.astype(np.int32)
            if qp.zero_point.any():
                codes += per_axis(qp.zero_point, qp, codes.shape).astype(np.int32)
        self._kept = None if codes is None or qp is None else _smallest(codes, qp)

    @property
    def shape(self) -> tuple[int, ...]:
        array = self._real if self._kept is None else self._kept
        assert array is not None
        return array.shape

    @property
    def real(self) -> np.ndarray:
        if self._real is not None:
            return self._real
        assert self.qp is not None
        if not self.small:
            return dequantize(self.codes, self.qp)
        found = self.centered
        return np.multiply(found, per_axis(self.qp.scale, self.qp, found.shape), out=found)

    @property
    def kept(self) -> np.ndarray:
        """The codes in the smallest dtype that holds them; their differences may leave it."""
        assert self._kept is not None, "this tensor carries no codes"
        return self._kept

    @property
    def codes(self) -> np.ndarray:
        """int32."""
        return self.kept.astype(np.int32)

    @property
    def centered(self) -> np.ndarray:
        assert self.qp is not None
        found = self.kept.astype(np.float32)
        if self.qp.zero_point.any():
            found -= per_axis(self.qp.zero_point, self.qp, found.shape).astype(np.float32)
        return found

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest of `centered`, of a tensor with one scale."""
        assert self.qp is not None
        zero = int(self.qp.zero_point)
        return float(int(self.kept.min()) - zero), float(int(self.kept.max()) - zero)

    @property
    def small(self) -> bool:
        """Carries codes of at most 16 bits, which `centered` holds exactly."""
        return self.qp is not None and self.qp.bits <= 16

    def part(self, rows: slice) -> Tensor:
        """Some of its images; not of a tensor that has scales along this axis."""
        found = Tensor(None if self._real is None else self._real[rows], qp=self.qp, follows=self.follows)
        found._kept = None if self._kept is None else self._kept[rows]
        return found


def code_dtype(qp: QParams) -> np.dtype:
    """Of the smallest integers that hold the codes."""
    signed = "i" if qp.signed else "u"
    return np.dtype(f"{signed}{1 if qp.bits <= 8 else 2}" if qp.bits <= 16 else "i4")


def _smallest(codes: np.ndarray, qp: QParams) -> np.ndarray:
    dtype = code_dtype(qp)
    if codes.dtype == dtype:
        return codes
    limits = np.iinfo(dtype)
    fits = codes.min(initial=0) >= limits.min and codes.max(initial=0) <= limits.max
    return codes.astype(dtype) if fits else codes.astype(np.int32, copy=False)


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """The images of a tensor of this shape, so many at a time that `BLOCK` elements hold them; all if there are none.
    """
    size = int(np.prod(shape))
    rows = max(1, BLOCK * shape[0] // max(size, 1))
    yield from (slice(start, start + rows) for start in range(0, max(shape[0], 1), rows))


def in_blocks(run: Callable[[slice], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """What `run` gives for some images, put together for all; blocks are computed side by side.

    shape: of a tensor of all images.
    """
    parts = list(blocks(shape))
    first = run(parts[0])
    if len(parts) == 1:
        return first
    found = np.empty((shape[0], *first.shape[1:]), first.dtype)
    found[parts[0]] = first

    def place(rows: slice) -> None:
        with np.errstate(all="ignore"):  # NaN and Inf are values, for the caller to find
            found[rows] = run(rows)

    side_by_side(place, parts[1:])
    return found
