"""The file of a Tengine model, .tmfile (TM2): written byte by byte, read with bounds.

    Header{u16 2, u16 0, u16 0, pad, u32 root} -> Model -> Subgraph -> nodes, tensors, buffers

Offsets count from the file's start, little endian; 0 says "not set". Objects lie at multiples of four bytes. A vector
is u32 n and n words; a string is u32 size (with its NUL) and u32 offset. The layout is that of Tengine's
source/serializer/tmfile/tm2_format.h.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Union

import numpy as np

from qgraph.errors import FormatError

VAR, CONST, INPUT = 1, 2, 3  # Tensor.type
FP32, FP16, INT8, UINT8, INT32, INT16 = 0, 1, 2, 3, 4, 5
SUM, PRODUCT = 2, 0  # Eltwise.type
MAX_POOL, AVG_POOL = 0, 1  # Pooling.alg
FULL, INCLUDE_PAD = 1, 0x10  # Pooling.caffe_flavor: rounds sizes up and counts padding; counts padding
CONV_ACTS = {"": -1, "relu": 0, "relu6": 6}  # Convolution.activation
DTYPES = {FP32: "<f4", FP16: "<f2", INT8: "<i1", UINT8: "<u1", INT32: "<i4", INT16: "<i2"}
_VERSION, _OP_VERSION, _MXNET = 2, 1, 4
_MAX_INDEX = 0x7FFF  # Tengine keeps the ids of inputs and outputs as int16, those of tensors as uint16
_MAX_AXES = 8


class OpType(NamedTuple):
    """fields: struct letters of the parameters; "v" is the offset of a vector of i32."""

    name: str
    fields: str = ""


OP_TYPES: dict[int, OpType] = {
    1: OpType("BatchNormalization", "ffi"), 3: OpType("Concat", "i"), 4: OpType("Const"),
    5: OpType("Convolution", "i" * 14), 6: OpType("Deconvolution", "i" * 15), 8: OpType("Dropout"),
    9: OpType("Eltwise", "Iifff"), 10: OpType("Flatten", "ii"), 11: OpType("FullyConnected", "i"),
    12: OpType("InputOp"), 13: OpType("LRN", "iffiff"), 15: OpType("Permute", "iiiii"),
    16: OpType("Pooling", "I" + "i" * 10), 17: OpType("PReLU"), 20: OpType("ReLU", "f"), 21: OpType("ReLU6"),
    23: OpType("Reshape", "iiv"), 26: OpType("Scale", "iii"), 27: OpType("Slice", "ivvviiiiii"),
    28: OpType("Softmax", "i"), 36: OpType("Tanh"), 38: OpType("Sigmoid"), 71: OpType("Interp", "iffii"),
    72: OpType("Elu", "f"), 77: OpType("Transpose", "v"), 87: OpType("Clip", "ff")}
TYPE_OF = {row.name: number for number, row in OP_TYPES.items()}

Param = Union[int, float, "list[int]"]


@dataclass
class Tensor:
    """dims: () where they are not known.  array: of a constant.  scales: steps, one, or one per output channel.

    zeros: their zero points; qgraph writes none but 0.
    """

    name: str
    kind: int = VAR
    dims: tuple[int, ...] = ()
    dtype: int = FP32
    array: np.ndarray | None = None
    scales: np.ndarray | None = None
    zeros: np.ndarray | None = None


@dataclass
class Layer:
    """A node of TM2. type: a key of OP_TYPES, or any other number in a file that we did not write.

    inputs, outputs: indices of tensors.  params: as OP_TYPES says, None where the type is not in it.
    """

    type: int
    name: str
    inputs: list[int]
    outputs: list[int]
    params: tuple[Param, ...] | None = ()

    @property
    def op(self) -> str:
        return OP_TYPES[self.type].name if self.type in OP_TYPES else f"type {self.type}"


@dataclass
class Model:
    """inputs, outputs: indices of layers."""

    layers: list[Layer] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    name: str = "model"


# ---- writing --------------------------------------------------------------------------------------------------------

class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def put(self, chunk: bytes | bytearray | memoryview) -> int:
        """Append at a multiple of four; the offset."""
        self.data += bytes(-len(self.data) % 4)
        at = len(self.data)
        self.data += chunk
        return at

    def pack(self, letters: str, *values: object) -> int:
        return self.put(struct.pack("<" + letters, *values))

    def vector(self, words: Iterable[int]) -> int:
        found = [word & 0xFFFFFFFF for word in words]
        return self.pack(f"{len(found) + 1}I", len(found), *found)

    def string(self, text: str) -> int:
        data = text.encode() + b"\0"
        return self.pack("II", len(data), self.put(data))


def to_bytes(model: Model) -> bytes:
    """The .tmfile. Raises FormatError for what its fields cannot hold."""
    if max(len(model.layers), len(model.tensors)) > _MAX_INDEX:
        raise FormatError(f"{len(model.layers)} nodes and {len(model.tensors)} tensors: Tengine takes at most "
                          f"{_MAX_INDEX} of each")
    w = _Writer()
    w.pack("HHHxxI", _VERSION, 0, 0, 0)
    buffers: list[int] = []
    tensors = [_put_tensor(w, index, tensor, buffers) for index, tensor in enumerate(model.tensors)]
    layers = [_put_layer(w, index, layer) for index, layer in enumerate(model.layers)]
    subgraph = w.pack("IiiIIIIIII", 0, 0, 0, w.vector(model.inputs), w.vector(model.outputs), w.vector(layers),
                      w.vector(tensors), w.vector(buffers), w.string(model.name), 0)
    root = w.pack("iiII", _MXNET, 0, w.vector([subgraph]), w.string(model.name))
    struct.pack_into("<I", w.data, 8, root)
    w.data += bytes(-len(w.data) % 4)
    if len(w.data) >= 1 << 32:
        raise FormatError(f"a .tmfile of {len(w.data)} bytes: its offsets have 32 bits")
    return bytes(w.data)


def _put_tensor(w: _Writer, index: int, tensor: Tensor, buffers: list[int]) -> int:
    buffer = 0
    if tensor.array is not None:
        data = np.ascontiguousarray(tensor.array, DTYPES[tensor.dtype]).tobytes()
        buffer = len(buffers)
        buffers.append(w.pack("II", len(data), w.put(data)))
    dims = w.vector(tensor.dims) if tensor.dims else 0
    quant = 0
    if tensor.scales is not None:
        zeros = tensor.zeros if tensor.zeros is not None else np.zeros(len(tensor.scales), np.int32)
        width = 8 * np.dtype(DTYPES[tensor.dtype]).itemsize
        quant = w.vector([w.pack("ifi", int(zero), float(scale), width)
                          for zero, scale in zip(zeros, tensor.scales)])
    return w.pack("IIIIIiii", index, buffer, dims, w.string(tensor.name), quant, 0, tensor.kind, tensor.dtype)


def _put_layer(w: _Writer, index: int, layer: Layer) -> int:
    letters = OP_TYPES[layer.type].fields
    param = 0
    if letters:
        values = [w.vector(value) if isinstance(value, list) else value for value in layer.params or ()]
        param = w.pack(letters.replace("v", "I"), *values)
    operator = w.pack("III", _OP_VERSION, layer.type, param)
    inputs = w.vector(layer.inputs) if layer.inputs else 0
    return w.pack("IIIIIIBxxx", index, inputs, w.vector(layer.outputs), operator, w.string(layer.name), 0, 0)


# ---- reading --------------------------------------------------------------------------------------------------------

class _Reader:
    """Every read is checked against the file's size, and their sum too: parts that lie on each other end early."""

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        self.view, self.where = memoryview(data), where
        self.left = 4 * len(self.view) + 1024

    def refuse(self, what: str) -> FormatError:
        return FormatError(f"{self.where}: {what}")

    def take(self, offset: int, size: int, what: str, aligned: bool = True) -> memoryview:
        if offset < 12 or (aligned and offset % 4):
            raise self.refuse(f"{what}: found offset {offset}, want a multiple of 4 behind the header")
        if size > len(self.view) - offset:
            raise self.refuse(f"{what}: wants {size} bytes at {offset}, found {max(0, len(self.view) - offset)}: the "
                              "file is cut off or damaged")
        self.left -= size
        if self.left < 0:
            raise self.refuse(f"{what}: its parts lie on each other, want each part once")
        return self.view[offset:offset + size]

    def unpack(self, letters: str, offset: int, what: str) -> tuple:
        return struct.unpack("<" + letters, self.take(offset, struct.calcsize("<" + letters), what))

    def vector(self, offset: int, what: str, letter: str = "I") -> list[int]:
        (count,) = self.unpack("I", offset, what)
        if 4 * count > len(self.view) - offset - 4:
            raise self.refuse(f"{what}: claims {count} entries at {offset}, found room for "
                              f"{(len(self.view) - offset - 4) // 4}")
        return list(struct.unpack(f"<{count}{letter}", self.take(offset + 4, 4 * count, what))) if count else []

    def string(self, offset: int, what: str) -> str:
        if not offset:
            return ""
        size, at = self.unpack("II", offset, what)
        data = bytes(self.take(at, size, what, aligned=False)) if size else b""
        try:
            return data.split(b"\0")[0].decode()
        except UnicodeDecodeError:
            raise self.refuse(f"{what}: found {data[:30]!r}, want UTF-8") from None


