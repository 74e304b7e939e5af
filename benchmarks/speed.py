"""Time of one forward pass: float, MXNet's own int8, and qgraph's, on trained and on random networks.

    python benchmarks/speed.py [--isa native,AVX2] [--batch 1] [--rounds 25] [--clock cpu|wall] [--models NAME,...]

float is the original network under MXNet's default bind, which fuses layers; MXNet's int8 is
`quantize_model_mkldnn` (naive, channel-wise, dtype auto); ours is `--target mxnet`.  One thread.  In every round the
three run in a random order; times are medians over the rounds, ratios are medians of the ratios within a round.  The
clock is the CPU time of the process, which with one thread is what a free machine takes and what a busy one does not
spoil; `--clock wall` is for a free one.  Prints one Markdown table per instruction set: model, ms of each, MXNet/float,
ours/MXNet, ours/float.  Trained networks need QGRAPH_CASES (left out without), the others gluoncv.  About two minutes
per instruction set.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import (
    CLOCKS,
    ROOT,
    TRAINED,
    calibration_data,
    module,
    mxnet_int8,
    noise,
    parse_isas,
    stacked,
    table,
    this_isa,
    zoo_graph,
)

from qgraph import FreezeOptions, Graph, freeze
from qgraph.formats.mxnet import load

MODELS = ("squeezenet1.1", "mobilenetv1_0.75_192_bn", "resnet18_v1", "mobilenet1.0", "cifar_resnet20_v1", "digits")
SAMPLE_SECONDS = 0.03  # one timing spans at least so many seconds
VARIANTS = ("float", "mxnet", "ours")


def network(name: str) -> tuple[Graph, np.ndarray] | None:
    """(graph, a few images to calibrate on), None if its files are not there."""
    if name in TRAINED:
        case = TRAINED[name]
        return (case.graph(), stacked(calibration_data(case, limit=20))) if case.found else None
    if name == "digits":
        folder = ROOT / "examples" / "digits"
        images = np.load(folder / "digits-calib.npz")["data"][:20]
        return load(str(folder / "digits-symbol.json"), str(folder / "digits-0000.params")), images
    return zoo_graph(name), noise(4, 224, seed=1)


def variants(graph: Graph, images: np.ndarray, batch: int) -> dict[str, Any]:
    """Name -> bound module."""
    shape = (batch, *images.shape[1:])
    return {"float": module(graph, shape),
            "mxnet": module(mxnet_int8(graph, images, "naive", batch_size=4), shape),
            "ours": module(freeze(graph, FreezeOptions(batch_size=4), calib_data=images).model.ir, shape)}


def runner(bound: Any, images: np.ndarray, batch: int) -> Callable[[], None]:
    import mxnet as mx

    data = mx.io.DataBatch([mx.nd.array(np.resize(images, (batch, *images.shape[1:])))])

    def run() -> None:
        bound.forward(data, is_train=False)
        bound.get_outputs()[0].wait_to_read()

    return run


def times(runs: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float],
          seed: int = 0) -> dict[str, list[float]]:
    """Seconds per forward pass, one figure per round, the order drawn anew in each."""
    order, rng = list(runs), random.Random(seed)
    found: dict[str, list[float]] = {name: [] for name in runs}
    repeat = {}
    for name, run in runs.items():
        for _ in range(3):
            started = clock()
            run()
            repeat[name] = max(1, int(SAMPLE_SECONDS / (clock() - started)))
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            started = clock()
            for _ in range(repeat[name]):
                runs[name]()
            found[name].append((clock() - started) / repeat[name])
    return found


def row(name: str, found: dict[str, list[float]]) -> list[str]:
    def ratio(a: str, b: str) -> str:
        return f"{statistics.median(x / y for x, y in zip(found[a], found[b])):.3f}"

    return [name, *(f"{1000 * statistics.median(found[v]):.2f}" for v in VARIANTS),
            ratio("mxnet", "float"), ratio("ours", "mxnet"), ratio("ours", "float")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--models", default=",".join(MODELS), help="by comma; also other names of gluoncv")
    args = parse_isas(parser)
    logging.disable(logging.WARNING)
    rows = []
    for name in args.models.split(","):
        found = network(name)
        if found is None:
            print(f"{name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
            continue
        graph, images = found
        runs = {v: runner(bound, images, args.batch) for v, bound in variants(graph, images, args.batch).items()}
        rows.append(row(name, times(runs, args.rounds, CLOCKS[args.clock])))
        print("| " + " | ".join(rows[-1]) + " |", file=sys.stderr, flush=True)
    head = ["model", "float ms", "MXNet int8 ms", "ours ms", "MXNet/float", "ours/MXNet", "ours/float"]
    print(table(f"Speed, {this_isa()} instructions, batch {args.batch}, {args.clock} time", head, rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
