"""Images of the judged data whose answer changed, for the page of a report: only where the user allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qgraph.arrays import Array
from qgraph.commands.judge import Judge
from qgraph.data.open import Batch
from qgraph.data.preprocess import Preprocess
from qgraph.pages.pictures import picture
from qgraph.tasks.base import Marks, Task


class _Example(NamedTuple):
    """changed: whether its answer did.  noise: of its worst output, as a part of the signal.

    number: in its batch.  answers, marks: of the float model and of the frozen one.
    """

    changed: bool
    noise: float
    id: str
    answers: tuple[str, str]
    image: Array
    number: int
    marks: tuple[Marks | None, Marks | None] | None = None


class Examples:
    """At most so many images: those whose answer changed come first, those with most noise among them first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[_Example] = []

    def add(self, batch: Batch, found: Sequence[Array], want: Sequence[Array], judge: Judge) -> None:
        """The outputs of a batch. want: those of the model that is the truth.  judge: knows their tasks."""
        if not self._count:
            return
        images = _images(batch.feeds)
        if images is None or len(images) != len(batch):
            return
        noise = _noise(len(batch), found, want)
        readings = [judge.readings(batch, values) for values in (want, found)]
        answers = [_answers(task.answers(values, len(batch)) for task, values in of_model) for of_model in readings]
        for number, where in enumerate(batch.ids):
            was, now = (column[number] if column else "" for column in answers)
            self._kept.append(_Example(was != now, noise[number], where, (was, now), images[number], number))
        self._kept.sort(key=lambda one: (not one.changed, -one.noise, one.id))
        self._kept = [one if one.marks else one._replace(
            image=one.image.copy(), marks=(_marks(readings[0], one.number), _marks(readings[1], one.number)))
            for one in self._kept[:self._count]]

    def to_list(self, preprocess: Preprocess) -> list[dict[str, str]]:
        """[{"id", "float", "int8": the answers, "png": in base64}], and "png_int8" where boxes, points or classes are
        drawn: on "png" those of the float model, on this those of the frozen one.
        """
        rows = []
        for one in self._kept:
            was, now = one.answers
            told = f"noise / signal {one.noise:.2g}"
            row = {"id": one.id, "float": was or "as it should be", "int8": f"{now}, {told}" if now else told}
            for key, marks in zip(("png", "png_int8"), one.marks or ()):
                if key == "png" or marks:
                    row[key] = picture(one.image, preprocess, marks)
            rows.append(row)
        return rows


def _images(feeds: Mapping[str, Array]) -> Array | None:
    """The first input that can be looked at: (N, 1 or 3, H, W)."""
    return next((x for x in feeds.values() if x.ndim == 4 and x.shape[1] in (1, 3)), None)


def _noise(count: int, found: Sequence[Array], want: Sequence[Array]) -> list[float]:
    """Of each image, in its worst output."""
    worst = np.zeros(count)
    for a, b in zip(want, found):
        if a.shape == b.shape and a.shape[:1] == (count,) and a.size:
            rows, others = (np.nan_to_num(x.reshape(count, -1).astype(np.float64)) for x in (a, b))
            signal = np.square(rows).sum(axis=1)
            worst = np.maximum(worst, np.square(rows - others).sum(axis=1) / np.where(signal > 0, signal, 1))
    return [float(value) for value in worst]


def _marks(readings: Sequence[tuple[Task, list[Array]]], number: int) -> Marks | None:
    """Those of the first task that has some."""
    return next((marks for task, values in readings if (marks := task.marks(values, number))), None)


def _answers(of_tasks: Any) -> list[str]:
    """An answer for each image, those of several tasks joined; [] where no task has words for them."""
    columns = [answers for answers in of_tasks if answers]
    return ["; ".join(parts) for parts in zip(*columns)]
