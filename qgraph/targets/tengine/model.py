"""A Tengine model in memory, ours or anybody's, and the files that it becomes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from qgraph.data.preprocess import Preprocess
from qgraph.errors import FormatError, UnsupportedError
from qgraph.files import Content
from qgraph.ir.graph import Graph
from qgraph.targets.tengine.export import export, export_files
from qgraph.targets.tengine.files import Model, Tensor, from_bytes, to_bytes
from qgraph.targets.tengine.note import usage_note

log = logging.getLogger("qgraph")


@dataclass
class TengineModel:
    """export: the same network in float for Tengine's own tools; without it `why` says what they get wrong.

    scales: the scale file of an int8 model.  preprocess: what made the calibration images.
    """

    tm: Model
    export: Graph | None = None
    why: str = ""
    scales: str = ""
    preprocess: Preprocess | None = None

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """What is fed: name -> shape with the batch (0, as it may vary), or () where the file does not tell it."""
        tensors = [self.tm.tensors[self.tm.layers[i].outputs[0]] for i in self.tm.inputs]
        return {t.name: (0, *t.dims[1:]) if t.dims else () for t in tensors}

    @property
    def outputs(self) -> list[str]:
        return [tensor.name for tensor in self.output_tensors]

    @property
    def output_tensors(self) -> list[Tensor]:
        return [self.tm.tensors[self.tm.layers[i].outputs[0]] for i in self.tm.outputs]

    @property
    def op_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(layer.op for layer in self.tm.layers if layer.op != "Const").items()))

    @cached_property
    def data(self) -> bytes:
        return to_bytes(self.tm)

    @property
    def size(self) -> int:
        """Bytes of the .tmfile."""
        return len(self.data)

    @cached_property
    def graph(self) -> Graph:
        """The same as a graph of qgraph, to be executed by the reference."""
        from qgraph.targets.tengine.graph import to_graph

        return to_graph(self.tm)

    def files(self, prefix: str) -> dict[str, Content]:
        """Path -> content: the .tmfile, what Tengine's own tools take, and how to run it."""
        found: dict[str, Content] = {f"{prefix}.tmfile": self.data}
        if self.scales:
            found[f"{prefix}.scale"] = self.scales
        stem, beside = os.path.basename(prefix), f"{prefix}-tengine"
        if self.export is not None:
            found.update(export_files(self.export, beside))
        inputs = [self.tm.tensors[self.tm.layers[i].outputs[0]] for i in self.tm.inputs]
        steps = {t.name: float(t.scales[0]) for t in (*inputs, *self.output_tensors) if t.scales is not None}
        found[f"{prefix}.tengine.md"] = usage_note(
            stem, self.inputs, {t.name: t.dims for t in self.output_tensors}, steps, self.preprocess,
            os.path.basename(beside) if self.export is not None else "", self.why)
        return found


def with_export(model: TengineModel, float_graph: Graph, shapes: Mapping[str, Sequence[int]] | None) -> TengineModel:
    """The same with the checkpoint for convert_tool, or why there is none."""
    try:
        model.export = export(float_graph, shapes)
    except UnsupportedError as error:
        model.why = str(error)
        log.warning("warning: no float checkpoint for Tengine's own convert_tool is written: %s (the .tmfile is not "
                    "concerned)", error)
    return model


def load(path: str) -> TengineModel:
    """Read a .tmfile. Raises FormatError for a bad one."""
    with open(path, "rb") as stream:
        model = TengineModel(from_bytes(stream.read(), path))
    if not model.tm.layers:
        raise FormatError(f"{path}: found no nodes, want a model")
    return model
