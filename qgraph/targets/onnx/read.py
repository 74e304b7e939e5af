"""Reading an .onnx file as untrusted data: what `read` gives can be walked, and its tensors can be made arrays.

Protobuf checks that parts lie inside each other, and nothing else: a string may be any bytes (Python gives `bytes`
then), and a tensor may claim any type and shape.  Here every string is text, and every tensor, wherever it is, holds
what it claims.  What the operators mean is not looked at, except for those whose constants qgraph reads as numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from qgraph.errors import FormatError

_MAX_BYTES = 1 << 31  # protobuf's own limit
_MAX_DIMS = 32  # NumPy's before 2.0
_MAX_DIM = 1 << 31  # of what is fed and written; a tensor's are bounded by what it holds
_MAX_ELEMENTS = 1 << 40  # of an empty tensor's other dimensions, which no file size bounds
_NOT_TEXT = "doc_string"  # the one string that qgraph does not read; exporters write paths of any encoding there
_WORDS = {"NodeProto": "node", "ValueInfoProto": "value", "TensorProto": "tensor", "AttributeProto": "attribute",
          "GraphProto": "graph", "FunctionProto": "function"}
_PLACES = ("NodeProto", "ValueInfoProto")  # said of what is found inside of them


class _Type(NamedTuple):
    """bits: of an element in raw_data.  field: where the elements are else, `packed` of them in `entries`."""

    bits: int
    field: str
    packed: int = 1
    entries: int = 1


_TYPES = {
    "FLOAT": _Type(32, "float_data"), "DOUBLE": _Type(64, "double_data"),
    "COMPLEX64": _Type(64, "float_data", 1, 2), "COMPLEX128": _Type(128, "double_data", 1, 2),
    "INT64": _Type(64, "int64_data"), "UINT64": _Type(64, "uint64_data"), "UINT32": _Type(32, "uint64_data"),
    "INT32": _Type(32, "int32_data"), "STRING": _Type(0, "string_data"),
    **dict.fromkeys(("INT16", "UINT16", "FLOAT16", "BFLOAT16"), _Type(16, "int32_data")),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ",
                     "FLOAT8E8M0"), _Type(8, "int32_data")),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), _Type(6, "int32_data")),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), _Type(4, "int32_data", 2)),
    **dict.fromkeys(("INT2", "UINT2"), _Type(2, "int32_data", 4)),
}
_FIELDS = sorted({row.field for row in _TYPES.values()})


def read(path: str) -> Any:
    """The onnx.ModelProto of a file. Raises FormatError, which names file and place, for whatever is not sound."""
    import onnx

    if os.path.getsize(path) > _MAX_BYTES:
        raise FormatError(f"{path}: found {os.path.getsize(path)} bytes, want an .onnx of at most {_MAX_BYTES}")
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's own DecodeError has no common base with onnx's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{path}: no ONNX model can be read from it: {reason}") from error
    check(proto, path)
    return proto


def check(proto: Any, where: str) -> None:
    """Raise FormatError for what is not sound in an onnx.ModelProto; `where` names it."""
    if not proto.graph.node or not proto.graph.output:
        raise FormatError(f"{where}: found no operators or no outputs, want an ONNX model")
    types = _known_types()
    for message, here in _messages(proto, where):
        if message.DESCRIPTOR.name == "TensorProto":
            _check_tensor(message, here, types)
        elif message.DESCRIPTOR.name == "TensorShapeProto":
            _check_shape(message, here)
    _check_nodes(proto.graph, where)


def _known_types() -> dict[int, tuple[str, _Type]]:
    """data_type -> its name and row, of those that the installed onnx can make an array of."""
    from onnx import TensorProto

    return {number: (name, _TYPES[name]) for name, number in TensorProto.DataType.items() if name in _TYPES}


def _messages(proto: Any, where: str) -> Iterator[tuple[Any, str]]:
    """Every message of the file, and where it is. Its strings are text by then."""
    pending = [(proto, where)]
    while pending:
        message, outer = pending.pop()
        kind = message.DESCRIPTOR.name
        children: list[Any] = []
        for field, value in message.ListFields():
            if field.type == field.TYPE_STRING and field.name != _NOT_TEXT:
                for text in _each(value):
                    if not isinstance(text, str):
                        raise FormatError(f"{outer}: {field.name} of a {_WORDS.get(kind, kind)}: found {text[:40]!r}, "
                                          "want UTF-8")
            elif field.type == field.TYPE_MESSAGE:
                children += _each(value)
        here = outer
        if name := getattr(message, "name", "") or getattr(message, "op_type", ""):
            here = f"{where if kind in _PLACES else outer}: {_WORDS.get(kind, kind)} {name[:60]}"
        yield message, here
        pending += [(child, here if kind in _PLACES else outer) for child in children]


def _each(value: Any) -> Iterable[Any]:
    """The values of a field, repeated or not."""
    return [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value


def _check_tensor(tensor: Any, here: str, types: dict[int, tuple[str, _Type]]) -> None:
    """A known type, a shape that can be, and as much data as both say, in one place."""
    if tensor.data_location == tensor.EXTERNAL:
        raise FormatError(f"{here}: keeps its weights in other files, want one file (onnx.save without external data)")
    if tensor.data_type not in types:
        raise FormatError(f"{here}: found data type {tensor.data_type}, want one of "
                          f"{', '.join(name for name, _ in types.values())}")
    dims = list(tensor.dims[:_MAX_DIMS + 1])
    if len(dims) > _MAX_DIMS or min(dims, default=0) < 0 or math.prod(d for d in dims if d) > _MAX_ELEMENTS:
        raise FormatError(f"{here}: found {len(tensor.dims)} dimensions {dims[:8]}, want at most {_MAX_DIMS} of at "
                          f"most {_MAX_ELEMENTS} elements, none negative")
    name, row = types[tensor.data_type]
    count = math.prod(dims)
    filled = {field: len(getattr(tensor, field)) for field in _FIELDS if len(getattr(tensor, field))}
    if tensor.HasField("raw_data"):
        filled["raw_data"] = len(tensor.raw_data)
    want = {"raw_data": -(-count * row.bits // 8), row.field: -(-count // row.packed) * row.entries}
    if not row.bits:
        del want["raw_data"]
    if tensor.HasField("segment") or len(filled) > 1 or (count and not filled) or any(
            want.get(field) != size for field, size in filled.items()):
        held = ", ".join(f"{size} in {field}" for field, size in filled.items()) or "nothing"
        wanted = " or ".join(f"{size} in {field}" for field, size in want.items())
        raise FormatError(f"{here}: found {held}, want {wanted}, as {name} of shape {tuple(dims)} has")
    for text in tensor.string_data:
        try:
            text.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{here}: found {text[:40]!r}, want UTF-8") from None


def _check_shape(shape: Any, here: str) -> None:
    """Of a value: -1 and 0 stand for a dimension that may vary."""
    sizes = [d.dim_value for d in shape.dim[:_MAX_DIMS + 1]]
    if len(sizes) > _MAX_DIMS or not all(-1 <= size < _MAX_DIM for size in sizes):
        raise FormatError(f"{here}: found {len(shape.dim)} dimensions {sizes[:8]}, want at most {_MAX_DIMS} from 0 to "
                          f"{_MAX_DIM - 1}")


def _check_nodes(graph: Any, where: str) -> None:
    """Every tensor is made once, and the constants that say how a tensor is quantized are numbers."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made: set[str] = set()
    quantized: set[str] = set()
    for number, node in enumerate(graph.node):
        here = f"{where}: node {number} ({node.name[:60]}:{node.op_type[:60]})"
        for name in node.output:
            if name in made:
                raise FormatError(f"{here}: makes {name[:60]!r}, which another node makes too")
            if name:
                made.add(name)
        read: list[str] = []
        if node.op_type == "QuantizeLinear":
            if len(node.input) not in (2, 3) or len(node.output) != 1 or not node.output[0]:
                raise FormatError(f"{here}: found {len(node.input)} inputs and {len(node.output)} outputs, want 2 or 3 "
                                  "and 1")
            quantized.add(node.output[0])
            scale = constants.get(node.input[1])
            read = list(node.input[1:]) if scale is not None and not scale.dims else []
        elif node.op_type == "Clip" and node.input and node.input[0] in quantized:
            read = list(node.input[1:])
        for name in read:
            if name in constants and not _is_number(constants[name]):
                raise FormatError(f"{here}: found {name[:60]!r} of shape {tuple(constants[name].dims)}, want a "
                                  "constant of one finite number")


def _is_number(tensor: Any) -> bool:
    from onnx import numpy_helper

    if math.prod(tensor.dims) != 1 or tensor.data_type in (tensor.STRING, tensor.COMPLEX64, tensor.COMPLEX128):
        return False
    return math.isfinite(numpy_helper.to_array(tensor).reshape(()).item())
