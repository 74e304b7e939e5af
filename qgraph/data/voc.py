"""A bounded reader of the annotations of Pascal VOC, a small XML file for each image."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from qgraph.data.annotations import Annotation, Boxes
from qgraph.errors import DataError
from qgraph.files import read_at_most

_MAX_BYTES = 1 << 20
_DEEPEST = 20
_NAMES = "names.txt"


def read_voc(folder: Path, files: Iterable[Path]) -> dict[str, Annotation]:
    """The stem of each file -> the boxes in it; ``difficult`` is kept.

    Classes are numbered as the lines of ``names.txt`` in the folder or beside it, else as their names are sorted.
    Corners are pixels counted from 1, and a box holds both, so x0 and y0 are one less here.  Raises DataError.
    """
    trees = {file: _tree(file) for file in files}
    names = _class_names(folder) or sorted({_text(item, "name", file) for file, tree in trees.items()
                                            for item in tree.findall("object")})
    classes = {name: number for number, name in enumerate(names)}
    return {file.stem: _boxes(tree, classes, file) for file, tree in trees.items()}


def _class_names(folder: Path) -> list[str]:
    file = next((path for path in (folder / _NAMES, folder.parent / _NAMES) if path.is_file()), None)
    if file is None:
        return []
    try:
        names = read_at_most(file, _MAX_BYTES)[:_MAX_BYTES].decode("utf-8-sig").split("\n")
    except ValueError as error:
        raise DataError(f"{file}: not text in UTF-8: {error}") from None
    names = [name.strip() for name in names if name.strip()]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{file}: want the name of a class on each line, another on each")
    return names


def _tree(file: Path) -> Element:
    """The root. Declarations of a document type, which may define entities, are refused before any is read."""
    content = read_at_most(file, _MAX_BYTES)
    if len(content) > _MAX_BYTES:
        raise DataError(f"{file}: has over {_MAX_BYTES >> 20} MiB, this is no annotation of an image")
    parser, builder, depth = expat.ParserCreate(), TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise DataError(f"{file}: found elements nested over {_DEEPEST} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DataError(f"{file}: found a DOCTYPE, which an annotation does not need: remove it")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter of encodings
        raise DataError(f"{file}: not XML: {error}") from None
    root = builder.close()
    if root.tag != "annotation":
        raise DataError(f"{file}: found <{root.tag[:50]}>, want the <annotation> of Pascal VOC")
    return root


def _boxes(tree: Element, classes: Mapping[str, int], file: Path) -> Boxes:
    rows = []
    for item in tree.findall("object"):
        name = _text(item, "name", file)
        if name not in classes:
            raise DataError(f"{file}: found the class {reprlib.repr(name)}, which is not in {_NAMES}")
        x0, y0, x1, y1 = (_number(item, f"bndbox/{key}", file) for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = _number(item, "difficult", file) if item.find("difficult") is not None else 0
        rows.append((classes[name], x0 - 1, y0 - 1, x1, y1, difficult != 0))
    boxes = Boxes(np.array(rows, np.float64).reshape(-1, 6))
    if tree.find("size/width") is not None and tree.find("size/height") is not None:
        width, height = (int(_number(tree, f"size/{key}", file)) for key in ("width", "height"))
        if width > 0 and height > 0:  # some tools write 0
            boxes.check((width, height), str(file))
    return boxes


def _text(element: Element, path: str, file: Path) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise DataError(f"{file}: found no {path} in an <{element.tag}> of Pascal VOC")
    return text


def _number(element: Element, path: str, file: Path) -> float:
    text = _text(element, path, file)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{file}: {path} is {reprlib.repr(text)}, want a finite number")
    return value
