"""Average precision of boxes, counted as COCO and as VOC do.

COCO: per image and class the best 100 boxes, in the order of their scores, each take the free box of the truth with
which they overlap most.  The precision is read at 101 recalls, at ten bounds of the overlap (intersection over union).
VOC: every box takes the box of the truth that it overlaps most, and is wrong if that is taken; the area under the
precision counts, at an overlap of 0.5.  Sources: ``cocoeval.py`` of pycocotools, ``VOCevaldet.m`` of the VOC devkit;
overlaps are continuous here, where VOC adds a pixel to each side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qgraph.arrays import Array
from qgraph.semantics.detect import areas, common, overlaps
from qgraph.tasks.base import Result, Tally

BOUNDS = np.linspace(0.5, 0.95, 10)  # overlaps from which a box is found, of COCO
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # boxes per image and class, of COCO
VOC_BOUND = 0.5

COCO_50, COCO, VOC_50 = slice(0, 1), slice(0, 10), slice(10, 11)  # rows of outcomes
WRONG, RIGHT, IGNORED = 0, 1, 2  # outcomes


class Boxes(NamedTuple):
    """Boxes that a model finds in one image. classes: int64 (n,).  scores: (n,).  corners: (n, 4), x0 y0 x1 y1."""

    classes: Array
    scores: Array
    corners: Array


class Truth(NamedTuple):
    """Boxes that are there. ignored: bool (n,): finding and missing them counts neither way.

    crowd: bool (n,): stands for many; any number of boxes is found in it, by the part of their area inside.
    """

    classes: Array
    corners: Array
    ignored: Array
    crowd: Array


class Matches(NamedTuple):
    """Of one image and class. scores: (boxes,), the best one first.  outcomes: uint8 (11, boxes): a row for each of
    COCO's bounds, then VOC's.  wanted: boxes of the truth that are not ignored."""

    scores: Array
    outcomes: Array
    wanted: int


class Image(NamedTuple):
    number: int
    where: str  # its name, for messages; "" where there is none
    matches: Mapping[int, Matches]  # class -> matches


@dataclass(frozen=True)
class AveragePrecision(Tally):
    """Mean average precision over the classes that the truth has, in percent. rows: metric -> rows of outcomes.

    Images count in the order of their numbers, so that equal scores of two images never change places.
    """

    rows: Mapping[str, slice]
    images: tuple[Image, ...]

    def __add__(self, other: Tally) -> AveragePrecision:
        assert isinstance(other, AveragePrecision)
        return type(self)(self.rows, self.images + other.images)

    def result(self) -> Result:
        classes: dict[int, list[Matches]] = {}
        for image in sorted(self.images, key=lambda image: image.number):
            for number, matches in image.matches.items():
                classes.setdefault(number, []).append(matches)
        found = [_precisions(classes[number]) for number in sorted(classes)
                 if any(matches.wanted for matches in classes[number])]
        if not found:
            return dict.fromkeys(self.rows)
        mean = np.mean(found, axis=0)
        return {name: 100 * float(mean[rows].mean()) for name, rows in self.rows.items()}


def match(found: Boxes, truth: Truth) -> dict[int, Matches]:
    """Class -> which boxes of one image are right, for every class that is found or there."""
    matches = {}
    for number in np.union1d(found.classes, truth.classes).tolist():
        of_class, there = found.classes == number, truth.classes == number
        order = np.argsort(-found.scores[of_class], kind="stable")
        scores, corners = found.scores[of_class][order], found.corners[of_class][order]
        wanted, ignored, crowd = truth.corners[there], truth.ignored[there], truth.crowd[there]
        outcomes = np.full((len(BOUNDS) + 1, len(scores)), WRONG, np.uint8)
        outcomes[COCO, MOST:] = IGNORED
        if len(scores) and len(wanted):
            shared = overlaps(corners[:, None], wanted[None])
            outcomes[COCO, :MOST] = _coco(np.where(crowd, _inside(corners, wanted), shared)[:MOST], ignored, crowd)
            outcomes[VOC_50] = _voc(shared, ignored)
        matches[number] = Matches(scores, outcomes, int((~ignored).sum()))
    return matches


def _inside(corners: Array, crowds: Array) -> Array:
    """(boxes, crowds): the part of each box's area that lies inside."""
    inner = common(corners[:, None], crowds[None])
    return np.divide(inner, areas(corners)[:, None], out=np.zeros_like(inner), where=inner > 0)


def _coco(shared: Array, ignored: Array, crowd: Array) -> Array:
    """Outcomes (bounds, boxes). shared: overlaps (boxes, truths), the best box first.

    A box takes the free truth that it overlaps most, the last of equal ones, and an ignored one only where there is no
    other.
    """
    outcomes = np.full((len(BOUNDS), len(shared)), WRONG, np.uint8)
    free = np.ones((len(BOUNDS), len(ignored)), bool)
    bounds = np.minimum(BOUNDS, 1 - 1e-10).tolist()
    for box, near in _near(shared, BOUNDS[0]):
        near.sort(key=lambda row: (ignored[row[1]], -row[0], -row[1]))
        for at, bound in enumerate(bounds):
            for overlap, number in near:
                if overlap >= bound and free[at, number]:
                    outcomes[at, box] = IGNORED if ignored[number] else RIGHT
                    free[at, number] = crowd[number]
                    break
    return outcomes


def _voc(shared: Array, ignored: Array) -> Array:
    """Outcomes (boxes,)."""
    outcomes = np.full(len(shared), WRONG, np.uint8)
    free = [True] * len(ignored)
    for box, near in _near(shared, VOC_BOUND):
        _, number = max(near, key=lambda row: (row[0], -row[1]))
        if ignored[number]:
            outcomes[box] = IGNORED
        elif free[number]:
            outcomes[box], free[number] = RIGHT, False
    return outcomes


def _near(shared: Array, bound: float) -> Iterator[tuple[int, list[tuple[float, int]]]]:
    """Boxes and the truths near them: (overlap, number)."""
    for box in np.flatnonzero((shared >= bound).any(axis=1)).tolist():
        numbers = np.flatnonzero(shared[box] >= bound)
        yield box, list(zip(shared[box, numbers].tolist(), numbers.tolist()))


def _precisions(images: list[Matches]) -> Array:
    """The average precision of one class, 0 .. 1, in each row of outcomes."""
    scores = np.concatenate([matches.scores for matches in images])
    outcomes = np.concatenate([matches.outcomes for matches in images], axis=1)
    outcomes = outcomes[:, np.argsort(-scores, kind="stable")]
    right, wrong = (np.cumsum(outcomes == outcome, axis=1, dtype=np.float64) for outcome in (RIGHT, WRONG))
    recall = right / sum(matches.wanted for matches in images)
    precision = np.divide(right, right + wrong, out=np.zeros_like(right), where=right > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or a higher one
    coco = [_at(RECALLS, *curve) for curve in zip(recall[COCO], best[COCO])]
    voc = [np.sum(np.diff(r, prepend=0.0) * p) for r, p in zip(recall[VOC_50], best[VOC_50])]
    return np.array(coco + voc)


def _at(recalls: Array, recall: Array, precision: Array) -> float:
    """The mean precision at these recalls; 0 beyond the highest that is reached."""
    places = np.searchsorted(recall, recalls, side="left")
    return float(np.append(precision, 0.0)[places].mean())
