"""MXNet's NDArray list file (``.params``): every generation with dense data in, the one of 1.9.1 out.

    file    uint64 0x112, uint64 reserved, uint64 count, count arrays, uint64 count or 0, that many names
    name    uint64 length, bytes
    array   magic, [int32 storage type,] shape, int32 device type, int32 device id, int32 type flag, data
    shape   V0: the magic is the number of dimensions, uint32 dimensions follow;  else int32 n, n times int64

Little endian throughout. An array without dimensions ends after its shape (it was never initialized), but a V3 one
(saved under NumPy shape semantics) is a scalar then, and uninitialized with n = -1. The layout was read in MXNet's
src/ndarray/ndarray.cc (NDArray::Load, LegacyLoad) and is tested against `mx.nd.save`.
"""

from __future__ import annotations

import io
import logging
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Union

import numpy as np

from qgraph.errors import FormatError, UnsupportedError
from qgraph.files import write_files

log = logging.getLogger("qgraph")

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_MAX_DIMS = 32
_MAX_ELEMENTS = 1 << 40  # of an empty array's other dimensions, which no file size bounds
_STORAGE = {1: "row_sparse", 2: "csr"}
_BFLOAT16 = 12
_CPU = 1  # device type
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?", 8: "<i2", 9: "<u2", 10: "<u4",
           11: "<u8"}
_FLAGS = {np.dtype(code).newbyteorder("="): flag for flag, code in _DTYPES.items()}

PathLike = Union[str, "os.PathLike[str]"]


class _Reader:
    """A stream of known size; every read says where it was when the bytes run out."""

    def __init__(self, stream: BinaryIO, size: int, where: str) -> None:
        self.stream, self.size, self.where, self.offset = stream, size, where, 0

    @property
    def left(self) -> int:
        return self.size - self.offset

    def fail(self, message: str, offset: int | None = None) -> FormatError:
        return FormatError(f"{self.where}: byte {self.offset if offset is None else offset}: {message}")

    def into(self, target: memoryview, what: str) -> None:
        if len(target) > self.left:
            raise self.fail(f"truncated: found {self.left} bytes, want {len(target)} of {what}")
        view = target
        while len(view):
            got = self.stream.readinto(view)  # type: ignore[attr-defined]
            if not got:
                raise self.fail(f"truncated while reading {what}")
            view = view[got:]
        self.offset += len(target)

    def bytes(self, count: int, what: str) -> bytearray:
        if count > self.left:
            raise self.fail(f"truncated: found {self.left} bytes, want {count} of {what}")
        data = bytearray(count)
        self.into(memoryview(data), what)
        return data

    def skip(self, count: int, what: str) -> None:
        if count > self.left:
            raise self.fail(f"truncated: found {self.left} bytes, want {count} of {what}")
        self.stream.seek(count, os.SEEK_CUR)
        self.offset += count

    def unpack(self, code: str, what: str) -> tuple[int, ...]:
        layout = struct.Struct("<" + code)
        return layout.unpack(self.bytes(layout.size, what))


