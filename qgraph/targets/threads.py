"""How many threads engines compute with: what OMP_NUM_THREADS says, which every engine reads.

onnxruntime and ncnn read it at each model that they open, MXNet once, when it is imported.
"""

from __future__ import annotations

import os
import sys

from qgraph.errors import OptionError

VARIABLE = "OMP_NUM_THREADS"


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
