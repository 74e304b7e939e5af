"""Accuracy of frozen networks on images that calibration has not seen, beside MXNet's own int8.

    python benchmarks/accuracy.py [--isa native,AVX2] [--cases NAME,...] [--methods naive,kl,...] [--targets mxnet,...]

ImageNet cases: calibrated on every tenth of the 1,000 images, evaluated on the other 900.  CIFAR-10: calibrated on 100
training images, evaluated on 2,000 test images.  8 bits, per channel, nothing excluded.  MXNet's own lines come from
`quantize_model_mkldnn` on the same images; everything runs under MXNet's default bind.  "distilled" sees no images but
32 that are made from the BatchNorm statistics; its ranges are naive.

Prints one Markdown table per case and instruction set: top-1 and agreement (same argmax as the float network), in
percent, and CPU seconds of calibration: statistics and search, of MXNet's the whole quantizer, of "distilled" the
images too.  Needs QGRAPH_CASES.  About 5 minutes per instruction set.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import Any

import numpy as np
from _common import TRAINED, Case, calibration_data, module, mxnet_int8, parse_isas, stacked, table, this_isa

from qgraph import CalibrationTable, FreezeOptions, PassManager, freeze, open_data
from qgraph.calibration.collect import collect
from qgraph.calibration.distill import distill
from qgraph.passes import PIPELINES

METHODS = ("naive", "ema", "kl", "mse", "percentile", "distilled")
TARGETS = ("mxnet", "mxnet-sim")
BATCH = 20  # divides 900 and 2,000
DISTILLED_IMAGES = 32


def predictions(model: Any, images: np.ndarray) -> np.ndarray:
    """The class of each image. model: a Graph or (symbol, arg, aux)."""
    import mxnet as mx

    bound = module(model, (BATCH, *images.shape[1:]))
    found = []
    for start in range(0, len(images), BATCH):
        bound.forward(mx.io.DataBatch([mx.nd.array(images[start : start + BATCH])]), is_train=False)
        found.append(bound.get_outputs()[0].asnumpy().reshape(BATCH, -1).argmax(1))
    return np.concatenate(found)


def calibrated(case: Case, method: str) -> tuple[CalibrationTable, Any, float]:
    """(table, calibration images for `freeze`, CPU seconds)"""
    graph = case.graph()
    PassManager(PIPELINES["float"]).run(graph)
    data: Any = calibration_data(case)
    started = time.process_time()
    if method == "distilled":
        images = distill(case.graph(), {"data": (1, 3, case.size, case.size)}, DISTILLED_IMAGES)["data"]
        data = open_data(images, batch_size=16)
        method = "naive"
    calibration = collect(graph, data, method)
    return calibration, data, time.process_time() - started


def measure(case: Case, methods: list[str], targets: list[str]) -> list[list[str]]:
    test = case.data(case.test, batch_size=100)
    images = stacked(test)
    labels = np.concatenate([batch.labels for batch in test])
    exact = predictions(case.graph(), images)
    rows: list[list[str]] = []

    def add(who: str, method: str, classes: np.ndarray, seconds: str) -> None:
        rows.append([who, method, f"{100 * (classes == labels).mean():.2f}", f"{100 * (classes == exact).mean():.2f}",
                     seconds])
        print("| " + " | ".join(rows[-1]) + " |", file=sys.stderr, flush=True)

    add("float", "", exact, "")
    for method in ("naive", "entropy"):
        calibration_images = stacked(calibration_data(case))
        started = time.process_time()
        model = mxnet_int8(case.graph(), calibration_images, method)
        seconds = time.process_time() - started
        add("MXNet int8", method, predictions(model, images), f"{seconds:.1f}")
    for method in methods:
        if method == "distilled" and not case.graph().nodes("BatchNorm"):
            continue  # there are no statistics to distil images from
        calibration, data, seconds = calibrated(case, method)
        for target in targets:
            frozen = freeze(case.graph(), FreezeOptions(target=target), calib_data=data, calib_table=calibration)
            add(target, method, predictions(frozen.model, images), f"{seconds:.1f}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(TRAINED))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    args = parse_isas(parser)
    logging.disable(logging.WARNING)
    for case in (TRAINED[name] for name in args.cases.split(",")):
        if not case.found:
            print(f"{case.name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
            continue
        rows = measure(case, args.methods.split(","), args.targets.split(","))
        print(table(f"Accuracy of {case.name}, {this_isa()} instructions",
                    ["quantizer", "ranges", "top-1", "agreement", "calibration CPU s"], rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