def read_params(source: PathLike | bytes) -> dict[str, np.ndarray]:
    """Arrays by name (with their ``arg:``/``aux:`` prefix), in file order, in the dtypes of the file.

    source: a path, or the bytes themselves. Arrays of a list without names are called "0", "1", ...
    An array that was never initialized comes as float32 of shape (0,).
    Raises FormatError (with file and byte offset) for a damaged file, UnsupportedError for sparse or bfloat16 arrays.
    Memory: the arrays, and nothing that the bytes present do not back.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(_Reader(io.BytesIO(source), len(source), "params"))
    path = Path(source)
    try:
        if not path.is_file():
            raise FormatError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with open(path, "rb") as stream:
            return _read(_Reader(stream, os.fstat(stream.fileno()).st_size, str(path)))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise FormatError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read(r: _Reader) -> dict[str, np.ndarray]:
    magic, _, count = r.unpack("QQQ", "the header")
    if magic != _LIST_MAGIC:
        raise r.fail(f"not an MXNet params file: found magic {magic:#x}, want {_LIST_MAGIC:#x}", 0)
    if count * 4 > r.left:
        raise r.fail(f"found a claim of {count} arrays with {r.left} bytes left", 16)
    arrays: list[np.ndarray | str] = [_read_array(r) for _ in range(count)]
    names = _read_names(r, count)
    for name, array in zip(names, arrays):
        if isinstance(array, str):
            raise UnsupportedError(f"{r.where}: {name}: found {array}, want dense data of a NumPy type; "
                                   "convert it in MXNet (tostype('default'), astype('float32')) and save again")
    if r.left:
        log.warning("%s: %d bytes behind the last name were ignored", r.where, r.left)
    return dict(zip(names, arrays))  # type: ignore[arg-type]


def _read_array(r: _Reader) -> np.ndarray | str:
    """One array, or what it is if it cannot be represented; it is skipped then, so that its name can be found."""
    (magic,) = r.unpack("I", "an array's magic")
    storage, stored_shape = 0, None
    if magic in (_V2, _V3):
        (storage,) = r.unpack("i", "a storage type")
        if storage not in (0, *_STORAGE):
            raise r.fail(f"found storage type {storage}, want 0 (dense), 1 (row_sparse) or 2 (csr)", r.offset - 4)
        stored_shape = _read_shape(r) if storage else None
    if magic in (_V1, _V2, _V3):
        shape = _read_shape(r, none_allowed=magic == _V3)
    elif magic <= _MAX_DIMS:
        shape = r.unpack(f"{magic}I", "a shape")
    else:
        raise r.fail(f"found array magic {magic:#x}, want V0 to V3 of MXNet's NDArray", r.offset - 4)
    if shape is None or (not shape and magic != _V3):
        return np.empty(0, np.float32)
    _, _, flag = r.unpack("iii", "a device and a type")
    if flag not in _DTYPES and flag != _BFLOAT16:
        raise r.fail(f"found type flag {flag}, want one of {', '.join(map(str, _DTYPES))}", r.offset - 4)
    if storage:
        auxiliary = [(r.unpack("i", "an index type")[0], _read_shape(r)) for _ in range(storage)]
        for kind, extent in [(flag, stored_shape), *auxiliary]:
            if kind not in _DTYPES:
                raise r.fail(f"found index type {kind} in a sparse array")
            r.skip(_claimed(r, extent or (), np.dtype(_DTYPES[kind]).itemsize), "sparse data")
        return f"{_STORAGE[storage]} storage"
    if flag == _BFLOAT16:
        r.skip(_claimed(r, shape, 2), "bfloat16 data")
        return "bfloat16 data"
    dtype = np.dtype(_DTYPES[flag])
    _claimed(r, shape, dtype.itemsize)
    array = np.empty(shape, dtype)
    if array.size:
        r.into(array.reshape(-1).view(np.uint8).data, "array data")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_shape(r: _Reader, none_allowed: bool = False) -> tuple[int, ...] | None:
    (rank,) = r.unpack("i", "a number of dimensions")
    if rank == -1 and none_allowed:
        return None
    if not 0 <= rank <= _MAX_DIMS:
        raise r.fail(f"found {rank} dimensions, want 0 to {_MAX_DIMS}", r.offset - 4)
    shape = r.unpack(f"{rank}q", "a shape")
    if none_allowed and -1 in shape:
        return None
    if min(shape, default=0) < 0:
        raise r.fail(f"found shape {shape}, want no negative dimension", r.offset - 8 * rank)
    return shape


def _claimed(r: _Reader, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of an array of `shape`, once they are known to be there."""
    count = math.prod(shape) * itemsize
    if count > r.left or math.prod(d for d in shape if d) > max(_MAX_ELEMENTS, r.left):
        raise r.fail(f"found shape {shape} of {count} bytes with {r.left} bytes left")
    return count


def _read_names(r: _Reader, count: int) -> list[str]:
    at = r.offset
    (claimed,) = r.unpack("Q", "the number of names")
    if claimed not in (0, count):
        raise r.fail(f"found {claimed} names for {count} arrays", at)
    if not claimed:
        return [str(index) for index in range(count)]
    names: dict[str, None] = {}
    for _ in range(count):
        at = r.offset
        (length,) = r.unpack("Q", "the length of a name")
        try:
            name = r.bytes(length, "a name").decode()
        except UnicodeDecodeError:
            raise r.fail("found a name that is not UTF-8", at) from None
        if name in names:
            raise r.fail(f"found the name {name!r} twice", at)
        names[name] = None
    return list(names)


# ---- writing --------------------------------------------------------------------------------------------------------

def dump_params(stream: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` to a binary stream as MXNet 1.9.1's `mx.nd.save` does, bit for bit.

    A scalar is written with shape (1,), as `mx.nd.array` makes it. Raises UnsupportedError, by name, for an array that
    MXNet cannot hold.
    """
    stream.write(struct.pack("<QQQ", _LIST_MAGIC, 0, len(arrays)))
    for name, value in arrays.items():
        array = np.atleast_1d(value)
        flag = _FLAGS.get(array.dtype.newbyteorder("="))
        if flag is None or not array.size or array.ndim > _MAX_DIMS:
            raise UnsupportedError(f"{name}: found {array.dtype} of shape {array.shape}, want a number type of MXNet "
                                   f"and 1 to {_MAX_DIMS} dimensions, none of them 0")
        stream.write(struct.pack(f"<Iii{array.ndim}qiii", _V2, 0, array.ndim, *array.shape, _CPU, 0, flag))
        data = np.ascontiguousarray(array, np.dtype(_DTYPES[flag]))
        stream.write(data.reshape(-1).view(np.uint8).data)
    stream.write(struct.pack("<Q", len(arrays)))
    for name in arrays:
        encoded = name.encode()
        stream.write(struct.pack("<Q", len(encoded)) + encoded)


def write_params(path: PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """`dump_params` to a file, all or nothing."""
    write_files({os.fspath(path): lambda stream: dump_params(stream, arrays)})
