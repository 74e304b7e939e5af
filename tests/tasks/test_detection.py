"""Boxes of detectors: which outputs they are, how two models' boxes agree, and scores with labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from detectors import BATCHES, export, images, ssd, yolo3
from helpers import run_mxnet
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.commands.open_model import open_model
from qgraph.errors import DataError, OptionError
from qgraph.passes.canonicalize import Canonicalize
from qgraph.tasks.base import Head
from qgraph.tasks.detection import Detection
from qgraph.tasks.registry import assign, heads_of

LIKE = ((2, 3, 60, 80),)  # 80 pixels wide, 60 high
MULTIBOX, NMS = "_contrib_MultiBoxDetection", "_contrib_box_nms"


def head(*shape: int, behind: tuple[str, ...] = (), name: str = "out") -> Head:
    return Head(name, shape, 2, behind, LIKE)


def three(count: int) -> list[Head]:
    return [head(2, count, width, name=name) for name, width in (("ids", 1), ("scores", 1), ("boxes", 4))]


def rows(*images: Sequence[Sequence[float]]) -> np.ndarray:
    """(N, M, 6), filled up with -1."""
    out = np.full((len(images), max(map(len, images), default=0), 6), -1, np.float32)
    for image, boxes in zip(out, images):
        image[:len(boxes)] = np.reshape(boxes, (-1, 6))
    return out


def task(behind: tuple[str, ...] = ()) -> Detection:
    return Detection([head(2, 5, 6, behind=behind)])


CAT, DOG = (0, 0.9, 10, 10, 30, 30), (1, 0.8, 40, 20, 70, 50)


# ---- which outputs --------------------------------------------------------------------------------------------------

@pytest.mark.mxnet
@pytest.mark.parametrize("make", [ssd, yolo3], ids=lambda make: make.__name__)
def test_detectors_of_gluoncv_are_detection(make: Any, tmp_path: Path) -> None:
    pytest.importorskip("gluoncv")
    graph = open_model(export(make, tmp_path)).as_graph("judging")
    feeds = {"data": images(BATCHES[make])}
    outputs = run_mxnet(graph, feeds)
    Canonicalize().run(graph)
    names = [port.node.name for port in graph.heads]
    for g in (graph, None):  # None: an engine's own file
        found = assign(heads_of(names, outputs, BATCHES[make], g, feeds))
        assert [(one.task.name, one.outputs) for one in found] == [("detection", (0, 1, 2))]
        assert found[0].sure == 0.95
    detection = found[0].task
    same = detection.agreement(outputs, outputs, 0).result()
    assert same == {"ap50": 100, "ap": pytest.approx(100)}
    other = run_mxnet(graph, {"data": images(BATCHES[make], 3)})
    found_again = detection.agreement(outputs, other, 0).result()["ap50"]
    assert found_again is not None and detection.standing(found_again) < 0


@pytest.mark.parametrize(("heads", "outputs", "sure"), [
    (three(7), (0, 1, 2), 0.95),
    ([head(2, 9), *three(7)], (1, 2, 3), 0.95),
    ([head(2, 7, 6, behind=(MULTIBOX, "Concat"))], (0,), 0.95),
    ([head(2, 7, 6, behind=("slice_axis", NMS, "Concat"))], (0,), 0.95),
    ([head(2, 7, 6)], (0,), 0.5)])
def test_what_looks_like_boxes(heads: list[Head], outputs: tuple[int, ...], sure: float) -> None:
    assert Detection.claims(heads) == [(outputs, sure)]


@pytest.mark.parametrize("heads", [
    [head(3, 7, 6)], [head(2, 7, 5)], [head(2, 6)],
    [head(2, 7, 1), head(2, 7, 4)], [head(2, 7, 1), head(2, 8, 1), head(2, 7, 4)],
    [head(3, 7, 1), head(3, 7, 1), head(3, 7, 4)], [head(2, 7, 4), head(2, 7, 1), head(2, 7, 1)]])
def test_what_does_not(heads: list[Head]) -> None:
    assert Detection.claims(heads) == []
    with pytest.raises(OptionError, match=r"--task detection: found out .*want ids \(N, M, 1\)") as raised:
        Detection(heads)
    assert "\n" not in str(raised.value)


def test_rows_of_six_out_of_a_layer_are_none_unless_the_user_says_so() -> None:
    heads = [head(2, 7, 6, behind=("Reshape", "Convolution"))]
    assert Detection.claims(heads) == [] and assign(heads, ["detection"])[0].task.name == "detection"


def test_both_layouts_are_the_same_boxes() -> None:
    want, found = rows([CAT, DOG], [DOG]), rows([CAT], [DOG, CAT])
    split = Detection(three(2))
    parts = [[array[:, :, :1], array[:, :, 1:2], array[:, :, 2:]] for array in (want, found)]
    assert split.agreement(*parts, 0).result() == task().agreement([want], [found], 0).result()


# ---- agreement ------------------------------------------------------------------------------------------------------

def ap50(want: np.ndarray, found: np.ndarray) -> float | None:
    return task().agreement([want], [found], 0).result()["ap50"]


def test_agreement_counts_classes_alike() -> None:
    assert ap50(rows([CAT, DOG], [CAT]), rows([CAT, DOG], [CAT])) == 100
    assert ap50(rows([CAT, DOG], [CAT]), rows([CAT], [CAT])) == 50  # the one dog is lost
    assert ap50(rows([CAT], []), rows([(1, *CAT[1:])], [])) == 0  # another class
    assert ap50(rows([CAT], []), rows([(*CAT[:2], 50, 40, 70, 58)], [])) == 0  # another place
    assert ap50(rows([CAT], []), rows([], [])) == 0
    assert ap50(rows([CAT], []), rows([CAT], [(0, 0.95, 1, 1, 9, 9)])) == 50  # a better one where there is none


def test_an_overlap_of_three_quarters_is_half_of_the_ap() -> None:
    found = task().agreement([rows([CAT], [])], [rows([(*CAT[:2], 10, 10, 30, 25.1)], [])], 0).result()
    assert found == {"ap50": 100, "ap": pytest.approx(60)}  # 0.5, 0.55 ... 0.75


def test_boxes_near_the_threshold_count_neither_way() -> None:
    above, below = (0, 0.31, 10, 10, 30, 30), (0, 0.29, 10, 10, 30, 30)
    sure = (0, 0.25, 50, 40, 70, 58)
    assert ap50(rows([above, sure], []), rows([below, sure], [])) == 100
    assert ap50(rows([below, sure], [CAT]), rows([above, sure], [CAT])) == 100
    assert ap50(rows([below], []), rows([above], [])) is None and Detection([head(2, 1, 6)]).standing(None) == 1


def test_padding_and_what_is_no_number() -> None:
    nan, inf = float("nan"), float("inf")
    junk = [(-1, 0.9, *CAT[2:]), (0, -1, *CAT[2:]), (nan, 0.9, *CAT[2:]), (0, nan, *CAT[2:]), (inf, 0.9, *CAT[2:])]
    assert ap50(rows([CAT, *junk], []), rows([CAT, *junk], [])) == 100
    assert all(scores(rows([row], []), TRUTH, TRUTH[:0])["map50"] == 0 for row in junk)
    with np.errstate(invalid="raise"):  # boxes all the same, in the wrong place
        assert ap50(rows([CAT], []), rows([(0, 1, nan, 10, 30, 30), (0, 1, -inf, 10, inf, 30), CAT], [])) \
            == pytest.approx(100 / 3)


@settings(max_examples=15)
@given(st.integers(0, 5), st.lists(st.integers(1, 7), max_size=4, unique=True), st.randoms(use_true_random=False))
def test_any_split_gives_the_same_bits(seed: int, cuts: list[int], random: Random) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 40, (8, 12, 2))
    want = np.concatenate([rng.integers(-1, 3, (8, 12, 1)), rng.integers(2, 9, (8, 12, 1)) / 10, low,
                           low + rng.uniform(5, 20, (8, 12, 2))], 2)
    found = want + np.concatenate([np.zeros((8, 12, 1)), rng.integers(-2, 3, (8, 12, 1)) / 10,
                                   rng.normal(0, 3, (8, 12, 4))], 2)
    labels = [np.column_stack([rows[:, 0], rows[:, 2:], rng.integers(0, 2, len(rows))])[rows[:, 0] >= 0]
              for rows in want]
    edges = [0, *sorted(cuts), 8]

    def results(edges: Sequence[int]) -> list[dict[str, float | None]]:
        spans = list(zip(edges, edges[1:]))
        random.shuffle(spans)
        tallies = [[task().agreement([want[a:b]], [found[a:b]], a),
                    task().score([found[a:b]], labels[a:b], [f"{i}.jpg" for i in range(a, b)], a)] for a, b in spans]
        whole = tallies[0]
        for part in tallies[1:]:
            whole = [x + y for x, y in zip(whole, part)]
        return [tally.result() for tally in whole]

    whole = results([0, 8])
    assert results(edges) == whole
    assert all(value is not None and 0 < value < 100 for result in whole for value in result.values())


# ---- labels ---------------------------------------------------------------------------------------------------------

WHERE = ("a.jpg", "b.jpg")
TRUTH = np.array([(0, 10, 10, 30, 30), (1, 40, 20, 70, 50)], np.float32)


def scores(found: np.ndarray, *labels: np.ndarray, behind: tuple[str, ...] = ()) -> dict[str, float | None]:
    return task(behind).score([found], labels, WHERE, 0).result()


def test_scores() -> None:
    assert scores(rows([CAT, DOG], [DOG]), TRUTH, TRUTH[1:]) == {name: pytest.approx(100)
                                                                for name in ("map50_voc", "map50", "map")}
    half = scores(rows([CAT, DOG], []), TRUTH, TRUTH[1:])  # all cats, one of two dogs
    assert half["map50_voc"] == pytest.approx(75) and half["map50"] == pytest.approx(100 * (1 + 51 / 101) / 2)
    assert scores(rows([], [CAT]), np.zeros((0, 5)), np.zeros(0)) == dict.fromkeys(half)
    assert scores(rows([CAT, DOG], [DOG]), *np.stack([TRUTH, np.stack([TRUTH[1], np.full(5, -1)])])) \
        == scores(rows([CAT, DOG], [DOG]), TRUTH, TRUTH[1:])  # rows of -1 fill up


def test_difficult_boxes_and_crowds_are_ignored() -> None:
    marked = np.column_stack([TRUTH, [0, 1]])
    assert scores(rows([CAT], []), marked, marked[1:])["map50_voc"] == 100  # no dog has to be found
    small = (1, 0.95, 42, 22, 50, 30)  # a part of the crowd, for COCO; a wrong box for VOC
    cats = np.column_stack([np.tile(TRUTH[:1], (2, 1)) * [[1], [1]], [0, 0]])[:1]
    dogs = np.array([(1, 0, 0, 20, 20, 0), (1, 40, 20, 70, 50, 1)])
    found = scores(rows([small, (1, 0.9, 0, 0, 20, 20)], []), dogs, cats[:0])
    assert found["map50"] == pytest.approx(100) and found["map50_voc"] == pytest.approx(50)


def test_parts_of_the_image_become_pixels() -> None:
    parts = rows([CAT, DOG], [])
    parts[0, :, 2:] /= (80, 60, 80, 60)
    for behind in ((), (MULTIBOX,), (NMS,)):
        assert scores(parts, TRUTH, TRUTH[:0], behind=behind)["map"] == pytest.approx(100)
    assert scores(rows([CAT, DOG], []), TRUTH, TRUTH[:0], behind=(MULTIBOX,))["map"] == 0


@pytest.mark.parametrize(("label", "message"), [
    (np.array(3), r"has the shape \(\), want rows of class, x0"),
    (np.zeros((2, 4)), r"has the shape \(2, 4\), want rows of class, x0"),
    (np.array([[1.5, 0, 0, 9, 9]]), "box 0 of its label, 1.5 0 0 9 9, has a class that is no whole number from 0"),
    (np.array([[-2, 0, 0, 9, 9]]), "has a class that is no whole number from 0"),
    (np.array([[0, 0, 0, 9, 9], [0, 9, 0, 9, 9]]), "box 1 of its label, 0 9 0 9 9, is empty, or its corners"),
    (np.array([[0, 20, 0, 9, 9]]), "is empty, or its corners are exchanged"),
    (np.array([[0, 0, 0, 90, 9]]), "is outside of the input, 80 wide and 60 high"),
    (np.array([[0, 0, 0, 9, 70]]), "is outside of the input"),
    (np.array([[0, -9, 0, 9, 9]]), "is outside of the input"),
    (np.array([[0, np.nan, 0, 9, 9]]), "holds what is no number"),
    (np.array([[0, 0, 0, 9, 9, 7]]), "has a sixth number that is neither 0 nor 1")])
def test_wrong_labels_name_the_image(label: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=f"^b.jpg: .*{message}") as raised:
        scores(rows([CAT], [DOG]), TRUTH, label)
    assert "\n" not in str(raised.value)


def test_rounding_may_move_a_label_over_the_edge() -> None:
    assert scores(rows([(0, 0.9, 0, 0, 80, 60)], []), np.array([[0, -0.5, 0, 80.5, 60]]), TRUTH[:0])["map50"] == 100


@pytest.mark.parametrize(("label", "warned"), [(1, False), (2, True)])
def test_classes_above_those_of_the_model(label: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    labels = TRUTH[:1], np.array([[label, 10, 10, 30, 30]])
    with caplog.at_level(logging.WARNING, "qgraph"):
        scores(rows([CAT], [DOG]), *labels)
    assert ("warning: b.jpg: has a box of class 2, but the highest class that the model finds in 2 images is 1"
            in caplog.text) is warned
