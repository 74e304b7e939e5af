"""Points of a body or a face: heat maps, or coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qgraph.analysis.exact import NOT_FINITE, total
from qgraph.arrays import Array
from qgraph.errors import DataError, OptionError
from qgraph.tasks.base import Claim, Head, Labels, Marks, Metric, Outputs, Ratios, Tally, Task

NEAR = 0.05  # of the longer side of the box
COCO_SIGMAS = (0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
               0.089, 0.089)  # nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles
OTHER_SIGMA = 0.05  # of each point where there are not 17
_REACH = 4  # a Deconvolution, a BatchNorm and an activation may be in front of the last Convolution


class Keypoints(Task):
    """Heat maps (images, points, height, width), or coordinates (images, points, 2 or 3) or (images, 2 * points).

    A point of a heat map is where its highest value is, a quarter of a cell nearer to the higher of the two neighbours
    in each direction (away from the border), times the size of the input over that of the map.  Coordinates
    are x, y (and a score) in pixels of the input.  Distances are in parts of the longer side of the box around the
    points (without labels those of the float model, with labels those that are visible); where all of these are one
    point, of the longer side of the input, or, without an image as input, of one.
    """

    name, help = "keypoints", "points of a body or a face: heat maps, or coordinates (only by --task)"
    metrics = {
        "distance": Metric("", "mean distance of the points, in parts of the box around them", up=False),
        "pck": Metric("%", "points nearer than 0.05 of the box; with labels: of those that are visible"),
        "oks": Metric("", "COCO's object keypoint similarity, mean over images with a visible point"),
    }
    main, ruined = "pck", 90.0
    labels = "x, y, visible for each point, in pixels of the input"

    def __init__(self, heads: Sequence[Head]) -> None:
        """Raises OptionError for an output of another shape."""
        super().__init__(heads)
        head = self.heads[0]
        if not _is_map(head) and not _is_coordinates(head):
            raise OptionError(f"--task keypoints: the output {head.name} has the shape {head.shape} for {head.images} "
                              "images, want (images, points, height, width), (images, points, 2 or 3) or (images, "
                              "2 * points)")
        self._input = _input_size(head)

    @classmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        """Maps smaller than the input, out of a last Convolution with a Deconvolution just in front of it."""
        return [Claim((number,), 0.7) for number, head in enumerate(heads)
                if _is_map(head) and head.behind[:1] == ("Convolution",) and "Deconvolution" in head.behind[:_REACH]
                and head.shape[2] < _input_size(head)[0] and head.shape[3] < _input_size(head)[1]]

    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        a, b = self.points(want[0]), self.points(found[0])
        away = _distances(a, b) / np.array([self._size(points) for points in a])[:, None]
        return Ratios({"distance": (total(away), away.size), "pck": (100 * int((away < NEAR).sum()), away.size)})

    def marks(self, found: Outputs, number: int) -> Marks:
        return Marks(points=self.points(found[0][number:number + 1])[0] / self._input[::-1])

    def score(self, found: Outputs, labels: Labels, where: Sequence[str], first: int) -> Tally:
        points = self.points(found[0])
        if len(points) != len(where):
            raise DataError(f"{where[0]}: the output {self.heads[0].name} has {len(points)} rows for {len(where)} "
                            "images, want points per image")
        near = visible = judged = 0
        similar = total(np.zeros(0))
        for a, label, image in zip(points, labels, where):
            b, seen = _label(label, len(a), image)
            if not seen.any():
                continue
            away = _distances(a, b)
            near += int((away[seen] / self._size(b[seen]) < NEAR).sum())
            visible += int(seen.sum())
            similar += total(_similarity(away, b[seen])[seen]) / int(seen.sum())
            judged += 1
        return Ratios({"pck": (100 * near, visible), "oks": (similar, judged)})

    def points(self, output: Array) -> Array:
        """(images, points, 2): x, y in pixels of the input, float64."""
        if output.ndim == 4:
            return _peaks(output) * [self._input[1] / output.shape[3], self._input[0] / output.shape[2]]
        coordinates = np.asarray(output, np.float64)
        return coordinates.reshape(len(output), -1, 2) if output.ndim == 2 else coordinates[:, :, :2]

    def _size(self, points: Array) -> float:
        """The longer side of the box around points (points, 2)."""
        finite = points[np.isfinite(points).all(axis=1)]
        longer = float(np.ptp(finite, axis=0).max()) if len(finite) else 0.0
        return longer or float(max(self._input))


def _peaks(maps: Array) -> Array:
    """(images, points, 2): x, y of the highest values in cells, refined as in GluonCV's `get_final_preds`."""
    height, width = maps.shape[2:]
    y, x = np.unravel_index(maps.reshape(*maps.shape[:2], -1).argmax(-1), (height, width))
    image, point = np.indices(y.shape)
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    left, right, above, below = (maps[image, point, np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)]
                                 for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0)))
    return np.stack([x + 0.25 * inside * _sign(right, left), y + 0.25 * inside * _sign(below, above)], axis=-1)


def _sign(a: Array, b: Array) -> Array:
    """Of a - b, without computing it: both may be infinite."""
    return (a > b).astype(np.float64) - (a < b)


def _distances(a: Array, b: Array) -> Array:
    """Of points (..., 2); what is not finite is very far away, unless it is so in both."""
    with np.errstate(invalid="ignore", over="ignore"):
        away = np.sqrt(np.square(a - b).sum(-1))
    alike = ((a == b) | (np.isnan(a) & np.isnan(b))).all(-1)
    return np.where(alike, 0.0, np.nan_to_num(away, nan=NOT_FINITE, posinf=NOT_FINITE))


def _similarity(away: Array, visible: Array) -> Array:
    """exp(-d^2 / (2 area (2 sigma)^2)) of each point, as COCO's evaluation has it; away: all distances of one image.

    The area is that of the box around the visible points, each side at least one pixel: the labels have no other.
    """
    sigmas = np.array(COCO_SIGMAS) if len(away) == len(COCO_SIGMAS) else np.full(len(away), OTHER_SIGMA)
    area = np.maximum(np.ptp(visible, axis=0), 1.0).prod()
    alike: Array = np.exp(-np.minimum(away, NOT_FINITE) ** 2 / (2 * area * (2 * sigmas) ** 2))
    return alike


def _label(label: Array, points: int, image: str) -> tuple[Array, Array]:
    """(x, y of each point, is it visible). Raises DataError, naming the image, for another label."""
    values = np.asarray(label)
    if values.dtype.kind not in "iuf" or values.size != 3 * points or values.ndim not in (1, 2):
        raise DataError(f"{image}: its label has the shape {values.shape}, want x, y, visible for {points} points each")
    rows = values.reshape(points, 3).astype(np.float64)
    seen = rows[:, 2] > 0
    if not np.isfinite(rows).all() or (rows[:, 2] < 0).any():
        raise DataError(f"{image}: its label has values that are not finite, or a visibility below 0")
    return rows[:, :2], seen


def _is_map(head: Head) -> bool:
    if head.rank != 4 or 0 in head.shape or head.shape[0] != head.images:
        return False
    return head.shape[2] * head.shape[3] > 1 and max(_input_size(head)) > 1


def _is_coordinates(head: Head) -> bool:
    if not head.rank or head.shape[0] != head.images or 0 in head.shape:
        return False
    return head.rank == 3 and head.shape[2] in (2, 3) or head.rank == 2 and head.shape[1] % 2 == 0


def _input_size(head: Head) -> tuple[int, int]:
    """Height and width of the first input that is images; (1, 1) without one."""
    return head.image_size or (1, 1)
