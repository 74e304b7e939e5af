"""CPU time and memory of freezing for ONNX, step by step, beside other quantizers on the same images.

    python benchmarks/freeze_cost.py [--models squeezenet1.1,resnet50_v1] [--images 32] [--targets onnx]
                                     [--nncf-python nncf/bin/python]

Each run is a process of its own, with one thread per engine, and with the kernels of linear algebra that the command
line chooses for NumPy; imports and the making of images are not counted.

ours fast             `qgraph freeze --effort fast --calib naive --runtime onnxruntime`, of --targets: what MinMax does
ours standard         the same with --effort standard --calib kl, which is what Entropy looks for
MinMax, Entropy       onnxruntime's `quantize_static`, of the folded network as an ONNX file
NNCF                  `_nncf.py`, with the interpreter of --nncf-python, where there is one

Steps are exclusive: a pass does not count what the calibration does inside it.  "checks" are the steps that the others
do not do: the float check of the passes, the agreement with the float model, the kernels, the noise of each layer, the
facts of the file.
Peak is the resident size in MiB, that of a step since it began; "before" is it when the work begins, images and
libraries with it.  Prints a Markdown table of the totals, and one of the steps for each model.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qgraph.processor import choose_kernels

choose_kernels()  # before NumPy is imported

import numpy as np
from _common import TRAINED, calibration_data, noise, stacked, table, zoo_graph
from _large import LARGE, large
from _onnx import float_model, theirs

from qgraph import FreezeOptions, Graph
from qgraph.commands import checks, floatcheck
from qgraph.commands import freeze as freezing
from qgraph.commands.timing import ResidentSize
from qgraph.formats.mxnet import load as load_mxnet
from qgraph.formats.mxnet_writer import save
from qgraph.ir import rewrite
from qgraph.targets.onnx.model import load
from qgraph.targets.onnx.target import Onnx

WHO = ("ours fast", "ours standard", "MinMax", "Entropy")
CHECKS = ("float check", "judge", "noise", "facts")
CALIB = {"fast": "naive", "standard": "kl"}
BATCH = 4


class Meter:
    """CPU seconds and peak resident MiB of named steps; what runs inside another is taken from it."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {}
        self._stack = ["the rest"]
        self._memory, self._mark = ResidentSize(), time.process_time()
        self._memory.restart()

    def watch(self, owner: Any, name: str, label: Callable[..., str]) -> None:
        """Measure a function of a module or class from now on. label: of its arguments."""
        function = getattr(owner, name)

        def measured(*args: Any, **options: Any) -> Any:
            self.settle()
            self._stack.append(label(*args))
            try:
                return function(*args, **options)
            finally:
                self.settle()
                self._stack.pop()

        setattr(owner, name, measured)

    def settle(self) -> None:
        """Count what has passed to the step that is running."""
        row = self.steps.setdefault(self._stack[-1], [0.0, 0.0])
        row[0] += time.process_time() - self._mark
        row[1] = max(row[1], (self._memory.peak() or 0) / 2**20)
        self._memory.restart()
        self._mark = time.process_time()


def freeze_ours(folder: Path, effort: str, targets: list[str]) -> dict[str, list[float]]:
    meter = Meter()
    meter.watch(rewrite, "run_pass", lambda step, *_: step.name)
    meter.watch(floatcheck, "run_checked", lambda *_: "float check")
    meter.watch(freezing, "collect_table", lambda *_: "calibration")
    meter.watch(checks, "judge", lambda *_: "judge")
    meter.watch(freezing, "layer_noise", lambda *_: "noise")
    meter.watch(Onnx, "write", lambda *_: "write")
    meter.watch(Onnx, "check", lambda *_: "facts")
    wanted = [FreezeOptions(target=target, calib=CALIB[effort], effort=effort, runtime="onnxruntime", batch_size=BATCH,
                            calib_data=str(folder / "images.npy")) for target in targets]
    freezing.freeze_all(str(folder / "net"), wanted, str(folder / "ours"))
    meter.settle()
    return meter.steps


