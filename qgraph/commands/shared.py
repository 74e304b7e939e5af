"""What the targets of one run of freeze have in common: made for the first of them, kept for the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from qgraph.arrays import Array
from qgraph.data.open import Batch
from qgraph.options import FreezeOptions
from qgraph.passes._float_reads import KeptReads
from qgraph.targets.base import Executor

KEPT_BYTES = 1 << 28  # of outputs of the float model; what is beyond is computed again
Made = TypeVar("Made")


class Shared:
    """Values by name. What makes one must not depend on the target, and nobody changes what is made.

    reads: what rounding reads in the float network, None where one target alone is wanted.
    """

    def __init__(self, options: FreezeOptions, several: bool = False) -> None:
        self._options = _without_target(options)
        self.reads = KeptReads() if several else None
        self._made: dict[str, Any] = {}

    def fits(self, options: FreezeOptions) -> bool:
        """Whether these options ask for the same network and images, if for another target."""
        return _without_target(options) == self._options

    def once(self, what: str, make: Callable[[], Made]) -> Made:
        """The value of that name, made the first time."""
        if what not in self._made:
            self._made[what] = make()
        return cast(Made, self._made[what])


def _without_target(options: FreezeOptions) -> FreezeOptions:
    return dataclasses.replace(options, target=FreezeOptions.target, output=None)


class Truth:
    """The outputs of the float model on numbered batches, kept up to `KEPT_BYTES`. make: gives what computes them."""

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._executor: Executor | None = None
        self._kept: dict[int, tuple[Sequence[str], list[Array]]] = {}
        self._room = KEPT_BYTES

    def rest(self) -> None:
        """Let go of what computes; outputs that are not kept make it again."""
        self._executor = None

    def outputs(self, number: int, batch: Batch) -> list[Array]:
        """Of the batch with that number; kept ones count if they are of the same images."""
        ids, found = self._kept.get(number, ((), []))
        if found and list(ids) == list(batch.ids):
            return found
        if self._executor is None:
            self._executor = self._make()
        found = list(self._executor.run(batch.feeds))
        self._room -= sum(array.nbytes for array in found)
        if self._room >= 0:
            self._kept[number] = tuple(batch.ids), found
        return found
