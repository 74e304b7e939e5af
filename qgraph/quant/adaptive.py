"""Weights rounded by what their errors do to a layer's output, not one by one.

With the weights v of one output channel in steps, their codes q and what the channel reads, x, the squared error of the
output is (v - q) R (v - q)^T, where R = mean(x x^T) over sampled positions.  Codes are found as the nearest plane of a
lattice (Babai; the error feedback of GPTQ, arXiv 2210.17323): one weight after the other is rounded, and the error that
it makes is made up for by those that are still free.  A descent by single codes behind it (the aim of AdaRound, arXiv
2004.10568) moves the outputs of networks by less than 0.2 dB.

All arrays begin with an axis of convolution groups: exact, codes (groups, rows, inputs), moment (groups, inputs,
inputs); a row is an output channel, an input one weight of it.
"""

from __future__ import annotations

import numpy as np

from qgraph.arrays import Array

_BLOCK = 128  # inputs that are rounded before their errors reach those of other blocks
_END = 1e-3  # of a step
_NEAR = np.array([1, 0.7, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4], np.float32)  # of a scale found so
_FACTORS = np.linspace(1.0, 0.4, 25, dtype=np.float32)  # tried on a scale that covers all weights


def second_moment(x: Array, y: Array) -> Array:
    """mean(x^T y) over positions. x, y: (groups, positions, inputs) float32."""
    found: Array = np.matmul(x.transpose(0, 2, 1), y)
    found /= np.float32(max(1, x.shape[1]))
    return found


def damped(moment: Array, damping: float) -> Array:
    """The moment with `damping` times its mean diagonal added to it: against what a small sample does not show."""
    found = moment.copy()
    diagonal = np.einsum("gii->gi", found)
    diagonal += np.float32(damping) * np.maximum(diagonal.mean(axis=1, keepdims=True), np.float32(1e-12))
    return found


class Lattice:
    """What rounding together needs to know of a moment. moment: damped, float32."""

    def __init__(self, moment: Array) -> None:
        self.moment = moment
        # what weighs most is rounded first
        self._order = np.argsort(np.einsum("gii->gi", moment), axis=1, kind="stable")[:, None, :]
        self._factor = _factor(np.stack([one.take(at[0], axis=0).take(at[0], axis=1)
                                         for one, at in zip(moment, self._order)]))

    def solve(self, right: Array) -> Array:
        """x of moment x = right, block by block. right, x: (groups, inputs, any)."""
        b = np.take_along_axis(right, self._order.swapaxes(1, 2), 1)
        corners = [(start, min(start + _BLOCK, b.shape[1])) for start in range(0, b.shape[1], _BLOCK)]
        for start, stop in corners:
            b[:, start:stop] -= np.matmul(self._factor[:, start:stop, :start], b[:, :start])
            b[:, start:stop] = np.linalg.solve(self._factor[:, start:stop, start:stop], b[:, start:stop])
        for start, stop in reversed(corners):
            across = self._factor[:, start:, start:stop].swapaxes(1, 2)
            b[:, start:stop] -= np.matmul(across[:, :, stop - start:], b[:, stop:])
            b[:, start:stop] = np.linalg.solve(across[:, :, :stop - start], b[:, start:stop])
        found = np.empty_like(b)
        np.put_along_axis(found, self._order.swapaxes(1, 2), b, 1)
        return found

    def round(self, exact: Array, qmin: int, qmax: int) -> Array:
        """Codes (float32) with a small error of the output.

        Weights at the ends of the range keep their codes, as engines find the scale by them.
        """
        found = _nearest_plane(np.take_along_axis(exact, self._order, 2), self._factor, qmin, qmax)
        codes = np.empty_like(found)
        np.put_along_axis(codes, self._order, found, 2)
        return codes

    def best_factors(self, exact: Array, qmin: int, qmax: int) -> Array:
        """(groups * rows,): by what to multiply the scale of each row, so that its codes have the smallest error."""
        errors = []
        for factor in _NEAR:
            scaled = exact / factor
            lost = (scaled - self.round(scaled, qmin, qmax)) * factor
            errors.append((np.matmul(lost, self.moment) * lost).sum(axis=2, dtype=np.float64).ravel())
        found: Array = _NEAR[np.argmin(errors, axis=0)]
        return found


