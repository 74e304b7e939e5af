"""Scores for every pixel: the class of the highest one counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import DataError, OptionError
from qgraph.tasks.base import SOFTMAX, Claim, Head, Labels, Marks, Metric, Outputs, Result, Tally, Task

RESIZE = ("_contrib_BilinearResize2D", "UpSampling", "Deconvolution")
SKIPPED = ("Crop", "slice", "slice_axis", "slice_like", "Cast", "_copy", "fake_quantize")  # scores stay scores
IGNORED = 255  # what masks hold where no class is right, if the model has no class of this number
PIXELS = 16384  # looked at at once: their best scores stay in the processor's first cache


@dataclass(frozen=True)
class Pixels(Tally):
    """How many pixels are of each class. want: in the truth.  found: in what is judged.  both: in both; int64 each."""

    want: Array
    found: Array
    both: Array

    def __add__(self, other: Tally) -> Pixels:
        assert isinstance(other, Pixels)
        return Pixels(self.want + other.want, self.found + other.found, self.both + other.both)

    def result(self) -> Result:
        """IoU = both / (want + found - both), a mean over the classes that occur in the truth."""
        pixels, same = int(self.want.sum()), int(self.both.sum())
        either: Array = self.want + self.found - self.both
        parts = [Fraction(both, union) for both, union, want in zip(self.both.tolist(), either.tolist(), self.want)
                 if want]
        return {"pixels": 100 * same / pixels if pixels else None,
                "miou": float(100 * sum(parts) / len(parts)) if parts else None}


class Segmentation(Task):
    """Scores (images, classes, height, width), two classes or more.

    A frozen model is ruined where its mean IoU with the float one is below 80 %: then a ninth of the pixels of every
    class is another's, or one class of five is lost.
    """

    name, help = "segmentation", "scores of classes for every pixel; the highest one counts"
    metrics = {
        "pixels": Metric("%", "pixels with the same class on top; with labels: with the right one"),
        "miou": Metric("%", "intersection over union of the pixels of a class, mean over the truth's classes"),
    }
    main, ruined = "miou", 80.0
    labels = "a mask per image"

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__(heads)
        for head in heads:
            if head.rank != 4 or head.shape[0] != head.images or head.shape[1] < 2:
                raise OptionError(f"--task segmentation: the output {head.name} has the shape {head.shape} for "
                                  f"{head.images} images, want (images, classes, height, width) with two classes or "
                                  "more; --task segmentation:OUTPUT names the outputs that are of this task")

    @classmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        maps = [number for number, head in enumerate(heads) if head.rank == 4 and head.shape[2] * head.shape[3] > 1]
        sure = {number: _sure(heads[number]) for number in maps}
        if len({heads[number].shape[2:] for number in maps}) > 1 or not all(sure.values()):
            # a detector: scores and boxes on coarse maps, or maps of several sizes
            sure = {number: value for number, value in sure.items() if not _coarse(heads[number])}
        return [Claim((number,), value) for number, value in sure.items() if value]

    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        return _counted(want[0].shape[1], ((classes_of(a), classes_of(b)) for a, b in zip(want[0], found[0])))

    def marks(self, found: Outputs, number: int) -> Marks:
        scores = found[0][number]
        return Marks(pixels=classes_of(scores).reshape(scores.shape[1:]))

    def score(self, found: Outputs, labels: Labels, where: Sequence[str], first: int) -> Tally:
        """labels: for each image (height, width) class numbers; those below 0 are left out, and `IGNORED`."""
        count, size = found[0].shape[1], found[0].shape[2:]
        masks = [self._mask(label, image, count, size) for label, image in zip(labels, where)]
        kept = [_kept(mask, count) for mask in masks]
        return _counted(count, ((mask[rows].astype(np.int64), classes_of(scores)[rows])
                                for mask, rows, scores in zip(masks, kept, found[0])))

    def _mask(self, label: Array, image: str, count: int, size: tuple[int, ...]) -> Array:
        """The label as (pixels,) whole numbers. Raises DataError, naming the image, for another label."""
        mask = np.asarray(label)
        if mask.ndim != 2 or mask.dtype.kind not in "iuf":
            raise DataError(f"{image}: its label is {mask.dtype} of the shape {mask.shape}, want a mask: class numbers "
                            "(height, width)")
        if mask.shape != size:
            raise DataError(f"{image}: its mask has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), but the "
                            f"output {self.heads[0].name} {size[0]} x {size[1]}: give masks of the output's size")
        mask = mask.ravel()
        if mask.dtype.kind == "f" and (odd := mask[mask != np.rint(mask)]).size:  # NaN differs from itself
            raise DataError(f"{image}: its mask holds {odd[0]:g}, want whole numbers")
        if (beyond := mask[_kept(mask, count) & (mask >= count)]).size:
            raise DataError(f"{image}: its mask holds the class {beyond[0]:.0f}, but the model has {count} classes, "
                            f"from 0; {IGNORED} or a negative number leaves a pixel out")
        return mask


def classes_of(scores: Array) -> Array:
    """(classes, height, width) -> the class of each pixel, (pixels,): the first of those with the highest score.

    A pixel with a NaN is of no class; the number of classes stands for that, which is counted as one more class.
    """
    count = len(scores)
    rows = scores.reshape(count, -1)
    found = np.zeros(rows.shape[1], np.min_scalar_type(count))
    for start in range(0, len(found), PIXELS):
        part, classes = rows[:, start:start + PIXELS], found[start:start + PIXELS]
        best = part[0].copy()
        for number in range(1, count):  # argmax of NumPy would copy all scores, to have those of a pixel side by side
            better = part[number] > best
            np.maximum(best, part[number], out=best)
            np.maximum(classes, better.view(np.uint8) * found.dtype.type(number), out=classes)
        classes[np.isnan(best)] = count
    return found


def _counted(count: int, pairs: Iterable[tuple[Array, Array]]) -> Pixels:
    """pairs: the classes of the pixels of an image, in the truth and in what is judged."""
    want, found, both = (np.zeros(count + 1, np.int64) for _ in range(3))
    for a, b in pairs:
        want += np.bincount(a, minlength=count + 1)
        found += np.bincount(b, minlength=count + 1)
        both += np.bincount(a[a == b], minlength=count + 1)
    return Pixels(want, found, both)


def _kept(mask: Array, count: int) -> Array:
    """Which pixels of a mask count."""
    kept: Array = mask >= 0
    return kept & (mask != IGNORED) if count <= IGNORED else kept


def _sure(head: Head) -> float:
    """How sure it is that a map holds scores of classes; a map that is larger than the input is an image."""
    sizes = [shape[2:] for shape in head.like if len(shape) == 4]
    if head.shape[0] != head.images or head.shape[1] < 2 or not any(
            head.shape[2] <= height and head.shape[3] <= width for height, width in sizes):
        return 0.0
    behind = [op for op in head.behind if op not in SKIPPED][:1]
    scores = any(op in (*SOFTMAX, *RESIZE) for op in behind)
    if _coarse(head):
        return 0.7 if scores else 0.0
    if scores:
        return 0.9
    # as many channels as the input, on as many pixels: rather an image than scores
    return 0.5 if head.shape[1:] in [shape[1:] for shape in head.like] else 0.8


def _coarse(head: Head) -> bool:
    """Whether the map has fewer pixels than the input."""
    return not any(len(shape) == 4 and shape[2:] == head.shape[2:] for shape in head.like)
