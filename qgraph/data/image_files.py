"""Numbered images in files: records, InsightFace's pairs, folders."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from qgraph.data.annotations import Boxes
from qgraph.data.geometry import Geometry
from qgraph.data.pairs import read_bin
from qgraph.data.preprocess import IMAGE_SUFFIXES, Preprocess, decode, geometry_of
from qgraph.data.recordio import RecordFile, objects_of, split_image_record
from qgraph.data.sources import Items, Label, Row
from qgraph.errors import DataError

_RECORDS_LOOKED_AT = 8  # which tell whether the labels of a .rec are boxes


class Records(Items):
    """Images of a ``.rec``. Labels of detection become n x 6: class, x0, y0, x1, y1, difficult, in pixels of the input.

    Labels are of detection where those of some records all look so and one has objects: by chance, one alone may.
    """

    threads = True

    def __init__(self, path: Path, preprocess: Preprocess) -> None:
        self.name, self._file, self._preprocess = path.name, RecordFile(path), preprocess
        self._boxes = self._has_boxes()

    def __len__(self) -> int:
        return len(self._file)

    def load(self, index: int) -> Row:
        where = self.where(index)
        label, image = split_image_record(self._file.read(index), where)
        return [decode(BytesIO(image), where, self._preprocess)], self._label(label, image, where)

    def labels(self, indices: Iterable[int]) -> Iterator[Label]:
        return (self._label(*split_image_record(self._file.read(i), self.where(i)), self.where(i)) for i in indices)

    def _has_boxes(self) -> bool:
        counts = []
        for index in range(0, len(self), -(-len(self) // _RECORDS_LOOKED_AT)):
            with contextlib.suppress(DataError):  # a bad record is named when it is read
                objects = objects_of(split_image_record(self._file.read(index), "")[0])
                counts.append(None if objects is None else len(objects))
        return None not in counts and any(counts)

    def _label(self, label: np.ndarray, image: bytes, where: str) -> np.ndarray:
        if not self._boxes:
            return label
        objects = objects_of(label)
        if objects is None:
            raise DataError(f"{where}: its label holds no boxes, but those of other records do: want the numbers A, B, "
                            "then A - 2 others, then objects of B numbers each, as im2rec packs them")
        objects = objects[objects[:, 0] != -1].astype(np.float64)  # -1 fills up labels to one length
        geometry = geometry_of(BytesIO(image), where, self._preprocess)
        difficult = objects[:, 5] if objects.shape[1] > 5 else np.zeros(len(objects))
        corners = objects[:, 1:5] * (geometry.size * 2)
        return Boxes(np.column_stack([objects[:, 0], corners, difficult])).placed(geometry, where)


class Pairs(Items):
    """The images of a ``.bin`` of InsightFace: 2 * pair and 2 * pair + 1 are one pair.

    A label is (number of the pair, 1 where it shows the same).  The encoded images stay in memory.
    """

    threads = True

    def __init__(self, path: Path, preprocess: Preprocess) -> None:
        self.name, self._preprocess = path.name, preprocess
        self._images, self._same = read_bin(path)

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Row:
        where = self.where(index)
        return [decode(BytesIO(self._images[index]), where, self._preprocess)], self._label(index)

    def labels(self, indices: Iterable[int]) -> Iterator[Label]:
        return map(self._label, indices)

    def _label(self, index: int) -> np.ndarray:
        return np.array([index // 2, self._same[index // 2]], np.float32)


class Folder(Items):
    """Images below a folder. A flat one has no labels.

    A label is the name of the sub-folder where all names are whole numbers, else its number in sorted order.
    """

    threads = True

    def __init__(self, path: Path, preprocess: Preprocess) -> None:
        self.name, self._root, self._preprocess = str(path), path, preprocess
        entries = sorted((p for p in path.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
        classes = [p for p in entries if p.is_dir()]
        flat = [p.name for p in entries if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
        if flat and classes:
            raise DataError(
                f"{path}: {len(flat)} images ({flat[0]}, ...) lie beside {len(classes)} sub-folders "
                f"({classes[0].name}, ...): want all images in sub-folders (one per label), or none"
            )
        self._files: list[tuple[str, int | None]] = [(name, None) for name in flat] or [
            (os.path.relpath(os.path.join(folder, name), path), label)
            for label, top in _labelled(classes)
            for folder, _, names in sorted(os.walk(top))
            for name in sorted(names)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        if not self._files:
            raise DataError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)}), nor do its sub-folders")

    def __len__(self) -> int:
        return len(self._files)

    def where(self, index: int) -> str:
        return str(Path(self.name) / self._files[index][0])

    def key(self, index: int) -> str:
        return self._files[index][0].replace(os.sep, "/")

    def geometry(self, index: int) -> Geometry:
        """Where the pixels of an image go; it is not decoded."""
        return geometry_of(self._path(index), self.where(index), self._preprocess)

    def load(self, index: int) -> Row:
        return [decode(self._path(index), self.where(index), self._preprocess)], self._files[index][1]

    def labels(self, indices: Iterable[int]) -> Iterator[Label]:
        return (self._files[index][1] for index in indices)

    def _path(self, index: int) -> str:
        return str(self._root / self._files[index][0])


def _labelled(folders: Sequence[Path]) -> list[tuple[int, Path]]:
    names = [folder.name for folder in folders]
    if all(re.fullmatch(r"[0-9]{1,9}", name) for name in names) and len(set(map(int, names))) == len(names):
        return sorted((int(folder.name), folder) for folder in folders)
    return list(enumerate(folders))
