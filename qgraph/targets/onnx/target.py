"""Target `onnx`: QDQ models for onnxruntime and others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qgraph.errors import OptionError
from qgraph.ir.graph import Graph, Node
from qgraph.quant.recipe import IN_FLOAT
from qgraph.quant.spec import QSpec
from qgraph.targets.base import KEEP_CODES, Facts, Model, Shapes, Target, Writing
from qgraph.targets.spec import FLOATS, Form, Spec

ISAS = ("auto", "vnni", "avx2")
FORMS = (  # onnxruntime has kernels of integers for 8 bits alone
    Form(tuple(range(2, 9)), tuple(range(2, 9))),
    Form(tuple(range(2, 9)), (16,), FLOATS),
    Form(tuple(range(2, 5)), (IN_FLOAT,), FLOATS, stored=4),
    Form(tuple(range(5, 9)), (IN_FLOAT,), FLOATS),
)


@dataclass(frozen=True)
class Onnx(Target):
    name = "onnx"
    help = "QDQ for onnxruntime and others: 2 to 8 bits, any granularity"
    suffix = ".onnx"
    spec = Spec(rounding="half-even", weight=QSpec(bits=8, signed=True, narrow=True),
                act=QSpec(bits=8, signed=False, symmetric=False), granularities=("tensor", "group", "channel"),
                weight_bits=tuple(range(2, 9)), act_bits=tuple(range(2, 9)), act_signed=("auto",),
                forms=FORMS)
    # a quantizer behind every op; the engine fuses each op with those around it
    passes = ("insert-fake-quantize", "quantize-between", "calibrate", "pair-channels", "limit-weights",
              "round-weights", "quantize-bias", "bake-weights", "subsample-codes")
    float_passes = "canonical"
    keeps_simulation = True
    quantizes_between = True
    open_sizes = True
    reads = "an .onnx model"

    isa: str = field(default="auto", metadata={
        "choices": ISAS, "help": "what executes it. auto: any CPU, fewer weight codes where sums overflow on the "
        "calibration images on x86 without VNNI; avx2: wherever they could; vnni: all 8 bits."})
    int4: bool = field(default=False, metadata={"help": "4-bit weights in 4-bit storage, activations in float."})

    def __post_init__(self) -> None:
        if self.isa not in ISAS:
            raise OptionError(f"--isa is {self.isa!r}, want one of {', '.join(ISAS)}")

    @property
    def trained(self) -> str:
        return KEEP_CODES

    def check_network(self, trained: bool) -> None:
        if trained and self.int4:
            raise OptionError("--int4: this network was trained quantized; what is quantized, and how, is chosen with "
                              "qgraph.qat.convert_model")

    def bits(self, weight: int, act: int) -> tuple[int, int]:
        if self.int4 and act != 8:
            raise OptionError("--act-bits: with --int4 activations stay in float")
        return (min(weight, 4) if self.int4 else weight), act

    def refuse(self, g: Graph, layer: Node) -> str:
        """Layers that onnxruntime has no integer kernel of."""
        return "onnxruntime has no int8 transposed convolution" if layer.op == "Deconvolution" else ""

    def pass_options(self) -> dict[str, dict[str, Any]]:
        return {"insert-fake-quantize": {"activations": not self.int4}, "limit-weights": {"isa": self.isa},
                "pair-channels": {"active": self.isa != "vnni"}}

    def ops(self) -> Mapping[str, str]:
        from qgraph.targets.onnx.emit import carried_ops

        return carried_ops()

    def refused(self, g: Graph, shapes: Shapes, *, integer: bool) -> Mapping[Node, str]:
        from qgraph.targets.onnx.emit import refused

        return refused(g, shapes)

    def write(self, g: Graph, writing: Writing) -> Model:
        from qgraph.targets.onnx.emit import to_onnx

        return to_onnx(g, writing.shapes)

    def convert(self, g: Graph, shapes: Shapes) -> Model:
        from qgraph.targets.onnx.emit import to_onnx

        return to_onnx(g, shapes)

    def open(self, path: str) -> Model:
        from qgraph.targets.onnx.model import load

        return load(path)

    def check(self, model: Model, g: Graph, writing: Writing) -> dict[str, Facts]:
        """What onnxruntime makes of the model."""
        from qgraph.targets.onnx.fusion import fusion
        from qgraph.targets.onnx.model import OnnxModel

        assert isinstance(model, OnnxModel)
        return {"onnxruntime": {**fusion(g, model), "int4": self.int4}}

    def summary(self, report: Mapping[str, Any]) -> list[str]:
        facts = report["onnxruntime"]
        if facts["int4"]:
            return ["onnxruntime weights are read from 4 bits, the arithmetic is float"]
        left = facts["float"]
        rest = ", every quantized layer among them" if report["quantized"] else ": no layer is quantized"
        return [f"onnxruntime {facts['integer']} integer ops"
                + (f"; in float: {', '.join(list(left)[:4])}{', ...' if len(left) > 4 else ''} "
                   f"({next(iter(left.values()))})" if left else rest)]
