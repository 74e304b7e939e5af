"""Where independent work runs: in this process, or wherever a `Workers` of another module takes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers(Protocol):
    """What runs a function on many items. A result must depend on its item alone: not on who runs it, or when."""

    @property
    def count(self) -> int:
        """How many items run at a time."""

    @property
    def apart(self) -> bool:
        """Whether items and results leave this process."""

    def map(self, run: Callable[[Item], Result], items: Iterable[Item], what: str) -> Iterator[Result]:
        """Yield ``run(item)`` for each item, in the order of `items`, each as soon as those before it are there.

        run: a function of a module, or a `functools.partial` of one: it and its items travel pickled.
        what: the work in a word or two, as in "ranges".
        An exception of `run` is raised here, at the place of its result; items behind it may not run at all.
        """

    def see(self, paths: Sequence[Path]) -> bool:
        """Whether all of them find the same files and folders there as this process does."""


class Here:
    """This process, one item after the other."""

    count, apart = 1, False

    def map(self, run: Callable[[Item], Result], items: Iterable[Item], what: str) -> Iterator[Result]:
        return map(run, items)

    def see(self, paths: Sequence[Path]) -> bool:
        return True
