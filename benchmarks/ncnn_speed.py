"""Time of int8 networks in ncnn, as a part of the float ones', one thread, one image at a time.

    python benchmarks/ncnn_speed.py [--rounds N]

The models run alternately, each with ncnn's defaults; ratios of medians.  Networks of the zoo have random weights.
"no masks": without the parameter that switches Winograd off where sums could overflow.  Needs QGRAPH_CASES for the
trained networks.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import Any

import numpy as np
from _common import TRAINED, noise, table, zoo_graph
from _onnx import folded

from qgraph import FreezeOptions, Graph, freeze
from qgraph.targets.ncnn.emit import to_ncnn
from qgraph.targets.ncnn.int8 import MASK
from qgraph.targets.ncnn.model import NcnnModel
from qgraph.targets.ncnn.runtime import Executor

ZOO = ("resnet18_v1", "mobilenet0.25")


def unmasked(model: NcnnModel) -> NcnnModel:
    layers = [type(n)(n.type, n.name, n.inputs, n.outputs, {k: v for k, v in n.params.items() if k != MASK}, n.weights)
              for n in model.layers]
    return NcnnModel(layers, model.outputs)


def measure(graph: Graph, size: int, rounds: int) -> tuple[list[float], int]:
    """(medians of float, int8 and int8 without masks in seconds, number of masks)"""
    images = noise(8, size)
    frozen = freeze(graph, FreezeOptions(target="ncnn"), calib_data={"data": images})
    models: list[Any] = [to_ncnn(folded(graph), {"data": images.shape}), frozen.model, unmasked(frozen.model)]
    runs = [Executor(model) for model in models]
    feeds = {"data": images[:1]}
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, found in zip(runs, times):
            started = time.perf_counter()
            run.run(feeds)
            if number:
                found.append(time.perf_counter() - started)
    return [float(np.median(found)) for found in times], len(frozen.model.masked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    networks = [(name, case.graph(), case.size) for name, case in TRAINED.items() if case.found]
    networks += [(name, zoo_graph(name), 224) for name in ZOO]
    rows = []
    for name, graph, size in networks:
        (plain, int8, fast), masks = measure(graph, size, args.rounds)
        rows.append([name, f"{1000 * plain:.2f} ms", f"{int8 / plain:.2f}", f"{fast / plain:.2f}", str(masks)])
    print(table("ncnn, one thread", ["network", "float", "int8 / float", "no masks / float", "masks"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
