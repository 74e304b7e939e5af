"""A Tengine model in memory, ours or anybody's, and the files that it becomes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qgraph.analysis.channels import unscaled
from qgraph.data.preprocess import Preprocess
from qgraph.errors import FormatError, QGraphError, UnsupportedError
from qgraph.files import Content
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.table import factors_beside
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets.base import Description, Executor, Feeds, Model, Shapes, Tensors, counted
from qgraph.targets.tengine import files
from qgraph.targets.tengine.export import export, export_files
from qgraph.targets.tengine.files import Layer
from qgraph.targets.tengine.note import usage_note

log = logging.getLogger("qgraph")

ROUNDING = "half-away"


@dataclass
class TengineModel(Model):
    """export: the same network in float for Tengine's own tools; without it `why` says what they get wrong.

    scales: the scale file of an int8 model.  preprocess: what made the calibration images.
    factors: of the channels that nodes write, by name, see `qgraph.passes.equalize`; the file does not have them, but
    the calibration table beside it.
    """

    kind = "a Tengine model"
    engine = "Tengine"
    has_kernels = False  # Tengine is on no package index: the reference runs the model

    tm: files.Model
    export: Graph | None = None
    why: str = ""
    scales: str = ""
    preprocess: Preprocess | None = None
    factors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """What is fed: name -> shape with the batch (0, as it may vary), or () where the file does not tell it."""
        tensors = [self.tm.tensors[self.tm.layers[i].outputs[0]] for i in self.tm.inputs]
        return {t.name: (0, *t.dims[1:]) if t.dims else () for t in tensors}

    @property
    def outputs(self) -> list[str]:
        return [tensor.name for tensor in self.output_tensors]

    @property
    def output_tensors(self) -> list[files.Tensor]:
        return [self.tm.tensors[self.tm.layers[i].outputs[0]] for i in self.tm.outputs]

    @property
    def op_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(layer.op for layer in self.tm.layers if layer.op != "Const").items()))

    @cached_property
    def data(self) -> bytes:
        return files.to_bytes(self.tm)

    @property
    def known_shapes(self) -> dict[str, list[int] | None]:
        return {name: [1, *shape[1:]] if shape else None for name, shape in self.inputs.items()}

    @property
    def frozen(self) -> bool:
        return any(tensor.dtype in (files.INT8, files.UINT8) for tensor in self.tm.tensors)

    @property
    def heads(self) -> list[Hashable]:
        return [*self.graph.heads]

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

    def executor(self, watch: Sequence[Any] | None = None, *, precise: bool = False) -> Executor:
        return Reference(self.graph, watch, ROUNDING)

    def logits(self, g: Graph) -> list[Hashable | None]:
        return [self.graph.inputs(h.node)[0] if ops.head(h.node) else None for h in self.graph.heads]

    def tensors(self) -> Tensors:
        return TengineTensors(self)

    def describe(self, shapes: Shapes | None = None) -> Description:
        """A row is a node: the types of its weights and of what it writes, and the step of that."""
        layers = [self._row(layer) for layer in self.tm.layers if layer.op != "Const"]
        body = {"frozen": self.frozen, "engine": "Tengine", "inputs": self.known_shapes,
                "outputs": {tensor.name: list(tensor.dims) or None for tensor in self.output_tensors},
                "ops": self.op_counts,
                "params": counted([tensor.array for tensor in self.tm.tensors if tensor.array is not None]),
                "layers": layers}
        rows = [(row["name"], row["op"], row["weight"] or "", row["writes"],
                 f"{row['step']:.4g}" if row["step"] else "",
                 "x".join(map(str, row["shape"])) if row["shape"] else "?") for row in layers]
        return Description(body, [], ("node", "op", "weight", "writes", "step", "shape"), rows)

    def _row(self, layer: Layer) -> dict[str, Any]:
        written = self.tm.tensors[layer.outputs[0]]
        weights = [array for array in (self.tm.tensors[i].array for i in layer.inputs) if array is not None]
        return {"name": layer.name, "op": layer.op, "weight": weights[0].dtype.name if weights else None,
                "writes": np.dtype(files.DTYPES[written.dtype]).name, "shape": list(written.dims) or None,
                "step": float(written.scales[0]) if written.scales is not None else None}


class TengineTensors(Tensors):
    """Nodes are called as ours; a node that ends in a relu of its own counts behind it."""

    no_advice = "A is a Tengine model, want the float MXNet model"

    def __init__(self, model: TengineModel) -> None:
        self.graph, self.factors = model.graph, model.factors
        self.nodes = {n.name: n for n in self.graph.toposort() if n.op not in ("null", "fake_quantize")}

    def comparable(self) -> list[str]:
        return [name for name, node in self.nodes.items()
                if ops.kind(node) == ops.COMPUTE or node.op in ("broadcast_add", "Concat", "Pooling")]

    def has(self, name: str) -> bool:
        return name in self.nodes

    def op(self, name: str) -> str:
        return self.nodes[name].op

    def watch(self, names: Sequence[str]) -> list[Hashable]:
        return [*self.graph.heads, *(self._value(self.nodes[name]) for name in names)]

    def _value(self, node: Node) -> Port:
        """Behind its rounding, and behind the activation that is fused into it on the other side."""
        g, found = self.graph, node
        follow = ("fake_quantize",) if node.op in ("Pooling", "Concat") else ("fake_quantize", "Activation", "clip")
        while len(readers := g.readers(found)) == 1 and readers[0].op in follow and not g.is_head(found):
            found = readers[0]
        return Port(found)

    def reals(self, names: Sequence[str], values: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        for name, value in zip(names, values):
            yield unscaled(value, self.factors.get(name))


def check_read_back(g: Graph, model: TengineModel, feeds: Feeds) -> None:
    """Raise QGraphError unless the file, read back and executed, gives the integers of `g`, every one.

    g: the graph with fake_quantize nodes that `model` was written from.
    """
    written = TengineModel(files.from_bytes(model.data, "the .tmfile"))
    pairs = zip(Reference(g, rounding=ROUNDING).run(feeds), written.executor().run(feeds))
    for name, (want, found) in zip(model.outputs, pairs):
        if not np.array_equal(want, found):
            raise QGraphError(f"the .tmfile is wrong: {name}, read back, differs from the frozen graph. This is a bug "
                              "of qgraph; nothing was written")


def with_export(model: TengineModel, float_graph: Graph, shapes: Mapping[str, Sequence[int]] | None) -> TengineModel:
    """Add the checkpoint for convert_tool to the model, or the reason why it cannot be written."""
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
        model = TengineModel(files.from_bytes(stream.read(), path), factors=factors_beside(os.path.splitext(path)[0]))
    if not model.tm.layers:
        raise FormatError(f"{path}: found no nodes, want a model")
    return model
