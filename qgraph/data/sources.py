"""Where data come from: numbered items (arrays, Datasets; `image_files` has images), and streams of ready batches."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import weakref
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Optional, Protocol, Union

import numpy as np

from qgraph.data.preprocess import Preprocess, ready
from qgraph.errors import DataError, MissingInputError

Label = Union[np.ndarray, np.generic, float, None]
Row = tuple[list[np.ndarray], Label]  # arrays in the order of the input names, label
BatchRow = tuple[list[np.ndarray], Optional[np.ndarray]]  # the same of a batch

Member = tuple[IO[bytes], tuple[int, ...], np.dtype]  # of an .npz: stream at its first row, shape, dtype

_MAX_ROW_BYTES = 1 << 30  # of one item of an .npz
_MOST_TEXT = 300  # characters of a file, or of NumPy's opinion of it, in a message


def array_of(x: object, where: str) -> np.ndarray:
    """NumPy array, NDArray, tensor or scalar -> numeric NumPy array."""
    for method in ("asnumpy", "numpy"):
        if callable(getattr(x, method, None)):
            x = getattr(x, method)()
            break
    if not isinstance(x, (np.ndarray, np.generic, int, float)):
        raise DataError(f"{where}: found a {type(x).__name__}, want a NumPy array or an NDArray")
    if np.asarray(x).dtype.kind not in "fiub":
        raise DataError(f"{where}: holds {np.asarray(x).dtype} values, want real numbers")
    return np.asarray(x)


def read_npy(path: Path) -> np.ndarray:
    """The array of an ``.npy``, mapped into memory."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises many classes on hostile bytes
        raise DataError(f"{path}: not a readable .npy of numbers: {error}") from error


def split(element: object, names: Sequence[str], where: str) -> BatchRow:
    """What a Dataset or an iterable gives -> (arrays in the order of `names`, label or None)."""
    label = None
    data = getattr(element, "data", None)
    if isinstance(data, (list, tuple)):  # mx.io.DataBatch; its last `pad` rows are filling
        end = len(data[0]) - (getattr(element, "pad", 0) or 0)
        element = [array_of(x, where)[:end] for x in [*data, *(getattr(element, "label", None) or [])[:1]]]
    if isinstance(element, Mapping):
        if missing := [name for name in names if name not in element]:
            raise DataError(f"{where}: lacks {', '.join(missing)}; it has {', '.join(map(str, element))}")
        arrays, label = [element[name] for name in names], None if "label" in names else element.get("label")
    elif isinstance(element, (list, tuple)):
        if len(element) - len(names) not in (0, 1):
            raise DataError(f"{where}: found {len(element)} arrays, want {', '.join(names)} and at most a label")
        arrays, label = list(element[: len(names)]), element[len(names)] if len(element) > len(names) else None
    elif len(names) == 1:
        arrays = [element]
    else:
        raise DataError(f"{where}: found one array, the model reads {', '.join(names)}")
    return [array_of(x, where) for x in arrays], None if label is None else array_of(label, where)


def _in_order(load: Callable[[int], Row], indices: Iterable[int], decoders: int, ahead: int) -> Iterator[Row]:
    """``map`` by `decoders` threads, at most `ahead` items in flight; the order is that of `indices`."""
    if decoders <= 1:
        yield from map(load, indices)
        return
    with ThreadPoolExecutor(decoders, thread_name_prefix="qgraph-data") as pool:
        pending: deque[Future[Row]] = deque()
        try:
            for index in indices:
                pending.append(pool.submit(load, index))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # the consumer may leave early
            for future in pending:
                future.cancel()


class Items:
    """A source with numbered items.  Only image files are worth threads; the rest is read by the caller's own."""

    threads = False
    name: str

    def __len__(self) -> int:
        raise NotImplementedError

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def key(self, index: int) -> str:
        """What a file of labels calls an item: its number, or its path below a folder, with /."""
        return str(index)

    def check(self, indices: Iterable[int]) -> None:
        """Raise DataError for what is known to be wrong with these items before they are read."""

    def load(self, index: int) -> Row:
        raise NotImplementedError

    def rows(self, indices: Iterable[int], decoders: int, ahead: int) -> Iterator[Row]:
        return _in_order(self.load, indices, decoders if self.threads else 1, ahead)

    def labels(self, indices: Iterable[int]) -> Iterator[Label]:
        """Without decoding images, where that can be."""
        return (label for _, label in self.rows(indices, 1, 1))


