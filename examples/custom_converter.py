"""An operator of one's own, converted to ONNX and run by onnxruntime.  Runs without MXNet.

    python examples/custom_converter.py

Networks with a custom op stop at "there is no ONNX converter for this op".  Tell qgraph what the op reads (a row of
`OPS`), what shape it gives (a rule) and what it is in ONNX (a converter), and it converts like any other.  What it
computes (a kernel) is only there to compare with: without it the model is converted, but not checked.
"""

from __future__ import annotations

import numpy as np

from qgraph import Graph, Node, Port, convert
from qgraph.ir.ops import OPS, OpInfo, attr
from qgraph.semantics.infer import Shape, rule
from qgraph.semantics.kernels import kernel
from qgraph.targets.onnx.convert import Context, converter
from qgraph.targets.onnx.runtime import Executor

OPS["MyScale"] = OpInfo(("data",), defaults={"factor": 1.0})  # attributes and their defaults, which tell the type


@rule("MyScale")
def my_shape(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


@converter("MyScale")
def my_scale(c: Context, x: str) -> str:
    """MyScale(x) -> Mul(x, factor)"""
    return str(c.op("Mul", x, c.const(np.float32(c.attr("factor")))))


@kernel("MyScale")
def my_values(node: Node, x: np.ndarray) -> np.ndarray:
    return x * np.float32(attr(node, "factor"))


def network() -> Graph:
    g = Graph()
    data = g.add("null", name="data")
    relu = g.add("Activation", [data], "relu", act_type="relu")
    scale = g.add("MyScale", [relu], "scale", factor=2.5)
    g.heads = [Port(g.add("Flatten", [scale], "flat"))]
    return g


def main() -> None:
    converted = convert(network(), "onnx", input_shape=["data:1,2,2,2"])
    print("operators ", ", ".join(converted.report["ops"]["after"]))
    print("difference", converted.report["difference"])
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 2, 2, 2)
    y = Executor(converted.model).run({"data": x})[0]
    for name, array in (("input", x), ("output", y)):
        print(f"{name:<10}", " ".join(f"{value:.2f}" for value in array.ravel()))


if __name__ == "__main__":
    main()
