"""How one MXNet op becomes ONNX: the table of converters, and what a converter works with.

To teach qgraph an op, in its own code or in yours::

    from qgraph.targets.onnx.convert import Context, converter

    @converter("MyOp")
    def my_op(c: Context, x: str) -> str:        # names of the input tensors, in slot order
        return c.op("Mul", x, c.const(np.float32(2)))

and if the op is new to qgraph add its row to `qgraph.ir.ops` and its shape rule to `qgraph.semantics`: every op of the
table has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Union

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.registry import enter
from qgraph.semantics.geometry import Shape
from qgraph.targets.base import unknown_shape

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from onnx import NodeProto

Converter = Callable[..., Union[str, list[str]]]  # (Context, *tensor names) -> name of the result, or a list

CONVERTERS: dict[str, Converter] = {}


def converter(*names: str) -> Callable[[Converter], Converter]:
    """Register a converter for these ops."""
    return enter(CONVERTERS, names)


def missing(node: Node) -> UnsupportedError:
    return UnsupportedError(
        f"{node}: there is no ONNX converter for this op; add one with @qgraph.targets.onnx.convert.converter("
        f"{node.op!r}) (examples/custom_converter.py), or end the model before it with --outputs NAME")


class Emitter(Protocol):
    """The model that is being written, as converters use it."""

    g: Graph
    nodes: list[NodeProto]
    shapes: dict[Port, Shape]
    varying: set[Port]

    def read(self, reader: Node, port: Port) -> str:
        """The tensor in which this reader finds a value."""

    def name(self, node: Node, hint: str) -> str:
        """A name that no tensor has yet."""

    def constant(self, node: Node, array: np.ndarray, hint: str) -> str:
        """The name of an initializer that holds the array."""

    def drops_activation(self, node: Node) -> bool:
        """Whether the activation fused into this node changes nothing."""


class Context:
    """The node that is converted, and the model that is being written.

    inputs: names of the tensors it reads.  made: the ONNX nodes made for it so far.
    """

    def __init__(self, emitter: Emitter, node: Node, ports: Sequence[Port]) -> None:
        self._emitter, self.node, self._ports = emitter, node, list(ports)
        self.inputs = [emitter.read(node, port) for port in ports]
        self._first = len(emitter.nodes)

    @property
    def made(self) -> list[NodeProto]:
        return self._emitter.nodes[self._first:]

    @property
    def graph(self) -> Graph:
        """The graph that is converted."""
        return self._emitter.g

    def attr(self, key: str) -> Any:
        """A typed attribute, or MXNet's default."""
        return ops.attr(self.node, key)

    def op(self, op_type: str, *inputs: str, n_out: int = 1, **attrs: object) -> Any:
        """Add an ONNX node; the name of its output, or with n_out > 1 a list of names. "" leaves an input out."""
        from onnx import helper

        outputs = [self._emitter.name(self.node, op_type.lower()) for _ in range(n_out)]
        attrs = {key: value for key, value in attrs.items() if value is not None}
        self._emitter.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=outputs[0], **attrs))
        return outputs[0] if n_out == 1 else outputs

    def const(self, value: ArrayLike, hint: str = "const") -> str:
        """An initializer. A Python number or list becomes float32 or int64, by what it holds."""
        array = np.asarray(value)
        if not isinstance(value, (np.ndarray, np.generic)):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return self._emitter.constant(self.node, array, hint)

    def value(self, slot: int) -> np.ndarray | None:
        """The array of an input that is a parameter, else None."""
        return self._emitter.g.param(self._ports[slot])

    def shape(self, slot: int = 0) -> tuple[int, ...]:
        """Shape of an input, with -1 for what depends on the batch size. Raises UnsupportedError if not known."""
        return self._shape(self._ports[slot])

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        """Shape of an output, as `shape`."""
        return self._shape(Port(self.node, index))

    def knows(self, slot: int = 0) -> bool:
        """Whether the shape of an input is known, and the same whatever the sizes of the model's inputs."""
        port = self._ports[slot]
        return port in self._emitter.shapes and port not in self._emitter.varying

    def _shape(self, port: Port) -> tuple[int, ...]:
        if port not in self._emitter.shapes:
            raise unknown_shape(self.node, port)
        return self._emitter.shapes[port]

    def refuse(self, why: str) -> UnsupportedError:
        """The error to raise for what ONNX cannot say."""
        return UnsupportedError(f"{self.node}: {why}; end the model before it with --outputs NAME")

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """To a shape with at most one -1."""
        if sum(d == -1 for d in shape) > 1:
            raise self.refuse(f"its shape {tuple(shape)} depends on the batch size in two dimensions")
        return str(self.op("Reshape", x, self.const(list(shape), "shape")))

    def activation(self, x: str) -> str:
        """The activation fused into this node, unless quantization implies it."""
        act = self.node.fused
        if act is None or self._emitter.drops_activation(self.node):
            return x
        if act.act == "relu":
            return str(self.op("Relu", x))
        return str(self.op("Clip", x, *(self.const(np.float32(end)) for end in (act.low, act.high))))