def from_bytes(data: bytes | memoryview, where: str) -> Model:
    """The model of a .tmfile. Raises FormatError, which says where and what, for whatever is not sound."""
    r = _Reader(data, where)
    if len(r.view) < 12:
        raise r.refuse(f"found {len(r.view)} bytes, want a .tmfile of Tengine")
    version, _, _, root = struct.unpack("<HHHxxI", r.view[:12])
    if version != _VERSION:
        raise r.refuse(f"found version {version} in the header, want {_VERSION}: this is no .tmfile of Tengine")
    _, _, subgraphs, name = r.unpack("iiII", root, "the model")
    found = r.vector(subgraphs, "the list of subgraphs")
    if len(found) != 1:
        raise r.refuse(f"found {len(found)} subgraphs, want 1")
    _, _, layout, inputs, outputs, nodes, tensors, buffers, _, _ = r.unpack("IiiIIIIIII", found[0], "the subgraph")
    if layout != 0:
        raise r.refuse(f"found layout {layout} of the model, want 0 (NCHW)")
    places = [r.unpack("II", at, f"buffer {i}") for i, at in enumerate(r.vector(buffers, "the list of buffers"))]
    model = Model(name=r.string(name, "the model's name"))
    model.tensors = [_tensor(r, at, i, places) for i, at in enumerate(r.vector(tensors, "the list of tensors"))]
    model.layers = [_layer(r, at, i) for i, at in enumerate(r.vector(nodes, "the list of nodes"))]
    model.inputs, model.outputs = r.vector(inputs, "the inputs"), r.vector(outputs, "the outputs")
    _check(model, r)
    return model


