"""Labels that are places in an image: boxes, points and masks. They move as the pixels of the image do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qgraph.arrays import Array
from qgraph.data.geometry import Geometry, Size
from qgraph.data.preprocess import opened
from qgraph.errors import DataError

_SLACK = 2, 0.01  # pixels, or part of the side: so far a corner may lie outside of the image, as numbers are rounded
_KEPT = 0.25  # of its area; a box of which less is left is marked difficult
_CLASS, _DIFFICULT, _VISIBLE = 0, 5, 2  # columns


class Annotation(ABC):
    """A label in the pixels of an image, as it is stored."""

    @abstractmethod
    def placed(self, geometry: Geometry, where: str) -> Array:
        """The label in the pixels of the network's input. Raises DataError, which begins with `where`."""


@dataclass(frozen=True)
class Boxes(Annotation):
    """rows: n x 6 of class, x0, y0, x1, y1, difficult (0 or 1)."""

    rows: Array

    def check(self, size: Size, where: str) -> None:
        """Raise DataError for a class that is no class, and for a box that is no box of an image of this size."""
        rows = self.rows
        if not np.isfinite(rows).all():
            raise DataError(f"{where}: a box holds {rows[~np.isfinite(rows)][0]}, want finite numbers")
        classes = rows[:, _CLASS]
        if (wrong := (classes < 0) | (classes != np.rint(classes))).any():
            raise DataError(f"{where}: a box has the class {classes[wrong][0]:g}, want a whole number from 0")
        low, high = rows[:, 1:3], rows[:, 3:5]
        if (wrong := (high < low).any(axis=1)).any():
            raise DataError(f"{where}: the box {_text(rows[wrong][0])} ends before it begins, want x0, y0, x1, y1")
        if (wrong := _outside(low, size) | _outside(high, size)).any():
            raise DataError(f"{where}: the box {_text(rows[wrong][0])} lies outside of the image, which has "
                            f"{size[0]}x{size[1]} pixels")

    def placed(self, geometry: Geometry, where: str) -> Array:
        """n x 6 float32. What lies outside of the crop is cut off; a box that loses more than 3/4 becomes difficult."""
        self.check(geometry.size, where)
        corners = geometry.points(np.clip(self.rows[:, 1:5].reshape(-1, 2, 2), 0, geometry.size))
        kept = np.clip(corners, 0, geometry.cropped)
        before, after = ((x[:, 1] - x[:, 0]).prod(axis=1) for x in (corners, kept))
        difficult = (self.rows[:, _DIFFICULT] != 0) | (after < _KEPT * before) | (after <= 0)
        return np.column_stack([self.rows[:, _CLASS], kept.reshape(-1, 4), difficult]).astype(np.float32)


@dataclass(frozen=True)
class Points(Annotation):
    """rows: K x 3 of x, y, visible (0: not labelled; 1: hidden, or 2, as in COCO)."""

    rows: Array

    def check(self, size: Size, where: str) -> None:
        """Raise DataError for points that are not in an image of this size."""
        if not np.isfinite(self.rows).all():
            raise DataError(f"{where}: a point holds {self.rows[~np.isfinite(self.rows)][0]}, want finite numbers")
        if (wrong := _outside(self.rows[:, :2], size) & (self.rows[:, _VISIBLE] > 0)).any():
            raise DataError(f"{where}: point {int(np.argmax(wrong))} lies outside of the image, which has "
                            f"{size[0]}x{size[1]} pixels")

    def placed(self, geometry: Geometry, where: str) -> Array:
        """K x 3 float32. Points outside of the crop are 0, 0, 0, as those that are not labelled."""
        self.check(geometry.size, where)
        xy = geometry.points(self.rows[:, :2])
        inside = ((xy >= 0) & (xy <= geometry.cropped)).all(axis=1) & (self.rows[:, _VISIBLE] > 0)
        return np.where(inside[:, None], np.column_stack([xy, self.rows[:, _VISIBLE]]), 0).astype(np.float32)


@dataclass(frozen=True)
class Mask(Annotation):
    """A PNG image of the size of the image: its palette's indices, or its levels of grey, are classes."""

    path: Path

    def placed(self, geometry: Geometry, where: str) -> Array:
        """Height x width int64."""
        with opened(str(self.path), str(self.path)) as image:
            if image.format != "PNG" or image.mode not in ("P", "L", "1", "I", "I;16"):
                raise DataError(f"{self.path}: found a {image.format} in mode {image.mode}, want a PNG with a palette "
                                "or levels of grey, whose numbers are classes")
            if image.size != geometry.size:
                raise DataError(f"{where}: the mask has {image.size[0]}x{image.size[1]} pixels, the image "
                                f"{geometry.size[0]}x{geometry.size[1]}")
            return geometry.mask(np.asarray(image)).astype(np.int64)


def _outside(xy: Array, size: Size) -> Array:
    """Which of n x 2 points lie outside of an image, by more than is rounded."""
    end = np.array(size, np.float64)
    slack = np.maximum(_SLACK[0], _SLACK[1] * end)
    return ((xy < -slack) | (xy > end + slack)).any(axis=1)


def _text(row: Array) -> str:
    return f"({', '.join(f'{number:.6g}' for number in row[1:5])})"