def _factor(moment: Array) -> Array:
    """Lower triangular F with F F^T = moment (Cholesky), float32.

    Block by block, with products of fixed shapes: the same bits for any number of threads.  Where float32 loses what
    makes the moment positive, it is done again in float64.
    """
    try:
        return _cholesky(moment)
    except np.linalg.LinAlgError:
        return _cholesky(moment.astype(np.float64)).astype(np.float32)


def _cholesky(moment: Array) -> Array:
    found = np.zeros_like(moment)
    for start in range(0, moment.shape[2], _BLOCK):
        stop = min(start + _BLOCK, moment.shape[2])
        done = found[:, start:, :start]
        panel = moment[:, start:, start:stop] - np.matmul(done, done[:, :stop - start].transpose(0, 2, 1))
        corner = np.linalg.cholesky(panel[:, :stop - start].astype(np.float64))
        found[:, start:stop, start:stop] = corner
        inverse = np.linalg.inv(corner).transpose(0, 2, 1).astype(moment.dtype)
        found[:, stop:, start:stop] = np.matmul(panel[:, stop - start:], inverse)
    return found


def _nearest_plane(exact: Array, factor: Array, qmin: int, qmax: int) -> Array:
    """factor: lower triangular, moment = factor factor^T. The last input is rounded first."""
    codes, error = np.empty_like(exact), np.zeros_like(exact)
    ends = _at_ends(exact, qmin, qmax)
    pivots = np.einsum("gii->gi", factor)
    width = exact.shape[2]
    for stop in range(width, 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        carried = np.matmul(error[:, :, stop:], factor[:, stop:, start:stop])
        for i in range(stop - 1, start - 1, -1):
            owed = carried[:, :, i - start]
            if i + 1 < stop:
                owed = owed + np.matmul(error[:, :, i + 1:stop], factor[:, i + 1:stop, i, None])[:, :, 0]
            wanted = exact[:, :, i] + np.where(ends[:, :, i], 0, owed / pivots[:, i, None])
            codes[:, :, i] = np.minimum(np.maximum(np.rint(wanted), qmin), qmax)
            error[:, :, i] = exact[:, :, i] - codes[:, :, i]
    return codes


def _at_ends(exact: Array, qmin: int, qmax: int) -> Array:
    ends: Array = (exact > qmax - _END) | (exact < qmin + _END)
    return ends


def shifted(exact: Array, lattice: Lattice, difference: Array) -> Array:
    """What to round for inputs x that carry errors, so that the output is near that of the right inputs, x + d.

    The least squares solution of `exact` (x + d) = result x.  lattice: of the moment of x; difference: mean(d x^T).
    """
    found: Array = exact + lattice.solve(np.matmul(exact, difference).transpose(0, 2, 1)).transpose(0, 2, 1)
    return found


def nearest_factors(exact: Array, diagonal: Array, scales: int, qmin: int, qmax: int) -> Array:
    """(scales,): by what to multiply each scale, so that rounding to the nearest code has the smallest error.

    diagonal: (groups, inputs), of the moment.  scales: how many neighbouring rows share; rows of all groups in order.
    """
    errors = []
    for factor in _FACTORS:
        lost = exact - factor * np.minimum(np.maximum(np.rint(exact / factor), qmin), qmax)
        lost *= lost
        lost = np.matmul(lost, diagonal[:, :, None])
        errors.append(lost.reshape(scales, -1).sum(axis=1, dtype=np.float64))
    found: Array = _FACTORS[np.argmin(errors, axis=0)]
    return found
