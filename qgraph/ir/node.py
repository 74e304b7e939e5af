"""A node of a graph, and one of its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Union

from qgraph.quant.spec import QParams, QSpec

ChannelOrder = tuple[int, ...]
"""Channel i of a tensor is channel order[i] of the user's model."""
ChannelScales = tuple[float, ...]
"""How many times the user's each channel of a tensor is, in the user's order."""


@dataclass(frozen=True)
class Rounded:
    """How the weight of a layer was rounded, where that is not how its codes are scaled now.

    dtype: s8, or s8 F43 in a Winograd domain.  granularity: as of a `QSpec`.
    """

    dtype: str
    granularity: str


@dataclass(frozen=True)
class Fused:
    """An activation that a layer or a sum computes on its result.

    act: MXNet's act_type, or "clip".
    low, high: the ends of a clip; an int where the model says one, so that its files say it the same way.
    """

    act: str
    low: float = 0
    high: float = 0


@dataclass(eq=False)
class Node:
    """One operation, or a variable (``op == "null"``). Compared by identity: two equal-looking nodes are two nodes.

    attrs: MXNet's attributes as strings; `qgraph.ir.ops.attr` reads them typed, with MXNet's defaults.
    quant: set on `fake_quantize` nodes only: the decision, then the numbers.
    origin: names of the nodes of the user's model that this one came from.

    What passes know of it, and attributes do not say (`qgraph.ir.attributes` writes it in text and files):
    fused: the activation that it computes too; the ops that `qgraph.ir.ops.FUSING` lists may.
    layout: the order of its output channels, if it is not the user's.
    scales: the factors of its output channels, if they are not the user's, see `qgraph.passes.equalize`.
    shift: how much higher its output, scaled, is than the user's, see `qgraph.passes.signed_residual`.
    rounded: how its weight was rounded.
    wide: a layer or an average of floats that adds them in float64, see `qgraph.passes.wide_sums`.
    """

    op: str
    name: str
    attrs: dict[str, str] = field(default_factory=dict)
    n_out: int = 1
    quant: QSpec | QParams | None = None
    origin: tuple[str, ...] = ()
    fused: Fused | None = None
    layout: ChannelOrder | None = None
    scales: ChannelScales | None = None
    shift: float = 0.0
    rounded: Rounded | None = None
    wide: bool = False

    def __repr__(self) -> str:
        return f"{self.name}:{self.op}"


class Port(NamedTuple):
    """One output of a node: what an edge reads, what a head is, what calibration watches."""

    node: Node
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a port

    @property
    def key(self) -> str:
        """The tensor's name in reports and calibration tables: the node's, with ``:index`` for a further output."""
        return self.node.name if self.index == 0 else f"{self.node.name}:{self.index}"


Value = Union[Port, Node]  # a Node stands for its first output


def as_port(value: Value) -> Port:
    return Port(value) if isinstance(value, Node) else value
