"""Tables that functions enter by a decorator: kernels, shape rules, converters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, TypeVar

Function = TypeVar("Function", bound=Callable)


def enter(table: dict[str, Function], names: Sequence[str]) -> Callable[[Function], Function]:
    """A decorator: the function becomes the entry of these names."""
    def add(function: Function) -> Function:
        table.update(dict.fromkeys(names, function))
        return function
    return add
