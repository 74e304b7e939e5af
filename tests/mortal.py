"""Functions for workers of other processes, which import them by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from qgraph.errors import MissingInputError


def die_once(mark: str, item: int) -> int:
    """Ten times the item; kill -9 of the process that gets item 2, unless the file `mark` is there, and leave it."""
    if item == 2 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * item


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(item: int) -> int:
    """Raise an error of the input for item 1."""
    if item == 1:
        raise MissingInputError("item 1 has no input b", ["b"])
    return item


def process(item: int) -> int:
    return os.getpid()


def thousand(item: int) -> bytes:
    return bytes(1000)
