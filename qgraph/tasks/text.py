"""Texts: scores of letters for each step of time, as networks trained with CTC give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import DataError, OptionError
from qgraph.tasks.base import Claim, Head, Labels, Metric, Outputs, Ratios, Result, Tally, Task

CTC = ("WarpCTC", "CTCLoss", "ctc_loss", "_contrib_CTCLoss", "_contrib_ctc_loss")
_SURE = {**dict.fromkeys(CTC, 0.96), "RNN": 0.93}  # more than classification is of a softmax, which may lie behind
_UNROLLED = 0.92  # rows behind the gates of a recurrent cell, which SliceChannel parts
_PADDING = -1
_FIRST, _LAST = "first", "last"  # the class that is the blank


class Text(Task):
    """Scores of classes, (steps, images, classes), (steps * images, classes), or (images, steps, classes).

    A text is read greedily: the best class of each step, repetitions as one, without blanks.  The blank is the first
    class, as of WarpCTC and MXNet's ctc_loss, or the last one, as of Gluon's CTCLoss: whichever of the two the model
    (of two models the one that is the truth) has on top in more steps of all images, the first one where these are
    equal.
    """

    name, help = "text", "scores of letters in each step of time (CTC), read greedily"
    metrics = {
        "characters": Metric("%", "100 * (1 - edit distance / length of the float model's text), not below 0 for any "
                                  "text; an empty one counts as one character"),
        "lines": Metric("%", "texts that are equal; with labels: to theirs"),
        "cer": Metric("%", "character error rate: edit distance to the labels, in parts of their length", up=False),
    }
    main, ruined = "characters", 90.0
    labels = "a row of class numbers per image, filled up with -1 (or 0 where 0 is the blank)"

    def __init__(self, heads: Sequence[Head]) -> None:
        """Raises OptionError for an output of another shape."""
        super().__init__(heads)
        head = self.heads[0]
        self._layout = _layout(head)
        if not self._layout:
            raise OptionError(f"--task text: the output {head.name} has the shape {head.shape} for {head.images} "
                              "images, want (steps, images, classes), (steps * images, classes) or (images, steps, "
                              "classes)")

    @classmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        return [Claim((number,), _sure(head)) for number, head in enumerate(heads) if _sure(head)]

    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        a, b = self._best(want[0]), self._best(found[0])
        return Texts(*self._blanks(want[0], a), {name: _alike(read(a, blank), read(b, blank))
                                                 for name, blank in self._numbers(want[0]).items()})

    def score(self, found: Outputs, labels: Labels, where: Sequence[str], first: int) -> Tally:
        best = self._best(found[0])
        if len(best) != len(where):
            raise DataError(f"{where[0]}: the output {self.heads[0].name} holds {len(best)} texts for {len(where)} "
                            "images, want one for each")
        texts = _texts(labels, found[0].shape[-1], where)
        return Texts(*self._blanks(found[0], best), {
            name: _errors([text[text != 0] if blank == 0 else text for text in texts], read(best, blank))
            for name, blank in self._numbers(found[0]).items()})

    def _best(self, output: Array) -> Array:
        """(images, steps): the class that is on top."""
        classes: Array = output.argmax(-1)
        if self._layout == "rows":
            classes = classes.reshape(self.heads[0].shape[0] // self.heads[0].images, -1)
        return classes if self._layout == "images" else classes.T

    @staticmethod
    def _numbers(output: Array) -> dict[str, int]:
        return {_FIRST: 0, _LAST: output.shape[-1] - 1}

    @staticmethod
    def _blanks(output: Array, best: Array) -> tuple[int, int]:
        return int((best == 0).sum()), int((best == output.shape[-1] - 1).sum())


@dataclass(frozen=True)
class Texts(Tally):
    """first, last: steps with the first class on top, and with the last.  counts: the sums where this is the blank."""

    first: int
    last: int
    counts: Mapping[str, Ratios]

    def __add__(self, other: Tally) -> Texts:
        assert isinstance(other, Texts)
        return Texts(self.first + other.first, self.last + other.last,
                     {name: counts + other.counts[name] for name, counts in self.counts.items()})

    def result(self) -> Result:
        return self.counts[_FIRST if self.first >= self.last else _LAST].result()


def read(best: Array, blank: int) -> list[Array]:
    """The texts of the best classes (images, steps): repetitions are one letter, blanks none."""
    kept = best != blank
    kept[:, 1:] &= best[:, 1:] != best[:, :-1]
    return [row[mask] for row, mask in zip(best, kept)]


def edit_distance(a: Array, b: Array) -> int:
    """The least number of letters to insert, remove or replace that makes `a` of `b`."""
    steps = np.arange(len(b) + 1)
    row = steps
    for letter in a:
        fewest = np.concatenate([row[:1] + 1, np.minimum(row[1:] + 1, row[:-1] + (b != letter))])
        row = np.minimum.accumulate(fewest - steps) + steps  # then letters of b are inserted, each for 1
    return int(row[-1])


def _alike(want: Sequence[Array], found: Sequence[Array]) -> Ratios:
    away = [_distance(a, b) for a, b in zip(want, found)]
    lengths = [max(len(text), 1) for text in want]
    kept = sum(max(0, length - count) for length, count in zip(lengths, away))
    return Ratios({"characters": (100 * kept, sum(lengths)), "lines": (100 * away.count(0), len(away))})


def _errors(texts: Sequence[Array], found: Sequence[Array]) -> Ratios:
    away = [_distance(a, b) for a, b in zip(texts, found)]
    return Ratios({"cer": (100 * sum(away), sum(map(len, texts))), "lines": (100 * away.count(0), len(away))})


def _distance(a: Array, b: Array) -> int:
    return 0 if np.array_equal(a, b) else edit_distance(a, b)


def _texts(labels: Labels, classes: int, where: Sequence[str]) -> list[Array]:
    """The labels without their padding. Raises DataError, naming the image, for what is not class numbers."""
    texts = []
    for label, image in zip(labels, where):
        text = np.atleast_1d(np.asarray(label))
        if text.ndim > 1 or text.dtype.kind not in "iuf" or not (text == np.rint(text)).all():
            raise DataError(f"{image}: its label is no text, want a row of class numbers, filled up with {_PADDING}")
        if len(wrong := text[(text < _PADDING) | (text >= classes)]):
            raise DataError(f"{image}: found the class {wrong[0]:g} in its text, but the model has {classes} classes")
        texts.append(text[text != _PADDING].astype(np.int64))
    return texts


def _sure(head: Head) -> float:
    """0 where no recurrent op and no CTC is near."""
    layout = _layout(head)
    if not layout:
        return 0.0
    unrolled = layout == "rows" and {"SliceChannel", "elemwise_mul"} <= set(head.behind)
    return max((_SURE.get(op, 0.0) for op in head.behind), default=0.0) or _UNROLLED * unrolled


def _layout(head: Head) -> str:
    """How steps and images lie: "steps" first, "rows" of steps times images, "images" first, or "" for neither."""
    if not head.images or head.rank not in (2, 3) or 0 in head.shape or head.shape[-1] < 2:
        return ""
    if head.rank == 2:
        return "rows" if head.shape[0] % head.images == 0 and head.shape[0] > head.images else ""
    return "steps" if head.shape[1] == head.images else "images" if head.shape[0] == head.images else ""
