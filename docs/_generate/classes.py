"""Tables of tasks and errors, from their classes."""

from __future__ import annotations

import inspect

from _generate.markdown import code, table
from qgraph import errors as module
from qgraph.errors import QGraphError
from qgraph.tasks.base import Task
from qgraph.tasks.registry import TASKS, task_class


def tasks() -> str:
    """A row for each of qgraph's own tasks."""
    return table(("`--task`", "outputs", "metrics", "judged by", "ruined below"), map(_task, TASKS))


def _task(name: str) -> tuple[str, ...]:
    cls = task_class(name)
    metrics = "; ".join(f"`{metric}`: {row.help}" for metric, row in cls.metrics.items())
    return f"`{name}`", _what(cls), metrics, f"`{cls.main}`", f"{cls.ruined:g} {cls.metrics[cls.main].unit}".strip()


def _what(cls: type[Task]) -> str:
    return cls.help + (f"; labels: {cls.labels}" if cls.labels else "")


def errors() -> str:
    """A row for each error, with the class it derives from."""
    found = [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, QGraphError)]
    return table(("error", "derives from", "meaning"), [
        (f"`{cls.__name__}`", code(base.__name__ for base in cls.__bases__), _first_line(cls)) for cls in found])


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]
