"""A Tengine model in memory, ours or anybody's, and the files that it becomes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from qgraph.errors import FormatError
from qgraph.files import Content
from qgraph.formats.tengine_files import Model, Tensor, from_bytes, to_bytes
from qgraph.ir import Graph
from qgraph.preprocess import Preprocess


@dataclass
class TengineModel:
    """folded: the same network in float for Tengine's own tools.  preprocess: what made the calibration images."""

    tm: Model
    folded: Graph | None = None
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
        from qgraph.formats.tengine_graph import to_graph

        return to_graph(self.tm)

    def files(self, prefix: str) -> dict[str, Content]:
        return {f"{prefix}.tmfile": self.data}


def load(path: str) -> TengineModel:
    """Read a .tmfile. Raises FormatError for a bad one."""
    with open(path, "rb") as stream:
        model = TengineModel(from_bytes(stream.read(), path))
    if not model.tm.layers:
        raise FormatError(f"{path}: found no nodes, want a model")
    return model
