"""An ncnn model in memory, ours or anybody's: its layers, and the files that it becomes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qgraph.analysis.channels import unscaled
from qgraph.data.preprocess import Preprocess
from qgraph.errors import FormatError, OptionError
from qgraph.files import Content
from qgraph.ir.graph import Graph, Node
from qgraph.quant.table import factors_beside
from qgraph.targets.base import Description, Executor, Model, Shapes, Tensors, counted
from qgraph.targets.ncnn.files import SLOTS, Layer, bin_bytes, param_text, read_bin, read_param
from qgraph.targets.ncnn.int8 import MASK, input_scale, is_int8, output_scale, scale_table
from qgraph.targets.ncnn.note import usage_note
from qgraph.targets.ncnn.runtime import Codes, is_installed
from qgraph.targets.ncnn.runtime import Executor as Runtime


@dataclass
class NcnnModel(Model):
    """blobs: of the outputs.  integers: fake_quantize -> its codes, in a model that was just written.

    requantized: blobs that hold int8.  masked: layers that do without Winograd.  stopped: the layer from which on the
    .bin could not be read, "".  folded: the same network in float for ncnn's own tools, with weights on the grid.
    preprocess: what made the calibration images.  factors: of the channels that layers write, by name, see
    `qgraph.passes.equalize`; the files do not have them, but the calibration table beside them.
    """

    kind = "an ncnn model"
    engine = "ncnn.Net"
    least_axes = 2  # a batch of blobs, which have one axis at least

    layers: list[Layer]
    blobs: list[str]
    integers: dict[Node, Codes] = field(default_factory=dict)
    requantized: set[str] = field(default_factory=set)
    masked: list[str] = field(default_factory=list)
    stopped: str = ""
    folded: Graph | None = None
    preprocess: Preprocess | None = None
    factors: Mapping[str, Sequence[float]] = field(default_factory=dict)

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
    def outputs(self) -> list[str]:
        return self.blobs

    @property
    def known_shapes(self) -> dict[str, list[int] | None]:
        return {name: [1, *shape[1:]] if shape else None for name, shape in self.inputs.items()}

    @property
    def codes(self) -> Mapping[Node, Hashable]:
        return self.integers

    @property
    def frozen(self) -> bool:
        return bool(self.int8_layers)

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
            from qgraph.formats.mxnet_writer import checkpoint_files

            found[f"{prefix}.table"] = scale_table(self.layers)
            found.update(checkpoint_files(self.folded, f"{prefix}-folded"))
        found[f"{prefix}.ncnn.md"] = usage_note(os.path.basename(prefix), self.inputs, self.outputs, self.preprocess)
        return found

    def executor(self, watch: Sequence[Any] | None = None, *, precise: bool = False) -> Executor:
        return Runtime(self, watch, half=not precise)

    def absent(self) -> str:
        return "" if is_installed() else 'the package ncnn is not installed (pip install "qgraph[ncnn]")'

    def logits(self, g: Graph) -> list[Hashable | None]:
        made = {blob: layer for layer in self.layers for blob in layer.outputs}
        return [made[blob].inputs[0] if made[blob].type == "Softmax" else None for blob in self.blobs]

    def tensors(self) -> Tensors:
        return NcnnTensors(self)

    def describe(self, shapes: Shapes | None = None) -> Description:
        """A row is a layer with weights: its type, what its weights are stored as, what it writes, the step of its
        input, and the options that it does without."""
        layers = [_row(layer) for layer in self.layers if layer.type in SLOTS and layer.type != "MemoryData"]
        body = {"frozen": self.frozen, "engine": "ncnn", "inputs": self.known_shapes,
                "outputs": dict.fromkeys(self.outputs), "ops": self.op_counts,
                "params": counted([weight.array for layer in self.layers for weight in layer.weights]),
                "layers": layers, "stopped": self.stopped}
        rows = [(row["name"], row["op"], row["weight"] or "not read", f"{row['step']:.4g}" if row.get("step") else "",
                 row["writes"], row["mask"] or "") for row in layers]
        remark = f"from {self.stopped} on the .bin was not read: qgraph does not know that type"
        return Description(body, [], ("layer", "op", "weight", "step of its input", "writes", "options off"), rows,
                           [remark] if self.stopped else [])


def _row(layer: Layer) -> dict[str, Any]:
    row: dict[str, Any] = {"name": layer.name, "op": layer.type, "mask": layer.number(MASK),
                           "weight": layer.weights[0].array.dtype.name if layer.weights else None,
                           "writes": "int8" if layer.number(8) > 100 else "float32"}
    if is_int8(layer):
        scale = float(input_scale(layer).array[0])
        row["step"] = 1 / scale if scale else None
    return row


class NcnnTensors(Tensors):
    """Layers are called as the nodes."""

    no_advice = "A is an ncnn model, want the float MXNet model"
    _PLAIN = frozenset({"Convolution", "ConvolutionDepthWise", "InnerProduct", "Deconvolution", "Convolution1D",
                        "DeconvolutionDepthWise", "BinaryOp", "Eltwise", "Concat", "Pooling"})

    def __init__(self, model: NcnnModel) -> None:
        self.model = model
        self.layers = {layer.name: layer for layer in model.layers if len(layer.outputs) == 1}

    def comparable(self) -> list[str]:
        return [name for name, layer in self.layers.items() if layer.type in self._PLAIN]

    def has(self, name: str) -> bool:
        return name in self.layers

    def op(self, name: str) -> str:
        return self.layers[name].type

    def watch(self, names: Sequence[str]) -> list[Hashable]:
        return [*self.model.outputs, *(self.layers[name].outputs[0] for name in names)]

    def reals(self, names: Sequence[str], values: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """What an int8 layer writes in codes is divided by its output scale."""
        for name, value in zip(names, values):
            yield unscaled(value / output_scale(self.layers[name]), self.model.factors.get(name))


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
    factors = factors_beside(path[: -len(".param")])
    return NcnnModel(layers, outputs, requantized=codes, stopped=stopped, factors=factors)
