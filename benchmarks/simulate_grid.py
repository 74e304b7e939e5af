"""The results table of "Quantization on MXNet", simulated on the trained ImageNet networks.

    python benchmarks/simulate_grid.py [--cases NAME,...] [--output FOLDER] [--reference N]

19 rows: inputs unsigned or signed, their ranges online, moving averages or KL, weights per layer or channel, BatchNorms
merged or not, the first convolution in float or not.  100 images calibrate, the 900 others judge, 16 to a batch.
"plain evaluations" is the time of all rows over that of evaluating the float network once, as qgraph eval does.
--reference N: on how many of the first N images each row and the NumPy reference predict the same class (slow).
With --output finished rows are kept in FOLDER/NAME.json.  Needs QGRAPH_CASES.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import CASES, TRAINED, Case, table

from qgraph import evaluate, freeze, simulate
from qgraph.commands.simulate import PRESETS
from qgraph.commands.strategies import HEAD, Simulation
from qgraph.engines import runtime
from qgraph.files import write_files
from qgraph.semantics.interpreter import Executor as Reference

NETWORKS = ("mobilenetv1_0.75_192_bn", "squeezenet1.1")
SCORES = 2  # columns behind HEAD, which are results


def measure(case: Case, folder: Path | None) -> tuple[Simulation, float]:
    """(rows, how many plain evaluations they took)"""
    options, images = case.options(case.test), str(CASES / case.images)
    started = time.perf_counter()
    evaluate(case.graph(), images, options=options)
    plain = time.perf_counter() - started

    def keep(found: Simulation) -> None:
        if folder is not None:
            write_files({str(folder / f"{case.name}.json"): found.to_json()})

    kept = None
    if folder is not None and (folder / f"{case.name}.json").is_file():
        kept = Simulation.from_json((folder / f"{case.name}.json").read_text())
    started = time.perf_counter()
    found = simulate(case.graph(), images, PRESETS["original"](), options, kept=kept, each=keep)
    return found, (time.perf_counter() - started) / plain


def same_classes(case: Case, found: Simulation, count: int) -> list[str]:
    """Per row, images of the first `count` on which MXNet predicts what the reference predicts."""
    batches = list(case.data(case.test, limit=count, batch_size=16))
    executor, counts = runtime("comparing"), [""]
    for strategy in found.strategies:
        options = strategy.apply(case.options(case.calib, target="mxnet-sim"))
        g = freeze(case.graph(), options, calib_data=case.data(case.calib)).graph
        ours, exact = executor(g), Reference(g, rounding="mxnet")
        same = [np.array_equal(a, b) for batch in batches for a, b in zip(
            ours.run(batch.feeds)[0].argmax(1), exact.run(batch.feeds)[0].argmax(1))]
        counts.append(f"{sum(same)} / {len(same)}")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(NETWORKS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--reference", type=int, default=0, metavar="N")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("qgraph").setLevel(logging.INFO)
    logging.getLogger("qgraph.passes").setLevel(logging.WARNING)
    head: list[str] = list(HEAD)
    rows: list[list[Any]] = []
    for case in (TRAINED[name] for name in args.cases.split(",")):
        if not case.found:
            print(f"{case.name}: left out, its files are not in QGRAPH_CASES", file=sys.stderr)
            continue
        found, evaluations = measure(case, args.output)
        rows = rows or [list(row[:-SCORES]) for row in found.table()]
        columns = {name: [row[at] for row in found.table()] for at, name in ((-2, "top-1"), (-1, "agreement"))}
        if args.reference:
            columns["as the reference"] = same_classes(case, found, args.reference)
        for name, column in columns.items():
            head.append(f"{case.name} {name}")
            rows = [[*row, value] for row, value in zip(rows, column)]
        print(f"{case.name}: {len(rows)} rows in the time of {evaluations:.1f} plain evaluations")
    print(table("Simulated strategies", head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
