"""`qgraph report`: the page of a report that was written before, whose file is untrusted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from qgraph.commands.report import FORMAT, VERSION
from qgraph.errors import FormatError
from qgraph.files import read_at_most
from qgraph.pages.report import report_page

MAX_BYTES = 256 << 20
_LARGEST = 1e300  # of a number
_DIGITS = 64  # of a whole number


class Optional:
    """null, or what is within; in a mapping also nothing at all."""

    def __init__(self, within: Any) -> None:
        self.within = within


# The shape of a value: its types; [shape of each item]; [shape, shape] of a pair; {key: shape}; {"*": shape of every
# value}
_NUMBER = (int, float)
_TEXT = (str,)
_DB = (int, float, type(None))
_NUMBERS = [_NUMBER]
_PAIR = [_NUMBER, _NUMBER]
_SHAPE: Mapping[str, Any] = {
    "target": _TEXT, "graph_hash": _TEXT, "options": {}, "versions": {"*": _TEXT},
    "model": [{"file": _TEXT, "sha256": _TEXT}],
    "ops": {"before": {"*": _NUMBER}, "after": {"*": _NUMBER}},
    "passes": [{"name": _TEXT, "changed": _NUMBER, "nodes": _NUMBER, "ops": {"*": _NUMBER}}],
    "quantized": [{"name": _TEXT, "op": _TEXT, "origin": [_TEXT], "data": _TEXT, "weight": _TEXT,
                   "granularity": _TEXT}],
    "layers": {"*": {"reads": [_TEXT], "weights": Optional({
        "channels": _NUMBER, "per": _NUMBER, "largest": _NUMBERS, "scales": _NUMBERS, "dead": _NUMBER,
        "dominating": _NUMBER, "codes": _NUMBER, "of": _NUMBER})}},
    "float": [{"name": _TEXT, "op": _TEXT, "reason": _TEXT}],
    "saturation": [{"layer": _TEXT, "missed_percent": _NUMBER, "chosen": _NUMBER, "why": _TEXT}],
    "tensors": {"*": {"dtype": _TEXT, "low": _NUMBER, "high": _NUMBER, "scale": (int, float, list), "source": [_TEXT],
                      "observed": Optional(_PAIR), "sample": Optional(_TEXT)}},
    "histograms": {"*": {"low": _NUMBER, "high": _NUMBER, "zeros": _NUMBER, "counts": _NUMBERS,
                         "ranges": {"*": _PAIR}}},
    "network": Optional([{"name": _TEXT, "op": _TEXT, "reads": [(int,)]}]),
    "calibration": Optional({"method": _TEXT, "images": _NUMBER, "data": _TEXT, "preprocess": {}}),
    "size": {"before": (int,), "after": (int,)},
    "agreement": Optional({
        "images": _NUMBER, "worst": _TEXT, "data": _TEXT, "calibrated_on_it": (bool,), "with": Optional(_TEXT),
        "sqnr_db": _DB, "cosine": _NUMBER,
        "outputs": [{"name": _TEXT, "task": _TEXT, "sqnr_db": _DB, "cosine": _NUMBER, "max_error": _NUMBER}],
        "tasks": [{"task": _TEXT, "outputs": [_TEXT], "main": _TEXT, "metrics": {"*": _DB}}]}),
    "departure": Optional({
        "images": _NUMBER, "within_one": _NUMBER, "layers": {"*": {"within_one": _NUMBER, "max": _NUMBER}},
        "codes": {"*": {"used": _NUMBER, "of": _NUMBER, "at_ends": _NUMBER, "counts": _NUMBERS}}}),
    "noise": Optional({"images": _NUMBER,
                       "layers": [{"name": _TEXT, "op": _TEXT, "sqnr_db": _DB, "added_noise": _DB}]}),
    "ruin": Optional({"outputs": [{"names": [_TEXT], "metric": _TEXT, "value": _DB, "least": _NUMBER}],
                      "layers": [_TEXT], "try": [_TEXT]}),
    "budget": Optional({"images": _NUMBER, "measured_db": _DB, "predicted_db": _DB, "shares": {"*": _NUMBER}}),
    "examples": Optional([{"id": _TEXT, "float": _TEXT, "int8": _TEXT, "png": _TEXT,
                           "png_int8": Optional(_TEXT)}]),
}


def page_of(path: str | os.PathLike[str]) -> tuple[str, str]:
    """(path of the page, the page) of a file ``PREFIX.report.json``. Raises FormatError for what is none."""
    where = os.fspath(path)
    page = report_page(read_report(where))
    try:
        page.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise FormatError(f"{where}: holds text that is not valid Unicode") from None
    return os.path.splitext(where)[0] + ".html", page


def read_report(path: str) -> dict[str, Any]:
    """A report of this qgraph, every part of it checked that a page shows."""
    try:
        text = read_at_most(path, MAX_BYTES)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}, want a PREFIX.report.json") from None
    if len(text) > MAX_BYTES:
        raise FormatError(f"{path}: more than {MAX_BYTES} bytes, want a PREFIX.report.json of qgraph freeze")
    try:
        report = json.loads(text.decode("utf-8"), parse_constant=_refuse, parse_int=_whole)
    except RecursionError:
        raise FormatError(f"{path}: nested too deeply, want a PREFIX.report.json of qgraph freeze") from None
    except ValueError as error:
        raise FormatError(f"{path}: not JSON: {error}; want a PREFIX.report.json of qgraph freeze") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise FormatError(f"{path}: not a report, want a PREFIX.report.json of qgraph freeze")
    if report.get("version") != VERSION:
        raise FormatError(f"{path}: found a report of version {report.get('version', 1)!r:.20}, this qgraph shows "
                          f"{VERSION}; freeze again")
    report = {**{key: None for key, shape in _SHAPE.items() if isinstance(shape, Optional)}, **report}
    check_shape(report, _SHAPE, path)
    _check_sense(report, path)
    return report


def _check_sense(report: dict[str, Any], path: str) -> None:
    """Raise FormatError where parts contradict each other."""
    agreement, departure = report["agreement"], report["departure"]
    sound = {
        "network: a node reads one behind it": all(
            0 <= source < number for number, node in enumerate(report["network"] or []) for source in node["reads"]),
        "tensors: a tensor has no source": all(row["source"] for row in report["tensors"].values()),
        "tensors: a scale is no number and no two": all(
            not isinstance(row["scale"], list) or len(row["scale"]) == 2 and {*map(type, row["scale"])} <= {*_NUMBER}
            for row in report["tensors"].values()),
        "layers: a weight has no scale": all(
            not row.get("weights") or row["weights"]["scales"] for row in report["layers"].values()),
        "agreement: a task has no main metric": agreement is None or bool(agreement["tasks"]) and all(
            row["main"] in row["metrics"] for row in agreement["tasks"]),
        "departure: a tensor has no codes": departure is None or all(
            row["of"] > 0 and row["counts"] for row in departure["codes"].values()),
        "histograms: no counts": all(row["counts"] for row in report["histograms"].values()),
    }
    for what, holds in sound.items():
        if not holds:
            raise FormatError(f"{path}: {what}")


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:  # int() takes quadratic time
        raise ValueError(f"found a whole number of {len(digits)} digits")
    return int(digits)


def _refuse(word: str) -> float:
    raise ValueError(f"found {word}, want finite numbers")


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Raise FormatError, naming the place, for a value that is not of this shape."""
    if isinstance(shape, Optional):
        if value is not None:
            check_shape(value, shape.within, where)
    elif isinstance(shape, tuple):
        if not isinstance(value, shape) or (isinstance(value, bool) and bool not in shape):
            raise FormatError(f"{where}: found {value!r:.40}, want {' or '.join(kind.__name__ for kind in shape)}")
        if isinstance(value, _NUMBER) and not abs(value) <= _LARGEST:
            raise FormatError(f"{where}: found {value!r:.40}, want a number up to {_LARGEST:g}")
    elif isinstance(shape, list):
        if not isinstance(value, list) or len(shape) == 2 != len(value):
            raise FormatError(f"{where}: found {value!r:.40}, want a list{' of two' if len(shape) == 2 else ''}")
        for number, one in enumerate(value):
            check_shape(one, shape[0], f"{where}: {number}")
    else:
        if not isinstance(value, dict):
            raise FormatError(f"{where}: found {value!r:.40}, want an object")
        for key, within in ((key, shape["*"]) for key in value) if "*" in shape else shape.items():
            if key not in value and not isinstance(within, Optional):
                raise FormatError(f"{where}: {key} is missing")
            check_shape(value.get(key), within, f"{where}: {key:.60}")
