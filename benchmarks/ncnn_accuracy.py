"""Accuracy of networks frozen for ncnn, in ncnn, and the layers where it goes.

    python benchmarks/ncnn_accuracy.py [--cases NAME,...] [--methods naive,kl] [--layers N]

Images as in accuracy.py: 100 to calibrate on, 900 (CIFAR-10: 2,000) others to evaluate on.  "default" is ncnn as it
comes, "packing off" with `use_packing_layout=False`, where its int8 kernels compute exactly.  Accuracy: top-1 and
agreement (same argmax as the float network in MXNet) in percent.

Variants: as it is; with activations left in float, which says what the weights alone cost; without `round-weights`.
Then, for the last method, each layer on 100 images: SQNR against the float network, and the noise
that the layer adds to what it reads (`qgraph.compare`); codes of what it reads that are within one of, and equal to,
exact arithmetic on the engine's own values (4 images, packing off and default).  Needs QGRAPH_CASES.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

import numpy as np
from _common import TRAINED, Case, calibration_data, stacked, table

from qgraph import compare, freeze
from qgraph.commands.departure import kernel_departure
from qgraph.targets.mxnet import runtime as mxnet_runtime
from qgraph.targets.ncnn.runtime import Executor
from qgraph.targets.registry import get_target

METHODS = ("naive", "kl")
NO_ROUNDING = ("canonicalize,fold-bn,fold-pad,fold-bn-forward,bn-to-affine,fold-input-norm,fuse-relu,"
               "insert-fake-quantize,calibrate,bake-weights")


def scores(model: Any, images: np.ndarray) -> np.ndarray:
    parts = [model.run({"data": images[i:i + 50]})[0] for i in range(0, len(images), 50)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts])


def measure(case: Case, methods: list[str], shown: int) -> None:
    test = case.data(case.test, batch_size=100)
    images = stacked(test)
    labels = np.concatenate([batch.labels for batch in test])
    exact = scores(mxnet_runtime.Executor(case.graph()), images).argmax(1)

    def judged(found: np.ndarray) -> str:
        classes = found.argmax(1)
        return f"{100 * (classes == labels).mean():.2f} / {100 * (classes == exact).mean():.2f}"

    rows = [["float", "", f"{100 * (exact == labels).mean():.2f}", ""]]
    shown_one: Any = None
    for method in methods:
        for name, options in (("ncnn", {}), ("ncnn, nearest weights", {"passes": NO_ROUNDING})):
            frozen = freeze(case.graph(), case.options(case.calib, target="ncnn", calib=method, **options),
                            calib_data=calibration_data(case))
            rows.append([name, method, *(judged(scores(Executor(frozen.model, packing=packing), images))
                                         for packing in (True, False))])
            if not options:
                shown_one = frozen
                floats = mxnet_runtime.Executor(frozen.model.folded)
                rows.append(["int8 weights, float activations", method, judged(scores(floats, images)), ""])
    print(table(f"{case.name}: top-1 / agreement", ["", "ranges", "default", "packing off"], rows))
    print(f"{shown_one.report['ncnn']}\n")
    print(layers(case, shown_one, images[:100], shown), flush=True)


def layers(case: Case, frozen: Any, images: np.ndarray, shown: int) -> str:
    found = compare(case.graph(), frozen, {"data": images})
    feeds = {"data": images[:4]}
    departures = [kernel_departure(frozen.graph, frozen.model, feeds, get_target("ncnn").spec.rounding,
                                   lambda m, watch=None, packing=packing: Executor(m, watch, packing=packing))
                  for packing in (False, True)]
    reads = {n.name: frozen.graph.inputs(frozen.graph.inputs(n)[0].node)[0].key
             for n in frozen.graph.toposort() if len(frozen.graph.inputs(n)) > 1
             and frozen.graph.inputs(n)[0].node.op == "fake_quantize"}
    rows = []
    for layer in found["layers"]:
        cells = [d["layers"].get(reads.get(layer["name"], ""), {}) for d in departures]
        rows.append([layer["name"], layer["op"], "equal" if layer["sqnr_db"] is None else f"{layer['sqnr_db']:.1f}",
                     f"{layer['added_noise']:.2g}",
                     *(f"{c['within_one']:.3f} / {c['equal']:.3f}" if c else "" for c in cells)])
    if shown:
        rows = sorted(rows, key=lambda row: -float(row[3]))[:shown]
    worst = [f"{d['within_one']:.3f}" for d in departures]
    return table(f"{case.name}: layers (worst: {worst[0]} packing off, {worst[1]} default, output "
                 f"{found['output']['sqnr_db']} dB)",
                 ["layer", "op", "SQNR dB", "added noise", "input codes within 1 / equal, packing off", "default"],
                 rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(TRAINED))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--layers", type=int, default=0, help="only the N that add most noise; 0 is all")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    for case in (TRAINED[name] for name in args.cases.split(",")):
        if not case.found:
            print(f"{case.name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
            continue
        measure(case, args.methods.split(","), args.layers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
