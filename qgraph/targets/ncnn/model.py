"""An ncnn model in memory, ours or anybody's: its layers, and the files that it becomes."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from qgraph.analysis.codes import drop_quantizers
from qgraph.data.preprocess import Preprocess
from qgraph.errors import FormatError, OptionError
from qgraph.files import Content
from qgraph.ir.graph import Graph, Node
from qgraph.quant.spec import QParams
from qgraph.targets.ncnn.files import Layer, bin_bytes, param_text, read_bin, read_param
from qgraph.targets.ncnn.int8 import is_int8, scale_table
from qgraph.targets.ncnn.note import usage_note


class Codes(NamedTuple):
    """A blob, and how the int8 layers behind it round it; `qgraph.targets.ncnn.runtime` gives the codes."""

    blob: str
    quant: QParams


@dataclass
class NcnnModel:
    """outputs: blobs.  integers: fake_quantize -> its codes, in a model that was just written.

    requantized: blobs that hold int8.  masked: layers that do without Winograd.  stopped: the layer from which on the
    .bin could not be read, "".  folded: the same network in float for ncnn's own tools, with weights on the grid.
    preprocess: what made the calibration images.
    """

    layers: list[Layer]
    outputs: list[str]
    integers: dict[Node, Codes] = field(default_factory=dict)
    requantized: set[str] = field(default_factory=set)
    masked: list[str] = field(default_factory=list)
    stopped: str = ""
    folded: Graph | None = None
    preprocess: Preprocess | None = None

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """What is fed: name -> shape with the batch (0, as it may vary), or () where the .param does not tell it."""
        found: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            if layer.type == "Input":
                shape = tuple(size for size in (layer.number(key) for key in (2, 11, 1, 0)) if size)
                found[layer.outputs[0]] = (0, *shape) if shape else ()
        return found

    @property
    def op_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(layer.type for layer in self.layers).items()))

    @property
    def int8_layers(self) -> list[Layer]:
        return [layer for layer in self.layers if is_int8(layer)]

    @cached_property
    def param(self) -> str:
        return param_text(self.layers)

    @cached_property
    def bin(self) -> bytes:
        return bin_bytes(self.layers)

    @property
    def size(self) -> int:
        """Bytes of .param and .bin."""
        return len(self.param.encode()) + len(self.bin)

    def files(self, prefix: str) -> dict[str, Content]:
        """Path -> content. A frozen model has its scale table and the float checkpoint beside it."""
        found: dict[str, Content] = {f"{prefix}.param": self.param, f"{prefix}.bin": self.bin}
        if self.folded is not None:
            from qgraph.formats.mxnet import checkpoint_files

            found[f"{prefix}.table"] = scale_table(self.layers)
            found.update(checkpoint_files(self.folded, f"{prefix}-folded"))
        found[f"{prefix}.ncnn.md"] = usage_note(os.path.basename(prefix), self.inputs, self.outputs, self.preprocess)
        return found


def load(path: str) -> NcnnModel:
    """Read a .param and the .bin beside it. Raises OptionError where that is not there, FormatError for bad files."""
    layers = read_param(path)
    beside = path[: -len(".param")] + ".bin"
    if not os.path.isfile(beside):
        raise OptionError(f"{beside}: no such file; the weights of {path} are wanted beside it")
    with open(beside, "rb") as stream:
        stopped = read_bin(layers, stream.read(), beside)
    read = {blob for layer in layers for blob in layer.inputs}
    outputs = [blob for layer in layers for blob in layer.outputs if blob not in read]
    if not layers or not outputs or not any(layer.type == "Input" for layer in layers):
        raise FormatError(f"{path}: found no layers, inputs or outputs, want an ncnn model")
    codes = {blob for layer in layers if layer.number(8) > 100 for blob in layer.outputs}
    for layer in layers:
        if layer.type == "Split" and layer.inputs[0] in codes:
            codes.update(layer.outputs)
    return NcnnModel(layers, outputs, requantized=codes, stopped=stopped)


def folded_graph(g: Graph) -> Graph:
    """A quantized graph without its quantizers: float, with the weights' values on the grid."""
    twin = g.copy()
    drop_quantizers(twin)
    return twin
