"""What onnxruntime makes of a QDQ model: which of its layers run on integers, and why the others do not."""

from __future__ import annotations

from typing import Any

from qgraph import ops
from qgraph.formats.onnx import OnnxModel
from qgraph.ir import Graph, Node
from qgraph.runtimes.onnxruntime import optimized

INTEGER_OPS = frozenset({
    "QLinearConv", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearMatMul",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "NhwcMaxPool"})
_JOINS = ("elemwise_add", "broadcast_add", "elemwise_mul", "broadcast_mul", "Concat")


def fusion(g: Graph, model: OnnxModel) -> dict[str, Any]:
    """{"ops": {op: count} of onnxruntime's optimized graph, "integer": how many run on integers,
    "float": {quantized node: why it is not an integer op there}}.

    g: the graph with fake_quantize nodes that `model` was written from.
    """
    graph = optimized(model)
    counts: dict[str, int] = {}
    made = {}
    for node in graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
        made.update(dict.fromkeys(node.output, node))
    integer = sum(count for op, count in counts.items() if op in INTEGER_OPS)
    left = {}
    for node in g.toposort():
        if _quantized(g, node):
            why = _why_float(g, node, made, model)
            if why:
                left[node.name] = why
    return {"ops": dict(sorted(counts.items())), "integer": integer, "float": left}


def _quantized(g: Graph, node: Node) -> bool:
    """A layer, sum, product or concatenation of quantized tensors only."""
    inputs = g.inputs(node)
    if ops.kind(node) == ops.COMPUTE:
        return len(inputs) > 1 and all(p.node.op == "fake_quantize" for p in inputs[:2])
    return node.op in _JOINS and len(inputs) > 1 and all(p.node.op == "fake_quantize" for p in inputs)


def _why_float(g: Graph, node: Node, made: dict[str, Any], model: OnnxModel) -> str:
    """"" for what became an integer op: the one that makes its codes, or the floats of a fully connected layer."""
    readers = g.readers(node)
    tensors = [model.integers[v] for v in readers if v in model.integers]
    tensors = [t.replace("/clipped", "/codes") for t in tensors] or [node.name]
    for tensor in (*tensors, *(f"{node.name}/{word}" for word in ("conv", "gemm", "add", "concat"))):
        maker = made.get(tensor)
        while maker is not None and maker.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            maker = made.get(maker.input[0])
        if maker is not None:
            if maker.op_type in INTEGER_OPS or (maker.op_type == "Concat" and tensor in tensors and readers):
                return ""
            if maker.op_type == "QuantizeLinear":
                inner = made.get(maker.input[0])
                return f"onnxruntime runs {inner.op_type if inner is not None else node.op} in float"
            return f"onnxruntime runs {maker.op_type} in float"
    return "not found in onnxruntime's optimized graph"
