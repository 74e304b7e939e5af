"""The page of a comparison of two models, see `qgraph.commands.compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgraph.pages.look import noise_level
from qgraph.pages.page import anchor, render
from qgraph.tasks.words import title, with_unit


def compare_page(found: Mapping[str, Any], a: str, b: str) -> str:
    """The page. found: what `compare` returns.  a, b: names of the models."""
    judged = found["judged"]
    rows = [{**row, "id": anchor(row["name"]), "level": noise_level(row["sqnr_db"])} for row in found["layers"]]
    added = [row for row in rows if row["added_noise"]]
    tasks = [{**row, "shown": [(title(name), with_unit(name, value)) for name, value in row["metrics"].items()]}
             for row in judged["tasks"] if row["task"] != "values"]
    data: dict[str, Any] = {"layers": {}, "network": None,
            "noise": [{"name": row["name"], "id": row["id"], "at": number, "sqnr": row["sqnr_db"],
                       "added": row["added_noise"]} for number, row in enumerate(rows, 1)]}
    return render("compare.html.j2", {
        "found": found, "a": a, "b": b, "rows": rows, "outputs": judged["outputs"], "tasks": tasks,
        "worst": sorted(added, key=lambda row: (-row["added_noise"], row["name"]))[:5]}, data)
