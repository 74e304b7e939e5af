"""Target `tengine`: int8 from inputs to outputs, .tmfile and the scale file of Tengine's own tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.quant.spec import QSpec
from qgraph.targets.base import Facts, Model, Shapes, Target, Writing
from qgraph.targets.equivalents import equivalents, quantized_weights
from qgraph.targets.spec import Spec

_SIGNED = ("every value is -127..127 with one scale, inputs and outputs too: Tengine's int8 has no unsigned codes, so "
           "what is never negative has 127")


@dataclass(frozen=True)
class Tengine(Target):
    name = "tengine"
    help = "int8 on Tengine: .tmfile, and the scale file of its tools"
    suffix = ".tmfile"
    spec = Spec(rounding="half-away", weight=QSpec(bits=8, signed=True, narrow=True),
                act=QSpec(bits=8, signed=True, narrow=True), granularities=("tensor", "group", "channel"),
                weight_bits=tuple(range(2, 9)), act_bits=(8,), act_signed=("auto", "signed"))
    all_integers = True
    passes = ("insert-fake-quantize", "quantize-everything", "calibrate", "fit-bias", "round-weights", "quantize-bias",
              "bake-weights")
    reads = "a .tmfile of Tengine"
    companions = {".scale": "the scales of a Tengine model"}
    quantizes_between = True

    @property
    def parts_shortcuts(self) -> bool:
        return True

    def refuse(self, g: Graph, layer: Node) -> str:
        """Layers that Tengine has no int8 form of, or that crash in it."""
        if layer.op == "Deconvolution":
            return "Tengine has no int8 transposed convolution that is known to work"
        if layer.op == "Convolution" and not ops.is_2d(layer):
            return "Tengine's convolution is 2-D, NCHW"
        weight = g.param(g.inputs(layer)[1])
        if weight is not None and len(weight) == 1:
            return "Tengine's int8 layers crash with one output channel; give it a second one (of zeros)"
        return ""

    def check_integer(self, g: Graph, node: Node) -> None:
        from qgraph.targets.tengine.check import check_integer

        check_integer(g, node, self.refuse)

    def ops(self) -> Mapping[str, str]:
        from qgraph.targets.tengine.emit import carried_ops

        return carried_ops()

    def refused(self, g: Graph, shapes: Shapes, *, integer: bool) -> Mapping[Node, str]:
        from qgraph.targets.tengine.emit import refused

        return refused(g, shapes, self.refuse if integer else None)

    def write(self, g: Graph, writing: Writing) -> Model:
        from qgraph.targets.tengine.emit import frozen_tengine

        model = frozen_tengine(g, writing.shapes)
        model.preprocess = writing.preprocess
        return model

    def convert(self, g: Graph, shapes: Shapes) -> Model:
        from qgraph.targets.tengine.emit import to_tengine
        from qgraph.targets.tengine.model import with_export

        return with_export(to_tengine(g, shapes), g, shapes)

    def open(self, path: str) -> Model:
        from qgraph.targets.tengine.model import load

        return load(path)

    def check(self, model: Model, g: Graph, writing: Writing) -> dict[str, Facts]:
        """What the file holds, and what of the choices Tengine has only in another form.

        The file, read back and executed on `writing.feeds`, must give the integers of `g`, every one.
        """
        from qgraph.targets.tengine.model import TengineModel, check_read_back

        assert isinstance(model, TengineModel)
        if writing.feeds is not None:
            check_read_back(g, model, writing.feeds)
        return {"tengine": {
            "inputs": list(model.inputs), "outputs": model.outputs, "ops": model.op_counts,
            "read_back_images": 0 if writing.feeds is None else len(next(iter(writing.feeds.values()))),
            "equivalents": [_SIGNED] * bool(quantized_weights(g)) + equivalents(g, writing.table, "tengine")}}

    def summary(self, report: Mapping[str, Any]) -> list[str]:
        facts = report["tengine"]
        lines = [f"tengine     {', '.join(facts['inputs'])} -> {', '.join(facts['outputs'])}"]
        if facts["read_back_images"]:
            lines.append(f"read back   the frozen graph's integers, every one, on {facts['read_back_images']} images")
        return lines
