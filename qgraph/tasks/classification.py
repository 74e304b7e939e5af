"""Scores of classes: the class of the highest one counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qgraph.analysis.exact import total
from qgraph.arrays import Array
from qgraph.errors import DataError, OptionError
from qgraph.tasks.base import SOFTMAX, Claim, Head, Labels, Metric, Outputs, Ratios, Tally, Task

LEAST = 2  # classes


class Classification(Task):
    """Rows of scores: a row for each image, or for each step of time and image."""

    name, help = "classification", "rows of scores, a class each; the highest one counts"
    metrics = {
        "top1": Metric("%", "rows with the same class on top; with labels: with the right one", title="top-1"),
        "margin": Metric("%", "the same, each row weighted by how far the float model's best class is ahead",
                         title="top-1 by margin"),
        "top5": Metric("%", "rows with the label among the best five", title="top-5"),
    }
    main, ruined = "top1", 80.0
    labels = "a class number per image"

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__(heads)
        for head in heads:
            if _width(head.shape) < LEAST:
                raise OptionError(f"--task classification: found {head.name} {head.shape}, want rows of {LEAST} scores "
                                  "or more; --task values judges single numbers")

    @classmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        return [Claim((number,), _sure(head)) for number, head in enumerate(heads) if _sure(head)]

    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        a, b = rows_of(want[0]), rows_of(found[0])
        classes = a.argmax(1)
        same = classes == b.argmax(1)
        best_two = np.partition(a, -2, axis=1)[:, -2:]
        margin = np.nan_to_num(best_two[:, 1] - best_two[:, 0], posinf=0.0)
        kept, weight = total(np.where(same, margin, 0.0)), total(margin)
        return Ratios({"top1": (100 * int(same.sum()), len(a)), "margin": (100 * kept, weight)})

    def answers(self, found: Outputs, images: int) -> list[str]:
        classes = rows_of(found[0]).argmax(1)
        return [f"class {number}" for number in classes] if len(classes) == images else []

    def score(self, found: Outputs, labels: Labels, where: Sequence[str], first: int) -> Tally:
        scores = rows_of(found[0])
        if len(scores) != len(where):
            raise DataError(f"{where[0]}: the output {self.heads[0].name} has {len(scores)} rows for {len(where)} "
                            f"images, so a class per image does not judge it (--task text reads rows as letters)")
        wanted = _classes(labels, scores.shape[1], where)
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        right = (ranked[:, 0] == wanted).sum(), (ranked == wanted[:, None]).any(axis=1).sum()
        return Ratios({name: (100 * int(count), len(scores)) for name, count in zip(("top1", "top5"), right)})


def rows_of(output: Array) -> Array:
    """(rows, classes): the classes are axis 1, or the last one where there are three axes (time, images, classes).

    Three axes whose last one is 1 are (images, classes, 1), as of a 1-D convolution.
    """
    return output.reshape(-1, _width(output.shape))


def _width(shape: Sequence[int]) -> int:
    """The number of classes of an output of this shape."""
    return shape[2] if len(shape) == 3 and shape[2] > 1 else math.prod(shape[1:])


def _sure(head: Head) -> float:
    """0 for what is not a row of scores for each image, or for each of several steps."""
    if head.rank < 2 or not head.images or head.shape[1] < LEAST or any(size > 1 for size in head.shape[2:]):
        return 0.0
    if not head.shape[0] or head.shape[0] % head.images:
        return 0.0
    if head.behind[:1] and head.behind[0] in SOFTMAX:
        return 0.9
    return 0.7 if not head.behind or "FullyConnected" in head.behind[:2] else 0.5


def _classes(labels: Labels, classes: int, where: Sequence[str]) -> Array:
    """The labels as class numbers. Raises DataError, naming the image, for others."""
    for label, image in zip(labels, where):
        if np.ndim(label) or np.asarray(label).dtype.kind not in "iu":
            raise DataError(f"{image}: its label is not one class number, want a whole number per image")
        if not 0 <= label < classes:
            raise DataError(f"{image}: found the label {label}, but the model has {classes} classes")
    return np.asarray(labels, np.int64)
