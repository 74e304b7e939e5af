"""Whether what BatchNorms read is what they read in training: their stored statistics against those of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port

LEAST = 1e-30  # of a variance, relative to what was stored


@dataclass(frozen=True)
class Stored:
    """What a BatchNorm keeps of the tensor that it reads. mean, var: (channels,) float64; var with the op's eps."""

    name: str
    port: Port
    mean: Array
    var: Array
    eps: float

    def departure(self, moments: Moments) -> float:
        """How far a tensor is from what was stored, 0 for the same statistics.

        The Kullback-Leibler divergence of two normal distributions, averaged over the channels:
        (d^2 + r - 1 - log r) / 2 with d = (mean - stored mean) / s, r = variance / s^2.
        """
        mean, var = moments.mean_var()
        with np.errstate(over="ignore", invalid="ignore"):
            distance, ratio = np.square(mean - self.mean) / self.var, (var + self.eps) / self.var
            each = (distance + ratio - 1 - np.log(np.maximum(ratio, LEAST))) / 2
        return float(each.mean()) if np.isfinite(each).all() else np.inf


@dataclass
class Moments:
    """Sums over what a BatchNorm reads, (channels,) float64 each."""

    count: int = 0
    total: Array | float = 0.0
    squares: Array | float = 0.0

    def update(self, value: Array) -> None:
        """Add a batch (N, channels, ...)."""
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        wide = value.astype(np.float64)
        self.count += value.size // value.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            self.total = self.total + wide.sum(axes)
            self.squares = self.squares + np.square(wide, out=wide).sum(axes)

    def mean_var(self) -> tuple[Array, Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.asarray(self.total) / self.count
            return mean, np.maximum(np.asarray(self.squares) / self.count - mean * mean, 0)


def stored_statistics(g: Graph) -> list[Stored]:
    """The BatchNorms over axis 1 whose statistics are finite and whose variances are not negative, in order."""
    found = []
    for node in g.toposort():
        if node.op != "BatchNorm" or ops.attr(node, "axis") != 1:
            continue
        data, (mean, var) = g.inputs(node)[0], (g.param(port) for port in g.inputs(node)[3:5])
        if mean is None or var is None or not np.isfinite([mean, var]).all() or var.min(initial=0) < 0:
            continue
        eps = float(ops.attr(node, "eps"))
        found.append(Stored(node.name, data, mean.astype(np.float64), var.astype(np.float64) + eps, eps))
    return found


def departures(stored: Sequence[Stored], seen: Sequence[Moments]) -> list[float]:
    """Of each BatchNorm."""
    return [one.departure(moments) for one, moments in zip(stored, seen)]
