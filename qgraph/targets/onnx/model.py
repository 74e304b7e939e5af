"""An ONNX model in memory, ours or anybody's: what it reads, writes and holds, and its file."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qgraph.analysis.channels import in_the_users_order, unscaled
from qgraph.errors import OptionError
from qgraph.files import Content
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.targets.base import Description, Executor, Feeds, Model, Shapes, Tensors
from qgraph.targets.onnx.read import read
from qgraph.targets.onnx.runtime import Executor as Runtime

ORDERS = "qgraph.channel_order"  # metadata: JSON, tensor -> order of its channels (`Node.layout`)
SCALES = "qgraph.channel_scales"  # metadata: JSON, tensor -> factors of its channels (`Node.scales`)
ORIGINS = "qgraph.origin"  # metadata: JSON, tensor -> the node of the user's model that has this value
_LAYERS = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose", "Add", "Concat", "MaxPool", "AveragePool",
                     "GlobalAveragePool", "GlobalMaxPool"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Codes:
    """Where an integer tensor of a model is, and what its codes stand for: scale * (code - zero_point)."""

    tensor: str
    scale: float
    zero_point: int


class OnnxModel(Model):
    """An ONNX model in memory, ours or anybody's.

    codes: fake_quantize -> tensor of its codes, in a model that was just written.
    """

    kind = "an ONNX model"
    engine = "onnxruntime.InferenceSession"

    def __init__(self, proto: Any, size: int | None = None, codes: Mapping[Node, str] | None = None) -> None:
        self.proto, self._codes = proto, codes or {}
        self._size = size

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return int(self.proto.ByteSize()) if self._size is None else self._size

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """What is fed: name -> shape, 0 for a dimension that may vary."""
        constants = {t.name for t in self.proto.graph.initializer}
        return {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim)
                for i in self.proto.graph.input if i.name not in constants}

    @property
    def outputs(self) -> list[str]:
        return [o.name for o in self.proto.graph.output]

    @property
    def known_shapes(self) -> dict[str, list[int] | None]:
        return {name: list(shape) or None for name, shape in self.inputs.items()}

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Its initializers by name, each of its own shape."""
        from onnx import numpy_helper

        return {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}

    @property
    def op_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(node.op_type for node in self.proto.graph.node).items()))

    @property
    def codes(self) -> Mapping[Node, Hashable]:
        return self._codes

    @property
    def frozen(self) -> bool:
        return not _QUANTIZERS.isdisjoint(self.op_counts)

    @property
    def channel_orders(self) -> dict[str, np.ndarray]:
        """Tensors whose channels are not in the user's order: name -> order, shape (channels,). See `Node.layout`."""
        return {name: np.array(order) for name, order in self._metadata(ORDERS).items()
                if isinstance(order, list) and all(type(i) is int for i in order)
                and sorted(order) == list(range(len(order)))}

    @property
    def channel_scales(self) -> dict[str, np.ndarray]:
        """Tensors whose channels are not as large as the user's: name -> factors, of shape (channels,).

        See `Node.scales`.
        """
        return {name: np.array(scales) for name, scales in self._metadata(SCALES).items()
                if isinstance(scales, list) and scales and all(type(s) is float and 0 < s < math.inf for s in scales)}

    @property
    def origins(self) -> dict[str, str]:
        """Tensors that in the user's model are called otherwise: those of layers into which others were folded."""
        return {name: origin for name, origin in self._metadata(ORIGINS).items() if isinstance(origin, str)}

    def _metadata(self, key: str) -> dict[str, Any]:
        for entry in self.proto.metadata_props:
            if entry.key == key:
                try:
                    found = json.loads(entry.value)
                except (ValueError, RecursionError):
                    break
                return found if isinstance(found, dict) else {}
        return {}

    def roundings(self) -> dict[str, Codes]:
        """Float tensor -> the integers it is rounded to, for every QuantizeLinear of one scale."""
        from onnx import numpy_helper

        constants = {t.name: t for t in self.proto.graph.initializer}
        found: dict[str, Codes] = {}
        for node in self.proto.graph.node:
            if node.op_type != "QuantizeLinear" or node.input[0] in found:
                continue
            scale = constants.get(node.input[1])
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if scale is not None and not scale.dims and (zero is not None or len(node.input) < 3):
                found[node.input[0]] = Codes(node.output[0], float(numpy_helper.to_array(scale)),
                                             0 if zero is None else int(numpy_helper.to_array(zero)))
        return found

    def to_bytes(self) -> bytes:
        """The content of the .onnx file."""
        return bytes(self.proto.SerializeToString(deterministic=True))

    def files(self, prefix: str) -> dict[str, Content]:
        return {f"{prefix}.onnx": self.to_bytes()}

    def executor(self, watch: Sequence[Any] | None = None, *, precise: bool = False) -> Executor:
        return Runtime(self, watch)

    def executor_on(self, engine: str, watch: Sequence[Any] | None = None) -> Executor:
        from qgraph.targets.onnx import openvino_runtime

        return openvino_runtime.Executor(self, watch) if engine == openvino_runtime.NAME else self.executor(watch)

    def operator_seconds(self, feeds: Feeds, runs: int) -> Mapping[str, float]:
        from qgraph.targets.onnx.profile import operator_seconds

        return operator_seconds(self, feeds, runs)

    def refuse_engine(self, name: str) -> None:
        if name == "mxnet":
            raise OptionError("--runtime mxnet: MXNet cannot run an ONNX model, onnxruntime and openvino can")

    def logits(self, g: Graph) -> list[Hashable | None]:
        made = {output for node in self.proto.graph.node for output in node.output}
        keys = [g.inputs(h.node)[0].key if ops.head(h.node) else None for h in g.heads]
        return [key if key in made else None for key in keys]

    def tensors(self) -> Tensors:
        return OnnxTensors(self)

    def describe(self, shapes: Shapes | None = None) -> Description:
        """A row is a float tensor that is rounded to 8 bits or fewer: its type, scale, zero point and range."""
        proto, constants = self.proto, self.proto.graph.initializer
        body: dict[str, Any] = {
            "frozen": self.frozen,
            "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
            "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
            "inputs": {i.name: _dims(i) for i in proto.graph.input if i.name in self.inputs},
            "outputs": {o.name: _dims(o) for o in proto.graph.output},
            "ops": self.op_counts,
            "params": {"arrays": len(constants), "numbers": sum(math.prod(t.dims) for t in constants),
                       "bytes": sum(map(_bytes, constants))},
            "layers": self._rounded_rows()}
        opset = ", ".join(f"{domain} {version}" for domain, version in body["opset"].items())
        rows = [(row["name"], row["dtype"], f"{row['scale']:.4g}", row["zero_point"],
                 "{:.5g} .. {:.5g}".format(*row["range"]) if "range" in row else "") for row in body["layers"]]
        return Description(body, [f"{'producer':<8} {body['producer'] or '?'}, opset {opset}"],
                           ("tensor", "type", "scale", "zero point", "range"), rows)

    def _rounded_rows(self) -> list[dict[str, Any]]:
        from onnx import numpy_helper

        arrays = {t.name: t for t in self.proto.graph.initializer}
        made = {node.output[0]: node for node in self.proto.graph.node if node.op_type == "QuantizeLinear"}
        clips = {node.input[0]: node for node in self.proto.graph.node
                 if node.op_type == "Clip" and len(node.input) == 3 and {*node.input[1:]} <= set(arrays)}
        rows = []
        for name, codes in self.roundings().items():
            inputs = made[codes.tensor].input
            dtype = numpy_helper.to_array(arrays[inputs[2]]).dtype if len(inputs) > 2 else np.dtype(np.uint8)
            row = {"name": name, "scale": codes.scale, "zero_point": codes.zero_point, "dtype": dtype.name}
            if dtype.name in ("int8", "uint8", "int16", "uint16"):
                ends = [np.iinfo(dtype).min, np.iinfo(dtype).max]
                if codes.tensor in clips:  # fewer bits than the type holds
                    ends = [int(numpy_helper.to_array(arrays[end])) for end in clips[codes.tensor].input[1:]]
                row["range"] = [codes.scale * (end - codes.zero_point) for end in ends]
            rows.append(row)
        return rows


