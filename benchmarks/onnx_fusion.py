"""Which layers, sums and concatenations of GluonCV networks run on integers in onnxruntime.

    python benchmarks/onnx_fusion.py [MODEL ...]

Each network gets random weights and BatchNorm statistics of noise, and is frozen for ONNX on a few images of noise.
From onnxruntime's optimized graph: how many convolutions, dense layers, sums and concatenations the graph has, how many
integer ops they became, and what was left in float. Exits 3 if anything was.
"""

from __future__ import annotations

import sys
from collections import Counter

from _common import noise, table, zoo_graph

from qgraph.commands.freeze import freeze
from qgraph.options import FreezeOptions

MODELS = ("mobilenet1.0", "mobilenetv2_1.0", "resnet18_v1", "resnet50_v1b", "squeezenet1.1", "densenet121")
KINDS = {"Convolution": "QLinearConv", "FullyConnected": "QGemm", "elemwise_add": "QLinearAdd",
         "Concat": "QLinearConcat"}


def main(names: list[str]) -> int:
    rows, bad = [], 0
    for name in names:
        frozen = freeze(zoo_graph(name), FreezeOptions(target="onnx"), calib_data={"data": noise(4, 224)})
        have = Counter(n.op for n in frozen.graph.toposort())
        found = frozen.report["onnxruntime"]
        left = [*found["float"], *(layer["name"] for layer in frozen.report["float"])]
        counts = [f"{found['ops'].get(op, 0)} of {have[kind]}" for kind, op in KINDS.items()]
        bad += bool(left) or any(found["ops"].get(op, 0) != have[kind] for kind, op in KINDS.items())
        rows.append([name, *counts, ", ".join(left[:5]) or "nothing",
                     f"{frozen.report['departure']['within_one']:g} %"])
    print(table("integer ops", ["network", *KINDS, "in float", "codes within 1"], rows))
    return 3 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(MODELS)))
