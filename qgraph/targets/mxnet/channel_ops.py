"""x * factor + shift per channel, as the one op that oneDNN has for it: a BatchNorm without mean and variance.

oneDNN keeps it in the layout that convolutions write; MXNet's own elementwise ops would bring the tensor into the plain
one and back, which takes longer than the arithmetic.  A product without a shift, and a sum with a factor of 1 or -1,
are rounded once whatever the kernel; both together depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Union

import numpy as np

from qgraph.ir.graph import Graph, Port

_EPS = 2.0 ** -10  # variance 1 - eps: 1 / sqrt(var + eps) is 1 to the last bit

Numbers = Union[float, np.ndarray, Port]


class ChannelOps:
    """Writes such ops into a graph. Constants of the same value are one parameter."""

    def __init__(self, out: Graph) -> None:
        self.out = out
        self._constants: dict[tuple[float, int, str], Port] = {}

    def affine(self, x: Port, channels: int, factor: Numbers, shift: Union[float, np.ndarray], name: str,
               origin: Iterable[str], axis: int = 1, relu: bool = False, attrs: Mapping[str, object] | None = None
               ) -> Port:
        """factor, shift: one number, or (channels,).  relu: max(x * factor + shift, 0)."""
        inputs = [x, self._vector(factor, channels, f"{name}_factor"), self._vector(shift, channels, f"{name}_shift"),
                  self.constant(0.0, channels, "mean"), self.constant(1 - _EPS, channels, "var")]
        op = "_contrib_BatchNormWithReLU" if relu else "BatchNorm"
        return Port(self.out.add(op, inputs, name, origin=origin, attrs={
            **(attrs or {}), "fix_gamma": "False", "use_global_stats": "True", "eps": repr(_EPS), "axis": str(axis)}))

    def _vector(self, value: Numbers, channels: int, name: str) -> Port:
        if isinstance(value, Port):
            return value
        if isinstance(value, np.ndarray) and value.ndim:
            return Port(self.out.add_param(name, value.astype(np.float32)))
        return self.constant(float(value), channels)

    def constant(self, value: float, channels: int, slot: str = "") -> Port:
        """(channels,) times the same value. slot: auxiliary states are no arguments, so their constants are others."""
        key = (value, channels, slot)
        if key not in self._constants:
            name = f"{slot or f'{value:g}'}_x{channels}"
            self._constants[key] = Port(self.out.add_param(name, np.full(channels, value, np.float32)))
        return self._constants[key]
