"""What others bring: functions by a decorator, classes of other packages by entry points, a user's own modules."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Callable, Generic, TypeVar

from qgraph.errors import OptionError, QGraphError, suggest

log = logging.getLogger("qgraph")

Named = TypeVar("Named")
Function = TypeVar("Function", bound=Callable)


def enter(table: dict[str, Function], names: Sequence[str]) -> Callable[[Function], Function]:
    """A decorator: the function becomes the entry of these names."""
    def add(function: Function) -> Function:
        table.update(dict.fromkeys(names, function))
        return function
    return add


def entry_points_of(group: str) -> list[EntryPoint]:
    """What installed packages bring under the name of a group, sorted by name."""
    every = _entry_points(tuple(sys.path))
    found = every.select(group=group) if hasattr(every, "select") else every.get(group, ())  # Python 3.9
    return sorted(dict.fromkeys(found), key=lambda entry: entry.name)


@lru_cache(maxsize=8)
def _entry_points(path: tuple[str, ...]) -> Any:
    """Of all packages in these folders, which are sys.path: reading them takes a hundredth of a second or more."""
    return entry_points()


def user_attribute(flag: str, module: str, name: str) -> Any:
    """What a user's module has under that name, None if nothing. The current folder is searched too.

    flag: for messages.  Raises OptionError where the module cannot be imported.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), name, None)
    except QGraphError:  # of what the module calls: it says what is wrong
        raise
    except Exception as error:  # whatever the user's file raises
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise OptionError(f"{flag}: no module {module!r} in the current folder or the environment") from None
        raise OptionError(f"{flag}: module {module!r} cannot be imported: {described(error)}") from error
    finally:
        sys.path.pop(0)


def described(error: Exception) -> str:
    """An error with its file and line, which a syntax error names itself: its file has not run."""
    words = f"{type(error).__name__}: {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return words if isinstance(error, SyntaxError) else f"{words} ({frame.filename}, line {frame.lineno})"


class Classes(Generic[Named]):
    """Classes by name: qgraph's own, which are imported when they are asked for, and those of entry points.

    kind: what they are, for messages.  own: name -> module:class.  base: what they must be subclasses of; each has its
    name as ``name``.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, str], base: type[Named]) -> None:
        self.kind, self.group, self.own, self.base = kind, group, own, base
        self._found: dict[str, type[Named]] = {}

    def __getitem__(self, name: str) -> type[Named]:
        """The class of that name; OptionError names the valid ones."""
        if name not in self._found:
            self._found[name] = self._load(name)
        return self._found[name]

    def names(self) -> list[str]:
        """Qgraph's own, then those of other packages."""
        return [*self._places()]

    def all(self) -> list[type[Named]]:
        """Every class; one of another package that cannot be loaded is left out with a warning."""
        found = []
        for name in self.names():
            try:
                found.append(self[name])
            except OptionError as error:
                log.warning("warning: %s", error)
        return found

    def _places(self) -> dict[str, str]:
        others = {entry.name: entry.value for entry in entry_points_of(self.group) if entry.name not in self.own}
        return {**self.own, **others}

    def _load(self, name: str) -> type[Named]:
        places = self._places()
        if name not in places:
            raise OptionError(f"no {self.kind} is called {name!r}; want one of {', '.join(places)}"
                              + suggest(name, places, " (did you mean {}?)"))
        module, _, attribute = places[name].partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self.own:
                raise
            raise OptionError(f"{self.kind} {name}: {places[name]} cannot be loaded: {error}; repair or remove the "
                              "package that brings it") from error
        if not (isinstance(found, type) and issubclass(found, self.base)) or getattr(found, "name", "") != name:
            raise OptionError(f"{self.kind} {name}: {places[name]} is {getattr(found, 'name', found)!r}, want a "
                              f"subclass of {self.base.__module__}.{self.base.__name__} of this name")
        return found
