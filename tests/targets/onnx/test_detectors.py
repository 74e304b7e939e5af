"""Whole detectors: onnxruntime gives the boxes, the classes and the rows of -1 that MXNet gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import BATCHES, SIZE, export, images
from helpers import run_mxnet

from qgraph.commands.convert import convert
from qgraph.commands.open_model import open_model

pytest.importorskip("gluoncv")
pytestmark = pytest.mark.mxnet


def separated(scores: np.ndarray) -> bool:
    """No two scores of an image are so near that rounding could exchange them."""
    return all(np.diff(np.sort(image.ravel()[image.ravel() >= 0])).min() > 1e-5 for image in scores)


@pytest.mark.parametrize("make", BATCHES, ids=lambda make: make.__name__)
def test_decoded_outputs(make: Any, tmp_path: Path) -> None:
    prefix, batch = export(make, tmp_path), BATCHES[make]
    found = convert(prefix, "onnx", input_shape=(f"data:{batch},3,{SIZE},{SIZE}",))
    graph = open_model(prefix).as_graph("comparing")
    executor = found.model.executor(precise=True)
    kinds: set[float] = set()
    compared = 0
    for seed in range(20):
        feeds = {"data": images(batch, seed)}
        ids, scores, boxes = want = run_mxnet(graph, feeds)
        if not separated(scores):
            continue
        got = executor.run(feeds)
        assert all(a.shape == b.shape for a, b in zip(want, got))
        assert np.array_equal(ids, got[0])
        size = max(SIZE, np.abs(boxes).max())
        assert np.abs(scores - got[1]).max() < 1e-5 and np.abs(boxes - got[2]).max() < 1e-4 * size
        kinds.update(ids[ids >= 0].tolist())
        compared += 1
    assert compared >= 3 and len(kinds) > 1