class Arrays(Items):
    """Arrays in memory or memory-mapped; the first axis counts the items."""

    def __init__(self, name: str, arrays: Mapping[str, object], names: Sequence[str], preprocess: Preprocess) -> None:
        self.name, self._preprocess = name, preprocess
        chosen, label = _choose(name, arrays, names)
        self._arrays = [array_of(arrays[key], f"{name}, {key}") for key in chosen]
        self._label = None if label is None else array_of(arrays[label], f"{name}, {label}")
        shapes = {key: a.shape for key, a in zip(chosen, self._arrays)}
        self._length = _common_length(name, shapes if self._label is None else {**shapes, "label": self._label.shape})

    def __len__(self) -> int:
        return self._length

    def load(self, index: int) -> Row:
        arrays = [ready(a[index], self.where(index), self._preprocess) for a in self._arrays]
        return arrays, None if self._label is None else self._label[index]

    def labels(self, indices: Iterable[int]) -> Iterator[Label]:
        return (None if self._label is None else self._label[index] for index in indices)


class Npz(Items):
    """An .npz is read as a stream, row by row: it may be larger than memory, and may claim what it does not hold."""

    def __init__(self, path: Path, names: Sequence[str], preprocess: Preprocess) -> None:
        self.name, self._path, self._preprocess = path.name, path, preprocess
        with self._open() as archive:
            keys = {name[:-4]: None for name in archive.namelist() if name.endswith(".npy")}
            chosen, label = _choose(str(path), keys, names)
            self._keys = [*chosen, *([label] if label else [])]
            self._has_label = label is not None
            self._length = _common_length(str(path), {key: self._member(archive, key)[1] for key in self._keys})

    def __len__(self) -> int:
        return self._length

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except Exception as error:  # zipfile raises many classes on hostile bytes
            raise DataError(f"{self._path}: not a readable .npz: {str(error)[:_MOST_TEXT]}") from error

    def _member(self, archive: zipfile.ZipFile, key: str) -> Member:
        """(stream at the first row, shape, dtype); the claims of the header agree with the size of the member."""
        where = f"{self._path}, {key}"
        try:
            stream = archive.open(key + ".npy")
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(stream)
        except Exception as error:
            raise DataError(f"{where}: not a readable array: {str(error)[:_MOST_TEXT]}") from error
        if dtype.kind not in "fiub":
            raise DataError(f"{where}: holds {dtype} values, want real numbers")
        if fortran and len(shape) > 1:
            raise DataError(f"{where}: is stored column by column; save it with np.ascontiguousarray")
        held = archive.getinfo(key + ".npy").file_size - stream.tell()
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != held:
            raise DataError(f"{where}: claims {dtype} {shape}, but the file holds {held} bytes for it")
        if math.prod(shape[1:]) * dtype.itemsize > _MAX_ROW_BYTES:
            raise DataError(f"{where}: one item of shape {shape[1:]} is over {_MAX_ROW_BYTES >> 20} MiB")
        return stream, shape, dtype

    def rows(self, indices: Iterable[int], decoders: int, ahead: int) -> Iterator[Row]:
        for index, arrays in self._read(self._keys, indices):
            label = arrays.pop() if self._has_label else None
            yield [ready(a, self.where(index), self._preprocess) for a in arrays], label

    def labels(self, indices: Iterable[int]) -> Iterator[Label]:
        if not self._has_label:
            return (None for _ in indices)
        return self.stored(indices)

    def stored(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """Items of the last array that is read, as they are."""
        return (arrays[0] for _, arrays in self._read(self._keys[-1:], indices))

    def _read(self, keys: Sequence[str], indices: Iterable[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """(index, one item of each array) as they are stored."""
        with contextlib.ExitStack() as opened:
            # each array has the file to itself: Python 3.13 seeks from where the other one's reading has ended
            members = [self._member(opened.enter_context(self._open()), key) for key in keys]
            starts = [stream.tell() for stream, _, _ in members]
            for index in indices:
                yield index, [self._row(member, start, index) for member, start in zip(members, starts)]

    def _row(self, member: Member, start: int, index: int) -> np.ndarray:
        stream, shape, dtype = member
        size = math.prod(shape[1:]) * dtype.itemsize
        try:
            stream.seek(start + index * size)  # forward it reads on, backward (a negative step) it starts anew
            content = stream.read(size)
        except Exception as error:
            raise DataError(f"{self.where(index)}: cannot be read: {str(error)[:_MOST_TEXT]}") from error
        if len(content) != size:
            raise DataError(f"{self.where(index)}: the data end here (truncated?)")
        return np.frombuffer(content, dtype).reshape(shape[1:])


class Numbered(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


class Dataset(Items):
    """A Gluon Dataset, or anything else with ``__getitem__`` and ``__len__``: not asked for thread-safety."""

    def __init__(self, dataset: Numbered, names: Sequence[str], preprocess: Preprocess) -> None:
        self.name, self._dataset, self._names = type(dataset).__name__, dataset, names
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._dataset)

    def load(self, index: int) -> Row:
        arrays, label = split(self._dataset[index], self._names, self.where(index))
        return [ready(a, self.where(index), self._preprocess) for a in arrays], label


def _choose(where: str, have: Mapping[str, object], names: Sequence[str]) -> tuple[list[str], str | None]:
    """Which arrays feed the inputs (a single input may be called `data`), and which holds the labels."""
    chosen = ["data"] if len(names) == 1 and names[0] not in have and "data" in have else list(names)
    if missing := [name for name in chosen if name not in have]:
        found = (", ".join(map(str, have)) or "nothing")[:_MOST_TEXT]
        save = ", ".join(f"{name}=..." for name in chosen)
        raise MissingInputError(
            f"{where}: holds {found}; want {', '.join(missing)}: np.savez(path, {save}, label=...)", missing)
    return chosen, "label" if "label" in have and "label" not in chosen else None


def _common_length(where: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    lengths = {shape[0] if shape else -1 for shape in shapes.values()}
    if len(lengths) != 1 or lengths & {0, -1}:
        found = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise DataError(f"{where}: found {found}; want the same number of items, at least 1, along the first axis")
    return lengths.pop()


class Stream:
    """Ready batches from a DataLoader, an ``mx.io.DataIter`` or any iterable; the first axis counts the items."""

    def __init__(self, source: Iterable[object], names: Sequence[str]) -> None:
        self.name, self._names = type(source).__name__, names
        self._reset = getattr(source, "reset", None)
        one_shot = not callable(self._reset) and iter(source) is source
        self._source = source
        self._spool = _Spool(map(self._row, source)) if one_shot else None

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def __iter__(self) -> Iterator[BatchRow]:
        if callable(self._reset):
            self._reset()
        return map(self._row, self._source) if self._spool is None else iter(self._spool)

    def _row(self, element: object) -> BatchRow:
        return split(element, self._names, f"a batch of {self.name}")


class _Spool:
    """A one-shot iterator that can be swept again: what it gave is kept in a temporary file, not in memory."""

    def __init__(self, source: Iterator[BatchRow]) -> None:
        self._source = source
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this object)
        weakref.finalize(self, self._file.close)
        self._stored: list[tuple[int, int, bool]] = []  # per batch: where it starts, how many arrays, is there a label
        self._failed: BaseException | None = None

    def __iter__(self) -> Iterator[BatchRow]:
        n = 0
        while n < len(self._stored) or self._grow():
            start, count, has_label = self._stored[n]
            self._file.seek(start)
            arrays = [np.load(self._file, allow_pickle=False) for _ in range(count)]
            yield arrays, np.load(self._file, allow_pickle=False) if has_label else None
            n += 1

    def _grow(self) -> bool:
        """Store one more batch; False at the end.  A failure is repeated, lest the next sweep be silently shorter."""
        if self._failed:
            raise self._failed
        try:
            row = next(self._source, None)
        except Exception as error:
            self._failed = error
            raise
        if row is None:
            return False
        arrays, label = row
        start = self._file.seek(0, os.SEEK_END)
        for x in arrays if label is None else [*arrays, label]:
            np.save(self._file, x, allow_pickle=False)
        self._stored.append((start, len(arrays), label is not None))
        return True
