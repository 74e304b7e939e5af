"""Labels that lie in a file or folder of their own (``--labels``), and which item of the data each belongs to."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Callable, Union

import numpy as np

from qgraph.data.annotations import Annotation, Mask
from qgraph.data.coco import read_coco
from qgraph.data.image_files import Folder
from qgraph.data.preprocess import Preprocess
from qgraph.data.sources import Items, Label, Npz, Row, array_of, read_npy
from qgraph.data.voc import read_voc
from qgraph.errors import DataError, MissingInputError, OptionError

log = logging.getLogger("qgraph")

Entry = Union[Annotation, np.ndarray, np.generic]

_MOST_ENTRIES = 1 << 22
_LONGEST_LINE = 1 << 16
_WHOLE = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class LabelFile:
    """Entries, each a label. read: numbers of entries -> the entries.

    names: what the items are called, entry by entry: the paths or names of image files, without suffix where `stems`
    says so; None where the n-th entry is the label of item n.
    """

    path: Path
    count: int
    read: Callable[[Iterable[int]], Iterator[Entry]]
    names: Sequence[str] | None = None
    stems: bool = False
    placed: bool = False  # the entries are Annotations

    def entry_numbers(self, items: Items) -> list[int]:
        """The number of the entry of each item; -1 where there is none. Names are compared without their folders, where
        those are not needed to tell them apart. Raises DataError for two of one name."""
        if self.names is None:
            self._warn(max(0, self.count - len(items)), items, "")
            return [index if index < self.count else -1 for index in range(len(items))]
        keys = [items.key(index) for index in range(len(items))]
        names = list(self.names)
        if self.stems:
            keys = [_stem(key) for key in keys]
        short_keys, short_names = [_base(key) for key in keys], [_base(name) for name in names]
        if len(set(short_keys)) == len(keys) and len(set(short_names)) == len(names):
            keys, names = short_keys, short_names
        if len(set(names)) < len(names):
            raise DataError(f"{self.path}: has two entries for {_twice(names)!r:.200}, want one")
        if len(set(keys)) < len(keys):
            raise DataError(f"{items.name}: has two images {_twice(keys)!r:.200}, which {self.path} takes for one")
        numbers = {name: number for number, name in enumerate(names)}
        known = set(keys)
        unused = [name for name in names if name not in known]
        self._warn(len(unused), items, f", such as {unused[0]!r:.200}" if unused else "")
        return [numbers.get(key, -1) for key in keys]

    def _warn(self, unused: int, items: Items, example: str) -> None:
        if unused:
            log.warning("warning: %s: %d of its %d entries belong to no image of %s%s", self.path, unused, self.count,
                        items.name, example)


class Labelled(Items):
    """Items with the labels of a file in place of their own."""

    def __init__(self, items: Items, file: LabelFile) -> None:
        if file.placed and not isinstance(items, Folder):
            raise OptionError(f"--labels {file.path}: boxes, points and masks belong to the names of image files, and "
                              f"{items.name} is no folder of images")
        self.name, self._items, self._file = items.name, items, file
        self._numbers = file.entry_numbers(items)

    def __len__(self) -> int:
        return len(self._items)

    def where(self, index: int) -> str:
        return self._items.where(index)

    def key(self, index: int) -> str:
        return self._items.key(index)

    def check(self, indices: Iterable[int]) -> None:
        missing = [index for index in indices if self._numbers[index] < 0]
        if missing:
            more = f" ({len(missing)} images have none)" if len(missing) > 1 else ""
            raise DataError(f"{self.where(missing[0])}: has no label in {self._file.path}{more}: add it, or leave the "
                            "image out (--select, --skip)")

    def rows(self, indices: Iterable[int], decoders: int, ahead: int) -> Iterator[Row]:
        mine, theirs = tee(indices)
        for (arrays, _), label in zip(self._items.rows(theirs, decoders, ahead), self.labels(mine)):
            yield arrays, label

    def labels(self, indices: Iterable[int]) -> Iterator[Label]:
        mine, theirs = tee(indices)
        entries = self._file.read(self._numbers[index] for index in theirs)
        return (self._placed(index, entry) for index, entry in zip(mine, entries))

    def _placed(self, index: int, entry: Entry) -> Label:
        if not isinstance(entry, Annotation):
            return entry
        assert isinstance(self._items, Folder)
        return entry.placed(self._items.geometry(index), f"{self.where(index)} (label of {self._file.path})")


def read_labels(path: Path) -> LabelFile:
    """Read a file or folder of labels; masks and the arrays of an ``.npz`` or ``.npy`` are read when they are used.

    Raises DataError for what is not readable or has wrong entries.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path}: found {path.suffix[:20] or 'no'} extension, want {', '.join(_READERS)}, "
                            "or a folder of VOC's .xml or of .png masks")
        return reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read_folder(path: Path) -> LabelFile:
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    for suffix in (".xml", ".png"):
        if chosen := [file for file in files if file.suffix.lower() == suffix]:
            entries = read_voc(path, chosen) if suffix == ".xml" else {file.stem: Mask(file) for file in chosen}
            return _named(path, list(entries), list(entries.values()), stems=True, placed=True)
    raise DataError(f"{path}: holds no labels, want an .xml of VOC or a .png mask for each image")


