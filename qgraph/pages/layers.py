"""What the page of a report says of each layer, from the report alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.pages.look import noise_level
from qgraph.pages.page import anchor

INT8, FLOAT, OTHER = "int8", "float", "other"
"""Integer arithmetic; a layer with weights in float; what has no weights, and passes values on or combines them."""


def layer_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each layer with weights, and for each tensor that is quantized or was compared, in the network's order.

    Its numbers are those of the report; what the report does not know is None.
    """
    quantized = {row["name"]: row for row in report["quantized"]}
    left = {row["name"]: row for row in report["float"]}
    noise = {row["name"]: row for row in (report["noise"] or {"layers": []})["layers"]}
    tensors = {name: row for name, row in report["tensors"].items() if row["source"] != ["weights"]}
    known = dict.fromkeys([*quantized, *left, *noise, *tensors])
    drawn = [node["name"] for node in report["network"] or [] if node["name"] in known]
    order = dict.fromkeys([*drawn, *known])
    ops = {node["name"]: "input" if node["op"] == "null" else node["op"] for node in report["network"] or []}
    rows = []
    for name in order:
        row = {"name": name, "id": anchor(name), "op": ops.get(name, ""), "kind": OTHER, "arithmetic": "", "why": "",
               "origin": [], "reads": [], "weights": None, "sqnr_db": None, "added": None, "compared": False}
        if name in quantized:
            layer = quantized[name]
            row.update(op=layer["op"], kind=INT8, **report["layers"].get(name, {}),
                       arithmetic=f"{layer['data']} × {layer['weight']} per {layer['granularity']}",
                       origin=[one for one in layer["origin"] if one != name])
        elif name in left:
            row.update(op=left[name]["op"], kind=FLOAT, arithmetic="float", why=left[name]["reason"])
        if name in noise:
            row.update(op=row["op"] or noise[name]["op"], compared=True, sqnr_db=noise[name]["sqnr_db"],
                       added=noise[name]["added_noise"], level=noise_level(noise[name]["sqnr_db"]))
        row["input"] = _tensor(report, row["reads"][0]) if row["reads"] else None
        row["output"] = _tensor(report, name)
        row["saturation"] = next((one for one in report["saturation"] if one["layer"] == name), None)
        row["parity"] = ((report["departure"] or {"layers": {}})["layers"]).get(name)
        row["share"] = (report.get("budget") or {"shares": {}})["shares"].get(name)
        rows.append(row)
    return rows


def _tensor(report: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What is known of a quantized tensor: its range, histogram and codes."""
    row = report["tensors"].get(name)
    if row is None or row["source"] == ["weights"]:
        return None
    histogram = report["histograms"].get(row["source"][0]) if len(row["source"]) == 1 else None
    codes = (report["departure"] or {"codes": {}})["codes"].get(name)
    return {"name": name, "sample": "", **row, "histogram": histogram, "codes": codes,
            "ranges": _ranges(row, histogram, (report["calibration"] or {"method": ""})["method"])}


def _ranges(row: Mapping[str, Any], histogram: Mapping[str, Any] | None, method: str) -> list[dict[str, Any]]:
    """[{"name", "low", "high", "chosen"}]: the range that was chosen, and those that other methods would have."""
    if histogram is None:
        observed = [{"name": "observed", "low": row["observed"][0], "high": row["observed"][1], "chosen": False}
                    for _ in range(bool(row.get("observed")))]
        return [*observed, {"name": "codes", "low": row["low"], "high": row["high"], "chosen": True}]
    return [*({"name": name, "low": low, "high": high, "chosen": name == method}
              for name, (low, high) in sorted(histogram["ranges"].items())),
            {"name": "codes", "low": row["low"], "high": row["high"], "chosen": False}]


def charts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the charts of a layer are drawn from."""
    found: dict[str, Any] = {}
    tensor = row["input"] or row["output"]
    if tensor is not None and tensor["histogram"] is not None:
        found["histogram"] = {key: tensor["histogram"][key] for key in ("low", "high", "counts")}
        found["histogram"]["ranges"] = tensor["ranges"]
    if tensor is not None and tensor["codes"] is not None:
        found["codes"] = {"counts": tensor["codes"]["counts"], "low": tensor["low"], "high": tensor["high"],
                          "ranges": [one for one in tensor["ranges"] if one["name"] != "codes"]}
    if row["weights"] is not None:
        found["channels"] = {key: row["weights"][key] for key in ("largest", "per")}
    return found


def cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a cell of the overview says of each layer, by name."""
    return {row["name"]: {"name": row["name"], "id": row["id"], "op": row["op"], "kind": row["kind"],
                          "level": row["level"] if row["compared"] else None, "sqnr": row["sqnr_db"]}
            for row in rows}
