"""What `qgraph freeze` says at its end: at most one screen; the rest is in the report and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qgraph.cli import console, judged

if TYPE_CHECKING:
    from qgraph.commands.frozen import Frozen

_NAMED = 6  # layers in float
_OUTPUTS = 4  # tasks, the worst first
_SATURATED = 3  # layers
_REASONS = 3  # why layers stay in float, where it is not that the user wants it
_INDENT = 12
_LAST = ("size", "time")


def summary(frozen: Sequence[Frozen], paths: Sequence[str]) -> list[str]:
    """The lines on stdout; of several models a column for each."""
    columns = [_lines(one) for one in frozen]
    wrote = [f"wrote       {path}" for path in paths]
    if len(columns) > 1:
        names = [one.report["target"] for one in frozen]
        known = dict.fromkeys(title for column in columns for title in column)
        titles = sorted(known, key=_LAST.__contains__)
        rows = [(title, *("\n".join(column.get(title, [])) for column in columns)) for title in titles]
        console.table("", ("", *names), rows, to_stdout=True, numbers=False)
        return wrote
    lines = [line for title, told in columns[0].items() for line in console.under(title.ljust(_INDENT), told)]
    return [*lines, *wrote]


def _lines(frozen: Frozen) -> dict[str, list[str]]:
    """Title -> what is said of one frozen model."""
    from qgraph.calibration.images import DISTILLED
    from qgraph.targets.registry import get_target

    report = frozen.report
    left, saturated = report["float"], report["saturation"]
    found = {"quantized": [f"{len(report['quantized'])} of {len(report['quantized']) + len(left)} layers"
                           + _named(layer["name"] for layer in left),
                           *_most(_reasons(left), _REASONS, "reasons")]}
    if report["agreement"]:
        found["agreement"] = _most(judged.agreement_lines(report["agreement"]), _OUTPUTS, "kinds of outputs")
        if report["calibration"] and report["calibration"]["data"].startswith(DISTILLED):
            found["agreement"].append("distilled images belong to no class: judge it on real ones (qgraph eval)")
    if saturated:
        worst = sorted(saturated, key=lambda one: -one["missed_percent"])
        found["saturation"] = _most([_saturated(one) for one in worst], _SATURATED, "layers")
    if report["departure"] and report["departure"]["layers"]:
        found["kernels"] = [_kernels(report["departure"])]
    for line in get_target(report["target"]).summary(report):
        found.setdefault(line[:_INDENT].strip(), []).append(line[_INDENT:])
    size = report["size"]
    found["size"] = [f"{console.size(size['before'])} -> {console.size(size['after'])}"]
    found["time"] = [f"{sum(frozen.seconds.values()):.1f} s ("
                     + ", ".join(f"{step} {seconds:.1f}" for step, seconds in frozen.seconds.items()) + ")"]
    return found


def _named(names: Any) -> str:
    first = [*names]
    if not first:
        return ""
    return f" (in float: {', '.join(first[:_NAMED])}{', ...' if len(first) > _NAMED else ''})"


def _reasons(left: Sequence[Mapping[str, str]]) -> list[str]:
    """Why layers stay in float that the user did not exclude."""
    names: dict[str, list[str]] = {}
    for layer in left:
        if not layer["reason"].startswith("excluded by "):
            names.setdefault(layer["reason"], []).append(layer["name"])
    return [f"{one[0]} {f'and {len(one) - 1} more stay' if one[1:] else 'stays'} in float: {reason}"
            for reason, one in names.items()]


def _most(lines: list[str], count: int, what: str) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - count
    return lines if rest < 2 else [*lines[:count], f"and {rest} more {what}, see the report"]


def _saturated(found: Mapping[str, Any]) -> str:
    chosen = found["why"] or f"step times {found['chosen']:g}"
    return (f"{found['layer']}: {found['missed_percent']:.2g} % of its outputs off by more than a code on CPUs without "
            f"VNNI ({chosen})")


def _kernels(found: Mapping[str, Any]) -> str:
    worst = min(found["layers"].items(), key=lambda item: item[1]["within_one"], default=None)
    where = f", least in {worst[0]}" if worst and worst[1]["within_one"] < 100 else ""
    return f"{found['within_one']:g} % of the codes within 1 of exact arithmetic{where}"
