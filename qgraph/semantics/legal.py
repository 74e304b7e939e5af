"""Inputs that are no images: which values are legal where an op reads indices, boxes or lengths.

`legal_values` starts at the slots that such an op reads and walks up to the inputs, through what moves values::

    Embedding(Cast(data), weight) {input_dim=40}                       data: whole numbers, 0 to 39
    ROIAlign(x, Concat(image, box)) {spatial_scale=0.5}                image: 0 to batch - 1, box: within the image
    SequenceMask(x, lengths) {use_sequence_length=True}                lengths: 1 to the length of the axis

To teach it an op, write a rule::

    @reads("MyLookup", slot=1)
    def my_lookup(node, shapes):      # shapes of the inputs, in slot order
        return Legal.whole(0, shapes[0][0] - 1)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import numpy as np

from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.geometry import Shape
from qgraph.semantics.infer import infer


@dataclass(frozen=True)
class Legal:
    """Values from `low` to `high`, both of them included.

    low, high: one number for all values, or one for each place of the last axis; infinite where any value is legal.
    integer: whole numbers.  reader: the node that reads them.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    integer: bool = True
    reader: str = ""

    @classmethod
    def whole(cls, low: float, high: float) -> Legal:
        return cls((low,), (max(low, high),))

    def draw(self, noise: Array, rng: np.random.Generator) -> Array:
        """Legal values in the shape of `noise`, which stays where any value is legal."""
        low, high = np.array(self.low), np.array(self.high)
        bounded = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(bounded, low, 0.0), np.where(bounded, high, 0.0)
        drawn = low + rng.random(noise.shape) * (high - low + self.integer)
        if self.integer:
            drawn = np.minimum(np.floor(drawn), high)
        return np.where(bounded, drawn, noise).astype(np.float32)

    def shown(self) -> str:
        """In words."""
        what = "whole numbers" if self.integer else "numbers"
        if len(self.low) > 1:
            return f"rows of {len(self.low)} {what}"
        return f"{what} from {self.low[0]:g} to {self.high[0]:g}"

    def first_place(self) -> str:
        """The values of the first place, for messages."""
        low, high = self.low[0], self.high[0]
        return f"{low:g} to {high:g}" if np.isfinite(low) else f"at most {high:g}"

    def outside(self, values: Array) -> Array:
        """The values that are not legal."""
        if len(self.low) > 1 and values.shape[-1] != len(self.low):
            return values[:0]
        bad = ~((values >= np.array(self.low)) & (values <= np.array(self.high)))
        return values[bad]


Rule = Callable[[Node, list[Shape]], Optional[Legal]]


@dataclass(frozen=True)
class _Slot:
    slot: int
    rule: Rule
    crash: Rule | None


READS: dict[str, _Slot] = {}


def reads(*names: str, slot: int, crash: Rule | None = None) -> Callable[[Rule], Rule]:
    """Register what these ops may read in a slot; crash: the same with nothing but what MXNet dies of."""
    def enter(rule: Rule) -> Rule:
        READS.update((name, _Slot(slot, rule, crash)) for name in names)
        return rule
    return enter


def legal_values(g: Graph, input_shapes: Mapping[str, Sequence[int]], crash: bool = False) -> dict[str, Legal]:
    """Input -> its legal values, of the inputs that are indices, boxes or lengths. crash: only what MXNet dies of.

    Ops whose shapes do not follow from `input_shapes` are passed over.
    """
    if not any(row is not None and (row.crash or not crash) for row in (_row(g, node) for node in g.dag)):
        return {}
    shapes = infer(g, input_shapes)
    found: dict[Port, Legal] = {}
    for node in reversed(g.toposort()):
        ports = g.inputs(node)
        row = _row(g, node)
        if row is not None and all(p in shapes for p in (ports[0], ports[row.slot])):
            rule = row.crash if crash else row.rule
            legal = rule(node, [shapes.get(p, ()) for p in ports]) if rule is not None else None
            if legal is not None:
                _add(found, ports[row.slot], replace(legal, reader=str(node)))
        for index in range(node.n_out):
            if (port := Port(node, index)) in found:
                for source, legal in _before(node, ports, found[port], port, shapes):
                    _add(found, source, legal)
    return {port.node.name: legal for port, legal in found.items()
            if port.node.op == "null" and g.param(port) is None}


def _row(g: Graph, node: Node) -> _Slot | None:
    row = READS.get(ops.ALIASES.get(node.op, node.op))
    return row if row is not None and row.slot < len(g.inputs(node)) else None


def _add(found: dict[Port, Legal], port: Port, legal: Legal) -> None:
    """What two readers want is legal for both."""
    if (known := found.get(port)) is not None:
        low, high = np.maximum(known.low, legal.low), np.minimum(known.high, legal.high)
        if (low > high).any():
            return
        legal = Legal(tuple(low), tuple(high), known.integer or legal.integer, known.reader)
    found[port] = legal


# ---- towards the inputs ---------------------------------------------------------------------------------------------

_SAME = {"Cast", "clip", "round", "rint", "floor", "ceil", "fix", "trunc", "elemwise_copy"} | ops.IDENTITIES
_MOVES = {"Reshape", "Flatten", "transpose", "SwapAxis", "expand_dims", "squeeze", "slice", "slice_axis", "slice_like",
          "SliceChannel", "_split_v2", "tile", "repeat", "broadcast_axis", "broadcast_to", "broadcast_like",
          "reshape_like", "reverse", "take", "SequenceReverse", "SequenceMask", "SequenceLast"}
