"""Average precision: the numbers of pycocotools and of a plain VOC, the same bits however images are split."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.tasks.average_precision import COCO, COCO_50, VOC_50, AveragePrecision, Boxes, Image, Truth, match

Scene = list[tuple[Boxes, Truth]]  # an image each
ROWS = {"map": COCO, "map50": COCO_50, "voc": VOC_50}


def tally(scene: Scene, first: int = 0) -> AveragePrecision:
    return AveragePrecision(ROWS, tuple(Image(number, "", match(*image)) for number, image in enumerate(scene, first)))


def boxes(*rows: Sequence[float]) -> Boxes:
    """Rows of class, score, corners."""
    table = np.array(rows, float).reshape(-1, 6)
    return Boxes(table[:, 0].astype(np.int64), table[:, 1], table[:, 2:])


def truth(*rows: Sequence[float]) -> Truth:
    """Rows of class, corners, 1 for a crowd or 2 for what is ignored without being one."""
    table = np.array(rows, float).reshape(-1, 6)
    return Truth(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5] > 0, table[:, 5] == 1)


def random_scene(seed: int, images: int = 12, classes: int = 3, most: int = 8, flags: float = 0.2) -> Scene:
    """Corners are quarters of pixels, so that all overlaps are exact; few different scores, so that many are equal."""
    rng = np.random.default_rng(seed)

    def corners(count: int) -> np.ndarray:
        low = rng.integers(0, 160, (count, 2)) / 4
        return np.hstack([low, low + rng.integers(8, 80, (count, 2)) / 4])

    def table(places: np.ndarray, near: np.ndarray) -> np.ndarray:
        return np.column_stack([near, places])

    scene = []
    for _ in range(images):
        there = corners(int(rng.integers(0, most + 1)))
        kinds = rng.integers(0, classes, len(there))
        flag = np.where(rng.random(len(there)) < flags, rng.integers(1, 3, len(there)), 0)
        again = rng.integers(0, max(len(there), 1), int(rng.integers(0, 2 * most + 1)) if len(there) else 0)
        moved = there[again] + rng.integers(-6, 7, (len(again), 4)) / 4
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 0.25)
        other = corners(int(rng.integers(0, most + 1)))
        found = np.vstack([moved, other])
        found_kinds = np.append(np.where(rng.random(len(again)) < 0.9, kinds[again], 0),
                                rng.integers(0, classes, len(other)))
        scores = rng.integers(0, 10, len(found)) / 10
        scene.append((boxes(*np.column_stack([found_kinds, scores, found])),
                      truth(*np.column_stack([kinds, there, flag]))))
    return scene


def of_pycocotools(scene: Scene) -> dict[str, float | None]:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from pycocotools.coco import COCO as Annotations
    from pycocotools.cocoeval import COCOeval

    def annotations(parts: Sequence[tuple[np.ndarray, ...]]) -> Annotations:
        """parts: of each image its classes, corners, scores, crowds and areas."""
        rows = [{"image_id": number + 1, "category_id": int(kind) + 1, "score": float(score), "iscrowd": int(crowd),
                 "bbox": [*map(float, [*place[:2], *(place[2:] - place[:2])])], "area": float(area)}
                for number, part in enumerate(parts) for kind, place, score, crowd, area in zip(*part)]
        made = Annotations()
        made.dataset = {"images": [{"id": number + 1} for number in range(len(parts))],
                        "categories": [{"id": number + 1} for number in range(10)],
                        "annotations": [{**row, "id": number + 1} for number, row in enumerate(rows)]}
        made.createIndex()
        return made

    def areas(corners: np.ndarray) -> np.ndarray:
        return (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])

    with contextlib.redirect_stdout(io.StringIO()):
        there = annotations([(t.classes, t.corners, np.zeros(len(t.classes)), t.crowd,
                              np.where(t.ignored & ~t.crowd, -1.0, areas(t.corners)))  # an area below 0 is ignored
                             for _, t in scene])
        found = annotations([(b.classes, b.corners, b.scores, np.zeros(len(b.classes)), areas(b.corners))
                             for b, _ in scene])
        judged = COCOeval(there, found, "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {name: None if value < 0 else 100 * value for name, value in zip(("map", "map50"), judged.stats[:2])}


def of_voc(scene: Scene) -> float | None:
    """One box at a time, as the development kit of VOC 2012 does."""
    averages = []
    for kind in range(10):
        wanted = sum(int(((t.classes == kind) & ~t.ignored).sum()) for _, t in scene)
        if not wanted:
            continue
        every = [(-b.scores[i], number, i) for number, (b, _) in enumerate(scene)
                 for i in range(len(b.scores)) if b.classes[i] == kind]
        taken: set[tuple[int, int]] = set()
        right, wrong, curve = 0, 0, []
        for _, number, i in sorted(every):
            b, t = scene[number]
            best, nearest = -1.0, -1
            for j in np.flatnonzero(t.classes == kind):
                x0, y0 = np.maximum(b.corners[i, :2], t.corners[j, :2])
                x1, y1 = np.minimum(b.corners[i, 2:], t.corners[j, 2:])
                inner = max(x1 - x0, 0) * max(y1 - y0, 0)
                areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (b.corners[i], t.corners[j])]
                overlap = inner / (sum(areas) - inner)
                if overlap > best:
                    best, nearest = overlap, int(j)
            if best >= 0.5 and t.ignored[nearest]:
                continue
            if best >= 0.5 and (number, nearest) not in taken:
                taken.add((number, nearest))
                right += 1
            else:
                wrong += 1
            curve.append((right / wanted, right / (right + wrong)))
        average, before = 0.0, 0.0
        for at, (recall, _) in enumerate(curve):
            average += (recall - before) * max(precision for _, precision in curve[at:])
            before = recall
        averages.append(average)
    return 100 * float(np.mean(averages)) if averages else None


FACE = (0, 10, 10, 30, 30, 0)
SCENES: dict[str, Callable[[], Scene]] = {
    **{f"random {seed}": (lambda seed=seed: random_scene(seed)) for seed in range(12)},
    "no flags": lambda: random_scene(20, flags=0),
    "one class": lambda: random_scene(21, classes=1),
    "crowded": lambda: random_scene(22, images=3, classes=1, most=160),  # more than 100 boxes of a class
    "one image": lambda: random_scene(23, images=1),
    "no boxes found": lambda: [(boxes(), truth(FACE))],
    "no boxes there": lambda: [(boxes((0, 0.9, 1, 1, 9, 9)), truth())],
    "nothing": lambda: [(boxes(), truth())],
    "equal scores": lambda: [(boxes((0, 0.5, 0, 0, 5, 5), (0, 0.5, *FACE[1:5])), truth(FACE)),
                             (boxes((0, 0.5, *FACE[1:5]), (0, 0.5, 0, 0, 5, 5)), truth(FACE))],
    "found twice": lambda: [(boxes((0, 0.9, *FACE[1:5]), (0, 0.8, 11, 10, 31, 30)), truth(FACE))],
    "another class": lambda: [(boxes((1, 0.9, *FACE[1:5])), truth(FACE))],
    "an overlap of just a half": lambda: [(boxes((0, 0.9, 10, 10, 20, 30)), truth(FACE))],
    "two of equal overlap": lambda: [(boxes((0, 0.9, 10, 10, 30, 30), (0, 0.8, 8, 10, 28, 30)),
                                      truth((0, 12, 10, 32, 30, 0), (0, 8, 10, 28, 30, 0)))],
    "boxes in a crowd": lambda: [(boxes((0, 0.9, 12, 12, 15, 15), (0, 0.8, 20, 20, 25, 26), (0, 0.7, 50, 50, 60, 60)),
                                  truth((0, 10, 10, 40, 40, 1), (0, 50, 50, 60, 60, 0)))],
    "only a crowd": lambda: [(boxes((0, 0.9, 12, 12, 15, 15)), truth((0, 10, 10, 40, 40, 1)))],
    "an ignored one and a crowd": lambda: [(boxes((0, 0.9, 10, 10, 30, 30), (0, 0.8, 10, 10, 30, 30)),
                                            truth((0, 10, 10, 30, 30, 2), FACE, (0, 0, 0, 40, 40, 1)))],
}


@pytest.mark.parametrize("name", SCENES)
def test_coco_counts_as_pycocotools_does(name: str) -> None:
    scene = SCENES[name]()
    found = tally(scene).result()
    for metric, value in of_pycocotools(scene).items():
        assert found[metric] == (None if value is None else pytest.approx(value, abs=1e-6)), metric


@pytest.mark.parametrize("name", SCENES)
def test_voc_counts_as_its_development_kit_does(name: str) -> None:
    scene = SCENES[name]()
    value = of_voc(scene)
    assert tally(scene).result()["voc"] == (None if value is None else pytest.approx(value, abs=1e-6))


def test_random_scenes_tell_the_metrics_apart() -> None:
    results = [tally(random_scene(seed)).result() for seed in range(12)]
    for name in ROWS:
        values = [result[name] for result in results]
        assert all(value is not None and 1 < value < 99 for value in values) and len(set(values)) == 12
    assert all(result["map"] < result["map50"] != result["voc"] for result in results)  # type: ignore[operator]


def test_known_values() -> None:
    """By hand: the second of two boxes is right, so the precision is 1/2 at all recalls; then two of three."""
    assert tally(SCENES["equal scores"]()[:1]).result() == {"map": 50, "map50": 50, "voc": 50}
    scene = [(boxes((0, 0.9, *FACE[1:5]), (0, 0.8, 0, 0, 5, 5), (0, 0.7, 50, 50, 60, 60)),
              truth(FACE, (0, 50, 50, 60, 60, 0)))]
    found = tally(scene).result()
    assert found["voc"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    assert found["map50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101) == pytest.approx(found["map"])


@settings(max_examples=40)
@given(st.integers(0, 9), st.lists(st.integers(1, 11), max_size=4, unique=True), st.randoms(use_true_random=False))
def test_any_split_gives_the_same_bits(seed: int, cuts: list[int], random: Random) -> None:
    scene = random_scene(seed)
    edges = [0, *sorted(cuts), len(scene)]
    parts = [tally(scene[a:b], a) for a, b in zip(edges, edges[1:])]
    random.shuffle(parts)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    assert whole.result() == tally(scene).result()
