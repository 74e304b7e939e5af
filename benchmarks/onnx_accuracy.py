"""Accuracy of networks frozen for ONNX, on CPUs with and without VNNI, beside onnxruntime's own `quantize_static`.

    python benchmarks/onnx_accuracy.py [--cases NAME,...] [--methods naive,kl]

Images as in accuracy.py: 100 to calibrate on, 900 (CIFAR-10: 2,000) others to evaluate on.  Every model runs four
times: on this CPU and on one that shows onnxruntime AVX2 only (avx2.py), where u8 x s8 kernels saturate sums of two
products to int16; with onnxruntime's defaults, and "exact", with `session.x64quantprecision=1`, whose kernels do not
saturate.  In the models of `quantize_static` weights are s8 per channel, activations u8, MinMax for naive and Entropy
for kl; it gets the network in float with BatchNorm folded.

ours, vnni: nothing is done about saturation.  7 bits: vnni with weights of 7 bits, in every layer.  auto: channels that
overflow on 16 images are paired anew, or give up a part of their range.  avx2: no sum can overflow, whatever is read.

Prints two Markdown tables per case.  Accuracy: top-1 and agreement (same argmax as the float network) in percent.
Kernels, of ours: part of the codes of the worst layer that are within one of exact arithmetic on the same integers, in
percent, on 4 images (`departure.kernel_departure`) with AVX2; how many layers are left to saturate by the report, and
which.  Needs QGRAPH_CASES.  About 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _common import TRAINED, Case, calibration_data, stacked, table
from _onnx import CPUS, THEIRS, float_model, folded, ours, run_on, scores, theirs

from qgraph import Frozen
from qgraph.calibration.collect import collect
from qgraph.commands.departure import kernel_departure
from qgraph.targets.onnx.runtime import Executor
from qgraph.targets.registry import get_target

METHODS = ("naive", "kl")
VARIANTS: dict[str, dict[str, Any]] = {
    "ours, vnni": {"isa": "vnni"}, "ours, 7 bits": {"isa": "vnni", "weight_bits": 7}, "ours, auto": {"isa": "auto"},
    "ours, avx2": {"isa": "avx2"}}
OWN = "quantize_static"
REFERENCE_IMAGES = 4
BAD = 99.9  # percent of a layer's codes within one: layers below are named


def models(case: Case, method: str) -> tuple[dict[str, Frozen], dict[str, Any]]:
    """(ours, all) by variant."""
    data = calibration_data(case)
    calibration = collect(folded(case.graph()), data, method, runtime="onnxruntime")
    frozen = {name: ours(case.graph(), data, calib=method, calib_table=calibration, **options)
              for name, options in VARIANTS.items()}
    images = stacked(data)
    own = theirs(float_model(case.graph(), images), images, THEIRS[method])
    return frozen, {**{name: f.model for name, f in frozen.items()}, OWN: own}


def execute(folder: Path) -> None:
    """In a process of its own: every model of the folder, with defaults and exactly; prints JSON."""
    images = np.load(folder / "images.npy")
    result: dict[str, Any] = {}
    for path in sorted(folder.glob("*.pickle")):
        model, graph, rounding = pickle.loads(path.read_bytes())
        for exact in (False, True):
            found: dict[str, Any] = {"classes": scores(model, images, exact=exact).argmax(1).tolist()}
            if graph is not None:
                found["kernels"] = kernel_departure(
                    graph, model, {"data": images[:REFERENCE_IMAGES]}, rounding,
                    lambda m, watch=None, exact=exact: Executor(m, watch, exact=exact))
            result[f"{path.stem}/{exact}"] = found
    print(json.dumps(result))


def measure(case: Case, methods: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of both tables."""
    test = case.data(case.test, batch_size=100)
    images = stacked(test)
    labels = np.concatenate([batch.labels for batch in test])
    exact = scores(float_model(case.graph(), images), images).argmax(1)

    def judged(classes: Any) -> str:
        return f"{100 * (np.array(classes) == labels).mean():.2f} / {100 * (np.array(classes) == exact).mean():.2f}"

    accuracy = [["float", "", judged(exact), "", "", ""]]
    kernels = []
    for method in methods:
        frozen, every = models(case, method)
        with tempfile.TemporaryDirectory() as name:
            np.save(Path(name) / "images.npy", images)
            for variant, model in every.items():
                graph = frozen[variant].graph if variant in frozen else None
                (Path(name) / f"{variant}.pickle").write_bytes(
                    pickle.dumps((model, graph, get_target("onnx").spec.rounding)))
            found = {cpu: json.loads(run_on(cpu, __file__, "--execute", name)) for cpu in CPUS}
        for variant in every:
            accuracy.append([variant, method, *(judged(found[cpu][f"{variant}/{exactly}"]["classes"])
                                                for exactly in (False, True) for cpu in CPUS)])
        for variant, made in frozen.items():
            default, precise = (found["AVX2"][f"{variant}/{exactly}"]["kernels"] for exactly in (False, True))
            bad = [f"{layer} {v['within_one']:.2f}" for layer, v in default["layers"].items() if v["within_one"] < BAD]
            left = [f"{finding['layer']} {finding['missed_percent']:.2f}" for finding in made.report["saturation"]]
            kernels.append([variant, method, f"{default['within_one']:.3f}", f"{precise['within_one']:.3f}",
                            ", ".join(bad) or "none", ", ".join(left) or "none"])
    return accuracy, kernels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(TRAINED))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--execute", type=Path, help=argparse.SUPPRESS)  # in the process of its own
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.execute:
        execute(args.execute)
        return 0
    for case in (TRAINED[name] for name in args.cases.split(",")):
        if not case.found:
            print(f"{case.name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
            continue
        accuracy, kernels = measure(case, args.methods.split(","))
        print(table(f"{case.name}: top-1 / agreement", ["quantizer", "ranges", *CPUS, *(f"{c}, exact" for c in CPUS)],
                    accuracy))
        print(table(f"{case.name}: codes within one of exact arithmetic, AVX2",
                    ["quantizer", "ranges", "worst layer", "worst layer, exact", f"layers below {BAD}",
                     "left to saturate"], kernels), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
