"""What an earlier `qgraph freeze` left on disk, for comparing: its report, its ranges, its weights."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qgraph.arrays import Array
from qgraph.errors import FormatError, OptionError
from qgraph.files import read_at_most
from qgraph.formats.paths import close_paths, missing_file
from qgraph.quant.table import CalibrationTable

REPORT, TABLE = ".report.json", ".calib.json"
MAX_BYTES = 64 << 20
FORMAT = "qgraph-report"


@dataclass(frozen=True)
class Range:
    """Of one tensor. dtype: "" in a table.  scales: the smallest and the largest, () in a table."""

    low: float
    high: float
    dtype: str = ""
    scales: tuple[float, ...] = ()
    source: str = ""


@dataclass
class Result:
    """layers: name -> its arithmetic, or "float: why".  metrics: (output, metric) -> value, None if exact.

    judged: the data and the number of images that the metrics are of.  ruined: outputs of no use.
    about: target, options and calibration, as texts.  graph: hash of the float graph.  arrays: of the model's file, {}
    where there is none or its parameters cannot be told.
    """

    path: str
    graph: str
    ranges: dict[str, Range]
    layers: dict[str, str] = field(default_factory=dict)
    metrics: dict[tuple[str, str], float | None] = field(default_factory=dict)
    judged: tuple[str, int] | None = None
    ruined: tuple[str, ...] = ()
    size: int | None = None
    about: dict[str, str] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


def read_result(path: str | os.PathLike[str]) -> Result:
    """path: of a frozen model or its prefix, with the report (or at least the table) beside it, or of one of these.

    Raises OptionError where there is nothing to compare, FormatError for a damaged file.
    """
    text = os.fspath(path)
    if text.endswith(REPORT):
        return _of_report(_existing(text, REPORT))
    if text.endswith(TABLE):
        return _of_table(_existing(text, TABLE))
    prefix, model = _model_file(text)
    reports = [f"{prefix}{REPORT}"] if os.path.isfile(f"{prefix}{REPORT}") else _of_targets(prefix, model)
    if len(reports) > 1:
        raise OptionError(f"{text}: frozen for several targets, give one of {', '.join(reports)}")
    if reports:
        result = _of_report(reports[0])
    elif os.path.isfile(f"{prefix}{TABLE}"):
        result = _of_table(f"{prefix}{TABLE}")
    elif os.path.isfile(text) and not model:
        raise OptionError(f"{text}: this is no frozen model, want one (or its prefix), a {REPORT} or a {TABLE}"
                          f"{close_paths(text, REPORT)}")
    elif not model:
        raise OptionError(f"{text}: {missing_file(text)}, want a frozen model, its prefix, a {REPORT} or a {TABLE}"
                          f"{close_paths(text, REPORT)}")
    else:
        raise OptionError(f"{text}: no {os.path.basename(prefix)}{REPORT} beside it, which qgraph freeze writes with a "
                          f"frozen model{close_paths(prefix, REPORT)}")
    if model:
        from qgraph.commands.open_model import open_model

        result.arrays = open_model(model).model.arrays
    return result


def _existing(path: str, suffix: str) -> str:
    if not os.path.isfile(path):
        raise OptionError(f"{path}: {missing_file(path)}{close_paths(path, suffix)}")
    return path


def _model_file(text: str) -> tuple[str, str]:
    """(prefix, the model's file or "" where there is none)"""
    from qgraph.targets.registry import all_classes

    suffixes = [*dict.fromkeys(cls.suffix for cls in all_classes() if cls.reads or not cls.rewrites)]
    for suffix in suffixes:
        if text.endswith(suffix):
            if not os.path.isfile(text):
                raise OptionError(f"{text}: {missing_file(text)}{close_paths(text, suffix)}")
            return text.removesuffix(suffix), text
    found = [text + suffix for suffix in suffixes if os.path.isfile(text + suffix)]
    return text, found[0] if len(found) == 1 else ""


def _of_targets(prefix: str, model: str) -> list[str]:
    """Reports of a run for several targets: of this model's, or of all where no model is named."""
    from qgraph.targets.registry import all_classes

    wanted = {f"{prefix}.{cls.name}{REPORT}" for cls in all_classes() if not model or model == prefix + cls.suffix}
    return sorted(path for path in glob.glob(f"{glob.escape(prefix)}.*{REPORT}") if path in wanted)


def _of_table(path: str) -> Result:
    table = CalibrationTable.load(path)
    ranges = {name: Range(entry.low, entry.high, source=entry.sample) for name, entry in table.entries.items()}
    return Result(path, table.graph_hash, ranges,
                  about={"calibration": _calibration(table.method, table.images, table.data)})


def _calibration(method: object, images: object, data: object) -> str:
    return f"{method} on {images} images of {data}"


def _of_report(path: str) -> Result:
    try:
        body = json.loads(read_at_most(path, MAX_BYTES).decode("utf-8"))
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise FormatError(f'{path}: want a JSON object with "format": "{FORMAT}", of one target')
        return _parsed(path, body)
    except FormatError:
        raise
    except RecursionError:
        raise FormatError(f"{path}: nested too deeply") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise FormatError(f"{path}: not a report of qgraph freeze ({type(error).__name__}: {str(error)[:80]}); freeze "
                          "again") from None


def _parsed(path: str, body: Mapping[str, Any]) -> Result:
    layers = {str(row["name"]): f"{row['data']} x {row['weight']} per {row['granularity']}"
              for row in body["quantized"]}
    layers.update((str(row["name"]), f"float: {row['reason']}") for row in body["float"])
    ranges = {}
    for name, row in body["tensors"].items():
        scales = row["scale"] if isinstance(row["scale"], list) else [row["scale"]]
        ranges[str(name)] = Range(float(row["low"]), float(row["high"]), str(row["dtype"]),
                                  tuple(float(scale) for scale in scales), " + ".join(map(str, row["source"])))
    result = Result(path, str(body["graph_hash"]), ranges, layers, size=int(body["size"]["after"]))
    if body["agreement"]:
        result.judged = str(body["agreement"]["data"]), int(body["agreement"]["images"])
        for row in body["agreement"]["outputs"]:
            result.metrics[str(row["name"]), "sqnr_db"] = _number(row["sqnr_db"])
        for row in body["agreement"]["tasks"]:
            if row["main"] != "sqnr_db":
                result.metrics[" + ".join(map(str, row["outputs"])), str(row["main"])] = \
                    _number(row["metrics"][row["main"]])
    if body["ruin"]:
        result.ruined = tuple(str(name) for row in body["ruin"]["outputs"] for name in row["names"])
    result.about = {"target": str(body["target"])}
    if found := body["calibration"]:
        result.about["calibration"] = _calibration(found["method"], found["images"], found["data"])
    options = {key: value for key, value in body["options"].items() if key != "target"}
    result.about.update((f"--{key.replace('_', '-')}", json.dumps(value)) for key, value in sorted(options.items()))
    result.about.update((f"version of {name}", str(value)) for name, value in sorted(body["versions"].items()))
    return result


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
