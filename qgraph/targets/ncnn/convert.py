"""How one MXNet op becomes ncnn layers: the table of converters, and what a converter works with.

To teach qgraph an op::

    from qgraph.targets.ncnn.convert import Context, converter

    @converter("MyOp")
    def my_op(c: Context) -> str:                 # the name of the blob that holds the result, or a list of names
        return c.layer("BinaryOp", c.blob(0), params={0: 2, 1: 1, 2: 2.0})

ncnn runs one image at a time: its blobs have no batch axis, so axis 1 of MXNet is axis 0 there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Union

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams
from qgraph.registry import enter
from qgraph.semantics.geometry import Shape, axis_of
from qgraph.targets.base import unknown_shape
from qgraph.targets.ncnn.files import Layer, Value, Weight

Converter = Callable[["Context"], Union[str, list[str]]]

CONVERTERS: dict[str, Converter] = {}

MAX_RANK = 4  # axes of a blob
_SIZES = {0: (), 1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}  # ids of Reshape and MemoryData, outermost first


def converter(*names: str) -> Callable[[Converter], Converter]:
    """Register a converter for these ops."""
    return enter(CONVERTERS, names)


def missing(node: Node) -> UnsupportedError:
    return UnsupportedError(
        f"{node}: there is no ncnn converter for this op; end the model before it (--outputs NAME), or "
        f"add one with @qgraph.targets.ncnn.convert.converter({node.op!r})")


def sizes(shape: Sequence[int]) -> dict[int, Value]:
    """A shape of up to 4 axes as the parameters of a Reshape or a MemoryData."""
    return dict(zip(_SIZES[len(shape)], map(int, shape)))


class Emitter(Protocol):
    """The model that is being written, as converters use it."""

    g: Graph
    shapes: dict[Port, Shape]

    def blob(self, port: Port) -> str:
        """The blob that holds a value. Raises UnsupportedError for one that is no image's."""

    def constant(self, port: Port) -> np.ndarray | None:
        """The array of what follows from parameters and shapes, else None."""

    def fresh(self) -> str:
        """A name for the time being."""

    def add(self, layer: Layer, node: Node) -> None:
        """Add a layer that is made for this node."""

    def take_activation(self, node: Node, kinds: Sequence[str]) -> Node | None:
        """The only reader of a layer, if it is one of these activations: it gets no layer of its own."""


class Context:
    """The node that is converted, and the model that is being written."""

    def __init__(self, emitter: Emitter, node: Node, ports: Sequence[Port]) -> None:
        self._emitter, self.node, self.ports = emitter, node, list(ports)
        self._replaced: dict[int, str] = {}

    @property
    def graph(self) -> Graph:
        return self._emitter.g

    def attr(self, key: str) -> Any:
        """A typed attribute, or MXNet's default."""
        return ops.attr(self.node, key)

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def blob(self, slot: int = 0) -> str:
        """The blob of an input; a constant becomes a MemoryData, of which a first axis of 1 is the batch."""
        port = self.ports[slot]
        array = self.value(slot)
        if array is None:
            return self._replaced.get(slot) or self._emitter.blob(port)
        if array.ndim > 1 and array.shape[0] != 1:
            raise self.refuse(f"its input {port.key} is a constant of shape {array.shape}, want 1 in the first axis")
        return self.constant(array.reshape(array.shape[1:] if array.ndim > 1 else (-1,)))

    def value(self, slot: int) -> np.ndarray | None:
        """The array of an input that is a parameter, or follows from parameters and shapes; else None."""
        return self._emitter.constant(self.ports[slot]) if slot < len(self.ports) else None

    def param(self, slot: int, what: str) -> np.ndarray:
        """The same of one that has to be known. Raises UnsupportedError."""
        array = self.value(slot)
        if array is None:
            raise self.refuse(f"its {what} is computed, and ncnn wants a parameter")
        return np.asarray(array, np.float32)

    def quantizer(self, slot: int) -> QParams | None:
        """The numbers of the fake_quantize that an input comes from."""
        node = self.graph.inputs(self.node)[slot].node
        return node.quant if node.op == "fake_quantize" and isinstance(node.quant, QParams) else None

    def knows(self, slot: int = 0) -> bool:
        return self.ports[slot] in self._emitter.shapes

    def knows_output(self) -> bool:
        return Port(self.node) in self._emitter.shapes

    def shape(self, slot: int = 0) -> Shape:
        """Shape of an input without the batch. Raises UnsupportedError if it is not known, or mixes images."""
        return self._shape(self.ports[slot])

    def out_shape(self, index: int = 0) -> Shape:
        return self._shape(Port(self.node, index))

    def _shape(self, port: Port) -> Shape:
        shape = self._emitter.shapes.get(port)
        if shape is None:
            raise unknown_shape(self.node, port)
        if not shape or shape[0] not in (-1, 1) or -2 in shape[1:]:
            raise self.refuse(f"{port.key} does not have the images of the batch in its first axis, and ncnn runs one "
                              "image at a time")
        if len(shape) - 1 > MAX_RANK:
            raise self.refuse(f"{port.key} has {len(shape) - 1} axes besides the batch, and ncnn's blobs at most "
                              f"{MAX_RANK}")
        return shape[1:]

    def axis(self, axis: int, slot: int = 0) -> int:
        """An axis of MXNet's, as ncnn counts it. Raises UnsupportedError for the batch axis."""
        if axis < 0:
            axis = axis_of(self.node, axis, len(self.shape(slot)) + 1)
        if axis == 0:
            raise self.refuse("it works along the batch axis, and ncnn runs one image at a time")
        return axis - 1

    def refuse(self, why: str) -> UnsupportedError:
        """The error to raise for what ncnn cannot say."""
        return UnsupportedError(f"{self.node}: {why}; end the model before it (--outputs NAME)")

    # ---- layers -----------------------------------------------------------------------------------------------------

    def layer(self, kind: str, *inputs: str, params: Mapping[int, Value] | None = None, weights: Sequence[Weight] = (),
              n_out: int = 1) -> Any:
        """Add a layer; the name of its blob, or with n_out > 1 a list of names."""
        outputs = [self._emitter.fresh() for _ in range(n_out)]
        self._emitter.add(Layer(kind, self._emitter.fresh(), list(inputs), outputs, dict(params or {}), list(weights)),
                          self.node)
        return outputs[0] if n_out == 1 else outputs

    def before(self, kind: str) -> None:
        """Put a layer without parameters in front of the first input."""
        self._replaced[0] = str(self.layer(kind, self.blob()))

    def take_activation(self, kinds: Sequence[str]) -> Node | None:
        """The node's only reader, if it is one of these activations; it then has no layer of its own."""
        return self._emitter.take_activation(self.node, kinds)

    def constant(self, array: np.ndarray) -> str:
        """A MemoryData of just this shape."""
        array = np.asarray(array, np.float32)
        if array.ndim > MAX_RANK:
            raise self.refuse(f"it reads a constant of {array.ndim} axes, and ncnn's blobs have at most {MAX_RANK}")
        params = sizes(array.shape) if array.ndim else {0: 1}
        return str(self.layer("MemoryData", params=params, weights=[Weight(array)]))

    def reshape(self, blob: str, shape: Sequence[int]) -> str:
        return str(self.layer("Reshape", blob, params=sizes(shape)))

    def activation(self, blob: str) -> str:
        """A layer for the activation that this node carries."""
        act = self.node.fused
        if act is None:
            return blob
        if act.act == "clip":
            return str(self.layer("Clip", blob, params={0: float(act.low), 1: float(act.high)}))
        return str(self.layer("ReLU", blob))