def run(who: str, folder: Path, targets: list[str]) -> dict[str, Any]:
    """In a process of its own. Peaks are of the whole process, those of the steps of each."""
    import onnxruntime.quantization  # noqa: F401  (imports are not counted)

    memory = ResidentSize()  # not `ru_maxrss`, which begins with the size of the parent
    memory.restart()
    before, started = (memory.now() or 0) / 2**20, time.process_time()
    steps: dict[str, list[float]] = {}
    if who.startswith("ours"):
        steps = freeze_ours(folder, who.split()[1], targets)
    else:
        model = theirs(load(folder / "float.onnx"), np.load(folder / "images.npy"), who, BATCH)
        (folder / "theirs.onnx").write_bytes(model.to_bytes())
    cpu = time.process_time() - started
    return {"cpu": cpu, "steps": steps, "before": before,
            "peak": max([(memory.peak() or 0) / 2**20, *(peak for _, peak in steps.values())])}


def network(name: str, count: int) -> tuple[Graph, np.ndarray] | None:
    """(graph, images), None if its files are not there. A path is a prefix of MXNet's files, fed with noise of 640."""
    if name in TRAINED:
        case = TRAINED[name]
        return (case.graph(), stacked(calibration_data(case, count))) if case.found else None
    if name in LARGE:
        return large(name, count)
    if os.path.isfile(f"{name}-symbol.json"):
        return load_mxnet(f"{name}-symbol.json", f"{name}-0000.params"), noise(count, 640)
    return zoo_graph(name), noise(count, 224, seed=1)


def child(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # other quantizers print, too


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="squeezenet1.1,mobilenetv1_0.75_192_bn,resnet50_v1",
                        help="by comma; also other names of gluoncv, prefixes of MXNet's files, and "
                        + ", ".join(LARGE))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--targets", default="onnx", help="of ours, by comma")
    parser.add_argument("--who", default=",".join(WHO))
    parser.add_argument("--nncf-python", default="")
    for name, kind in (("run", str), ("folder", Path)):  # in a process of its own
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.run:
        print(json.dumps(run(args.run, args.folder, args.targets.split(","))))
        return 0
    totals, details = [], []
    for name in args.models.split(","):
        made = network(name, args.images)
        if made is None:
            print(f"{name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            graph, images = made
            save(graph, os.path.join(folder, "net"))
            np.save(os.path.join(folder, "images.npy"), images)
            (Path(folder) / "float.onnx").write_bytes(float_model(graph, images).to_bytes())
            del made, graph, images
            commands = {who: [sys.executable, __file__, "--run", who, "--folder", folder, "--targets", args.targets]
                        for who in args.who.split(",")}
            if args.nncf_python:
                paths = [os.path.join(folder, file) for file in ("float.onnx", "images.npy", "nncf.xml")]
                commands["NNCF"] = [args.nncf_python, str(Path(__file__).parent / "_nncf.py"), *paths]
            for who, command in commands.items():
                found = child(command)
                checked = sum(found["steps"].get(step, [0.0])[0] for step in CHECKS)
                totals.append([name, who, f"{found['cpu']:.1f}", f"{checked:.1f}", f"{found['cpu'] - checked:.1f}",
                               f"{found['before']:.0f}", f"{found['peak']:.0f}"])
                print(" | ".join(totals[-1]), file=sys.stderr, flush=True)
                details += [[name, who, step, f"{seconds:.2f}", f"{peak:.0f}"]
                            for step, (seconds, peak) in found["steps"].items() if seconds >= 0.05]
    print(table(f"Freezing on {args.images} images, one thread", [
        "model", "who", "CPU s", "of it checks", "without", "before MiB", "peak MiB"], totals))
    print(table("Steps", ["model", "who", "step", "CPU s", "peak MiB"], details), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