def _read_coco(path: Path) -> LabelFile:
    entries = read_coco(path)
    return _named(path, list(entries), list(entries.values()), placed=True)


def _read_npz(path: Path) -> LabelFile:
    try:
        labels = Npz(path, ("label",), Preprocess())
    except MissingInputError:
        raise DataError(f"{path}: has no array `label`: np.savez(path, label=...)") from None
    return LabelFile(path, len(labels), labels.stored)


def _read_npy(path: Path) -> LabelFile:
    labels = array_of(read_npy(path), str(path))
    if not labels.ndim:
        raise DataError(f"{path}: holds one number, want an array of labels, one for each item")
    return LabelFile(path, len(labels), lambda numbers: (labels[number] for number in numbers))


def _read_text(path: Path) -> LabelFile:
    """Lines ``name,label``; a first line ``name,label`` is a heading. Several numbers are separated by spaces."""
    names: list[str] = []
    rows: list[np.ndarray] = []
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b"")):
            name, row = _line(line, f"{path}: line {number + 1}")
            if row is None and number == 0 and name.lower() == "name" or not name:
                continue
            if row is None:
                raise DataError(f"{path}: line {number + 1} is {line[:60]!r}, want `name,label`: a whole number, or "
                                "several with spaces between them")
            if len(names) == _MOST_ENTRIES:
                raise DataError(f"{path}: has over {_MOST_ENTRIES} lines")
            names.append(name)
            rows.append(row)
    if not names:
        raise DataError(f"{path}: is empty, want lines `name,label`")
    one = all(len(row) == 1 for row in rows)
    return _named(path, names, [row[0] for row in rows] if one else rows)


def _line(line: bytes, where: str) -> tuple[str, np.ndarray | None]:
    """(name, its numbers or None); ("", None) for an empty line."""
    try:
        text = line.decode("utf-8-sig").strip()
    except ValueError:
        raise DataError(f"{where} is not text in UTF-8") from None
    name, comma, label = text.rpartition(",")
    words = label.split()
    if not text:
        return "", None
    if not (comma and name.strip() and words and all(map(_WHOLE.fullmatch, words)) and len(line) < _LONGEST_LINE):
        return name.strip() or "?", None
    return name.strip(), np.array([int(word) for word in words], np.int64)


_READERS: dict[str, Callable[[Path], LabelFile]] = {
    ".json": _read_coco, ".csv": _read_text, ".txt": _read_text, ".npz": _read_npz, ".npy": _read_npy}


def _named(path: Path, names: Sequence[str], entries: Sequence[Entry], stems: bool = False,
           placed: bool = False) -> LabelFile:
    return LabelFile(path, len(names), lambda numbers: (entries[number] for number in numbers), names, stems, placed)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(key: str) -> str:
    folder, slash, name = key.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _twice(names: Iterable[str]) -> str:
    return Counter(names).most_common(1)[0][0]
