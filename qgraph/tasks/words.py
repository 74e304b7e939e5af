"""How metrics are called and written for people."""

from __future__ import annotations

from qgraph.tasks.base import Metric
from qgraph.tasks.registry import all_classes


def metric(name: str) -> Metric:
    """What is known of a metric, of whichever task."""
    return next((task.metrics[name] for task in all_classes() if name in task.metrics), Metric("", ""))


def metric_names() -> list[str]:
    """Those of all tasks."""
    return [*dict.fromkeys(name for task in all_classes() for name in task.metrics)]


def title(name: str) -> str:
    return metric(name).title or name


def with_unit(name: str, value: float | None) -> str:
    """The value of a metric; None is noise that is not there, or what is not known."""
    if value is None:
        return "exact" if name == "sqnr_db" else "not known"
    unit = metric(name).unit
    return f"{value:g}{' ' if unit else ''}{unit}"
