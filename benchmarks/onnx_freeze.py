"""Time and memory of freezing for ONNX with KL ranges, beside onnxruntime's `quantize_static` with entropy.

    python benchmarks/onnx_freeze.py [--cases NAME,...] [--rounds 3] [--peak 100,400 [--peak-of ours]]

Every run is a process of its own, with one thread per engine; imports are not counted.  Ours: `qgraph freeze --target
onnx --calib kl --runtime onnxruntime`, from the MXNet files to the written ones: load, fold, calibrate, lower, check
and report.  Theirs gets the folded network as an ONNX file: `quant_pre_process` and `quantize_static` to another.
"Steps" is the part of ours that theirs does too: load, fold, calibrate, place quantizers, write; no passes against
saturation and for better rounding, no checks.

Prints two Markdown tables.  Time: wall and CPU seconds on the same 100 images, which lie ready in an array; medians,
they alternate.  Memory: peak resident MiB on 100 and on 400 images that are decoded from the file on the way, and
how much it grows.  Theirs keeps every tensor of every image until the end: 400 images want 20 GB for the larger
networks.  Needs QGRAPH_CASES.  About ten minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import TRAINED, Case, calibration_data, stacked, table
from _onnx import float_model, ours, theirs

from qgraph import open_data
from qgraph.calibration import collect as calibration
from qgraph.commands.open_model import open_model
from qgraph.files import write_files
from qgraph.ir.rewrite import PassManager
from qgraph.passes import PIPELINES
from qgraph.passes.bake_weights import BakeWeights
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.insert_fake_quantize import InsertFakeQuantize
from qgraph.passes.quantize_between import QuantizeBetween
from qgraph.passes.quantize_bias import QuantizeBias
from qgraph.targets.base import Writing
from qgraph.targets.onnx.model import load
from qgraph.targets.registry import get_target

IMAGES, BATCH = 100, 10
WHO = ("ours", "steps", "theirs")


def steps(prefix: str, images: Any, target: str) -> None:
    """Load, fold, calibrate, place quantizers, write."""
    g = open_model(prefix).as_graph("freezing")
    PassManager(PIPELINES["float"]).run(g)
    table = calibration.collect(g, open_data(images, batch_size=BATCH), "kl", runtime="onnxruntime")
    PassManager((InsertFakeQuantize(target="onnx"), QuantizeBetween(), Calibrate(table=table), QuantizeBias(),
                 BakeWeights(rounding="half-even"))).run(g)
    write_files(get_target("onnx").write(g, Writing({"data": images.shape})).files(target))


def freeze(who: str, case: Case, images: Any, folder: Path) -> None:
    """images: an array, or for ours data."""
    if who == "ours":
        ours(case.prefix, images, calib="kl", batch_size=BATCH).save(str(folder / "ours"))
    elif who == "steps":
        steps(case.prefix, images, str(folder / "steps"))
    else:
        model = theirs(load(folder / "float.onnx"), images, "Entropy", BATCH)
        (folder / "theirs.onnx").write_bytes(model.to_bytes())


def run(who: str, case: Case, folder: Path, limit: int) -> None:
    """In a process of its own; prints JSON. limit: so many images from the file instead of the array."""
    import onnxruntime.quantization  # noqa: F401  (imports are not counted)

    data: Any = case.data({}, limit=limit, batch_size=BATCH) if limit else np.load(folder / "images.npy")
    if limit and who == "theirs":
        data = _Lazy(data)
    wall, cpu = time.perf_counter(), time.process_time()
    freeze(who, case, data, folder)
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu,
                      "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


class _Lazy:
    """Batches of data where an array of images is sliced."""

    def __init__(self, data: Any) -> None:
        self._length, self._batches = data.num_items, iter(data)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, _: slice) -> np.ndarray:
        return next(self._batches).feeds["data"]


def child(who: str, case: Case, folder: str, limit: int = 0) -> dict[str, float]:
    command = [sys.executable, __file__, "--run", who, "--cases", case.name, "--folder", folder, "--limit", str(limit)]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(found.splitlines()[-1])  # quantize_static prints, too


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="squeezenet1.1,mobilenetv1_0.75_192_bn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", default="100,400", help="images; none: no table of memory")
    parser.add_argument("--peak-of", default="ours,theirs", help="whose memory")
    for name, kind in (("run", str), ("folder", Path), ("limit", int)):  # in the process of its own
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    cases = [TRAINED[name] for name in args.cases.split(",")]
    if args.run:
        run(args.run, cases[0], args.folder, args.limit)
        return 0
    times, peaks = [], []
    counts = [int(n) for n in args.peak.split(",") if n != "none"]
    for case in cases:
        if not case.found:
            print(f"{case.name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            images = stacked(calibration_data(case, limit=IMAGES))
            np.save(Path(folder) / "images.npy", images)
            (Path(folder) / "float.onnx").write_bytes(float_model(case.graph(), images).to_bytes())
            del images
            found: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
            for _ in range(args.rounds):
                for who in WHO:
                    found[who].append(child(who, case, folder))
                    print(case.name, who, found[who][-1], file=sys.stderr, flush=True)
            seconds = {(who, clock): statistics.median(one[clock] for one in found[who])
                       for who in WHO for clock in ("wall", "cpu")}
            times.append([case.name, *(f"{seconds[who, clock]:.1f}" for clock in ("wall", "cpu") for who in WHO),
                          *(f"{seconds['theirs', 'wall'] / seconds[who, 'wall']:.2f}" for who in WHO[:2])])
            for who in args.peak_of.split(",") if counts else ():
                peak = [child(who, case, folder, count)["peak"] for count in counts]
                peaks.append([case.name, who, *(f"{mib:.0f}" for mib in peak), f"{peak[-1] / peak[0]:.2f}"])
                print(" ".join(peaks[-1]), file=sys.stderr, flush=True)
    print(table(f"Freezing on {IMAGES} images, KL", ["model", *(f"{who}, wall s" for who in WHO),
                                                     *(f"{who}, CPU s" for who in WHO), "theirs/ours, wall",
                                                     "theirs/steps, wall"], times))
    if counts:
        print(table("Peak memory", ["model", "who", *(f"{n} images, MiB" for n in counts), "ratio"], peaks), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
