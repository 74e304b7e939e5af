"""`qgraph diff`: what changed between two frozen results: arithmetic, scales, codes, metrics and size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qgraph.arrays import Array
from qgraph.commands.result_files import Range, Result, read_result
from qgraph.errors import DataError, OptionError

BEYOND = 1.0  # percent, of a scale or the ends of a range
NOTICED = 0.1  # of a metric, in its unit (percent or dB); 0.001 where it has none
_TINY = 1e-30


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str], beyond: float = BEYOND) -> dict[str, Any]:
    """{"a", "b", "same_network", "about", "layers", "ranges", "codes", "metrics", "size", "worse": [sentence]}.

    a, b: what `read_result` takes.  beyond: percent by which a scale must differ to be told.
    about: [{"name", "a", "b"}] of options, calibration and versions that differ.  layers: [{"name", "a", "b"}] of the
    arithmetic, None in one that does not have the layer.  ranges: [{"name", "a", "b", "percent"}] (texts).
    codes: [{"name", "changed", "of"}] of weights, None where they cannot be told.  metrics: [{"output", "metric", "a",
    "b", "unit", "worse"}], [] where they are of other images.
    worse: which metrics fell by more than `NOTICED`, and which outputs are ruined in b alone; None where no metric is
    in both.
    Raises OptionError for results that have nothing in common, and what `read_result` raises.
    """
    before, after = read_result(a), read_result(b)
    if not before.ranges.keys() & after.ranges.keys() and not before.layers.keys() & after.layers.keys():
        raise OptionError(f"{before.path} and {after.path} have no layer and no tensor in common, want two results of "
                          "one network")
    metrics = [*_metrics(before, after)] if before.judged == after.judged else []
    return {
        "a": before.path, "b": after.path, "same_network": before.graph == after.graph,
        "about": _changed(before.about, after.about, before.layers and after.layers),
        "layers": _changed(before.layers, after.layers, True) if before.layers and after.layers else [],
        "ranges": [*_ranges(before.ranges, after.ranges, beyond)],
        "codes": [*_codes(before.arrays, after.arrays)] if before.arrays and after.arrays else None,
        "metrics": metrics,
        "judged": {side: None if found.judged is None else {"data": found.judged[0], "images": found.judged[1]}
                   for side, found in (("a", before), ("b", after))},
        "size": {"a": before.size, "b": after.size},
        "worse": [*_worse(metrics, before, after)] if metrics else None,
    }


def check_not_worse(found: Mapping[str, Any]) -> str:
    """What got worse, or "". Raises DataError where that cannot be told."""
    if found["worse"] is None:
        raise DataError("--fail-on worse: the two have no metric of the same images in common; freeze both with the "
                        f"same --judge-data (found {found['judged']['a']} and {found['judged']['b']})")
    return "; ".join(found["worse"])


def _changed(before: Mapping[str, str], after: Mapping[str, str], whole: object) -> list[dict[str, Any]]:
    """whole: what one side lacks is a change, too; a table says less than a report."""
    return [{"name": name, "a": before.get(name), "b": after.get(name)} for name in {**before, **after}
            if before.get(name) != after.get(name) and (whole or (name in before and name in after))]


def _ranges(before: Mapping[str, Range], after: Mapping[str, Range], beyond: float) -> Iterator[dict[str, Any]]:
    """Those that differ, the largest change first; what only one has comes last."""
    rows: list[dict[str, Any]] = []
    for name in {**before, **after}:
        a, b = before.get(name), after.get(name)
        percent = None if a is None or b is None else _percent(a, b)
        if percent is None or percent > beyond or (a and b and a.dtype and b.dtype and a.dtype != b.dtype):
            rows.append({"name": name, "a": _shown(a), "b": _shown(b),
                         "percent": None if percent is None else float(f"{percent:.4g}")})
    yield from sorted(rows, key=lambda row: -1.0 if row["percent"] is None else row["percent"], reverse=True)


def _percent(a: Range, b: Range) -> float:
    """The largest relative change of a scale, or of the ends where one of the two is a table."""
    if a.scales and len(a.scales) == len(b.scales):
        return 100 * max(abs(y / x - 1) if x else float(y != x) for x, y in zip(a.scales, b.scales))
    width = max(abs(a.low), abs(a.high), _TINY)
    return 100 * max(abs(b.low - a.low), abs(b.high - a.high)) / width


def _shown(found: Range | None) -> str | None:
    if found is None:
        return None
    scale = f", scale {' .. '.join(f'{scale:.4g}' for scale in found.scales)}" if found.scales else ""
    return f"{found.dtype} {found.low:.4g} .. {found.high:.4g}{scale}".strip()


def _codes(before: Mapping[str, Array], after: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
    """Parameters of both models whose values differ, the largest part first."""
    rows: list[dict[str, Any]] = []
    for name, a in before.items():
        b = after.get(name)
        if b is None or a.dtype != b.dtype:
            continue
        changed = int((a != b).sum()) if a.shape == b.shape else max(a.size, b.size)
        if changed:
            rows.append({"name": name, "changed": changed, "of": int(max(a.size, b.size))})
    yield from sorted(rows, key=lambda row: -row["changed"] / row["of"])


def _metrics(before: Result, after: Result) -> Iterator[dict[str, Any]]:
    from qgraph.tasks.base import Metric
    from qgraph.tasks.registry import all_classes

    known = {name: metric for task in all_classes() for name, metric in task.metrics.items()}
    for key, a in before.metrics.items():
        if key not in after.metrics:
            continue
        metric, b = known.get(key[1], Metric("", "")), after.metrics[key]
        x, y = (np.inf if value is None else value for value in (a, b))
        lost = 0.0 if x == y else x - y if metric.up else y - x
        yield {"output": key[0], "metric": key[1], "a": a, "b": b, "unit": metric.unit,
               "worse": bool(lost > (NOTICED if metric.unit else NOTICED / 100))}


def _worse(metrics: list[dict[str, Any]], before: Result, after: Result) -> Iterator[str]:
    for row in metrics:
        if row["worse"]:
            yield (f"{row['metric']} of {row['output']} went from {row['a'] if row['a'] is not None else 'exact'} to "
                   f"{row['b']}{' ' * bool(row['unit'])}{row['unit']}")
    for name in after.ruined:
        if name not in before.ruined:
            yield f"{name} is ruined"
