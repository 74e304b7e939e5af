"""What a model is made of, and what `freeze` would do with it; also of an ONNX, ncnn or Tengine model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qgraph.commands.open_model import open_model
from qgraph.commands.report import count_ops
from qgraph.formats.mxnet_marks import is_frozen_op
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.options import parse_shapes
from qgraph.passes import PIPELINES
from qgraph.passes.insert_fake_quantize import layer_verdicts
from qgraph.semantics.inputs import hinted_shapes, inputs_of
from qgraph.semantics.shapes import infer
from qgraph.targets import base as targets
from qgraph.targets.ncnn.files import SLOTS, Layer
from qgraph.targets.ncnn.int8 import MASK, input_scale, is_int8
from qgraph.targets.ncnn.model import NcnnModel
from qgraph.targets.onnx.model import OnnxModel
from qgraph.targets.tengine import files as tengine_files
from qgraph.targets.tengine.model import TengineModel


def inspect_model(model: Any, *, params: str | None = None, epoch: int | None = None, target: str = "mxnet",
                  exclude: Sequence[str] = (), input_shape: Sequence[str] = ()) -> dict[str, Any]:
    """{"frozen", "inputs", "outputs", "ops": {op: count}, "params": {"arrays", "numbers", "bytes"}, "layers": [...]}.

    A layer of a float model: name, op, weight and output shape (None if not known), origin, "float" (why it would stay
    in float for `target`, "" if it would be quantized), after the float passes.  Of a frozen one: name, op, output type
    and range.  Of an ONNX model, which has "producer" and "opset" too: a float tensor that is rounded to 8 bits or
    fewer, its type, scale, zero point and range.  Of an ncnn model, which has "engine": a layer with weights, its type,
    what its weights are stored as, what it writes, the step of its input, and the options that it does without
    ("mask"); "stopped" is the layer from which on the .bin could not be read.  Of a Tengine model, which has "engine"
    too: a node, the types of its weights and of what it writes, and the step of that.
    """
    g = open_model(model, params, epoch).graph
    if isinstance(g, NcnnModel):
        return _inspect_ncnn(g)
    if isinstance(g, TengineModel):
        return _inspect_tengine(g)
    if isinstance(g, OnnxModel):
        return _inspect_onnx(g)
    frozen = any(is_frozen_op(node) for node in g.dag)
    names = inputs_of(g)
    shapes = {**hinted_shapes(g), **parse_shapes(input_shape, names)}
    found: dict[str, Any] = {
        "frozen": frozen,
        "inputs": {name: list(shapes[name]) if name in shapes else None for name in names},
        "outputs": {},
        "ops": count_ops(g),
        "params": {"arrays": len(g.params), "numbers": sum(a.size for a in g.params.values()),
                   "bytes": sum(a.nbytes for a in g.params.values())},
    }
    known = infer(g, shapes)
    found["outputs"] = {h.key: _shape(known, h) for h in g.heads}
    if frozen:
        found["layers"] = [_integer_layer(n) for n in g.toposort() if is_frozen_op(n)]
        return found
    row = targets.get_target(target)
    for step in PIPELINES["float"]:
        step.run(g)
    known = infer(g, shapes)
    found["target"] = target
    found["layers"] = [_layer(g, node, why, known) for node, why in layer_verdicts(g, row, tuple(exclude)).items()]
    found["ops_after_folding"] = count_ops(g)
    return found


def _shape(known: dict[Port, tuple[int, ...]], port: Port) -> list[int] | None:
    return list(known[port]) if port in known else None


def _layer(g: Graph, node: Node, why: str, known: dict[Port, tuple[int, ...]]) -> dict[str, Any]:
    inputs = g.inputs(node)
    weight = g.param(inputs[1]) if len(inputs) > 1 else None
    return {"name": node.name, "op": node.op, "weight": None if weight is None else list(weight.shape),
            "groups": ops.attr(node, "num_group") if node.op != "FullyConnected" else 1,
            "output": _shape(known, Port(node)), "origin": list(node.origin or (node.name,)), "float": why}


def _integer_layer(node: Node) -> dict[str, Any]:
    low, high = (ops.number(node, key) for key in ops.CALIBRATED)
    row: dict[str, Any] = {"name": node.name, "op": node.op}
    if low is not None and high is not None:
        row["dtype"] = node.attrs.get("out_type") or ("int8" if low < 0 else "uint8")
        row["range"] = [low, high]
    return row


# ---- ONNX -----------------------------------------------------------------------------------------------------------

def _inspect_onnx(model: OnnxModel) -> dict[str, Any]:
    proto = model.proto
    constants = proto.graph.initializer
    ops_found = count_ops(model)
    return {
        "frozen": not {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(ops_found),
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "inputs": {i.name: _dims(i) for i in proto.graph.input if i.name in model.inputs},
        "outputs": {o.name: _dims(o) for o in proto.graph.output},
        "ops": ops_found,
        "params": {"arrays": len(constants), "numbers": sum(math.prod(t.dims) for t in constants),
                   "bytes": sum(map(_bytes, constants))},
        "layers": _onnx_layers(model),
    }


def _dims(value: Any) -> list[int | str] | None:
    """Dimensions, those that may vary by name; None where not even their number is said."""
    kind = value.type.tensor_type
    return [d.dim_param or d.dim_value or "?" for d in kind.shape.dim] if kind.HasField("shape") else None


def _bytes(tensor: Any) -> int:
    from onnx import numpy_helper

    return len(tensor.raw_data) or int(numpy_helper.to_array(tensor).nbytes)


def _onnx_layers(model: OnnxModel) -> list[dict[str, Any]]:
    from onnx import numpy_helper

    arrays = {t.name: t for t in model.proto.graph.initializer}
    made = {node.output[0]: node for node in model.proto.graph.node if node.op_type == "QuantizeLinear"}
    clips = {node.input[0]: node for node in model.proto.graph.node
             if node.op_type == "Clip" and len(node.input) == 3 and {*node.input[1:]} <= set(arrays)}
    rows = []
    for name, codes in model.codes().items():
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


# ---- ncnn -----------------------------------------------------------------------------------------------------------

def _inspect_ncnn(model: NcnnModel) -> dict[str, Any]:
    arrays = [weight.array for layer in model.layers for weight in layer.weights]
    return {
        "frozen": bool(model.int8_layers),
        "engine": "ncnn",
        "inputs": {name: [1, *shape[1:]] if shape else None for name, shape in model.inputs.items()},
        "outputs": dict.fromkeys(model.outputs),
        "ops": model.op_counts,
        "params": {"arrays": len(arrays), "numbers": sum(a.size for a in arrays),
                   "bytes": sum(a.nbytes for a in arrays)},
        "layers": [_ncnn_layer(layer) for layer in model.layers if layer.type in SLOTS and layer.type != "MemoryData"],
        "stopped": model.stopped,
    }


def _ncnn_layer(layer: Layer) -> dict[str, Any]:
    row: dict[str, Any] = {"name": layer.name, "op": layer.type, "mask": layer.number(MASK),
                           "weight": layer.weights[0].array.dtype.name if layer.weights else None,
                           "writes": "int8" if layer.number(8) > 100 else "float32"}
    if is_int8(layer):
        scale = float(input_scale(layer).array[0])
        row["step"] = 1 / scale if scale else None
    return row


# ---- Tengine --------------------------------------------------------------------------------------------------------

def _inspect_tengine(model: TengineModel) -> dict[str, Any]:
    tm = model.tm
    arrays = [tensor.array for tensor in tm.tensors if tensor.array is not None]
    return {
        "frozen": any(t.dtype in (tengine_files.INT8, tengine_files.UINT8) for t in tm.tensors),
        "engine": "Tengine",
        "inputs": {name: [1, *shape[1:]] if shape else None for name, shape in model.inputs.items()},
        "outputs": {tensor.name: list(tensor.dims) or None for tensor in model.output_tensors},
        "ops": model.op_counts,
        "params": {"arrays": len(arrays), "numbers": sum(a.size for a in arrays),
                   "bytes": sum(a.nbytes for a in arrays)},
        "layers": [_tengine_layer(tm, layer) for layer in tm.layers if layer.op != "Const"],
    }


def _tengine_layer(tm: tengine_files.Model, layer: tengine_files.Layer) -> dict[str, Any]:
    written = tm.tensors[layer.outputs[0]]
    weights = [array for array in (tm.tensors[i].array for i in layer.inputs) if array is not None]
    return {"name": layer.name, "op": layer.op, "weight": weights[0].dtype.name if weights else None,
            "writes": np.dtype(tengine_files.DTYPES[written.dtype]).name, "shape": list(written.dims) or None,
            "step": float(written.scales[0]) if written.scales is not None else None}
