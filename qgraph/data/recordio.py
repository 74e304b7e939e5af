"""A bounded reader of MXNet's RecordIO files (``.rec``), without MXNet.

A record is one or more parts, each padded to 4 bytes::

    magic 0xced7230a (u32) | flag << 29 | length (u32) | length bytes

flag 0 is a whole record; 1, 2, 3 are the first, middle and last part of a record whose content held the magic word at a
4-byte boundary: the writer cut it out there and the reader puts it back.  The content of an image record is
``flag (u32) label (f32) id (u64) id2 (u64)``, then, for flag > 0, flag more float32 (the label), then the image.
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qgraph.errors import DataError

_MAGIC = struct.pack("<I", 0xCED7230A)
_PART = struct.Struct("<4sI")
_IMAGE = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_LONGEST_IDX_LINE = 4096
_WIDEST_OBJECT = 1000


class RecordFile:
    """The records of one file by number: in the order of the ``.idx`` beside it if there is one, else of the file.

    No file stays open between reads, so that any number of threads may read.  Memory: 8 bytes a record.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._size = self.path.stat().st_size
        idx = self.path.with_suffix(".idx")
        indexed = idx.is_file()
        self._hint = f" ({idx.name} may belong to another file: without it the .rec is scanned)" if indexed else ""
        self._starts = _read_idx(idx, self._size) if indexed else self._scan()
        if not self._starts:
            raise DataError(f"{self.path}: holds no records")

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        return f"{self.path.name}[{index}]"

    def read(self, index: int) -> bytes:
        """The content of one record, its parts joined."""
        parts = []
        with open(self.path, "rb") as file:
            start, flag = self._starts[index], -1
            while flag not in (_WHOLE, _LAST):
                first = flag == -1
                flag, length, start_of_next = self._part(file, start, index, first)
                parts.append(file.read(length))
                if len(parts[-1]) != length:
                    raise DataError(f"{self.where(index)}: the file became shorter while it was read")
                start = start_of_next
        return _MAGIC.join(parts)

    def _scan(self) -> array[int]:
        """Where each record starts, found by walking over the part headers."""
        starts = array("Q")
        start = 0
        with open(self.path, "rb") as file:
            while start < self._size:
                starts.append(start)
                flag = -1
                while flag not in (_WHOLE, _LAST):
                    flag, _, start = self._part(file, start, len(starts) - 1, flag == -1)
        return starts

    def _part(self, file: BinaryIO, start: int, index: int, first: bool) -> tuple[int, int, int]:
        """(flag, length, start of the next part) of the part at `start`; `file` is left at its content."""

        def bad(what: str) -> DataError:
            return DataError(f"{self.where(index)}: {what} at byte {start} of {self.path}{self._hint}")

        file.seek(start)
        header = file.read(_PART.size)
        if len(header) < _PART.size:
            raise bad("the file ends in a record header (truncated?)")
        magic, word = _PART.unpack(header)
        flag, length = word >> 29, word & (1 << 29) - 1
        if magic != _MAGIC:
            raise bad(f"found {magic.hex()}, want the RecordIO magic {_MAGIC.hex()}")
        if flag not in ((_WHOLE, _FIRST) if first else (_MIDDLE, _LAST)):
            raise bad(f"found a part with flag {flag}, want {'0 or 1' if first else '2 or 3'}")
        end = start + _PART.size + length
        if end > self._size:
            left = self._size - start - _PART.size
            raise bad(f"a record claims {length} bytes, the file has {left} left (truncated?)")
        return flag, length, end + -length % 4


def split_image_record(content: bytes, where: str) -> tuple[np.ndarray, bytes]:
    """Content of an image record -> (label: float32 scalar or vector, encoded image)."""
    if len(content) < _IMAGE.size:
        raise DataError(f"{where}: has {len(content)} bytes, an image record at least {_IMAGE.size}")
    count, label, _, _ = _IMAGE.unpack_from(content)
    if not count:
        return np.array(label, np.float32), content[_IMAGE.size :]
    end = _IMAGE.size + 4 * count
    if end > len(content):
        raise DataError(f"{where}: claims {count} label values, the record has room for {(len(content) - 24) // 4}")
    return np.frombuffer(content, "<f4", count, _IMAGE.size).copy(), content[end:]


def objects_of(label: np.ndarray) -> np.ndarray | None:
    """The objects in a label of detection, n x B, or None for any other label.

    im2rec packs them so: A (numbers in front of the objects), B (numbers of an object), ..., then object by object:
    class, x0, y0, x1, y1 in parts of the image, ...
    """
    if label.ndim != 1 or len(label) < 2:
        return None
    header, width = label[:2].tolist()
    if not (2 <= header <= len(label) and 5 <= width <= _WIDEST_OBJECT and header % 1 == width % 1 == 0):
        return None
    objects = label[int(header):]
    return None if len(objects) % int(width) else objects.reshape(-1, int(width))


def _read_idx(path: Path, size: int) -> array[int]:
    """Lines ``key TAB offset`` -> the offsets, each inside a .rec of `size` bytes."""
    starts = array("Q")
    with open(path, "rb") as file:
        while line := file.readline(_LONGEST_IDX_LINE):
            if not line.strip():
                continue
            number = line.rsplit(b"\t", 1)[-1].strip()
            if not (number.isdigit() and len(number) < 20 and int(number) < size):
                raise DataError(
                    f"{path}: line {len(starts) + 1} is {line[:60]!r}, want `key TAB offset` with an offset below "
                    f"{size}, the size of the .rec (remove the .idx and the .rec is scanned instead)"
                )
            starts.append(int(number))
    return starts
