"""Rows of scores: which axis the classes are, and outputs that are none."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.errors import OptionError
from qgraph.tasks.base import Head
from qgraph.tasks.classification import Classification
from qgraph.tasks.registry import assign


def head(*shape: int) -> Head:
    return Head("scores", shape, images=shape[0])


@pytest.mark.parametrize("shape", [(4, 10), (4, 10, 1), (4, 10, 1, 1)])
def test_classes_are_the_second_axis(shape: tuple[int, ...]) -> None:
    (assigned,) = assign([head(*shape)])
    assert isinstance(assigned.task, Classification)
    want = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = want.copy()
    found[0] = -found[0]  # another class is the highest
    assert assigned.task.agreement([want], [want], 0).result() == {"top1": 100.0, "margin": 100.0}
    assert assigned.task.agreement([want], [found], 0).result()["top1"] == 75.0


def test_classes_of_steps_are_the_last_axis() -> None:
    want = np.eye(3, dtype=np.float32)[np.array([[0, 1, 2, 0], [1, 1, 2, 2]])]  # (steps, images, classes)
    found = want[:, ::-1]
    task = Classification([Head("letters", want.shape, images=4)])
    assert task.agreement([want], [found], 0).result()["top1"] == 25.0  # two of the eight rows


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 1), (4,)])
def test_one_number_is_no_row_of_scores(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="found scores .*, want rows of 2 scores or more; --task values"):
        assign([head(*shape)], ["classification:scores"])
    assert assign([head(*shape)])[0].task.name != "classification"
