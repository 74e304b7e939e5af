"""What more processes gain: the 19 rows of `qgraph simulate --grid original`, here and on workers of this machine.

    python benchmarks/cluster_speed.py [--case NAME] [--images N] [--workers N,...] [--rounds N]

One thread each.  100 images calibrate; the first N of the 900 others judge, 16 to a batch.  All run in turns, the order
reversed every other time; the times are medians of wall times, without those of starting the workers, which are told
apart.  Rows must be the same to the last bit, or the script fails.
Needs QGRAPH_CASES.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from _common import CASES, TRAINED, Case, calibration_data, table

from qgraph import simulate
from qgraph.cluster import open_workers
from qgraph.commands.simulate import PRESETS
from qgraph.workers import Workers


def seconds_of(case: Case, images: int, workers: Workers) -> tuple[float, str]:
    """(wall time of all rows, they)"""
    options = case.options({"skip": "::10", "select": f":{images + -(-images // 9)}"})
    started = time.perf_counter()
    found = simulate(case.graph(), str(CASES / case.images), PRESETS["original"](), options,
                     calib_data=calibration_data(case), workers=workers)
    return time.perf_counter() - started, found.to_json()


def name(count: int | None) -> str:
    return "this process" if count is None else f"{count} worker{'s' * (count > 1)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="mobilenetv1_0.75_192_bn", choices=[*TRAINED])
    parser.add_argument("--images", type=int, default=900, metavar="N")
    parser.add_argument("--workers", default="1,2", metavar="N,...")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    args = parser.parse_args()
    case = TRAINED[args.case]
    if not case.found:
        print(f"{case.name}: its files are not in QGRAPH_CASES", file=sys.stderr)
        return 1
    counts = (None, *map(int, args.workers.split(",")))
    starts: dict[int | None, list[float]] = {count: [] for count in counts}
    seconds: dict[int | None, list[float]] = {count: [] for count in counts}
    want = ""
    for turn in range(args.rounds):
        for count in counts if turn % 2 == 0 else counts[::-1]:
            started = time.perf_counter()
            with open_workers(count=count) as workers:
                starts[count].append(time.perf_counter() - started)
                took, found = seconds_of(case, args.images, workers)
            seconds[count].append(took)
            want = want or found
            if found != want:
                print(f"{count} workers: other rows than before", file=sys.stderr)
                return 1
            print(name(count), f"{took:.1f}", file=sys.stderr)
    median = {count: statistics.median(values) for count, values in seconds.items()}
    rows = [[name(count), f"{statistics.median(starts[count]):.1f}", f"{median[count]:.1f}",
             f"{min(seconds[count]):.1f} to {max(seconds[count]):.1f}",
             *(f"{median[other] / median[count]:.2f}" for other in counts[:2])] for count in counts]
    print(table(f"{case.name}, 19 rows on {args.images} images", ["", "start, s", "rows, s", "from, to",
                *(f"{name(count)} / it" for count in counts[:2])], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
