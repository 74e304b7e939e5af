"""Pairs of images that show the same or not: in a text file, or with the images in a ``.bin`` of InsightFace."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qgraph.arrays import Array
from qgraph.data.pickled import as_bytes, read_pickled
from qgraph.errors import DataError
from qgraph.files import read_at_most

_MOST_BYTES = 1 << 30  # of a .bin; that of LFW has 60 MB
_MOST_TEXT_BYTES = 1 << 27
_LONGEST_LINE = 1 << 14
_AMBIGUOUS = -1


class PairImages(NamedTuple):
    """images: encoded, two for each pair, one behind the other.  same: of each pair."""

    images: list[bytes]
    same: list[bool]


def read_bin(path: str | Path) -> PairImages:
    """A ``.bin`` of InsightFace: a pickle of (list of encoded images, list of booleans), which is never unpickled.

    The images may be bytes, or the NumPy arrays of OpenCV's ``imencode``.  Raises DataError for anything else.
    """
    content = read_at_most(path, _MOST_BYTES)
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path}: has over {_MOST_BYTES >> 20} MiB, want less")
    found = read_pickled(content, str(path))
    wanted = "want (list of encoded images, list of booleans), a pickle as InsightFace writes it"
    if not (isinstance(found, (list, tuple)) and len(found) == 2 and all(isinstance(part, list) for part in found)):
        raise DataError(f"{path}: holds a {type(found).__name__}, {wanted}")
    images = [as_bytes(image) for image in found[0]]
    same = found[1]
    if None in images:
        raise DataError(f"{path}: image {images.index(None)} is not bytes, {wanted}")
    if wrong := [number for number, flag in enumerate(same) if not isinstance(flag, bool)]:
        raise DataError(f"{path}: the flag of pair {wrong[0]} is not a boolean, {wanted}")
    if not same or len(images) != 2 * len(same):
        raise DataError(f"{path}: holds {len(images)} images and {len(same)} flags, want two images for each flag")
    return PairImages([image for image in images if image is not None], same)


def read_pairs(path: str | Path, names: Sequence[str]) -> Array:
    """A text file of pairs -> int64 (pairs, 3): the numbers of two images, and 1 where they show the same.

    A line has two images and 0 or 1, between commas (csv, where a first line of titles is left out), tabs or spaces.
    names: of the images, in the order of their numbers.  A line has such a name, its last parts (``Ann/Ann_1.jpg`` of
    ``/data/lfw/Ann/Ann_1.jpg``), or a number from 0.  Empty lines and lines that start with # are left out.
    Raises DataError, naming the line.
    """
    numbers = _by_name(names)
    rows = []
    for where, fields in _lines(Path(path)):
        if len(fields) != 3 or fields[2] not in ("0", "1"):
            raise DataError(f"{where}: found {' '.join(fields)[:60]!r}, want two images and 0 or 1")
        rows.append((*(_number(field, numbers, len(names), where) for field in fields[:2]), int(fields[2])))
        if rows[-1][0] == rows[-1][1]:
            raise DataError(f"{where}: pairs the image {fields[0][:60]!r} with itself")
    if not rows:
        raise DataError(f"{path}: holds no pairs, want lines of two images and 0 or 1")
    return np.array(rows, np.int64)


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, fields) of each line that says something."""
    try:
        content = read_at_most(path, _MOST_TEXT_BYTES)
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text (byte {error.start}), want lines of two images and 0 or 1") from error
    if len(content) > _MOST_TEXT_BYTES:
        raise DataError(f"{path}: has over {_MOST_TEXT_BYTES >> 20} MiB, want less")
    first = True
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{where}: has {len(line)} characters, want two images and 0 or 1")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        between = next((mark for mark in ",\t" if mark in line), None)
        fields = line.split() if between is None else next(csv.reader([line], delimiter=between))
        fields = [field.strip() for field in fields]
        if not (first and between == "," and fields[2:] and fields[2].isalpha()):
            yield where, fields
        first = False


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """Name, and each of its last parts -> number; _AMBIGUOUS where several images share it."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        parts = name.replace(os.sep, "/").split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            numbers[tail] = _AMBIGUOUS if tail in numbers else number
    return {**numbers, **{name: number for number, name in enumerate(names)}}


def _number(field: str, numbers: dict[str, int], images: int, where: str) -> int:
    found = numbers.get(field.replace(os.sep, "/"))
    if found == _AMBIGUOUS:
        raise DataError(f"{where}: several images are called {field[:60]!r}: give more of the path, or the number")
    if found is None and field.isascii() and field.isdigit() and len(field) < 10:
        found = int(field)
        if found >= images:
            raise DataError(f"{where}: found the image number {found}, but there are {images} images (from 0)")
    if found is None:
        like = f"a name such as {next(iter(numbers))[:60]!r} or a number" if numbers else "a number"
        raise DataError(f"{where}: no image is called {field[:60]!r}, want {like}")
    return found
