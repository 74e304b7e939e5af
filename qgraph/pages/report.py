"""The page of a report: everything on it is in the report's JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from qgraph.files import size_text
from qgraph.pages.layers import cells, charts, layer_rows
from qgraph.pages.network import boxes
from qgraph.pages.page import render
from qgraph.tasks.words import title, with_unit

_SWITCHES = {"merge_bn": "--no-merge-bn", "float_check": "--no-float-check"}  # options that are given by being left out
_FLAGS = {"user_passes": "--pass"}
_WORST = 5


def report_page(report: Mapping[str, Any]) -> str:
    """The page of one report, of `qgraph.commands.report.build`."""
    rows = layer_rows(report)
    noise = (report["noise"] or {"layers": []})["layers"]
    network = None if report["network"] is None else boxes(report["network"], cells(rows))
    data = {"layers": {row["id"]: charts(row) for row in rows}, "network": network,
            "noise": [{"name": row["name"], "id": row["id"], "at": number, "sqnr": row["sqnr_db"],
                       "added": row["added"]} for number, row in enumerate(rows, 1) if row["compared"]]}
    return render("report.html.j2", {
        "report": report, "rows": rows, "name": _name(report), "sentence": _sentence(report), "tiles": _tiles(report),
        "outputs": _outputs(report), "tasks": _tasks(report), "ruined": _ruined(report), "worst": _worst(noise),
        "command": command(report), "has_shares": any(row["share"] is not None for row in rows),
        "drawn": {"network": network is not None, "noise": bool(noise)}}, data)


def command(report: Mapping[str, Any]) -> str:
    """The command line that makes the same files again."""
    words = ["qgraph", "freeze", report["model"][0]["file"] if report["model"] else "MODEL-symbol.json"]
    for name, value in report["options"].items():
        flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
        if name in _SWITCHES:
            words.append(_SWITCHES[name])
        elif isinstance(value, bool):
            words.append("--rgb" if name == "bgr" and not value else flag)
        elif isinstance(value, list) and name in ("mean", "std"):
            words += [flag, ",".join(map(str, value))]
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [flag, str(one)]
    return shlex.join(words)


def _name(report: Mapping[str, Any]) -> str:
    return report["model"][0]["file"].removesuffix("-symbol.json") if report["model"] else "model"


def _counts(report: Mapping[str, Any]) -> tuple[int, int]:
    return len(report["quantized"]), len(report["quantized"]) + len(report["float"])


def _sentence(report: Mapping[str, Any]) -> str:
    quantized, layers = _counts(report)
    told = [f"{quantized} of {layers} layers with weights compute in integers for {report['target']}"]
    agreement = report["agreement"]
    if agreement:
        first = agreement["tasks"][0]
        value = f"{with_unit(first['main'], first['metrics'][first['main']])} {title(first['main'])}"
        if first["task"] == "values":
            value = f"the worst output, {agreement['worst']}, has {with_unit('sqnr_db', agreement['sqnr_db'])} in"
        told.append(f"{value} agreement with {agreement.get('with') or 'the float model'} on {agreement['images']} "
                    "images")
    sizes = report["size"]
    told.append(f"{size_text(sizes['before'])} became {size_text(sizes['after'])}")
    return "; ".join(told) + "."


def _tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The numbers on top."""
    quantized, layers = _counts(report)
    tiles = [{"title": "in integers", "value": f"{quantized} / {layers}", "note": "layers with weights"}]
    agreement = report["agreement"]
    if agreement:
        first = agreement["tasks"][0]
        if first["task"] != "values":
            tiles.append({"title": title(first["main"]), "value": with_unit(first["main"],
                                                                           first["metrics"][first["main"]]),
                          "note": f"agreement on {agreement['images']} images"})
        tiles.append({"title": "worst output", "value": with_unit("sqnr_db", agreement["sqnr_db"]),
                      "note": f"{agreement['worst']}, cosine {agreement['cosine']:g}"})
    if report["departure"] and report["departure"]["layers"]:
        tiles.append({"title": "kernels", "value": f"{report['departure']['within_one']:g} %",
                      "note": "codes within 1 of exact arithmetic, at least"})
    sizes = report["size"]
    tiles.append({"title": "size", "value": size_text(sizes["after"]), "note": f"from {size_text(sizes['before'])}"})
    return tiles


def _outputs(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**row, "sqnr": with_unit("sqnr_db", row["sqnr_db"])}
            for row in (report["agreement"] or {"outputs": []})["outputs"]]


def _tasks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tasks of the outputs, each with its metrics by their titles."""
    return [{**row, "shown": [(title(name), with_unit(name, value)) for name, value in sorted(
        row["metrics"].items(), key=lambda item: (item[0] != row["main"], item[0]))]}
            for row in (report["agreement"] or {"tasks": []})["tasks"] if row["task"] != "values"]


def _ruined(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a model of no use suffers from."""
    if not report["ruin"]:
        return None
    outputs = [f"{' + '.join(row['names'])}: {title(row['metric'])} {with_unit(row['metric'], row['value'])}, want at "
               f"least {with_unit(row['metric'], row['least'])}" for row in report["ruin"]["outputs"]]
    return {"outputs": outputs, "layers": report["ruin"]["layers"], "try": report["ruin"]["try"]}


def _worst(noise: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tensors that add most noise."""
    rows = [row for row in noise if row["added_noise"]]
    return sorted(rows, key=lambda row: (-row["added_noise"], row["name"]))[:_WORST]