def _tensor(r: _Reader, at: int, index: int, places: Sequence[tuple]) -> Tensor:
    what = f"tensor {index}"
    number, buffer, dims_at, name_at, quant_at, _, kind, dtype = r.unpack("IIIIIiii", at, what)
    name = r.string(name_at, f"{what}: its name") or f"tensor_{index}"
    what = f"tensor {index} ({name[:60]})"
    if number != index or kind not in (VAR, CONST, INPUT) or dtype not in DTYPES:
        raise r.refuse(f"{what}: found id {number}, type {kind}, data type {dtype}; want id {index}, type 1 to 3, data "
                       f"type 0 to {max(DTYPES)}")
    dims = tuple(r.vector(dims_at, f"{what}: its dims", "i")) if dims_at else ()
    if len(dims) > _MAX_AXES or (kind == CONST and min(dims, default=0) < 1) or min(dims, default=0) < -1:
        raise r.refuse(f"{what}: found dims {dims[:_MAX_AXES]}, want 1 to {_MAX_AXES} positive ones")
    tensor = Tensor(name, kind, dims, dtype)
    if kind == CONST:
        if buffer >= len(places):
            raise r.refuse(f"{what}: found buffer {buffer}, want 0 to {len(places) - 1}")
        size, data_at = places[buffer]
        want = math.prod(dims) * np.dtype(DTYPES[dtype]).itemsize
        if size != want:
            raise r.refuse(f"{what}: found a buffer of {size} bytes, want {want} for dims {dims}")
        tensor.array = np.frombuffer(r.take(data_at, size, f"{what}: its data"), DTYPES[dtype]).reshape(dims)
    if quant_at:
        rows = [r.unpack("ifi", q, f"{what}: its quantization") for q in r.vector(quant_at, f"{what}: its scales")]
        tensor.zeros = np.array([row[0] for row in rows], np.int32)
        tensor.scales = np.array([row[1] for row in rows], np.float32)
        if not rows or not (np.isfinite(tensor.scales).all() and (tensor.scales > 0).all()):
            raise r.refuse(f"{what}: found {len(rows)} scales, want some, all finite and above 0")
    return tensor


