"""Time of one simulated forward pass beside the float model's, on MXNet.

    python benchmarks/simulate_speed.py [--batch 16] [--rounds 9] [--clock cpu|wall] [--models NAME,...]

float is the original network under MXNet's default bind, which fuses layers.  The others are `--target mxnet-sim`, all
layers quantized to 8 bits: offline with ranges of a calibration (naive), no merge with weights rounded without their
BatchNorms, online with the ranges of the running batch.  Each runs as a `Module` of the frozen files, and as `qgraph
simulate` runs it.  One thread.  In every round all run in a random order; times are medians over the rounds, ratios
medians of the ratios to float within a round.  The clock is the CPU time of the process, which a busy machine does not
spoil much.  Prints a Markdown table.  Trained networks need QGRAPH_CASES (left out without), the others gluoncv.  About
six minutes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from typing import Any, Callable

import numpy as np
from _common import CLOCKS, module, table
from speed import network, runner, times

from qgraph import FreezeOptions, Graph, freeze
from qgraph.targets.mxnet.runtime import Executor

MODELS = ("mobilenet1.0", "resnet18_v1", "mobilenetv1_0.75_192_bn", "squeezenet1.1")
VARIANTS: dict[str, dict[str, Any]] = {
    "offline": {}, "offline, no merge": {"merge_bn": False}, "offline, first in float": {"exclude": ("first",)},
    "online": {"calib": "online"}, "online, no merge": {"calib": "online", "merge_bn": False}}


def simulated(graph: Graph, images: np.ndarray, **options: Any) -> Any:
    """The frozen model."""
    data = None if options.get("calib") == "online" else images
    shape = ",".join(map(str, images.shape))
    return freeze(graph.copy(), FreezeOptions(target="mxnet-sim", input_shape=(shape,), **options), calib_data=data)


def _executed(graph: Graph, images: np.ndarray, batch: int) -> Callable[[], None]:
    run = Executor(graph, fused=True)
    feeds = {"data": np.resize(images, (batch, *images.shape[1:]))}
    return lambda: run.run(feeds) and None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--models", default=",".join(MODELS), help="by comma; also other names of gluoncv")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    for name in args.models.split(","):
        found = network(name)
        if found is None:
            print(f"{name}: its files are not in QGRAPH_CASES", file=sys.stderr)
            continue
        graph, images = found
        shape = (args.batch, *images.shape[1:])
        runs = {"float": runner(module(graph, shape), images, args.batch)}
        for variant, options in VARIANTS.items():
            frozen = simulated(graph, images, **options)
            runs[variant] = runner(module(frozen.model.ir, shape), images, args.batch)
            runs[f"{variant} (simulate)"] = _executed(frozen.graph, images, args.batch)
        seconds = times(runs, args.rounds, CLOCKS[args.clock])
        for variant, own in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(own, seconds["float"]))
            rows.append([name, variant, f"{1000 * statistics.median(own):.0f}", f"{ratio:.2f}"])
            print(*rows[-1], sep="  ", file=sys.stderr)
    print(table(f"Simulated forward passes, batch {args.batch}", ["model", "variant", "ms", "of float"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
