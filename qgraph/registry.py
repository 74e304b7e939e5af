"""Tables that others fill: functions by a decorator, classes of other packages by entry points."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Callable, TypeVar

Function = TypeVar("Function", bound=Callable)


def enter(table: dict[str, Function], names: Sequence[str]) -> Callable[[Function], Function]:
    """A decorator: the function becomes the entry of these names."""
    def add(function: Function) -> Function:
        table.update(dict.fromkeys(names, function))
        return function
    return add


def entry_points_of(group: str) -> list[EntryPoint]:
    """What installed packages bring under the name of a group, sorted by name."""
    every: Any = entry_points()
    found = every.select(group=group) if hasattr(every, "select") else every.get(group, ())  # Python 3.9
    return sorted(dict.fromkeys(found), key=lambda entry: entry.name)
