"""The two files of an ncnn model, .param (text) and .bin: written byte by byte, read with bounds.

    7767517
    <layers> <blobs>
    <Type> <name> <n_in> <n_out> <blobs in...> <blobs out...> <id>=<value> ... -233<id>=<n>,<value>,...

A value with a ``.`` or an ``e`` is a float.  Every blob has one layer that makes it, further up, and one that reads it.
The .bin holds the weights of the layers, in their order, without names and sizes: fp32 little endian, and in front of a
tagged one (the weights of layers) four bytes that say how it is stored.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Union

import numpy as np

from qgraph.errors import FormatError
from qgraph.files import read_at_most

MAGIC = "7767517"
FP32, FP16, INT8, OLD_FP32 = 0, 0x01306B47, 0x000D4B38, 0x0002C056  # tags
_NAME_LIMIT = 255  # bytes; ncnn scans names with %255s
_VALUE_LIMIT = 15  # and values with %15s
_MAX_PARAM = 1 << 26  # bytes of a .param; the largest networks have some 100 KB
_MAX_IDS = 32

Value = Union[int, float, list]


@dataclass
class Weight:
    """One array of a layer. tagged: int8 or fp32 behind a tag; else fp32."""

    array: np.ndarray
    tagged: bool = False

    def to_bytes(self) -> bytes:
        if not self.tagged:
            return np.ascontiguousarray(self.array, "<f4").tobytes()
        if self.array.dtype != np.int8:
            return struct.pack("<I", FP32) + np.ascontiguousarray(self.array, "<f4").tobytes()
        data = np.ascontiguousarray(self.array).tobytes()
        return struct.pack("<I", INT8) + data + bytes(-len(data) % 4)


@dataclass
class Layer:
    """params: by ncnn's numbers (docs/developer-guide/operators.md of ncnn); a list is an array."""

    type: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: dict[int, Value] = field(default_factory=dict)
    weights: list[Weight] = field(default_factory=list)

    def number(self, key: int, default: int = 0) -> int:
        value = self.params.get(key, default)
        return value if isinstance(value, int) else default


# ---- writing --------------------------------------------------------------------------------------------------------

def param_text(layers: list[Layer]) -> str:
    """The .param of these layers. Raises FormatError for names that ncnn cannot read."""
    lines = [MAGIC, f"{len(layers)} {sum(len(layer.outputs) for layer in layers)}"]
    for layer in layers:
        for name in (layer.name, *layer.inputs, *layer.outputs):
            if not name or len(name.encode()) > _NAME_LIMIT or any(ch.isspace() for ch in name):
                raise FormatError(f"{layer.type} {name[:60]!r}: ncnn wants names of 1 to {_NAME_LIMIT} bytes without "
                                  "blanks; rename it in the model")
        lines.append(" ".join([
            f"{layer.type:<24} {layer.name:<24} {len(layer.inputs)} {len(layer.outputs)}",
            *layer.inputs, *layer.outputs, *(_pair(k, v) for k, v in sorted(layer.params.items()))]))
    return "\n".join(lines) + "\n"


def _pair(key: int, value: Value) -> str:
    if isinstance(value, list):
        return ",".join([f"-{23300 + key}={len(value)}", *map(_shown, value)])
    return f"{key}={_shown(value)}"


def _shown(value: int | float) -> str:
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    number = max(-3.402823e38, min(3.402823e38, float(value)))
    text = f"{number:.9g}"
    if "." not in text and "e" not in text:
        text += ".0"
    return text if len(text) <= _VALUE_LIMIT else f"{number:.8e}"


def bin_bytes(layers: list[Layer]) -> bytes:
    return b"".join(weight.to_bytes() for layer in layers for weight in layer.weights)


# ---- what a layer reads from the .bin -------------------------------------------------------------------------------

class Slot(NamedTuple):
    size: int
    tagged: bool


Slots = Callable[[Layer], list[Slot]]


def _raw(*counts: int) -> list[Slot]:
    return [Slot(count, False) for count in counts]


def _linear(outputs: int, bias: int, size: int, int8: bool = True) -> Slots:
    """weight (tagged), bias, then, of an int8 layer, scales of weights, of the input and (term > 100) of the output."""
    def slots(layer: Layer) -> list[Slot]:
        count = layer.number(outputs)
        found = [Slot(layer.number(size), True), *(_raw(count) if layer.number(bias) else [])]
        term = layer.number(8) if int8 else 0
        if term:
            scales = count
            if layer.type == "ConvolutionDepthWise":
                scales = layer.number(7, 1) if term % 100 == 1 else 1
            found += _raw(scales, 1, *([1] if term > 100 else []))
        return [] if layer.number(19) and layer.type.startswith("Convolution") else found
    return slots


