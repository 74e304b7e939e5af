"""What freezing did, as plain data: the same input gives the same bytes, so no dates and no times are in it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

import qgraph
from qgraph.analysis.codes import quantizers_behind
from qgraph.analysis.outline import outline
from qgraph.analysis.weight_codes import weight_codes
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import PassRecord
from qgraph.quant.spec import QParams, shown_granularity
from qgraph.quant.table import CalibrationTable
from qgraph.targets.base import Model, Target
from qgraph.targets.mxnet.model import MxnetModel

FORMAT, VERSION = "qgraph-report", 2
_PIECE = 1 << 20  # bytes of a file that are read at once


def build(*, files: Sequence[str], original: Graph, float_graph: Graph, graph: Graph, model: Model,
          verdicts: dict[str, str], table: CalibrationTable | None, records: Sequence[PassRecord],
          findings: Sequence[Any], options: dict[str, Any], target: Target, sizes: tuple[int, int],
          checks: dict[str, Any]) -> dict[str, Any]:
    """The report of one freeze.

    files: of the model.  verdicts: layer -> why it stays in float.  findings: of limit-saturation.  sizes: bytes before
    and after.
    """
    layers = quantized_layers(graph)
    ranges = tensors(graph, table)
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": [{"file": os.path.basename(path), "sha256": sha256_of(path)} for path in files],
        "target": target.name,
        "rounding": target.spec.rounding,
        "options": options,
        "versions": versions(),
        "graph_hash": float_graph.digest(),
        "ops": {"before": MxnetModel(original).op_counts, "after": model.op_counts},
        "passes": [{"name": r.name, "changed": r.changed, "nodes": r.nodes, "ops": dict(r.ops)} for r in records],
        "quantized": layers,
        "layers": {node.name: {"reads": [graph.inputs(fq)[0].key for fq in _data_quantizers(graph, node)],
                               "weights": weight_codes(graph, node)} for node in _quantized(graph)},
        "float": _left_in_float(graph, {layer["name"] for layer in layers}, verdicts,
                                {node.name: why for node, why in target.doubts(float_graph).items()}),
        "saturation": [finding.to_dict() for finding in findings],
        "tensors": ranges,
        "histograms": _histograms(ranges, table),
        "network": outline(graph),
        "calibration": None if table is None else {
            "method": table.method, "images": table.images, "data": table.data, "preprocess": table.preprocess},
        "size": {"before": sizes[0], "after": sizes[1]},
        **checks,
    }


def sha256_of(path: str) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def _histograms(ranges: dict[str, Any], table: CalibrationTable | None) -> dict[str, Any]:
    """Those of the tensors that are quantized, where calibration has counted."""
    names = dict.fromkeys(name for row in ranges.values() for name in row["source"])
    return {name: table.histograms[name] for name in names if table is not None and name in table.histograms}


def versions() -> dict[str, str]:
    found = {"qgraph": qgraph.__version__, "numpy": np.__version__}
    for package in ("mxnet", "onnx", "onnxruntime", "ncnn"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def is_quantized(g: Graph, node: Node) -> bool:
    inputs = g.inputs(node)
    return len(inputs) > 1 and (inputs[1].node.op == "fake_quantize" or node.rounded is not None)


def _quantized(g: Graph) -> list[Node]:
    """Layers with integer weights, in order."""
    return [node for node in g.toposort() if ops.kind(node) == ops.COMPUTE and is_quantized(g, node)]


def _data_quantizers(g: Graph, layer: Node) -> list[Node]:
    """Those whose codes a layer reads, each once."""
    return list(dict.fromkeys(quantizers_behind(g, g.inputs(layer)[0])))


def quantized_layers(g: Graph) -> list[dict[str, Any]]:
    """Layers with integer weights, in order: name, op, the user's nodes in it, types of data and weight."""
    found = []
    for node in _quantized(g):
        data = next(iter(_data_quantizers(g, node)), None)
        weight, granularity = _weight_types(g, node)
        found.append({"name": node.name, "op": node.op, "origin": list(node.origin or (node.name,)),
                      "data": data.quant.dtype if data is not None and data.quant else "float",
                      "weight": weight, "granularity": shown_granularity(granularity)})
    return found


def _weight_types(g: Graph, layer: Node) -> tuple[str, str]:
    """(type, granularity)"""
    if layer.rounded is not None:
        return layer.rounded.dtype, layer.rounded.granularity
    quant = g.inputs(layer)[1].node.quant
    assert quant is not None
    return quant.dtype, quant.granularity


def _left_in_float(g: Graph, quantized: set[str], verdicts: dict[str, str],
                   doubts: dict[str, str]) -> list[dict[str, str]]:
    later = "a later pass left it in float"
    return [{"name": n.name, "op": n.op, "reason": verdicts.get(n.name) or doubts.get(n.name, later)}
            for n in g.toposort() if ops.kind(n) == ops.COMPUTE and n.name not in quantized
            and (n.name in verdicts or not verdicts)]  # a layer that a pass has made is not the user's


def tensors(g: Graph, table: CalibrationTable | None) -> dict[str, Any]:
    """Quantized tensor -> its range and step; of several scales the smallest and the largest.

    scaled: the smallest and the largest factor of its channels, where `equalize` scaled them.
    """
    found: dict[str, Any] = {}
    for fq in g.nodes("fake_quantize"):
        qp, source = fq.quant, g.inputs(fq)[0]
        if not isinstance(qp, QParams) or qp.bits == 32:
            continue
        widest = int(qp.scale.argmax())
        scale, zero = float(qp.scale.ravel()[widest]), int(qp.zero_point.ravel()[widest])
        row: dict[str, Any] = {"dtype": qp.dtype, "low": _short(scale * (qp.qmin - zero)),
                               "high": _short(scale * (qp.qmax - zero))}
        if qp.granularity == "tensor":
            row["scale"] = _short(qp.scale)
        else:
            row["scale"] = [_short(qp.scale.min()), _short(qp.scale.max())]
            row["granularity"] = qp.granularity
        if g.param(source) is None:
            names = qp.source or (source.key,)
            row["source"] = list(names)
            entries = [table.entries[n] for n in names if table is not None and n in table.entries]
            if entries:
                row["observed"] = [_short(min(e.min for e in entries)), _short(max(e.max for e in entries))]
                row["chosen"] = [_short(min(e.low for e in entries)), _short(max(e.high for e in entries))]
                row["sample"] = max(entries, key=lambda entry: max(-entry.min, entry.max)).sample
        else:
            row["source"] = ["weights"]
        if source.node.scales is not None:
            row["scaled"] = [_short(min(source.node.scales)), _short(max(source.node.scales))]
        found[source.key] = row
    return found


def _short(value: Any) -> float:
    return float(f"{float(value):.7g}")
