"""What is read of the calibration images, and how often."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from helpers import DIGITS

import qgraph
from qgraph.calibration.images import SAMPLE_IMAGES, CalibrationImages, sample_count
from qgraph.data.open import Batch, open_data

IMAGES = np.random.default_rng(0).normal(size=(20, 1, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("batch_size", [3, 16, 50])
def test_the_first_images_are_the_same_whatever_the_batch_size(batch_size: int) -> None:
    images = CalibrationImages(open_data(IMAGES, batch_size=batch_size))
    assert np.array_equal(images.sample["data"], IMAGES[:SAMPLE_IMAGES["standard"]])
    assert np.array_equal(images.first.feeds["data"], IMAGES[:batch_size])
    assert images.shapes(["data"]) == {"data": (min(batch_size, 4), 1, 4, 4)}


def test_weights_of_few_bits_are_measured_on_more_images() -> None:
    counts = [sample_count(qgraph.FreezeOptions(target="mxnet-sim", **kw)) for kw in (
        {}, {"weight_bits": 4}, {"weight_bits": 4, "effort": "fast"}, {"effort": "best"})]
    assert counts == [16, 64, 8, 64]


def test_freezing_starts_reading_as_often_as_it_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what asks for the first images, to observe channels, ranges, histograms, to judge, and for layers' noise."""
    data = open_data(str(DIGITS / "digits-calib.npz"), batch_size=10)
    started = []
    batches = type(data).__iter__

    def counted(self: object) -> Iterator[Batch]:
        started.append(1)
        return batches(self)  # type: ignore[arg-type]

    monkeypatch.setattr(type(data), "__iter__", counted)
    qgraph.freeze(str(DIGITS / "digits"), qgraph.FreezeOptions(target="onnx", runtime="onnxruntime"), calib_data=data)
    assert len(started) == 6