def _affine(size: int, affine: int) -> Slots:
    return lambda layer: _raw(*[layer.number(size)] * 2) if layer.number(affine, 1) else []


def _memory(layer: Layer) -> list[Slot]:
    sizes = [layer.number(key) for key in (0, 1, 11, 2)]
    count = math.prod(size for size in sizes if size)
    return [Slot(count, layer.number(21, 1) == 0)]


SLOTS: dict[str, Slots] = {
    "Convolution": _linear(0, 5, 6), "ConvolutionDepthWise": _linear(0, 5, 6), "InnerProduct": _linear(0, 1, 2),
    "Convolution1D": _linear(0, 5, 6, int8=False), "Deconvolution": _linear(0, 5, 6, int8=False),
    "DeconvolutionDepthWise": _linear(0, 5, 6, int8=False), "DeformableConv2D": _linear(0, 5, 6, int8=False),
    "BatchNorm": lambda layer: _raw(*[layer.number(0)] * 4),
    "Scale": lambda layer: _raw(*[layer.number(0)] * (2 if layer.number(1) else 1)) if layer.number(0) > 0 else [],
    "Bias": lambda layer: _raw(layer.number(0)), "PReLU": lambda layer: _raw(layer.number(0)),
    "Normalize": lambda layer: _raw(layer.number(3)),
    "Padding": lambda layer: _raw(layer.number(6)) if layer.number(6) else [],
    "InstanceNorm": _affine(0, 2), "LayerNorm": _affine(0, 2), "GroupNorm": _affine(1, 3),
    "MemoryData": _memory,
}
PLAIN = frozenset({
    "Input", "Split", "ReLU", "Pooling", "Flatten", "Concat", "BinaryOp", "UnaryOp", "Eltwise", "Softmax", "Reshape",
    "Permute", "Crop", "Slice", "Clip", "Sigmoid", "TanH", "Softplus", "ELU", "SELU", "GELU", "Mish", "Swish",
    "HardSigmoid", "HardSwish", "Interp", "Reduction", "LRN", "PixelShuffle", "Reorg", "Tile", "Noop", "AbsVal",
    "Dropout", "ExpandDims", "Squeeze", "ShuffleChannel", "Exp", "Log", "Power", "BNLL", "Threshold", "Cast",
    "Packing"})
"""Layer types without weights."""


# ---- reading --------------------------------------------------------------------------------------------------------

