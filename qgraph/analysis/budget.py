"""The error budget: which layer costs how much of the outputs' error, to first order.

Each quantized layer adds an error e to its output: its input and its weight are rounded.  It is measured on the input
as it is in the quantized network, with the errors of earlier layers: the float network with all e added computes what
the quantized one does.  The sensitivity of the outputs to an error is how much of it arrives: that network is run
without the e of one layer, which moves the outputs by d.  As long as errors are small they pass through the rest of the
network one by one, so that the outputs' whole error is D = sum of all d, and

    |D|^2  =  sum over layers of  d . D           share of a layer:  d . D / |D|^2
    |D - d|^2  =  |D|^2 - (2 d . D - |d|^2)       what leaving it in float takes away: 2 d . D - |d|^2
    |D|^2  ~  sum over layers of  |d|^2           where errors of layers are not correlated

D is measured too.  Noise is always a part of the signal: mean(error^2) / mean(value^2), of one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port

_NOISE = "_added_noise"


@dataclass(frozen=True)
class Cost:
    """Of one layer, each as a part of the signal, the mean over the outputs but for `noise`.

    noise: that it adds to its own output.  power: |d|^2, what arrives of it.  along: d . D.
    """

    layer: str
    noise: float
    power: float
    along: float

    @property
    def sensitivity(self) -> float:
        return self.power / self.noise if self.noise else 0.0

    @property
    def taken(self) -> float:
        """What leaving the layer in float takes away of the outputs' noise; below 0 where it makes up for others."""
        return 2 * self.along - self.power


@dataclass(frozen=True)
class Budget:
    """costs: of the layers, in the order of the network.  noise: of the outputs, |D|^2, all layers quantized.

    predicted: the same of the sum of all d, which is what first order says of these layers.
    """

    costs: tuple[Cost, ...]
    noise: float
    predicted: float

    @property
    def powers(self) -> float:
        """The sum of what arrives of each layer: the noise, were no two errors correlated."""
        return sum(cost.power for cost in self.costs)

    def ranked(self) -> list[Cost]:
        """The layer whose exclusion takes away most comes first."""
        return sorted(self.costs, key=lambda cost: -cost.taken)

    def share(self, cost: Cost) -> float:
        """The part of the measured noise that is this layer's."""
        return cost.along / self.noise if self.noise else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the most expensive layer first; decibels are of signal over noise, None without noise."""
        rows = [{"layer": cost.layer, "share": _short(self.share(cost)),
                 "taken": _short(cost.taken / (self.noise or 1.0)), "sensitivity": _short(cost.sensitivity),
                 "noise_db": decibels(cost.noise)} for cost in self.ranked()]
        return {"measured_db": decibels(self.noise), "predicted_db": decibels(self.predicted), "layers": rows}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def decibels(noise: float) -> float | None:
    """Signal over noise, of noise as a part of the signal."""
    return round(-10 * float(np.log10(noise)), 2) if noise > 0 else None


def noise_of(want: Array, found: Array) -> float:
    """mean(error^2) / mean(value^2) of one tensor; what is not finite in both is left out, in one alone infinite."""
    a, b = want.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    signal = float(np.square(a[finite]).sum())
    return float(np.square(b[finite] - a[finite]).sum()) / signal if signal else 0.0


def judged_ports(g: Graph) -> list[Port]:
    """The outputs, or what goes into their softmax: it would hide differences."""
    return [g.inputs(head.node)[0] if ops.head(head.node) == ops.SQUASHES or head.node.op == "softmax" else head
            for head in g.heads]


def with_noise_inputs(g: Graph, layers: Sequence[str]) -> tuple[Graph, dict[str, str]]:
    """layer  ->  layer + input, in a copy of `g`, for each of these nodes: (the copy, layer -> name of its input)."""
    twin = g.copy()
    named = {node.name: node for node in twin.toposort()}
    inputs = {}
    for layer in layers:
        node = named[layer]
        noise = twin.add("null", name=layer + _NOISE)
        total = twin.add("elemwise_add", [node, noise], layer + _NOISE + "_sum")
        twin.replace_uses(node, total, keep=[total])
        inputs[layer] = noise.name
    return twin, inputs


class Account:
    """Adds up costs. want: the float outputs.  whole: those with all layers quantized."""

    def __init__(self, want: Sequence[Array], whole: Sequence[Array]) -> None:
        self._want = [value.astype(np.float64) for value in want]
        self._errors = [found - value for value, found in zip(self._want, whole)]
        self._signals = [float(np.square(value).sum()) or 1.0 for value in self._want]
        self._sums = [np.zeros_like(value) for value in self._want]
        self._costs: list[Cost] = []

    def add(self, layer: str, noise: float, without: Sequence[Array]) -> None:
        """noise: of the layer's own output.  without: the outputs without the error of this layer."""
        moved = [error - (found - value) for value, error, found in zip(self._want, self._errors, without)]
        for total, d in zip(self._sums, moved):
            total += d
        self._costs.append(Cost(layer, noise, self._part(moved, moved), self._part(moved, self._errors)))

    def budget(self) -> Budget:
        return Budget(tuple(self._costs), self._part(self._errors, self._errors), self._part(self._sums, self._sums))

    def _part(self, a: Sequence[Array], b: Sequence[Array]) -> float:
        """a . b as a part of the signal, the mean over the outputs."""
        return float(np.mean([float((x * y).sum()) / signal for x, y, signal in zip(a, b, self._signals)]))
