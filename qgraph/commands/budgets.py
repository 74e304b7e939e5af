"""`qgraph report --budget`: what each layer costs of the error of the outputs, for a report that was written before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.commands.open_model import open_model
from qgraph.commands.report import sha256_of
from qgraph.commands.reports import Optional, check_shape, read_report
from qgraph.commands.trial import open_trial
from qgraph.errors import FormatError, OptionError
from qgraph.options import FreezeOptions, Progress, block_shapes
from qgraph.quant.recipe import Recipe

# of the options in a report, those that `FreezeOptions` does not check itself
_SHAPE: Mapping[str, Any] = {**dict.fromkeys(("preprocess", "select", "skip", "labels", "params"), Optional((str,))),
                             **dict.fromkeys(("batch_size", "decoders", "epoch"), Optional((int,)))}


def with_budget(path: str, model: str, data: Any = None, params: str | None = None,
                progress: Progress | None = None) -> dict[str, Any]:
    """The report of this file with "budget": {"images", "measured_db", "predicted_db", "shares": {layer: its part}}.

    model: the network that was frozen.  data: [default: the calibration images of the report, MODEL-calib.npz].
    Weights are rounded to the nearest codes, see `qgraph.commands.trial`; errors are those of `qgraph.analysis.budget`.
    Raises FormatError for a file that is no report, OptionError for a model of which it is not.
    """
    report = read_report(path)
    options = _options(report, path)
    opened = open_model(model, params or options.params, options.epoch, block_shapes(options.input_shape))
    _check_same(report, opened.files, path)
    trial = open_trial(opened, opened.float_graph("a budget", options.outputs), options, "the budget", data,
                       progress=progress)
    budget = trial.budget()
    found = budget.to_dict()
    return {**report, "budget": {
        "images": trial.images, "measured_db": found["measured_db"], "predicted_db": found["predicted_db"],
        "shares": {row["layer"]: row["share"] for row in found["layers"]}}}


def _options(report: Mapping[str, Any], path: str) -> FreezeOptions:
    given = dict(report["options"])
    known = {field.name for field in dataclasses.fields(FreezeOptions)}
    if unknown := sorted({*given} - known):
        raise FormatError(f"{path}: options: found {unknown[0]!r:.40}, which this qgraph does not know; freeze again")
    check_shape(given, _SHAPE, f"{path}: options")
    if given.get("recipe") is not None:
        given["recipe"] = Recipe.from_dict(given["recipe"], f"{path}: recipe")
    return FreezeOptions(**{**given, "effort": "fast"})


def _check_same(report: Mapping[str, Any], files: Sequence[str], path: str) -> None:
    """Raise OptionError where the model is not the one that was frozen."""
    want = {row["sha256"]: row["file"] for row in report["model"]}
    for file in files if want else ():
        if (found := sha256_of(file)) not in want:
            raise OptionError(f"--budget {file}: {path} is of another model, {', '.join(want.values())}: found sha256 "
                              f"{found[:12]}..., want {' or '.join(one[:12] for one in want)}; give the files that "
                              "were frozen, or freeze these")