def parse_param(text: str, where: str) -> list[Layer]:
    """The layers of a .param, without weights. Raises FormatError, with the line, for what ncnn would not take."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise FormatError(f"{where}: found {lines[0][:40] if lines else ''!r} in the first line, want {MAGIC}: this is "
                          "no text .param of ncnn")
    counts = _numbers(lines[1].split() if len(lines) > 1 else [], f"{where}:2")
    body = [(number, line) for number, line in enumerate(lines[2:], 3) if line.strip()]
    if len(counts) != 2 or counts[0] != len(body):
        raise FormatError(f"{where}:2: found {lines[1][:40] if len(lines) > 1 else ''!r}, want the numbers of layers "
                          f"({len(body)} follow) and of blobs")
    layers: list[Layer] = []
    names: set[str] = set()
    made: dict[str, bool] = {}  # blob -> whether something has read it
    for number, line in body:
        here = f"{where}:{number}"
        layer = _parse_line(line, here)
        if layer.name in names:
            raise FormatError(f"{here}: found a second layer called {layer.name}, want unique names")
        names.add(layer.name)
        for blob in layer.inputs:
            if made.get(blob, True):
                why = "a second layer that reads it; ncnn wants a Split" if blob in made else "no layer that makes it"
                raise FormatError(f"{here}: {layer.name} reads {blob[:80]!r}: found {why}")
            made[blob] = True
        for blob in layer.outputs:
            if blob in made:
                raise FormatError(f"{here}: {layer.name} makes {blob[:80]!r}, which another layer makes too")
            made[blob] = False
        layers.append(layer)
    if counts[1] != len(made):
        raise FormatError(f"{where}:2: found {counts[1]} blobs, want {len(made)}, as the layers make")
    return layers


def _parse_line(line: str, here: str) -> Layer:
    words = line.split()
    if len(words) < 4:
        raise FormatError(f"{here}: found {line[:60]!r}, want a type, a name and two numbers of blobs")
    n_in, n_out = _numbers(words[2:4], here)
    if n_in < 0 or n_out < 0 or n_in + n_out > len(words) - 4:
        raise FormatError(f"{here}: found {n_in} and {n_out} blobs, want as many names ({len(words) - 4} words follow)")
    middle = 4 + n_in
    params: dict[int, Value] = {}
    for word in words[middle + n_out:]:
        key, equals, text = word.partition("=")
        (number,) = _numbers([key], here)
        is_array = number <= -23300
        index = -number - 23300 if is_array else number
        if not equals or not 0 <= index < _MAX_IDS:
            raise FormatError(f"{here}: found {word[:40]!r}, want ID=VALUE with an ID of 0 to {_MAX_IDS - 1}")
        values = [_value(part, here) for part in text.split(",")]
        if is_array:
            if values[0] != len(values) - 1:
                raise FormatError(f"{here}: found {word[:40]!r}, an array of {len(values) - 1} values, want as many as "
                                  "it says")
            params[index] = values[1:]
        elif len(values) == 1:
            params[index] = values[0]
        else:
            raise FormatError(f"{here}: found {word[:40]!r}, want one value")
    return Layer(words[0], words[1], words[4:middle], words[middle:middle + n_out], params)


def _numbers(words: list[str], here: str) -> list[int]:
    try:
        found = [int(word) if len(word) < 12 and word.isascii() else 1 << 40 for word in words]
    except ValueError:
        found = [1 << 40]
    if any(abs(number) >= 1 << 31 for number in found):
        raise FormatError(f"{here}: found {' '.join(words)[:60]!r}, want whole numbers")
    return found


def _value(text: str, here: str) -> int | float:
    try:
        if len(text) > 40:
            raise ValueError
        if any(mark in text for mark in ".eE"):
            return float(text)
    except ValueError:
        raise FormatError(f"{here}: found {text[:40]!r}, want a number") from None
    return _numbers([text], here)[0]


def read_param(path: str) -> list[Layer]:
    data = read_at_most(path, _MAX_PARAM)
    if len(data) > _MAX_PARAM:
        raise FormatError(f"{path}: is larger than {_MAX_PARAM >> 20} MB, want a .param")
    try:
        return parse_param(data.decode(), path)
    except UnicodeDecodeError:
        raise FormatError(f"{path}: is no text, want a text .param of ncnn (ncnn2mem writes binary ones)") from None


def read_bin(layers: list[Layer], data: bytes, where: str) -> str:
    """Give the layers their weights; the name of the layer before which reading had to stop, or "".

    It stops at a type that is not in the tables above.  Raises FormatError where bytes are missing or left over.
    """
    view, position = memoryview(data), 0
    for layer in layers:
        if layer.type not in SLOTS:
            if layer.type in PLAIN:
                continue
            return layer.name
        for slot in SLOTS[layer.type](layer):
            weight, position = _read(view, position, slot, f"{where}: {layer.name}")
            layer.weights.append(weight)
    if position != len(data):
        raise FormatError(f"{where}: found {len(data)} bytes, want {position}, as the layers of the .param read")
    return ""


def _read(view: memoryview, position: int, slot: Slot, here: str) -> tuple[Weight, int]:
    tag = FP32
    if slot.size < 0:
        raise FormatError(f"{here}: found {slot.size} values, want none or more")
    if slot.tagged:
        _need(view, position, 4, here)
        (tag,) = struct.unpack_from("<I", view, position)
        position += 4
    if tag == INT8:
        length, dtype = -(-slot.size // 4) * 4, "<i1"
    elif tag == FP16:
        length, dtype = -(-2 * slot.size // 4) * 4, "<f2"
    elif tag in (FP32, OLD_FP32):
        length, dtype = 4 * slot.size, "<f4"
    else:  # 256 floats, and a byte for each value
        _need(view, position, 1024, here)
        codebook = np.frombuffer(view, "<f4", 256, position)
        length = -(-slot.size // 4) * 4
        _need(view, position + 1024, length, here)
        return Weight(codebook[np.frombuffer(view, "u1", slot.size, position + 1024)], True), position + 1024 + length
    _need(view, position, length, here)
    return Weight(np.frombuffer(view, dtype, slot.size, position), slot.tagged), position + length


def _need(view: memoryview, position: int, size: int, here: str) -> None:
    if size > len(view) - position:
        raise FormatError(f"{here}: wants {size} bytes at {position}, found {max(0, len(view) - position)}: the .bin "
                          "is cut off, or belongs to another .param")
