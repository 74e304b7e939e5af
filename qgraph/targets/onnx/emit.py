"""ONNX (opset 21, IR 10) from a graph, in float or, where it has fake_quantize nodes, as QDQ.

    fq(x)       ->  QuantizeLinear [-> Clip] -> DequantizeLinear          Clip: where 8 bits hold more than the codes
    fq(weight)  ->  integer initializer -> DequantizeLinear     INT4: where it serves size alone, and has the bits
    fq(bias)    ->  int32 initializer -> DequantizeLinear

`nodes` writes the nodes one by one; converters of single ops are in `nn`, `math`, `shape`, `resample`, `attention`,
`recurrent`, `detect` and `boxes`; see `convert` to add one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import qgraph
from qgraph.errors import GraphError, UnsupportedError
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.cut import refused_by
from qgraph.semantics.infer import Shape, infer, value_nodes
from qgraph.semantics.inputs import closed, known_channels
from qgraph.targets.onnx import attention, boxes, detect, nn, recurrent, resample  # noqa: F401  (they fill the table)
from qgraph.targets.onnx import math as _math  # noqa: F401
from qgraph.targets.onnx import shape as _shape  # noqa: F401
from qgraph.targets.onnx.convert import CONVERTERS
from qgraph.targets.onnx.model import ORDERS, ORIGINS, SCALES, OnnxModel
from qgraph.targets.onnx.nodes import NodeWriter

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

OPSET, IR_VERSION = 21, 10
BATCH = "N"


def to_onnx(g: Graph, shapes: Mapping[str, Sequence[int]] | None = None, *,
            check: bool = True) -> OnnxModel:
    """The graph as an ONNX model, whose batch size may vary.

    shapes: of the inputs by name, with any batch size; some ops need them, and without them heights and widths may vary
    too, as sizes do that are 0.  check: run `onnx.checker`, with shape inference.
    Raises UnsupportedError naming the node that ONNX, or a converter, cannot carry.
    """
    known = dict(shapes or {})
    if any(0 in shape[1:] for shape in known.values()):
        file, proto = _of_any_size(g, known, check)
    else:
        file = _File(g, _shapes(g, known))
        proto = file.run(check)
    return OnnxModel(proto, codes=file.writer.integers)


def _of_any_size(g: Graph, shapes: dict[str, Sequence[int]], check: bool) -> tuple[_File, ModelProto]:
    """What comes out for two choices of the sizes that are left open, if it is the same.

    Raises UnsupportedError naming the first node whose ONNX form depends on them.
    """
    tables = []
    for choice in range(2):
        try:
            tables.append(_shapes(g, {name: closed(shape, choice) for name, shape in shapes.items()}))
        except GraphError as error:
            raise UnsupportedError(f"sizes cannot be left open in this model: {error}; give numbers in --input-shape"
                                   ) from error
    open_table = {port: tuple(a if a == b else -1 for a, b in zip(shape, tables[1][port]))
                  for port, shape in tables[0].items() if len(tables[1].get(port, ())) == len(shape)}
    first, second = (_File(g, table, open_table) for table in tables)
    proto, other = first.run(check), second.run(check=False)
    if (at := _first_difference(proto.graph, other.graph)) is not None:
        node = first.makers[min(at, len(first.makers) - 1)]
        raise UnsupportedError(f"{node}: its ONNX form depends on the sizes that are left open; give numbers in "
                               "--input-shape, or end the model before it with --outputs NAME")
    return first, proto


def _first_difference(first: GraphProto, second: GraphProto) -> int | None:
    """The number of the first node that is not the same in both, or reads other constants."""
    own, others = ({t.name: t for t in graph.initializer} for graph in (first, second))
    for number, (a, b) in enumerate(zip(first.node, second.node)):
        if a != b or any(own.get(name) != others.get(name) for name in a.input):
            return number
    return None if len(first.node) == len(second.node) else min(len(first.node), len(second.node))


def refused(g: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[Node, str]:
    """Node -> why it cannot be carried, see `Target.refused`."""
    table = _shapes(g, {name: closed(shape) for name, shape in shapes.items()})
    return refused_by(g, NodeWriter(g, table).carry)


def carried_ops() -> dict[str, str]:
    """Op -> how an ONNX file carries it: "yes"."""
    return dict.fromkeys(CONVERTERS, "yes")


class _File:
    """shown: what the file says of its inputs and outputs, if that is less than `shapes`.
    makers: for each ONNX node the node that it was made for."""

    def __init__(self, g: Graph, shapes: dict[Port, Shape], shown: dict[Port, Shape] | None = None) -> None:
        self.g = g
        self._shown = shapes if shown is None else shown
        self.writer = NodeWriter(g, shapes, {port for port, shape in shapes.items()
                                             if self._shown.get(port) != shape})
        self.makers: list[Node] = []

    def run(self, check: bool) -> ModelProto:
        import onnx
        from onnx import helper

        order = self.g.toposort()
        feeds = [n for n in order if n.op == "null" and n.name not in self.g.params]
        reached = value_nodes(self.g)
        for node in order:
            if node in reached:
                self.writer.carry(node)
                self.makers += [node] * (len(self.writer.nodes) - len(self.makers))
        outputs = [self._output(i, head) for i, head in enumerate(self.g.heads)]
        self._drop_unread(outputs)
        proto = helper.make_model(
            helper.make_graph(
                self.writer.nodes, "qgraph",
                [helper.make_tensor_value_info(n.name, onnx.TensorProto.FLOAT,
                                               self._dims(Port(n)) or self._rank(n, check))
                 for n in feeds if n in reached],
                [onnx.ValueInfoProto(name=name) for name in outputs],
                self._read_constants(outputs)),
            opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="qgraph",
            producer_version=qgraph.__version__)
        orders = {Port(n).key: n.layout for n in order if n.layout is not None}
        scales = {Port(n).key: n.scales for n in order if n.scales is not None}
        origins = {n.name: n.origin[-1] for n in order if n.op not in ("null", "fake_quantize") and n.origin
                   and n.origin[-1] != n.name}
        found = {key: json.dumps(value) for key, value in ((ORDERS, orders), (SCALES, scales), (ORIGINS, origins))
                 if value}
        if found:
            helper.set_model_props(proto, found)
        for output, head in zip(proto.graph.output, self.g.heads):
            if head in self._shown:
                output.CopyFrom(helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, self._dims(head)))
        if check:
            self._check(proto)
        return proto

    def _drop_unread(self, outputs: list[str]) -> None:
        """Drop nodes that no output depends on: a converter may know already what its inputs are."""
        read, kept, nodes = set(outputs), [], self.writer.nodes
        for at, node in reversed([*enumerate(nodes)]):
            if read.intersection(node.output):
                read.update(node.input)
                kept.append(at)
        self.makers = [self.makers[at] for at in reversed(kept) if at < len(self.makers)]
        self.writer.nodes = [nodes[at] for at in reversed(kept)]

    def _read_constants(self, outputs: list[str]) -> list[TensorProto]:
        """Initializers that some node reads: converters may do without one, such as a gamma that is fixed."""
        read = {name for node in self.writer.nodes for name in node.input}.union(outputs)
        return [tensor for name, tensor in self.writer.constants.items() if name in read]

    def _dims(self, port: Port) -> list[str | int] | None:
        known = self._shown.get(port)
        if known is None:
            return None
        return [BATCH if d == -1 and axis == 0 else f"{port.key}_{axis}" if d == -1 else d
                for axis, d in enumerate(known)]

    def _rank(self, feed: Node, wanted: bool) -> list[str | int] | None:
        """The dimensions of an input of unknown shape, as far as the weights tell them.

        Raises UnsupportedError if they are wanted (the checker wants their number) and not known.
        """
        dims = known_channels(self.g)[feed.name]
        if not dims:
            if not wanted:
                return None
            raise UnsupportedError(f"{feed.name}: not even the number of dimensions of this input is known; "
                                   f"--input-shape {feed.name}:1,3,224,224 (with the right numbers) tells it")
        return [BATCH, *(d or f"{feed.name}_{axis}" for axis, d in enumerate(dims[1:], 1))]

    def _output(self, index: int, head: Port) -> str:
        """Outputs are distinct tensors that some node makes."""
        writer = self.writer
        name = writer.tensor(head)
        made = any(name in n.output for n in writer.nodes)
        if made and all(writer.tensors.get(h) != name for h in self.g.heads[:index]):
            return name
        return writer.emit(head.node, "Identity", [name], f"output{index}")

    @staticmethod
    def _check(proto: ModelProto) -> None:
        import onnx

        if proto.ByteSize() >= 1 << 31:  # protobuf cannot hand it to the checker
            return
        try:
            if not all(output.HasField("type") for output in proto.graph.output):
                found = onnx.shape_inference.infer_shapes(proto)
                for output, inferred in zip(proto.graph.output, found.graph.output):
                    output.CopyFrom(inferred)
            onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise UnsupportedError(f"the ONNX model is not valid: {' '.join(str(error).split())[:300]}") from error


def _shapes(g: Graph, shapes: dict[str, Sequence[int]]) -> dict[Port, Shape]:
    """Shape of every known port, -1 for a dimension that depends on the batch size, unless it is fixed to 1."""
    if not all(n.name in shapes for n in g.data_inputs() if g.uses(n)) and not shapes:
        return {}
    try:
        first, second = (infer(g, {name: (batch, *shape[1:]) for name, shape in shapes.items()}) for batch in (2, 3))
    except GraphError:
        return infer(g, {name: (1, *shape[1:]) for name, shape in shapes.items()})
    return {port: tuple(a if a == b else -1 for a, b in zip(shape, second[port])) for port, shape in first.items()
            if port in second and len(second[port]) == len(shape)}
