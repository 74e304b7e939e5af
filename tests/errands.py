"""Functions for workers of other processes, which import them by name."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qgraph.errors import MissingInputError


def refuse(item: int) -> int:
    """Raise an error of the input for item 1."""
    if item == 1:
        raise MissingInputError("item 1 has no input b", ["b"])
    return item


def process(item: int) -> int:
    return os.getpid()


def thousand(item: int) -> bytes:
    return bytes(1000)


def variable(name: str) -> str | None:
    """Of this process's environment."""
    return os.environ.get(name)


@dataclass
class Counting:
    """Tells (this process, how many items it was given here before)."""

    items: int = 0

    def __call__(self, item: int) -> tuple[int, int]:
        self.items += 1
        return os.getpid(), self.items - 1