def _layer(r: _Reader, at: int, index: int) -> Layer:
    what = f"node {index}"
    number, inputs, outputs, operator, name_at, _, _ = r.unpack("IIIIIIB", at, what)
    name = r.string(name_at, f"{what}: its name") or f"node_{index}"
    what = f"node {index} ({name[:60]})"
    if number != index:
        raise r.refuse(f"{what}: found id {number}, want {index}")
    _, kind, param_at = r.unpack("III", operator, f"{what}: its operator")
    params: tuple[Param, ...] | None = None
    if kind in OP_TYPES:
        letters = OP_TYPES[kind].fields
        values = r.unpack(letters.replace("v", "I"), param_at, f"{what}: its parameters") if letters else ()
        params = tuple(_words(r, value, what) if letter == "v" else value for letter, value in zip(letters, values))
    return Layer(kind, name, r.vector(inputs, f"{what}: its inputs") if inputs else [],
                 r.vector(outputs, f"{what}: its outputs"), params)


def _words(r: _Reader, offset: int, what: str) -> list[int]:
    return r.vector(offset, f"{what}: a list of its parameters", "i") if offset else []


def _check(model: Model, r: _Reader) -> None:
    """Ids are in range; every tensor is made once, before it is read."""
    made: set[int] = set()
    for index, layer in enumerate(model.layers):
        what = f"node {index} ({layer.name[:60]})"
        for tensor in layer.inputs:
            if tensor not in made:
                raise r.refuse(f"{what}: reads tensor {tensor}, which no node before it makes")
        if not layer.outputs:
            raise r.refuse(f"{what}: found no output, want one")
        for tensor in layer.outputs:
            if tensor >= len(model.tensors) or tensor in made:
                raise r.refuse(f"{what}: writes tensor {tensor}, want one of 0 to {len(model.tensors) - 1} that no "
                               "other node writes")
            made.add(tensor)
            if (model.tensors[tensor].kind == CONST) != (layer.op == "Const"):
                raise r.refuse(f"{what}: is {layer.op} and writes tensor {tensor} of type {model.tensors[tensor].kind}")
    for what, ids in (("inputs", model.inputs), ("outputs", model.outputs)):
        if not ids or max(ids) >= len(model.layers):
            raise r.refuse(f"found {what} {ids[:8]}, want numbers of nodes, 0 to {len(model.layers) - 1}")
