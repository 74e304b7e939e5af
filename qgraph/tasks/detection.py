"""Boxes of detectors, behind their decoding and suppression."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import DataError, OptionError
from qgraph.semantics.detect import areas
from qgraph.tasks.average_precision import COCO, COCO_50, VOC_50, AveragePrecision, Boxes, Image, Truth, match
from qgraph.tasks.base import Claim, Head, Labels, Marks, Metric, Outputs, Result, Tally, Task

log = logging.getLogger("qgraph")

MULTIBOX, NMS = "_contrib_MultiBoxDetection", "_contrib_box_nms"
THREE = 3  # GluonCV's ids, scores and boxes
ROW = 6  # class, score, x0, y0, x1, y1
SEEN = 0.3  # from this score on a box of the float model is one that users would see
SLACK = 1.0  # pixels by which rounding may move a label's box over the edge
LARGEST_PART = 2.0  # of coordinates that are parts of the image
MOST_CLASSES = 10**9
LABEL = "rows of class, x0, y0, x1, y1 in pixels of the input, and as a sixth number 1 for a difficult box or a crowd"


class Detection(Task):
    """Boxes of classes.

    Outputs: ids and scores (N, M, 1) or (N, M) and boxes (N, M, 4), as GluonCV's detectors have them, or rows (N, M, 6)
    of class, score, x0, y0, x1, y1, as MultiBoxDetection has them.  A class or a score below 0 is padding.

    Agreement: boxes of the float model with a score of 0.3 or more are the truth, however many.  Those below are
    ignored, as COCO ignores boxes: what rounding alone lifts over the threshold counts neither way, and what it drops
    below is found all the same.  A box without an area is none.  Where the float model has no box of 0.3 at all,
    nothing is counted.
    """

    name, help = "detection", "boxes with a class and a score, behind their decoding"
    metrics = {
        "ap50": Metric("%", "average precision at an overlap of 0.5 against boxes of the float model of score 0.3"),
        "ap": Metric("%", "the same, mean over overlaps of 0.5 to 0.95"),
        "map50_voc": Metric("%", "with labels: mean average precision of VOC, all points, at an overlap of 0.5"),
        "map50": Metric("%", "with labels: mean average precision of COCO at an overlap of 0.5"),
        "map": Metric("%", "with labels: mean average precision of COCO, overlaps of 0.5 to 0.95"),
    }
    main, ruined = "ap50", 75.0  # users see every fourth box lost, or as many that are not there
    labels = LABEL

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__(heads)
        if not (_three(heads) or (len(heads) == 1 and _rows(heads[0]))):
            found = ", ".join(f"{head.name} {head.shape}" for head in heads)
            raise OptionError(f"--task detection: found {found}, want ids (N, M, 1), scores (N, M, 1) and boxes "
                              f"(N, M, 4), joined by +, or one output (N, M, {ROW}); --decode is for heads that are "
                              "not decoded")

    @classmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        three = [Claim((at, at + 1, at + 2), 0.95) for at in range(len(heads) - 2) if _three(heads[at:at + 3])]
        rows = [Claim((number,), sure) for number, head in enumerate(heads) for sure in [_sure(head)] if sure]
        return three + rows

    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        images = []
        for number, (there, boxes) in enumerate(zip(boxes_of(want), boxes_of(found)), first):
            there, boxes = _with_area(there), _with_area(boxes)
            images.append(Image(number, "", match(boxes, _truth(there), most=len(boxes.scores))))
        return AveragePrecision({"ap50": COCO_50, "ap": COCO}, tuple(images))

    def answers(self, found: Outputs, images: int) -> list[str]:
        seen = [sorted(f"{int(number)}" for number in boxes.classes[boxes.scores >= SEEN]) for boxes in boxes_of(found)]
        return [f"{len(classes)} box{'es' * (len(classes) > 1)}, of class {', '.join(classes)}" if classes else "no box"
                for classes in seen]

    def marks(self, found: Outputs, number: int) -> Marks | None:
        if (size := self.heads[0].image_size) is None:
            return None
        boxes = self._in_pixels(boxes_of([output[number:number + 1] for output in found])[0], size)
        seen = boxes.scores >= SEEN
        height, width = size
        return Marks(boxes=boxes.corners[seen] / (width, height, width, height),
                     classes=tuple(int(each) for each in boxes.classes[seen]))

    def score(self, found: Outputs, labels: Labels, where: Sequence[str], first: int) -> Tally:
        size = self.heads[0].image_size
        images = []
        for number, (boxes, label, image) in enumerate(zip(boxes_of(found), labels, where), first):
            truth = _labelled(label, image, size)
            images.append(Image(number, image, match(self._in_pixels(boxes, size), truth)))
        return _Scores({"map50_voc": VOC_50, "map50": COCO_50, "map": COCO}, tuple(images))

    def _in_pixels(self, boxes: Boxes, size: tuple[int, ...] | None) -> Boxes:
        """MultiBoxDetection gives parts of the image. Other rows do if no coordinate of an image is larger than 2."""
        if size is None or len(self.heads) == THREE:
            return boxes
        parts = MULTIBOX in self.heads[0].behind or np.abs(boxes.corners).max(initial=0.0) <= LARGEST_PART
        height, width = size
        return boxes._replace(corners=boxes.corners * (width, height, width, height)) if parts else boxes


class _Scores(AveragePrecision):
    """Against labels. Warns of a label whose class is above all that the model finds: classes may be counted from 1."""

    def result(self) -> Result:
        every = [(image.number, image.where, number, bool(len(matches.scores))) for image in self.images
                 for number, matches in image.matches.items()]
        highest = max((number for _, _, number, found in every if found), default=None)
        if highest is not None:
            above = min((row for row in every if row[2] > highest), default=None)
            if above:
                log.warning("warning: %s: has a box of class %d, but the highest class that the model finds in %d "
                            "images is %d: do labels and model count their classes alike?", above[1], above[2],
                            len(self.images), highest)
        return super().result()


def boxes_of(outputs: Outputs) -> list[Boxes]:
    """The boxes of each image, without padding. One that is not finite is a box without an area."""
    rows = outputs[0]
    if len(outputs) == THREE:
        ids, scores, corners = outputs
        rows = np.concatenate([np.reshape(part, (*corners.shape[:2], 1)) for part in (ids, scores)] + [corners], axis=2)
    images = []
    for image in np.asarray(rows, np.float64):
        image = image[(image[:, 0] >= 0) & (image[:, 0] < MOST_CLASSES) & (image[:, 1] >= 0)]
        corners = np.where(np.isfinite(image[:, 2:]).all(axis=1, keepdims=True), image[:, 2:], 0.0)
        images.append(Boxes(np.rint(image[:, 0]).astype(np.int64), image[:, 1], corners))
    return images


def _with_area(boxes: Boxes) -> Boxes:
    keep = areas(boxes.corners) > 0
    return Boxes(*(part[keep] for part in boxes))


def _truth(boxes: Boxes) -> Truth:
    return Truth(boxes.classes, boxes.corners, boxes.scores < SEEN, np.zeros(len(boxes.scores), bool))


def _labelled(label: Array, where: str, size: tuple[int, ...] | None) -> Truth:
    """A label, without rows that are -1 throughout, which are padding. Raises DataError, naming the image."""
    rows = np.asarray(label)
    if rows.dtype.kind not in "iuf" or not (rows.shape == (0,) or (rows.ndim == 2 and rows.shape[1] in (5, 6))):
        raise DataError(f"{where}: its label has the shape {rows.shape}, want {LABEL}")
    rows = rows.reshape(len(rows), -1 if len(rows) else 5).astype(np.float64)
    rows = rows[(rows != -1).any(axis=1)]
    classes, corners = rows[:, 0], rows[:, 1:5]
    crowd = rows[:, 5] if rows.shape[1] == 6 else np.zeros(len(rows))
    low, high = corners[:, :2], corners[:, 2:]
    edge = np.array(size[::-1] if size else (np.inf, np.inf)) + SLACK
    wrong = {  # what is wrong -> where
        "holds what is no number": ~np.isfinite(rows).all(axis=1),
        "has a class that is no whole number from 0":
            (classes < 0) | (classes != np.rint(classes)) | (classes >= MOST_CLASSES),
        "is empty, or its corners are exchanged": (high <= low).any(axis=1),
        f"is outside of the input, {edge[0] - SLACK:g} wide and {edge[1] - SLACK:g} high":
            (low < -SLACK).any(axis=1) | (high > edge).any(axis=1),
        "has a sixth number that is neither 0 nor 1": (crowd != 0) & (crowd != 1),
    }
    for problem, at in wrong.items():
        if at.any():
            row = int(at.argmax())
            raise DataError(f"{where}: box {row} of its label, {_written(rows[row])}, {problem}; want {LABEL}")
    return Truth(classes.astype(np.int64), corners, crowd == 1, crowd == 1)


def _written(row: Array) -> str:
    return " ".join(f"{value:g}" for value in row)


def _three(heads: Sequence[Head]) -> bool:
    """CenterNet leaves the last axis of ids and scores out."""
    if len(heads) != THREE or heads[2].rank != 3 or heads[2].shape[0] != heads[2].images:
        return False
    ids, scores, (*both, length) = (head.shape for head in heads)
    return length == 4 and ids == scores and ids in (tuple(both), (*both, 1))


def _rows(head: Head) -> bool:
    return head.rank == 3 and head.shape[2] == ROW and head.shape[0] == head.images


def _sure(head: Head) -> float:
    """0 where a graph shows that rows of six come out of something else."""
    if not _rows(head):
        return 0.0
    if MULTIBOX in head.behind or NMS in head.behind:
        return 0.95
    return 0.0 if head.behind else 0.5
