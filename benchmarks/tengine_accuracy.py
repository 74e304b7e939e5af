"""Accuracy of networks frozen for Tengine, as the NumPy reference executes the .tmfile; Tengine itself is not run.

    python benchmarks/tengine_accuracy.py [--cases NAME,...] [--methods naive,kl] [--images N]

Images as in accuracy.py: 100 to calibrate on, 900 (CIFAR-10: 2,000) others to evaluate on.  Accuracy: top-1 and
agreement (same argmax as the float network in MXNet) in percent.  "equal" is the percentage of output codes of the
file, read back, that are those of the frozen graph.  Needs QGRAPH_CASES.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

import numpy as np
from _common import TRAINED, Case, calibration_data, stacked, table

from qgraph import freeze
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets.mxnet import runtime as mxnet_runtime
from qgraph.targets.tengine.files import from_bytes
from qgraph.targets.tengine.model import TengineModel

METHODS = ("naive", "kl")


def scores(model: Any, images: np.ndarray) -> np.ndarray:
    parts = [model.run({"data": images[i:i + 20]})[0] for i in range(0, len(images), 20)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts])


def measure(case: Case, methods: list[str], limit: int) -> list[list[str]]:
    test = case.data(case.test, batch_size=100)
    images = stacked(test)
    labels = np.concatenate([batch.labels for batch in test])
    images, labels = images[:limit or None], labels[:limit or None]
    exact = scores(mxnet_runtime.Executor(case.graph()), images).argmax(1)
    rows = []
    for method in methods:
        frozen = freeze(case.graph(), case.options(case.calib, target="tengine", calib=method),
                        calib_data=calibration_data(case))
        file = TengineModel(from_bytes(frozen.model.data, case.name))
        found = scores(file.executor(), images)
        same = scores(Reference(frozen.graph, rounding="half-away"), images) == found
        classes = found.argmax(1)
        rows.append([case.name, method, str(len(images)), *(f"{100 * share.mean():.2f}" for share in (
            exact == labels, classes == labels, classes == exact, same))])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(TRAINED))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--images", type=int, default=0, help="only the first N; 0 is all")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    rows: list[list[str]] = []
    for case in (TRAINED[name] for name in args.cases.split(",")):
        if case.found:
            rows += measure(case, args.methods.split(","), args.images)
        else:
            print(f"{case.name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
    print(table("Tengine's format, executed by the reference",
                ["network", "ranges", "images", "float top-1", "top-1", "agreement", "equal"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
