"""Fills what a page leaves open: ``<!-- generated: NAME ARGUMENT -->`` becomes what the generator NAME returns."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from _generate import classes, command_line, figures, house, names, root, staircase, targets, tolerances

GENERATORS: dict[str, Callable[..., str]] = {
    "command-line": command_line.commands,
    "errors": classes.errors,
    "figure": figures.figure,
    "ops": names.ops,
    "passes": names.passes,
    "python": names.python,
    "readme": root.readme,
    "rooms": house.rooms,
    "root": root.page,
    "staircase": staircase.staircase,
    "target": targets.one,
    "targets": targets.overview,
    "tasks": classes.tasks,
    "tolerances": tolerances.tolerances,
}
MARK = re.compile(r"^<!-- generated: ([\w-]+)(?: (\S+))? -->$", re.M)


def fill(text: str, page: str) -> str:
    """The text with its marks filled. page: where it lies, for messages. Raises ValueError for an unknown mark."""
    return MARK.sub(partial(_made, page), text)


def _made(page: str, match: re.Match[str]) -> str:
    name, argument = match.groups()
    if name not in GENERATORS:
        raise ValueError(f"{page}: {match.group(0)}: no generator {name!r}, want one of {', '.join(GENERATORS)}")
    given: list[Any] = [argument] if argument else []
    return GENERATORS[name](*given)
