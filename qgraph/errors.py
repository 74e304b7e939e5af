"""The errors qgraph raises on purpose.

Every one of them is a mistake of the input or of its surroundings: the command line prints it on one line and exits.
Anything that is not a ``QGraphError`` is our own bug and keeps its traceback.  A message says what was found, what was
wanted, where (node, file), and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LONGEST_MESSAGE = 2000  # a message quotes what it found, and a hostile file can hold anything


class QGraphError(Exception):
    """Root of the tree. The middle of a message that is too long is left out."""

    def __str__(self) -> str:
        text = super().__str__()
        half = LONGEST_MESSAGE // 2
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes, whatever the constructor takes."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class GraphError(QGraphError):
    """A graph is not valid, or an edit would make it so."""


class FormatError(QGraphError):
    """A file is malformed: truncated, corrupted, or not what its name says."""


class UnsupportedError(QGraphError):
    """The input is well formed, but qgraph or the chosen target cannot carry it."""


class OptionError(QGraphError):
    """An option has a value that cannot be used, such as an exclusion that matches nothing."""


class DataError(QGraphError):
    """Calibration or evaluation data cannot be read or do not fit the model."""


class MissingInputError(DataError):
    """Data hold nothing for inputs of the model. names: of these inputs."""

    def __init__(self, text: str, names: Iterable[str]) -> None:
        super().__init__(text)
        self.names = tuple(names)


class CalibrationError(QGraphError):
    """Ranges cannot be determined, or a calibration table does not belong to the model."""


class PassError(QGraphError):
    """A pass broke its contract: it left an invalid graph or misreported its changes."""


class MissingDependencyError(QGraphError):
    """An optional package is needed and not installed. instead: what to do without it, as in "give X, or "."""

    def __init__(self, package: str, what_for: str, extra: str, instead: str = "") -> None:
        super().__init__(f'{what_for} needs {package}, which is not installed: {instead}pip install "qgraph[{extra}]"')


class ClusterError(QGraphError):
    """Workers cannot be reached, are not like this process, or died."""


class CheckFailed(QGraphError):
    """A check that the user asked for did not hold (exit code 3)."""


def close_names(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known names that `name` may be a misspelling of, the closest first."""
    from difflib import get_close_matches  # here, so that the command line starts without it

    return get_close_matches(name, list(known), count, cutoff)


def suggest(name: str, known: Iterable[str], form: str = "did you mean {}?", *, count: int = 1, cutoff: float = 0.6,
            between: str = " or ") -> str:
    """The close names in the form of the sentence around them, for a message; "" if there are none."""
    close = close_names(name, known, count, cutoff)
    return form.format(between.join(close)) if close else ""
