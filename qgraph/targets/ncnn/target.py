"""Target `ncnn`: int8 layers, .param and .bin, and the scale table of ncnn's own tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qgraph.analysis.codes import folded_graph
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.quant.spec import QSpec
from qgraph.targets.base import Facts, Model, Shapes, Target, Writing
from qgraph.targets.equivalents import equivalents, is_dense_or_depthwise
from qgraph.targets.spec import Spec

_SIGNED = ("activations are -127..127 with one scale: ncnn has no unsigned ones, so what is never negative has 127 "
           "codes")


@dataclass(frozen=True)
class Ncnn(Target):
    name = "ncnn"
    help = "int8 on ncnn: .param, .bin and the scale table of its tools"
    suffix = ".param"
    extra = "ncnn"
    # fewer bits and fewer scales are int8 codes of a smaller range, and scales that are repeated
    spec = Spec(rounding="half-away", weight=QSpec(bits=8, signed=True, narrow=True),
                act=QSpec(bits=8, signed=True, narrow=True), granularities=("tensor", "group", "channel"),
                weight_bits=tuple(range(2, 9)), act_bits=(8,), act_signed=("auto", "signed"))
    # layers with weights read integers and write floats, biases among them
    passes = ("insert-fake-quantize", "calibrate", "round-weights", "bake-weights")
    reads = "a .param of ncnn"
    holds = "in the .bin beside it"
    beside = (".bin",)
    companions = {".bin": "the weights of an ncnn model", ".table": "the scales of an ncnn model"}

    def refuse(self, g: Graph, layer: Node) -> str:
        """Layers that ncnn has no int8 form of, or computes wrongly."""
        if layer.op == "Deconvolution":
            return "ncnn has no int8 transposed convolution"
        if layer.op == "Convolution":
            if not ops.is_2d(layer):
                return "ncnn's int8 convolution is 2-D, NCHW"
            if not is_dense_or_depthwise(g, layer):
                return "ncnn computes grouped int8 convolutions wrongly on x86, but for depthwise ones"
        return ""

    def ops(self) -> Mapping[str, str]:
        from qgraph.targets.ncnn.emit import carried_ops

        return carried_ops()

    def refused(self, g: Graph, shapes: Shapes, *, integer: bool) -> Mapping[Node, str]:
        from qgraph.targets.ncnn.emit import refused

        return refused(g, shapes)

    def write(self, g: Graph, writing: Writing) -> Model:
        from qgraph.targets.ncnn.emit import to_ncnn

        model = to_ncnn(g, writing.shapes)
        model.folded, model.preprocess = folded_graph(g), writing.preprocess
        return model

    def convert(self, g: Graph, shapes: Shapes) -> Model:
        from qgraph.targets.ncnn.emit import to_ncnn

        return to_ncnn(g, shapes)

    def open(self, path: str) -> Model:
        from qgraph.targets.ncnn.model import load

        return load(path)

    def check(self, model: Model, g: Graph, writing: Writing) -> dict[str, Facts]:
        """What the files hold, and what of the choices ncnn has only in another form."""
        from qgraph.targets.ncnn.model import NcnnModel

        assert isinstance(model, NcnnModel)
        return {"ncnn": {
            "inputs": list(model.inputs), "outputs": model.outputs, "int8": len(model.int8_layers),
            "requantized": sum(layer.number(8) > 100 for layer in model.int8_layers),
            "without_winograd": model.masked,
            "equivalents": [_SIGNED] * bool(model.int8_layers) + equivalents(g, writing.table, "ncnn")}}

    def summary(self, report: Mapping[str, Any]) -> list[str]:
        facts = report["ncnn"]
        plain = f", {len(facts['without_winograd'])} do without Winograd" if facts["without_winograd"] else ""
        return [f"ncnn        {facts['int8']} int8 layers, {facts['requantized']} of them write int8{plain}",
                f"blobs       {', '.join(facts['inputs'])} -> {', '.join(facts['outputs'])}"]
