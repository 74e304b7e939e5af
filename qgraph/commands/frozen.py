"""What `qgraph.freeze` gives: the model, its calibration table and the report, and their files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qgraph.commands.open_model import default_prefix
from qgraph.errors import OptionError
from qgraph.files import Content, check_output, write_files
from qgraph.ir.graph import Graph
from qgraph.pages.report import report_page
from qgraph.quant.recipe import SUFFIX, Recipe
from qgraph.quant.table import CalibrationTable
from qgraph.targets.base import Model


@dataclass
class Frozen:
    """A frozen model. graph: with fake_quantize nodes; model: in the target's ops; report: plain data, as JSON.

    source: the files that the float model came from, which are not overwritten.  seconds: of each step that made it.
    recipe: which freezes the same again.
    """

    graph: Graph
    model: Model
    table: CalibrationTable | None = field(repr=False)
    report: dict[str, Any] = field(repr=False)
    source: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict, repr=False)
    recipe: Recipe | None = field(default=None, repr=False)

    def files(self, prefix: str) -> dict[str, Content]:
        """Path -> content of the model, its table, its recipe, its report and the page of that."""
        files = self.model.files(prefix)
        if self.table is not None:
            files[f"{prefix}.calib.json"] = self.table.to_json()
        if self.recipe is not None:
            files[f"{prefix}{SUFFIX}"] = self.recipe.to_yaml()
        return {**files, **report_files(f"{prefix}.report", self.report)}

    def save(self, prefix: str | os.PathLike[str] | None = None) -> list[str]:
        """Write the model, its table, report and page, all or none; returns the paths. Default: ``MODEL-quantized``.

        Raises OptionError without a prefix where the model did not come from a file.
        """
        base = os.fspath(prefix) if prefix is not None else default_prefix(self.source[0]) if self.source else ""
        if not base:
            raise OptionError("save: give a prefix for the files")
        files = self.files(base)
        check_output(base, list(files), self.source)
        write_files(files)
        return list(files)

    def module(self, shapes: dict[str, Sequence[int]] | Sequence[int]) -> Any:
        """A bound `mx.mod.Module` for inference. shapes: of the inputs, by name, or of the one input."""
        return self.model.module(shapes)


def report_files(path: str, report: dict[str, Any]) -> dict[str, Content]:
    """The report as JSON, and the page of that JSON. path: of both without their ending."""
    text = report_text(report)
    return {f"{path}.json": text, f"{path}.html": report_page(json.loads(text))}


def report_text(data: dict[str, Any]) -> str:
    """A report, or several by target, as the text of its file."""
    return json.dumps(data, indent=1, sort_keys=True) + "\n"