_JOINS = {"Concat", "stack", "where"}
_UNDO: dict[str, Callable[[Any, float], Any]] = {
    "_plus_scalar": lambda x, s: x - s, "_minus_scalar": lambda x, s: x + s, "_rminus_scalar": lambda x, s: s - x,
    "_mul_scalar": lambda x, s: x / s, "_div_scalar": lambda x, s: x * s}


def _before(node: Node, ports: Sequence[Port], legal: Legal, port: Port,
            shapes: Mapping[Port, Shape]) -> Iterator[tuple[Port, Legal]]:
    """What the node may read so that it gives legal values."""
    op = ops.ALIASES.get(node.op, node.op)
    if op in _SAME:
        yield ports[0], legal
    elif op in _UNDO and (scalar := ops.number(node, "scalar")):
        ends = [_UNDO[op](np.array(end), scalar) for end in (legal.low, legal.high)]
        whole = legal.integer and op not in ("_mul_scalar", "_div_scalar") and scalar == int(scalar)
        yield ports[0], Legal(tuple(np.minimum(*ends)), tuple(np.maximum(*ends)), whole, legal.reader)
    elif op in _MOVES:
        yield ports[0], _columns(legal, shapes.get(ports[0]), shapes.get(port), 0)
    elif op in _JOINS:
        place = 0
        for source in ports[op == "where":]:
            shape, out = shapes.get(source), shapes.get(port)
            yield source, _columns(legal, shape, out, place)
            if shape and out and shape[-1] != out[-1]:
                place += shape[-1]


def _columns(legal: Legal, shape: Shape | None, out: Shape | None, place: int) -> Legal:
    """The part of an input that lies from `place` in the last axis of the output.

    Where columns cannot be followed all values get the range of the first one, which is legal in every box.
    """
    if len(legal.low) == 1:
        return legal
    if shape and out and out[-1] == len(legal.low) and shape[-1] <= out[-1]:
        part = slice(place, place + shape[-1])
        if legal.low[part]:
            return replace(legal, low=legal.low[part], high=legal.high[part])
    return replace(legal, low=legal.low[:1], high=legal.high[:1])


# ---- what ops read --------------------------------------------------------------------------------------------------

@reads("Embedding", slot=0)
def _embedding(node: Node, shapes: list[Shape]) -> Legal:
    return Legal.whole(0, ops.attr(node, "input_dim") - 1)


@reads("one_hot", slot=0)
def _one_hot(node: Node, shapes: list[Shape]) -> Legal:
    return Legal.whole(0, ops.attr(node, "depth") - 1)


@reads("take", slot=1)
def _take(node: Node, shapes: list[Shape]) -> Legal:
    return Legal.whole(0, shapes[0][ops.attr(node, "axis")] - 1)


@reads("pick", slot=1)
def _pick(node: Node, shapes: list[Shape]) -> Legal:
    axis = ops.attr(node, "axis")
    return Legal.whole(0, (shapes[0][axis[0]] if axis else int(np.prod(shapes[0]))) - 1)


@reads("batch_take", slot=1)
def _batch_take(node: Node, shapes: list[Shape]) -> Legal:
    return Legal.whole(0, shapes[0][1] - 1)


@reads("gather_nd", slot=1)
def _gather_nd(node: Node, shapes: list[Shape]) -> Legal | None:
    return Legal.whole(0, min(shapes[0][:shapes[1][0]]) - 1) if shapes[1] else None


def _image_number(node: Node, shapes: list[Shape]) -> Legal:
    """Of boxes the first column alone."""
    return Legal((0, *[-np.inf] * 4), (shapes[0][0] - 1, *[np.inf] * 4))


def _image_number_or_none(node: Node, shapes: list[Shape]) -> Legal:
    """ROIAlign gives zeros for a negative number: detectors fill up levels of a pyramid so."""
    return replace(_image_number(node, shapes), low=(-np.inf,) * 5)


@reads("_contrib_ROIAlign", slot=1, crash=_image_number_or_none)
@reads("ROIPooling", "_contrib_PSROIPooling", "_contrib_DeformablePSROIPooling", slot=1, crash=_image_number)
def _boxes(node: Node, shapes: list[Shape]) -> Legal:
    """Rows of number in the batch, left, top, right, bottom in pixels of the image: over its middle."""
    scale = ops.number(node, "spatial_scale") or 1.0
    batch, (height, width) = shapes[0][0], shapes[0][-2:]
    right, bottom = (max(int(size / scale) - 1, 1) for size in (width, height))
    return Legal((0, 0, 0, right // 2, bottom // 2), (batch - 1, right // 2, bottom // 2, right, bottom))


def _lengths(default_axis: str, least: int) -> Rule:
    def rule(node: Node, shapes: list[Shape]) -> Legal:
        return Legal.whole(least, shapes[0][int(node.attrs.get("axis", default_axis))])
    return rule


# an empty sequence has no last element
reads("SequenceLast", slot=1, crash=_lengths("0", 1))(_lengths("0", 1))
reads("SequenceMask", "SequenceReverse", slot=1, crash=_lengths("0", 0))(_lengths("0", 1))
reads("softmax", "log_softmax", slot=1, crash=_lengths("-1", 0))(_lengths("-1", 1))
