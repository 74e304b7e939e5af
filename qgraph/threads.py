"""How many threads compute: what OMP_NUM_THREADS says, which every engine reads.

onnxruntime and ncnn read it at each model that they open, MXNet once, when it is imported.  Their results do not depend
on it.  Those of NumPy's linear algebra do, so that it computes with one thread, several times at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from qgraph.errors import OptionError

VARIABLE = "OMP_NUM_THREADS"
Item = TypeVar("Item")


def thread_count() -> int:
    """0 leaves it to the engine. Of a list, which is for nested regions, the first number counts."""
    first = os.environ.get(VARIABLE, "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() else 0


def set_thread_count(count: int) -> None:
    """Let the models that are opened from now on compute with so many threads.

    Raises OptionError where MXNet is imported already, and with another number.
    """
    if count < 1:
        raise OptionError(f"threads: found {count}, want at least 1")
    if "mxnet" in sys.modules and count != thread_count():
        raise OptionError(f"threads: found {count}, but MXNet is imported already and keeps the number that it found "
                          f"then: set {VARIABLE}={count} before Python starts, or the threads before mxnet is imported")
    os.environ[VARIABLE] = str(count)


@contextmanager
def one_for_linear_algebra() -> Iterator[None]:
    """NumPy's linear algebra computes with one thread: the same bits on every number of cores."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def side_by_side(run: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Run it for each item, on as many threads as `thread_count` says, or as there are cores."""
    items, threads = list(items), thread_count() or os.cpu_count() or 1
    if min(threads, len(items)) < 2:
        for item in items:
            run(item)
        return
    with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="qgraph") as pool:
        for _ in pool.map(run, items):
            pass
