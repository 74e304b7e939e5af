"""A bounded reader of COCO's annotations (``instances_*.json``, ``person_keypoints_*.json``)."""

from __future__ import annotations

import json
import math
import reprlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qgraph.data.annotations import Annotation, Boxes, Points
from qgraph.errors import DataError
from qgraph.files import read_at_most

_MAX_BYTES = 256 << 20  # instances_val2017.json has 20 MB
_MAX_BRACKETS = 1 << 24  # a list or an object takes some 60 bytes of memory, and 3 bytes of a file
_NUMBER = (int, float)

Row = Mapping[str, Any]


def read_coco(path: Path) -> dict[str, Annotation]:
    """The name of each image's file -> its boxes, or its points where annotations have ``keypoints``.

    Categories become 0 .. C - 1 in the order of their ids.  Boxes: those with ``iscrowd`` are difficult.  Points: those
    of the person with the largest ``area``; where there is nobody, no point is labelled.  Raises DataError.
    """
    document = _document(path)
    images = {_id(row, "id", at): (row, at) for row, at in _rows(document, "images", path)}
    annotations = _rows(document, "annotations", path)
    by_image: dict[Any, list[tuple[Row, str]]] = defaultdict(list)
    for row, at in annotations:
        if (image := _id(row, "image_id", at)) not in images:
            raise DataError(f"{at}: is of the image {reprlib.repr(image)}, which is not among the images")
        by_image[image].append((row, at))
    points = next((len(_numbers(row, "keypoints", at)) for row, at in annotations if "keypoints" in row), 0)
    classes = {} if points else _classes(document, path)
    found: dict[str, Annotation] = {}
    for image, (row, at) in images.items():
        name = row.get("file_name")
        if not isinstance(name, str) or not name or name in found:
            raise DataError(f"{at}: file_name is {reprlib.repr(name)}, want the name of a file, another for each image")
        label: Boxes | Points = _points(by_image[image], points) if points else _boxes(by_image[image], classes)
        width, height = row.get("width"), row.get("height")
        if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
            label.check((width, height), f"{path}: {name[:200]!r}")
        found[name] = label
    return found


def _document(path: Path) -> Row:
    try:
        content = read_at_most(path, _MAX_BYTES)
        if len(content) > _MAX_BYTES or content.count(b"{") + content.count(b"[") > _MAX_BRACKETS:
            raise DataError(f"{path}: has over {_MAX_BYTES >> 20} MiB, or over {_MAX_BRACKETS} lists and objects: keep "
                            "the annotations of the images that are used")
        document = json.loads(content.decode("utf-8-sig"), parse_int=_short_int)
    except RecursionError:
        raise DataError(f"{path}: found JSON nested too deep for annotations") from None
    except ValueError as error:  # errors of JSON and of UTF-8
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise DataError(f'{path}: not annotations of COCO: want a JSON object with "images" and "annotations"')
    return document


def _short_int(digits: str) -> int:
    if len(digits) > 15:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _rows(document: Row, key: str, path: Path) -> list[tuple[Row, str]]:
    """(object, what it is called in messages)"""
    rows = document.get(key)
    if not isinstance(rows, list):
        raise DataError(f'{path}: not annotations of COCO: has no list "{key}"')
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}: {key}[{number}] is {reprlib.repr(row)}, want an object")
    return [(row, f"{path}: {key}[{number}]") for number, row in enumerate(rows)]


def _id(row: Row, key: str, at: str) -> int | str:
    value = row.get(key)
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise DataError(f"{at}: {key} is {reprlib.repr(value)}, want a number")
    return value


def _classes(document: Row, path: Path) -> dict[Any, int]:
    ids = [_id(row, "id", at) for row, at in _rows(document, "categories", path)]
    if any(isinstance(value, str) for value in ids) or len(set(ids)) < len(ids):
        raise DataError(f"{path}: the ids of its categories are {reprlib.repr(ids)}, want different numbers")
    return {value: number for number, value in enumerate(sorted(ids))}


def _numbers(row: Row, key: str, at: str, count: int = 0) -> list[float]:
    """A list of so many finite numbers; 0 for any multiple of three."""
    values = row.get(key)
    if (not isinstance(values, list) or not values or (len(values) != count if count else len(values) % 3)
            or not all(isinstance(x, _NUMBER) and not isinstance(x, bool) and math.isfinite(x) for x in values)):
        wanted = f"{count} finite numbers" if count else "finite numbers, three for each point"
        raise DataError(f"{at}: {key} is {reprlib.repr(values)}, want {wanted}")
    return values


def _boxes(annotations: list[tuple[Row, str]], classes: Mapping[Any, int]) -> Boxes:
    rows = []
    for row, at in annotations:
        if (category := _id(row, "category_id", at)) not in classes:
            raise DataError(f"{at}: is of the category {reprlib.repr(category)}, which is not among the categories")
        x, y, width, height = _numbers(row, "bbox", at, 4)
        rows.append((classes[category], x, y, x + width, y + height, row.get("iscrowd") in (1, True)))
    return Boxes(np.array(rows, np.float64).reshape(-1, 6))


def _points(annotations: list[tuple[Row, str]], count: int) -> Points:
    largest, found = -1.0, np.zeros((count // 3, 3))
    for row, at in annotations:
        points = np.reshape(_numbers(row, "keypoints", at, count), (-1, 3))
        area = row.get("area", 0.0)
        if isinstance(area, _NUMBER) and area > largest and not row.get("iscrowd") and points[:, 2].any():
            largest, found = area, points
    return Points(found)
