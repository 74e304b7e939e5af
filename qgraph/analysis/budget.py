"""The error budget: which layer costs how much of the outputs' error, to first order.

Each quantized layer adds an error e to its output, even if all that it reads is exact: its input and its weight are
rounded.  As long as errors are small they pass through the rest of the network one by one, and as they are hardly
correlated their powers add up::

    noise of output o  =  sum over layers of  cost[layer, o],     cost = noise of the layer * sensitivity[layer, o]

The noise is measured at the layer.  The sensitivity is how much of it arrives: the float network is run with e added
to this layer alone.  Noise is always a part of the signal: mean(error^2) / mean(value^2), of one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port

_NOISE = "_added_noise"


@dataclass(frozen=True)
class Cost:
    """Of one layer. noise: that it adds to its own output.  outputs: what of it arrives in each output."""

    layer: str
    noise: float
    outputs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The mean over the outputs."""
        return float(np.mean(self.outputs))

    @property
    def sensitivity(self) -> float:
        return self.total / self.noise if self.noise else 0.0


@dataclass(frozen=True)
class Budget:
    """costs: of the layers, in the order of the network.  measured: the noise of each output, all layers quantized."""

    costs: tuple[Cost, ...]
    measured: tuple[float, ...]

    @property
    def predicted(self) -> float:
        """The sum of all costs, as a part of the signal."""
        return sum(cost.total for cost in self.costs)

    @property
    def noise(self) -> float:
        """What was measured: the mean over the outputs."""
        return float(np.mean(self.measured))

    def shares(self) -> dict[str, float]:
        """Layer -> its part of the predicted noise, 0 to 1, the largest first."""
        whole = self.predicted or 1.0
        return {cost.layer: cost.total / whole for cost in sorted(self.costs, key=lambda cost: -cost.total)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the most expensive layer first; decibels are of signal over noise, None without noise."""
        shares = self.shares()
        costs = {cost.layer: cost for cost in self.costs}
        return {"measured_db": decibels(self.noise), "predicted_db": decibels(self.predicted),
                "layers": [{"layer": name, "share": float(f"{share:.4g}"), "cost": float(f"{costs[name].total:.4g}"),
                            "sensitivity": float(f"{costs[name].sensitivity:.4g}"),
                            "noise_db": decibels(costs[name].noise)} for name, share in shares.items()]}


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


def costs_of(layers: Sequence[str], noises: Mapping[str, float], want: Sequence[Array],
             found: Mapping[str, Sequence[Array]]) -> tuple[Cost, ...]:
    """want: the float outputs.  found: layer -> the outputs with its noise alone."""
    return tuple(Cost(layer, noises[layer], tuple(noise_of(a, b) for a, b in zip(want, found[layer])))
                 for layer in layers)
