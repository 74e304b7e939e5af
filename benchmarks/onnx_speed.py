"""Time of one inference on onnxruntime: float, quantized by `quantize_static`, and frozen by qgraph.

    python benchmarks/onnx_speed.py [--cpu "this CPU,AVX2"] [--batch 1,16] [--rounds 25] [--clock cpu|wall]
                                    [--models NAME,...]

float is the network with BatchNorm folded; `quantize_static` gets the same (QDQ, u8 activations, s8 weights per
channel, MinMax); ours is `--target onnx --calib naive`.  onnxruntime optimizes all three as it does by default.  One
thread.  AVX2 is a process in which onnxruntime sees a CPU without VNNI (avx2.py).  In every round the three run in a
random order; times are medians over the rounds, ratios are medians of the ratios within a round.  The clock is the CPU
time of the process, which with one thread is what a free machine takes; `--clock wall` is for a free one.

Prints one Markdown table per CPU and batch size: model, ms of each, ours/theirs, ours/float, theirs/float.  Trained
networks need QGRAPH_CASES (left out without), the others gluoncv.  About ten minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import CLOCKS, table
from _onnx import CPUS, float_model, ours, run_on, theirs
from speed import network, times

from qgraph.targets.onnx.model import load
from qgraph.targets.onnx.runtime import open_session

MODELS = ("squeezenet1.1", "mobilenetv1_0.75_192_bn", "cifar_resnet20_v1", "resnet18_v1", "mobilenet1.0")
VARIANTS = ("float", "theirs", "ours")


def write(name: str, folder: Path) -> bool:
    """The three models and an image; False if the files of the network are not there."""
    found = network(name)
    if found is None:
        return False
    graph, images = found
    source = float_model(graph, images)
    made = {"float": source, "theirs": theirs(source, images, "MinMax", batch_size=4),
            "ours": ours(graph, images, batch_size=4).model}
    for variant, model in made.items():
        (folder / f"{variant}.onnx").write_bytes(model.to_bytes())
    np.save(folder / "image.npy", images[:1])
    return True


def runner(path: Path, feed: np.ndarray) -> Callable[[], None]:
    session = open_session(load(path).to_bytes())
    feeds = {session.get_inputs()[0].name: feed}
    return lambda: session.run(None, feeds)


def measure(folder: Path, batch: int, rounds: int, clock: str) -> dict[str, list[float]]:
    """Variant -> seconds in each round."""
    image = np.load(folder / "image.npy")
    feed = np.resize(image, (batch, *image.shape[1:]))
    return times({variant: runner(folder / f"{variant}.onnx", feed) for variant in VARIANTS}, rounds, CLOCKS[clock])


def row(name: str, found: dict[str, list[float]]) -> list[str]:
    ratios = [np.divide(found[a], found[b]) for a, b in (("ours", "theirs"), ("ours", "float"), ("theirs", "float"))]
    return [name, *(f"{1000 * np.median(found[v]):.2f}" for v in VARIANTS), *(f"{np.median(r):.3f}" for r in ratios)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default=",".join(CPUS))
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--models", default=",".join(MODELS), help="by comma; also other names of gluoncv")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.measure:
        print(json.dumps(measure(args.measure, int(args.batch), args.rounds, args.clock)))
        return 0
    rows: dict[tuple[str, str], list[list[str]]] = {}
    for name in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            if not write(name, Path(folder)):
                print(f"{name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
                continue
            for cpu in args.cpu.split(","):
                for batch in args.batch.split(","):
                    found = json.loads(run_on(cpu, __file__, "--measure", folder, "--batch", batch, "--rounds",
                                              str(args.rounds), "--clock", args.clock))
                    rows.setdefault((cpu, batch), []).append(row(name, found))
                    print(f"{cpu}, batch {batch}: " + " | ".join(rows[cpu, batch][-1]), file=sys.stderr, flush=True)
    for (cpu, batch), lines in rows.items():
        print(table(f"Speed on onnxruntime, {cpu}, batch {batch}, {args.clock} time",
                    ["model", "float ms", "quantize_static ms", "ours ms", "ours/theirs", "ours/float", "theirs/float"],
                    lines), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
