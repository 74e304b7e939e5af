"""The nodes and initializers of an ONNX file, made node by node of the graph; `emit` puts the file together.

Tensors keep the names of the graph's nodes; what lies between gets the name of its node with ``/`` and a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qgraph.analysis.codes import before_quantizer, fits_codes
from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams, QSpec, per_axis, quantize
from qgraph.semantics.infer import Shape, value_inputs
from qgraph.targets.onnx.convert import CONVERTERS, Context, missing
from qgraph.targets.onnx.windows import written_window

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

WIDE_BITS = 16  # ONNX rounds to these too; onnxruntime computes in float with them
SMALL_BITS = 4


class NodeWriter:
    """shapes: what converters may rely on, but for those in `varying`.

    nodes, constants: what was made so far, initializers by name.  tensors: ONNX tensor of a port.
    integers: activation quantizer -> the tensor of its codes.
    """

    def __init__(self, g: Graph, shapes: dict[Port, Shape], varying: set[Port] | None = None) -> None:
        self.g, self.shapes, self.varying = g, shapes, varying or set()
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.tensors: dict[Port, str] = {}
        self.integers: dict[Node, str] = {}
        order = g.toposort()
        self._taken = {Port(n, i).key for n in order for i in range(n.n_out)}
        self._first_reader: dict[Node, Node] = {}  # of a quantized parameter
        self._stored: dict[Node, str] = {}  # its codes
        self._layers = {before_quantizer(g, g.inputs(n)[1]): n for n in order if n.op == "Convolution"}  # by weight
        self._shared: dict[tuple, str] = {}

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def tensor(self, port: Port) -> str:
        """The ONNX tensor that holds this value; a parameter becomes an initializer when it is first read."""
        if port not in self.tensors:
            self.tensors[port] = self._constant(port.key, self._written(port, self.g.params[port.node.name]),
                                                reserved=True)
        return self.tensors[port]

    def _written(self, port: Port, array: np.ndarray) -> np.ndarray:
        """A parameter as it is written: a kernel without the zero taps that stand for uneven padding."""
        layer = self._layers.get(port)
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
            if self._first_reader.setdefault(fq, reader) is not reader:
                return self._weight(fq, array, fq.quant, self.name(reader, fq.name))  # never cut: it has two readers
        elif ops.kind(reader) == ops.COMPUTE and self._stays_in_float(reader, fq.quant):
            return self.emit(reader, "Clip", [self.tensor(port)], "float")
        return self.tensor(port)

    def _stays_in_float(self, layer: Node, data: QSpec | QParams | None) -> bool:
        weight, *bias = self.g.inputs(layer)[1:3]
        coarse = isinstance(data, QParams) and data.bits != 8 and any(self.g.param(b) is not None for b in bias)
        alone = weight.node.quant is not None and weight.node.quant.alone
        return coarse or alone or self.g.param(weight) is not None

    def name(self, node: Node, hint: str) -> str:
        base = name = f"{node.name}/{hint}"
        number = 0
        while name in self._taken:
            number += 1
            name = f"{base}{number}"
        self._taken.add(name)
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

    def emit(self, node: Node, op: str, inputs: Sequence[str], hint: str) -> str:
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
        codes = self.emit(fq, "QuantizeLinear", [self.tensor(source), scale, zero], "codes")
        limits = np.iinfo(dtype)
        if (qp.qmin, qp.qmax) != (limits.min, limits.max):
            ends = [self.constant(fq, np.array(end, dtype), "end") for end in (qp.qmin, qp.qmax)]
            codes = self.emit(fq, "Clip", [codes, *ends], "clipped")
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
        if fq not in self._stored or kind is not None:  # onnxruntime does not reshape what NumPy has no type of
            self._stored[fq] = self._constant(self.name(fq, "codes"), codes, kind=kind)
            return self._stored[fq]
        return self.emit(fq, "Reshape", [self._stored[fq], self.constant(fq, np.array(codes.shape), "shape")], "codes")


def _nibbles(codes: np.ndarray) -> bytes:
    """Two 4-bit codes a byte, the first in the low half."""
    flat = codes.astype(np.uint8).ravel() & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8)).reshape(-1, 2)
    return bytes((flat[:, 0] | flat[:, 1] << 4).tobytes())
