"""The page of `qgraph tune`: candidates by what they cost and what they keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.pages.page import render
from qgraph.tasks.words import title

WIDTH, HEIGHT, MARGIN = 760, 340, 60
TICKS = 4


def tune_page(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], front: Sequence[Mapping[str, Any]],
              minimize: str, name: str) -> str:
    """The page. rows: all candidates, as of `Row.to_dict`; chosen and front are among them.  name: of the result."""
    cost, unit = ("size", "bytes") if minimize == "size" else ("ms", "ms of an image, predicted")
    metric = next(iter(chosen["standings"]))
    xs = _Axis([row[cost] for row in rows], MARGIN, WIDTH - 20)
    ys = _Axis([row["standings"][metric]["value"] + sign * (row["standings"][metric]["error"] or 0)
                for row in rows for sign in (-1, 1)], HEIGHT - 40, 15)

    def point(row: Mapping[str, Any]) -> dict[str, Any]:
        found = row["standings"][metric]
        error = found["error"] or 0.0
        return {"x": xs.at(row[cost]), "y": ys.at(found["value"]), "low": ys.at(found["value"] - error),
                "high": ys.at(found["value"] + error), "state": row["state"], "what": row["what"],
                "chosen": row is chosen}

    view = {"name": name, "rows": rows, "front": front, "chosen": chosen, "metric": title(metric), "unit": unit,
            "points": [point(row) for row in rows], "path": " ".join(f"{p['x']},{p['y']}" for p in map(point, front)),
            "bounds": list(chosen["standings"]), "width": WIDTH, "height": HEIGHT, "xticks": xs.ticks(),
            "yticks": ys.ticks(), "left": MARGIN, "bottom": HEIGHT - 40}
    return render("tune.html.j2", view, {"layers": {}, "network": None, "noise": []})


class _Axis:
    """values: what is drawn, from `start` to `end` on the page."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = min(values), max(values)
        room = (self.high - self.low) * 0.05 or abs(self.high) * 0.05 or 1.0
        self.low, self.high = self.low - room, self.high + room
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """(place, text)"""
        values = [self.low + (self.high - self.low) * (number + 0.5) / TICKS for number in range(TICKS)]
        return [(self.at(value), f"{value:.4g}") for value in values]
