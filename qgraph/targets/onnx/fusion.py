"""What onnxruntime makes of a QDQ model: which of its layers run on integers, and why the others do not."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from qgraph.analysis.codes import combines_codes
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.targets.onnx.model import OnnxModel
from qgraph.targets.onnx.runtime import optimized

INTEGER_OPS = frozenset({
    "QLinearConv", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearMatMul",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "NhwcMaxPool"})
_SUFFIX = re.compile(r"(_token_\d+|_quant|_nchwc)+$")


def fusion(g: Graph, model: OnnxModel) -> dict[str, Any]:
    """{"ops": {op: count} of onnxruntime's optimized graph, "integer": how many run on integers,
    "float": {quantized node: why it is not an integer op there}}.

    g: the graph with fake_quantize nodes that `model` was written from.
    """
    counts: Counter[str] = Counter()
    made: dict[str, set[str]] = {}  # node of g -> ops that onnxruntime runs for it
    for node in optimized(model).node:
        counts[node.op_type] += 1
        # onnxruntime appends to the names of what it fuses, and before 1.20 keeps only those of the outputs; ours end,
        # or go on with a slash
        for name in (node.name, *node.output):
            made.setdefault(node_of(name), set()).add(node.op_type)
    left = {}
    for layer in filter(lambda n: _quantized(g, n), g.toposort()):
        found = made.get(layer.name, set())
        if not found & INTEGER_OPS:
            left[layer.name] = f"onnxruntime runs {', '.join(sorted(found))} in float" if found else (
                "not found in onnxruntime's optimized graph")
    integer = sum(count for op, count in counts.items() if op in INTEGER_OPS)
    return {"ops": dict(sorted(counts.items())), "integer": integer, "float": left}


def node_of(name: str) -> str:
    """The node of the graph that an operator of onnxruntime's optimized graph was made for, by its name."""
    return _SUFFIX.sub("", name).split("/")[0]


def _quantized(g: Graph, node: Node) -> bool:
    """A layer, sum, product or concatenation of quantized tensors only."""
    inputs = g.inputs(node)
    if ops.kind(node) == ops.COMPUTE:
        return len(inputs) > 1 and all(p.node.op == "fake_quantize" for p in inputs[:2])
    return combines_codes(node) and len(inputs) > 1 and all(p.node.op == "fake_quantize" for p in inputs)
