"""ONNX (opset 21, IR 10) from a graph, in float or, where it has fake_quantize nodes, as QDQ.

    fq(x)       ->  QuantizeLinear [-> Clip] -> DequantizeLinear          Clip: where 8 bits hold more than the codes
    fq(weight)  ->  integer initializer -> DequantizeLinear     INT4: where it serves size alone, and has the bits
    fq(bias)    ->  int32 initializer -> DequantizeLinear

Tensors keep the names of the graph's nodes; what lies between gets the name of its node with ``/`` and a word.
Converters of single ops are in `nn`, `math`, `shape`, `resample`, `attention`, `recurrent`, `detect` and `boxes`; see
`convert` to add one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

import qgraph
from qgraph.analysis.codes import before_quantizer, fits_codes
from qgraph.errors import GraphError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams, QSpec, per_axis, quantize
from qgraph.semantics.cut import refused_by
from qgraph.semantics.infer import Shape, infer, value_inputs, value_nodes
from qgraph.semantics.inputs import closed, known_channels
from qgraph.targets.onnx import attention, boxes, detect, nn, recurrent, resample  # noqa: F401  (they fill the table)
from qgraph.targets.onnx import math as _math  # noqa: F401
from qgraph.targets.onnx import shape as _shape  # noqa: F401
from qgraph.targets.onnx.convert import CONVERTERS, Context, missing
from qgraph.targets.onnx.model import ORDERS, ORIGINS, SCALES, OnnxModel
from qgraph.targets.onnx.windows import written_window

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

OPSET, IR_VERSION = 21, 10
WIDE_BITS = 16  # ONNX rounds to these too; onnxruntime computes in float with them
SMALL_BITS = 4
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
        emitter, proto = _of_any_size(g, known, check)
    else:
        emitter = _Emitter(g, _shapes(g, known))
        proto = emitter.run(check)
    return OnnxModel(proto, codes=emitter.integers)


def _of_any_size(g: Graph, shapes: dict[str, Sequence[int]], check: bool) -> tuple[_Emitter, ModelProto]:
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
    first, second = (_Emitter(g, table, open_table) for table in tables)
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
    return refused_by(g, _Emitter(g, table).carry)


def carried_ops() -> dict[str, str]:
    """Op -> how an ONNX file carries it: "yes"."""
    return dict.fromkeys(CONVERTERS, "yes")


class _Emitter:
    """shapes: what converters may rely on.  shown: what the file says of its inputs and outputs, if that is less.
    makers: for each ONNX node the node that it was made for."""

    def __init__(self, g: Graph, shapes: dict[Port, Shape], shown: dict[Port, Shape] | None = None) -> None:
        self.g = g
        self.order = g.toposort()
        self.shapes, self._shown = shapes, shapes if shown is None else shown
        self.varying = {port for port, shape in shapes.items() if self._shown.get(port) != shape}
        self.nodes: list[NodeProto] = []
        self.makers: list[Node] = []
        self.constants: dict[str, TensorProto] = {}
        self.tensors: dict[Port, str] = {}
        self.taken = {Port(n, i).key for n in self.order for i in range(n.n_out)}
        self.integers: dict[Node, str] = {}
        self.first_reader: dict[Node, Node] = {}  # of a quantized parameter
        self.stored: dict[Node, str] = {}  # its codes
        self.layers = {before_quantizer(g, g.inputs(n)[1]): n for n in self.order if n.op == "Convolution"}  # by weight
        self._shared: dict[tuple, str] = {}

    # ---- the whole --------------------------------------------------------------------------------------------------

    def run(self, check: bool) -> ModelProto:
        import onnx
        from onnx import helper

        feeds = [n for n in self.order if n.op == "null" and n.name not in self.g.params]
        reached = value_nodes(self.g)
        for node in self.order:
            if node in reached:
                self.carry(node)
                self.makers += [node] * (len(self.nodes) - len(self.makers))
        outputs = [self._output(i, head) for i, head in enumerate(self.g.heads)]
        self._drop_unread(outputs)
        proto = helper.make_model(
            helper.make_graph(
                self.nodes, "qgraph",
                [helper.make_tensor_value_info(n.name, onnx.TensorProto.FLOAT,
                                               self._dims(Port(n)) or self._rank(n, check))
                 for n in feeds if n in reached],
                [onnx.ValueInfoProto(name=name) for name in outputs],
                self._read_constants(outputs)),
            opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="qgraph",
            producer_version=qgraph.__version__)
        orders = {Port(n).key: n.layout for n in self.order if n.layout is not None}
        scales = {Port(n).key: n.scales for n in self.order if n.scales is not None}
        origins = {n.name: n.origin[-1] for n in self.order if n.op not in ("null", "fake_quantize") and n.origin
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
        read, kept = set(outputs), []
        for at, node in reversed([*enumerate(self.nodes)]):
            if read.intersection(node.output):
                read.update(node.input)
                kept.append(at)
        self.makers = [self.makers[at] for at in reversed(kept) if at < len(self.makers)]
        self.nodes = [self.nodes[at] for at in reversed(kept)]

    def _read_constants(self, outputs: list[str]) -> list[TensorProto]:
        """Initializers that some node reads: converters may do without one, such as a gamma that is fixed."""
        read = {name for node in self.nodes for name in node.input}.union(outputs)
        return [tensor for name, tensor in self.constants.items() if name in read]

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
        name = self.tensor(head)
        made = any(name in n.output for n in self.nodes)
        if made and all(self.tensors.get(h) != name for h in self.g.heads[:index]):
            return name
        return self._emit(head.node, "Identity", [name], f"output{index}")

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

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def tensor(self, port: Port) -> str:
        """The ONNX tensor that holds this value; a parameter becomes an initializer when it is first read."""
        if port not in self.tensors:
            self.tensors[port] = self._constant(port.key, self._written(port, self.g.params[port.node.name]),
                                                reserved=True)
        return self.tensors[port]

    def _written(self, port: Port, array: np.ndarray) -> np.ndarray:
        """A parameter as it is written: a kernel without the zero taps that stand for uneven padding."""
        layer = self.layers.get(port)
        return array if layer is None else written_window(self.g, layer).of(array)

    def read(self, reader: Node, port: Port) -> str:
        """Return `tensor(port)`, working around two onnxruntime behaviours.

        1. With x64quantprecision onnxruntime rewrites initializers layer by layer, and fails on the second layer that
           reads one.  So each further layer has a quantizer of its own, and a Reshape to the same shape stands between
           it and the codes, which onnxruntime makes a copy of when it loads the file.
        2. onnxruntime quantizes the weights of a float layer, per tensor, where the layer reads from a DequantizeLinear
           and is read by a QuantizeLinear.  So a Clip without bounds stands in front of a layer that stays in float.
           The same Clip protects a float bias of a layer that reads fewer than 8 bits: onnxruntime would round the bias
           to products of the steps, which are coarse.
        """
        fq = port.node
        if fq.op != "fake_quantize":
            return self.tensor(port)
        array = self.g.param(self.g.inputs(fq)[0])
        if array is not None and isinstance(fq.quant, QParams):
            if self.first_reader.setdefault(fq, reader) is not reader:
                return self._weight(fq, array, fq.quant, self.name(reader, fq.name))  # never cut: it has two readers
        elif ops.kind(reader) == ops.COMPUTE and self._stays_in_float(reader, fq.quant):
            return self._emit(reader, "Clip", [self.tensor(port)], "float")
        return self.tensor(port)

    def _stays_in_float(self, layer: Node, data: QSpec | QParams | None) -> bool:
        weight, *bias = self.g.inputs(layer)[1:3]
        coarse = isinstance(data, QParams) and data.bits != 8 and any(self.g.param(b) is not None for b in bias)
        alone = weight.node.quant is not None and weight.node.quant.alone
        return coarse or alone or self.g.param(weight) is not None

    def name(self, node: Node, hint: str) -> str:
        base = name = f"{node.name}/{hint}"
        number = 0
        while name in self.taken:
            number += 1
            name = f"{base}{number}"
        self.taken.add(name)
        return name

    def _constant(self, name: str, array: np.ndarray, reserved: bool = False, kind: int | None = None) -> str:
        from onnx import helper, numpy_helper

        array = np.asarray(array, order="C")  # not ascontiguousarray, which makes scalars one-dimensional
        if kind is None:
            self.constants[name] = numpy_helper.from_array(array, name)
        else:  # a type that NumPy has not
            self.constants[name] = helper.make_tensor(name, kind, array.shape, _nibbles(array), raw=True)
        return name

    def constant(self, node: Node, array: np.ndarray, hint: str) -> str:
        """An initializer; small equal ones are shared."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else None
        if key is not None and key in self._shared:
            return self._shared[key]
        name = self._constant(self.name(node, hint), array)
        if key is not None:
            self._shared[key] = name
        return name

    def _emit(self, node: Node, op: str, inputs: Sequence[str], hint: str) -> str:
        from onnx import helper

        output = self.name(node, hint)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output))
        return output

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def carry(self, node: Node) -> None:
        """Add what stands for this node. Raises UnsupportedError."""
        if node.op == "null":
            if node.name not in self.g.params:
                self.tensors[Port(node)] = node.name
            return
        if node.op == "fake_quantize":
            self._quantizer(node)
            return
        if node.op not in CONVERTERS:
            raise missing(node)
        context = Context(self, node, value_inputs(self.g, node))
        found = CONVERTERS[node.op](context, *context.inputs)
        results = [found] if isinstance(found, str) else list(found)
        for index, result in enumerate(results):
            self.tensors[Port(node, index)] = self._renamed(context, result, Port(node, index).key)

    def _renamed(self, context: Context, name: str, wanted: str) -> str:
        """What a converter made last takes the name of the graph's node; what it only passed on keeps its own."""
        for made in context.made:
            if name in made.output:
                made.output[list(made.output).index(name)] = wanted
                if made.output[0] == wanted:
                    made.name = wanted
                for other in context.made:
                    for slot, read in enumerate(other.input):
                        if read == name:
                            other.input[slot] = wanted
                return wanted
        return name

    def drops_activation(self, node: Node) -> bool:
        """Every reader rounds to codes that end where the fused activation ends: it changes nothing."""
        uses = self.g.uses(node)
        return bool(uses) and not self.g.is_head(node) and all(fits_codes(node, reader) for reader, _ in uses)

    # ---- quantizers -------------------------------------------------------------------------------------------------

    def _quantizer(self, fq: Node) -> None:
        source = self.g.inputs(fq)[0]
        qp = fq.quant
        if not isinstance(qp, QParams):
            raise UnsupportedError(f"{fq.name}: not calibrated, so it cannot be written")
        array = self.g.param(source)
        if array is not None:
            self.tensors[Port(fq)] = self._weight(fq, self._written(source, array), qp, fq.name)
            return
        if qp.granularity != "tensor" or qp.bits > 8 and qp.bits != WIDE_BITS:
            raise UnsupportedError(f"{fq.name}: want activations with one scale and at most 8 bits, or {WIDE_BITS}, "
                                   f"found {qp.granularity}, {qp.bits} bits")
        dtype = np.dtype(f"{'i' if qp.signed else 'u'}{2 if qp.bits == WIDE_BITS else 1}")
        scale = self.constant(fq, qp.scale, "scale")
        zero = self.constant(fq, qp.zero_point.astype(dtype), "zero_point")
        codes = self._emit(fq, "QuantizeLinear", [self.tensor(source), scale, zero], "codes")
        limits = np.iinfo(dtype)
        if (qp.qmin, qp.qmax) != (limits.min, limits.max):
            ends = [self.constant(fq, np.array(end, dtype), "end") for end in (qp.qmin, qp.qmax)]
            codes = self._emit(fq, "Clip", [codes, *ends], "clipped")
        self.integers[fq] = codes
        self.tensors[Port(fq)] = self._dequantize(fq.name, codes, scale, zero)

    def _dequantize(self, name: str, codes: str, scale: str, zero: str, **attrs: object) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node("DequantizeLinear", [codes, scale, zero], [name], name=name, **attrs))
        return name

    def _weight(self, fq: Node, array: np.ndarray, qp: QParams, wanted: str) -> str:
        import onnx

        if qp.bits > 8 and qp.bits != 32:  # 9 to 16 bits are simulated: the values are on the grid already
            return self._constant(wanted, array)
        codes = quantize(array, qp)
        scale, zero = qp.scale, qp.zero_point
        if qp.granularity == "group":  # ONNX knows one scale per channel
            scale, zero = (np.ravel(per_axis(values, qp, array.shape)) for values in (scale, zero))
        kind = onnx.TensorProto.INT4 if qp.alone and qp.bits <= SMALL_BITS and qp.signed else None
        dtype = np.dtype(np.int32 if qp.bits == 32 else np.int8 if qp.signed else np.uint8)
        name = self._codes(fq, codes.astype(dtype), kind)
        zeros = np.broadcast_to(zero, scale.shape).astype(dtype)
        # never shared: with x64quantprecision onnxruntime rewrites them one by one, and fails on the second reader
        zero_name = self._constant(self.name(fq, "zero_point"), zeros, kind=kind)
        axis = {} if scale.ndim == 0 else {"axis": qp.axis}
        return self._dequantize(wanted, name, self.constant(fq, scale, "scale"), zero_name, **axis)

    def _codes(self, fq: Node, codes: np.ndarray, kind: int | None) -> str:
        """The integers of a parameter, stored when they are first asked for; see `read`."""
        if fq not in self.stored or kind is not None:  # onnxruntime does not reshape what NumPy has no type of
            self.stored[fq] = self._constant(self.name(fq, "codes"), codes, kind=kind)
            return self.stored[fq]
        return self._emit(fq, "Reshape", [self.stored[fq], self.constant(fq, np.array(codes.shape), "shape")], "codes")


def _nibbles(codes: np.ndarray) -> bytes:
    """Two 4-bit codes a byte, the first in the low half."""
    flat = codes.astype(np.uint8).ravel() & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8)).reshape(-1, 2)
    return bytes((flat[:, 0] | flat[:, 1] << 4).tobytes())


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
