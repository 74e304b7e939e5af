"""Reads damaged files of every kind as a user does: each is read or refused, in bounded time and memory.

    python benchmarks/fuzz.py --count 20000
    python benchmarks/fuzz.py --kind onnx --seed 7

The files, the ways to damage them and the readers are those of tests/hostile.py. Each kind has a process of its own,
whose memory is capped; when it dies, or takes more than 10 seconds for a file, that file is a failure too, and another
process goes on behind it. A failure is kept: its folder has the file and what lies beside it. Exit code 1 if there are
any.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import _common

sys.path.insert(0, str(_common.ROOT / "tests"))

import hostile  # noqa: E402

SECONDS = 10  # for one file
MEMORY = 4 << 30  # address space of a process: libraries take a part
FILES, READ, REFUSED, PEAK = range(4)  # what a process counts: files begun, outcomes, KiB at most for one file


class TooLong(BaseException):
    """A file takes more than SECONDS; nothing that is meant for hostile bytes catches it."""


def _too_long(*_: object) -> None:
    raise TooLong(f"more than {SECONDS} s")


def work(name: str, seeds: list[hostile.Seed], first: int, count: int, seed: int, folder: Path, counts: Any,
         failures: Any) -> None:
    """Read the files of one kind from `first` on; in a process of its own, which ends when its parent does."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # Pillow's, of images that are refused
    kind = hostile.KINDS[name]
    here = folder / "file"
    here.mkdir(exist_ok=True)
    hostile.attempt(kind, hostile.write(kind, seeds[0], here), 0)  # modules are imported by then
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    for number in range(first, count):
        if not multiprocessing.parent_process().is_alive():
            return
        how, file = hostile.mutated(kind, seeds, number, seed)
        path = hostile.write(kind, file, here)
        counts[FILES] = number + 1
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where no signal gets through
        signal.alarm(SECONDS)
        try:
            with hostile.Peak() as peak:
                outcome = hostile.attempt(kind, path, number)
            counts[READ if outcome == "read" else REFUSED] += 1
            counts[PEAK] = max(counts[PEAK], round(1024 * peak.mib))
            if peak.mib > kind.mib:
                raise MemoryError(f"{peak.mib:.0f} MiB, want at most {kind.mib}")
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            failures.put((number, how, f"{type(error).__name__}: {str(error)[:200]} "
                                       f"({os.path.relpath(last.filename)}:{last.lineno})"))
            shutil.copytree(here, folder / str(number), dirs_exist_ok=True)
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()


def fuzz(name: str, seeds: list[hostile.Seed], count: int, seed: int, folder: Path) -> list[str]:
    """The row of one kind; its failures are printed."""
    context = multiprocessing.get_context("spawn")
    counts, failures, start, found = context.Array("q", 4), context.SimpleQueue(), time.perf_counter(), []
    folder.mkdir(parents=True)
    first = 0
    while first < count:
        process = context.Process(target=work, args=(name, seeds, first, count, seed, folder, counts, failures))
        process.start()
        while process.is_alive() or not failures.empty():
            process.join(0.1)
            while not failures.empty():
                found.append(failures.get())
        if process.exitcode and counts[FILES] == first:
            raise SystemExit(f"{name}: the process died before its first file, exit code {process.exitcode}")
        first = counts[FILES]
        if process.exitcode:
            found.append((first - 1, "", f"the process died: exit code {process.exitcode}"))
            shutil.copytree(folder / "file", folder / str(first - 1))
    for number, how, what in found:
        print(f"{folder / str(number)}: {how}: {what}", flush=True)
    return [name, str(first), str(counts[READ]), str(counts[REFUSED]), str(len(found)),
            f"{time.perf_counter() - start:.0f}", f"{counts[PEAK] / 1024:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="files of each kind (default %(default)s)")
    parser.add_argument("--kind", choices=hostile.KINDS, action="append", help="only this (may be given again)")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other files (default %(default)s)")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="qgraph-fuzz-"))
    seeds = hostile.make_seeds()
    rows = []
    for name in args.kind or hostile.KINDS:
        rows.append(fuzz(name, seeds[name], args.count, args.seed, folder / name))
        print(*rows[-1], flush=True)
    print(_common.table(f"Damaged files, seed {args.seed}",
                        ["kind", "files", "read", "refused", "failures", "seconds", "peak MiB of one"], rows))
    failed = sum(int(row[4]) for row in rows)
    if not failed:
        shutil.rmtree(folder)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
