"""What more processes gain: the 19 rows of `qgraph simulate --grid original`, here and on workers of this machine.

    python benchmarks/cluster_speed.py [--case NAME] [--images N] [--workers N,...]

One thread each.  100 images calibrate; the first N of the 900 others judge, 16 to a batch.  The times are wall times,
without those of starting the workers, which are told apart; rows must be the same to the last bit, or the script fails.
Needs QGRAPH_CASES.
"""

from __future__ import annotations

import argparse
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="mobilenetv1_0.75_192_bn", choices=[*TRAINED])
    parser.add_argument("--images", type=int, default=900, metavar="N")
    parser.add_argument("--workers", default="1,2", metavar="N,...")
    args = parser.parse_args()
    case = TRAINED[args.case]
    if not case.found:
        print(f"{case.name}: its files are not in QGRAPH_CASES", file=sys.stderr)
        return 1
    rows, alone, want = [], 0.0, ""
    for count in (None, *map(int, args.workers.split(","))):
        started = time.perf_counter()
        with open_workers(count=count) as workers:
            start = time.perf_counter() - started
            seconds, found = seconds_of(case, args.images, workers)
        alone, want = alone or seconds, want or found
        if found != want:
            print(f"{count} workers: other rows than in this process", file=sys.stderr)
            return 1
        rows.append(["this process" if count is None else f"{count} workers", f"{start:.1f}", f"{seconds:.1f}",
                     f"{alone / seconds:.2f}"])
        print(*rows[-1], file=sys.stderr)
    print(table(f"{case.name}, 19 rows on {args.images} images", ["", "start, s", "rows, s", "speed-up"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
