"""What the user sees: the result on stdout, the log, the tables and the progress bars on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from qgraph.files import size_text as size

__all__ = ["Bars", "is_quiet", "result", "set_up", "size", "table", "under"]

NORMAL, QUIET, VERBOSE = logging.INFO, logging.WARNING, logging.DEBUG

err = Console(stderr=True, highlight=False)


class _Handler(logging.Handler):
    """The log of qgraph on stderr, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "bold yellow" if record.levelno >= logging.WARNING else "dim" if record.levelno < logging.INFO else ""
        err.print(Text(record.getMessage(), style=style), soft_wrap=True)


def set_up(quiet: bool, verbose: bool, passes: bool = True) -> None:
    """How much is said. -q: warnings only, no tables and bars; -v: also why patterns did not match.

    passes: whether a line for every pass is said without -v.
    """
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other")
    log = logging.getLogger("qgraph")
    log.handlers = [h for h in log.handlers if not isinstance(h, _Handler)] + [_Handler()]
    log.setLevel(QUIET if quiet else VERBOSE if verbose else NORMAL)
    log.getChild("passes").setLevel(logging.NOTSET if passes or verbose else QUIET)


def is_quiet() -> bool:
    return logging.getLogger("qgraph").level >= QUIET


class _Rate(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


class Bars:
    """Progress bars, one per thing that is done: a `qgraph.options.Progress`. Silent off a terminal or with -q."""

    def __init__(self) -> None:
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
                                  TimeRemainingColumn(), console=err, disable=is_quiet() or not err.is_terminal)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


def result(data: Any, as_json: bool, lines: Iterable[str]) -> None:
    """The result on stdout: JSON, or lines for people."""
    click.echo(json.dumps(data, indent=1, sort_keys=True) if as_json else "\n".join(lines))


def under(title: str, lines: Sequence[str]) -> list[str]:
    """The lines behind a title, which the first one has in front."""
    return [(" " * len(title) if number else title) + line for number, line in enumerate(lines)]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]], to_stdout: bool = False,
          numbers: bool = True) -> None:
    """A table on stderr; on stdout if it is the result. Columns of numbers are aligned to the right; without
    `numbers` all is text."""
    rows = [["" if v is None else str(v) for v in row] for row in rows]
    console = Console(highlight=False, file=sys.stdout) if to_stdout else err
    if not console.is_terminal:
        console = Console(highlight=False, file=sys.stdout if to_stdout else sys.stderr, width=160)
    drawn = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(head):
        numeric = numbers and rows and all(_is_number(row[at]) for row in rows)
        drawn.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    console.print(drawn)


def _is_number(text: str) -> bool:
    return not text or text[:1] in "+-0123456789"
