"""How one MXNet op becomes nodes of Tengine: the table of converters, and what a converter works with.

To teach qgraph an op::

    from qgraph.targets.tengine.convert import Context, converter

    @converter("MyOp")
    def my_op(c: Context) -> int:                 # the number of the tensor that holds the result
        return c.layer("Eltwise", [c.tensor(0), c.tensor(1)], 0, 0, 0.0, 1.0, 1.0)

With ``int8=False`` freezing refuses the op: an int8 model of Tengine is int8 from its inputs to its outputs.  An op
also needs a way back, in `qgraph.targets.tengine.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from qgraph.analysis.windows import Window
from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams, per_axis, quantize
from qgraph.registry import enter
from qgraph.semantics.geometry import Shape, axis_of
from qgraph.targets.base import unknown_shape
from qgraph.targets.tengine.files import CONST, FP32, INT8, INT32, TYPE_OF, VAR, Layer, Model, Param, Tensor

Converter = Callable[["Context"], int]

CONVERTERS: dict[str, Converter] = {}
FLOAT_ONLY: set[str] = set()
"""Ops that Tengine has in float alone, or that are not known to work in int8."""


def converter(*names: str, int8: bool = True) -> Callable[[Converter], Converter]:
    """Register a converter for these ops. int8: Tengine computes them on codes too."""
    if not int8:
        FLOAT_ONLY.update(names)
    return enter(CONVERTERS, names)


def missing(node: Node) -> UnsupportedError:
    return UnsupportedError(
        f"{node}: there is no Tengine converter for this op; end the model before it (--outputs NAME), "
        f"or add one with @qgraph.targets.tengine.convert.converter({node.op!r})")


def check_activation(qp: QParams, name: str) -> None:
    """Raises UnsupportedError for a quantization of values that Tengine has not."""
    if qp.granularity != "tensor" or not qp.signed or (qp.qmin, qp.qmax) != (-127, 127) or qp.zero_point.any():
        raise UnsupportedError(f"{name}: Tengine quantizes values to -127..127 with one scale; found {qp.dtype} from "
                               f"{qp.qmin} to {qp.qmax} per {qp.granularity}; freeze with --target tengine and no "
                               "--act-bits or --act-signed")


class Emitter(Protocol):
    """The model that is being written, as converters use it."""

    g: Graph
    int8: bool
    shapes: dict[Port, Shape]
    tm: Model
    tensors: dict[Port, int]

    def param(self, port: Port) -> np.ndarray | None:
        """The array behind an input, past its quantizer, or None if it is a value."""

    def scale_of(self, node: Node) -> np.ndarray:
        """The scale of what a node writes."""

    def is_taken(self, name: str) -> bool:
        """Whether a node is called so already, here or in the user's graph."""

    def name(self, base: str) -> str:
        """A name that no node has yet."""

    def add(self, kind: str, name: str, inputs: Sequence[int], params: Sequence[Param], tensor: Tensor) -> int:
        """Add a node and the tensor that it writes; the tensor's number."""


