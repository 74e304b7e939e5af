"""Time and memory of calibration on the trained MobileNet v1: 100 images, KL.

    python benchmarks/calibration.py [--model mobilenetv1_0.75_192_bn] [--batch 20] [--rounds 5] [--clock cpu|wall]

Prints two Markdown tables.

Time: of `collect` (two sweeps with all that they observe, and the search of the ranges), against the plain forward
passes that it needs, two for each image: of the model as it is, as MXNet binds it by default (with its own fusing), and
of the same after our float passes, which is faster.  Images are decoded beforehand and counted in neither, except in
the last row, which decodes them in both.  All alternate; medians, and medians of the ratios within a round.  The clock
is the CPU time of the process, with one thread for the network; `--clock wall`, for a machine that nobody else uses,
shows that the observers work beside the network on a second core.

Memory: peak resident MiB of a process that calibrates on 100 and on 1,000 images read from the file, and their ratio.

Needs QGRAPH_CASES.  About two minutes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from _common import CLOCKS, TRAINED, Case, module, parse_isas, table, this_isa

from qgraph import Graph
from qgraph.calibration.collect import collect
from qgraph.ir.rewrite import PassManager
from qgraph.passes import PIPELINES

IMAGES = 100


def float_graph(case: Case) -> Graph:
    g = case.graph()
    PassManager(PIPELINES["float"]).run(g)
    return g


class Decoded:
    """The batches of some data, kept, with what `collect` wants to know about them."""

    def __init__(self, data: Any) -> None:
        self.name, self.preprocess, self.num_items = data.name, data.preprocess, data.num_items
        self._batches = list(data)

    def __iter__(self) -> Any:
        return iter(self._batches)


def forward(bound: Any, data: Iterable[Any]) -> None:
    """One sweep of the network alone; its output is waited for, nothing is looked at."""
    import mxnet as mx

    for batch in data:
        bound.forward(mx.io.DataBatch([mx.nd.array(batch.feeds["data"])]), is_train=False)
        bound.get_outputs()[0].wait_to_read()


def measure(works: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each work in each round; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            started = clock()
            work()
            if turn:
                found[name].append(clock() - started)
    return found


def time_table(case: Case, g: Graph, batch: int, rounds: int, clock: str) -> str:
    shape = (batch, 3, case.size, case.size)
    own, folded = module(case.graph(), shape), module(g, shape)
    on_disk = case.data(case.calib, limit=IMAGES, batch_size=batch)
    decoded: Any = Decoded(on_disk)
    found = measure({
        "plain": lambda: forward(own, decoded), "folded": lambda: forward(folded, decoded),
        "plain, decoding": lambda: forward(own, on_disk),
        "kl": lambda: collect(g, decoded, "kl"), "naive": lambda: collect(g, decoded, "naive"),
        "kl, decoding": lambda: collect(g, on_disk, "kl"),
    }, rounds, CLOCKS[clock])
    rows = []
    for what, sweeps, against in (("kl", 2, "plain"), ("kl", 2, "folded"), ("naive", 1, "plain"),
                                  ("naive", 1, "folded"), ("kl, decoding", 2, "plain, decoding")):
        plain = [sweeps * seconds for seconds in found[against]]
        ratio = statistics.median(a / b for a, b in zip(found[what], plain))
        rows.append([what, f"{sweeps} x {against}", f"{statistics.median(plain):.2f}",
                     f"{statistics.median(found[what]):.2f}", f"{ratio:.2f}"])
    return table(f"Calibration of {case.name}, {IMAGES} images, batch {batch}, {this_isa()} instructions, {clock} time",
                 ["method", "forward passes", "s", "calibration s", "ratio"], rows)


def peak(model: str, images: int, batch: int) -> float:
    """MiB of a process of its own."""
    command = [sys.executable, __file__, "--model", model, "--batch", str(batch), "--peak-of", str(images)]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return int(found) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv1_0.75_192_bn", choices=list(TRAINED))
    parser.add_argument("--batch", type=int, default=20, help="a divisor of 100")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)  # in the process of its own
    args = parse_isas(parser, alone=("--peak-of",))
    case = TRAINED[args.model]
    if not case.found:
        print(f"{case.name}: its files are not in QGRAPH_CASES", file=sys.stderr)
        return 1
    g = float_graph(case)
    if args.peak_of:
        collect(g, case.data({}, limit=args.peak_of, batch_size=args.batch), "kl")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return 0

    print(time_table(case, g, args.batch, args.rounds, args.clock), flush=True)
    few, many = (peak(args.model, n, args.batch) for n in (IMAGES, 10 * IMAGES))
    print(table("Peak memory of the process, kl", [f"{IMAGES} images, MiB", f"{10 * IMAGES} images, MiB", "ratio"],
                [[f"{few:.0f}", f"{many:.0f}", f"{many / few:.3f}"]]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