def _dims(value: Any) -> list[int | str] | None:
    """Dimensions, those that may vary by name; None where not even their number is said."""
    kind = value.type.tensor_type
    return [d.dim_param or d.dim_value or "?" for d in kind.shape.dim] if kind.HasField("shape") else None


def _bytes(tensor: Any) -> int:
    from onnx import numpy_helper

    return len(tensor.raw_data) or int(numpy_helper.to_array(tensor).nbytes)


class OnnxTensors(Tensors):
    """Of a quantized layer the codes are watched, so that onnxruntime fuses it as ever."""

    no_advice = "A is an ONNX model, want the float MXNet model"

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.codes, self.orders = model.roundings(), model.channel_orders
        self.scales = model.channel_scales
        self.made = {name: node.op_type for node in model.proto.graph.node for name in node.output}
        self.names = {name: name for name in self.made}  # the user's name -> the tensor

    def common(self, other: Tensors) -> list[str]:
        """Of two ONNX models tensors are called as in the user's: a converted one has them all, a frozen one folds
        layers.  And what is a layer here may be its relu there."""
        if not isinstance(other, OnnxTensors):
            return super().common(other)
        self._use_origins()
        other._use_origins()
        wanted = {*super().common(other), *filter(self.has, other.comparable())}
        return [name for name in self.names if name in wanted]

    def _use_origins(self) -> None:
        origins = self.model.origins
        self.names = {**self.names, **{origins[name]: name for name in self.made if name in origins}}
        for name in origins.keys() - set(origins.values()):
            self.names.pop(name, None)

    def comparable(self) -> list[str]:
        return [name for name, tensor in self.names.items() if self.made[tensor] in _LAYERS or tensor in self.codes]

    def has(self, name: str) -> bool:
        return name in self.names

    def op(self, name: str) -> str:
        return self.made[self.names[name]]

    def watch(self, names: Sequence[str]) -> list[Hashable]:
        tensors = [self.names[name] for name in names]
        return [*self.model.outputs, *(self.codes[t].tensor if t in self.codes else t for t in tensors)]

    def reals(self, names: Sequence[str], values: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        for name, value in zip(names, values):
            tensor = self.names[name]
            if tensor in self.codes:
                known = self.codes[tensor]
                value = (value.astype(np.float32) - known.zero_point) * np.float32(known.scale)
            yield unscaled(in_the_users_order(value, self.orders.get(tensor)), self.scales.get(tensor))


def load(path: str | os.PathLike[str]) -> OnnxModel:
    """Read an .onnx file. Raises FormatError for other files, and for a model with its weights in other files."""
    name = os.fspath(path)
    return OnnxModel(read(name), os.path.getsize(name))