class Context:
    """The node that is converted, and the model that is being written."""

    def __init__(self, emitter: Emitter, node: Node, ports: Sequence[Port]) -> None:
        self._emitter, self.node, self.ports = emitter, node, list(ports)
        self.int8, self.g = emitter.int8, emitter.g

    def attr(self, key: str) -> Any:
        """A typed attribute, or MXNet's default."""
        return ops.attr(self.node, key)

    def refuse(self, why: str) -> UnsupportedError:
        """The error to raise for what Tengine cannot say."""
        return UnsupportedError(f"{self.node}: {why}; end the model before it (--outputs NAME)")

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def tensor(self, slot: int = 0) -> int:
        """The tensor of an input that is a value. Raises UnsupportedError for a parameter."""
        port = self.ports[slot]
        if self.has_param(slot):
            raise self.refuse(f"it reads the parameter {port.node.name} as a value, which is not written for Tengine")
        return self._emitter.tensors[port]

    def has_param(self, slot: int) -> bool:
        return slot < len(self.ports) and self._emitter.param(self.ports[slot]) is not None

    def param(self, slot: int, what: str) -> np.ndarray:
        """The array of an input that has to be a parameter, before any quantization."""
        array = self._emitter.param(self.ports[slot])
        if array is None:
            raise self.refuse(f"its {what} is computed, and Tengine wants a parameter")
        return np.asarray(array, np.float32)

    def quantizer(self, slot: int) -> QParams | None:
        """The numbers of the fake_quantize that an input comes from."""
        node = self.ports[slot].node
        return node.quant if node.op == "fake_quantize" and isinstance(node.quant, QParams) else None

    def shape(self, slot: int = 0) -> Shape | None:
        """With a batch of one; None if it is not known."""
        return self._emitter.shapes.get(self.ports[slot])

    def out_shape(self) -> Shape | None:
        return self._emitter.shapes.get(Port(self.node))

    def want_shape(self, slot: int = 0) -> Shape:
        shape = self.shape(slot)
        if shape is None:
            raise unknown_shape(self.node, self.ports[slot])
        return shape

    def axis(self, axis: int) -> int:
        """An axis, counted from the front."""
        return axis if axis >= 0 else axis_of(self.node, axis, len(self.want_shape()))

    # ---- constants --------------------------------------------------------------------------------------------------

    def constant(self, slot: int, array: np.ndarray, dtype: int = FP32, scales: np.ndarray | None = None) -> int:
        """A Const that is called as the parameter of this slot."""
        node = self.ports[slot].node
        name = self._emitter.g.inputs(node)[0].node.name if node.op == "fake_quantize" else node.name
        return self._emitter.add("Const", name, [], (), Tensor(name, CONST, array.shape, dtype, array, scales))

    def weights(self, seen: Window | None = None) -> list[int]:
        """Weight and bias of a layer, in int8 and int32 where it is quantized, with a scale for each output channel.

        A scale per group or per layer is repeated.  seen: the part of the kernel that is written.
        """
        weight, own, data = self.param(1, "weight"), self.quantizer(1), self.quantizer(0)
        weight = weight if seen is None else seen.of(weight)
        biased = len(self.ports) > 2
        if not self.int8:
            return [self.constant(1, weight), *([self.constant(2, self.param(2, "bias"))] if biased else [])]
        if own is None or data is None:
            raise self.refuse("it is not quantized, and an int8 model of Tengine is so from its inputs to its outputs")
        if not own.signed or own.qmin < -127 or own.qmax > 127 or own.zero_point.any():
            raise UnsupportedError(f"{self.node}: Tengine's weights are codes of -127..127; found {own.dtype} from "
                                   f"{own.qmin} to {own.qmax}")
        steps = np.broadcast_to(per_axis(own.scale, own, weight.shape), weight.shape).reshape(len(weight), -1)[:, 0]
        found = [self.constant(1, quantize(weight, own, "half-away"), INT8, steps)]
        if biased:
            bias, qp = self.param(2, "bias"), self.quantizer(2)
            if qp is None or qp.bits != 32:
                raise self.refuse("its bias has no 32-bit codes")
            steps = np.broadcast_to(qp.scale, bias.shape)
            found.append(self.constant(2, quantize(bias, qp, "half-away"), INT32, steps))
        return found

    # ---- layers -----------------------------------------------------------------------------------------------------

    def layer(self, kind: str, inputs: Sequence[int], *params: Param, like: int | None = None, name: str = "",
              dims: Shape | None = None) -> int:
        """Add a node; the number of its tensor.

        like: the tensor whose scale its output has; without, that of this node's output.
        """
        scales = None
        if self.int8:
            scales = self._emitter.tm.tensors[like].scales if like is not None else self._emitter.scale_of(self.node)
        dims = dims if dims is not None else self.out_shape() or ()
        given = self._emitter.name(name or self.node.name)
        return self._emitter.add(kind, given, inputs, params,
                                 Tensor(given, VAR, tuple(dims), INT8 if self.int8 else FP32, scales=scales))

    def activation(self, tensor: int) -> int:
        """A node for the activation that this node carries."""
        act = self.node.fused
        if act is None:
            return tensor
        name = (self.node.origin or ("",))[-1]
        name = name if name and not self._emitter.is_taken(name) else f"{self.node.name}_{act.act}"
        if act.act == "clip":
            return clip(self, tensor, float(act.low), float(act.high), name)
        return self.layer("ReLU", [tensor], 0.0, name=name)


def clip(c: Context, tensor: int, low: float, high: float, name: str = "") -> int:
    """clip(x, 0, 6) has a node of its own, as in Tengine's own files."""
    if (low, high) == (0.0, 6.0):
        return c.layer("ReLU6", [tensor], name=name)
    return c.layer("Clip", [tensor], high, low, name=name)


def new_layer(kind: str, name: str, inputs: Sequence[int], output: int, params: Sequence[Param]) -> Layer:
    return Layer(TYPE_OF[kind], name, list(inputs), [output], tuple(params))
