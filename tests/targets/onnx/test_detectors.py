"""Whole detectors: onnxruntime gives the boxes, the classes and the rows of -1 that MXNet gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import BATCHES, SIZE, export, images
from helpers import run_mxnet

import qgraph
from qgraph import FreezeOptions
from qgraph.commands.convert import convert
from qgraph.commands.open_model import open_model
from qgraph.semantics.detect import overlaps

pytest.importorskip("gluoncv")
pytestmark = pytest.mark.mxnet


def separated(scores: np.ndarray) -> bool:
    """No two scores of an image are so near that rounding could exchange them."""
    return all(np.diff(np.sort(image.ravel()[image.ravel() >= 0])).min() > 1e-5 for image in scores)


def found_again(want: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The share of the ten best boxes of each image that are in `found`: same class, near score, half in common."""
    again = []
    for ids, scores, boxes, other_ids, other_scores, others in zip(*want, *found):
        alike = (ids.reshape(-1, 1) == other_ids.ravel()) & (np.abs(scores.reshape(-1, 1) - other_scores.ravel()) < 0.1)
        alike &= overlaps(boxes[:, None], others[None]) > 0.5
        again.append(alike.any(1)[np.argsort(-scores.ravel())[:10]])
    return float(np.mean(again))


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


@pytest.mark.parametrize(("make", "runtime"), [*((make, "onnxruntime") for make in BATCHES),
                                              (next(iter(BATCHES)), "mxnet")],
                         ids=lambda value: getattr(value, "__name__", value))
def test_freezes_whole(make: Any, runtime: str, tmp_path: Path) -> None:
    """Every layer is quantized; what decodes is carried in float, and finds the boxes of this image, not of another."""
    prefix, batch = export(make, tmp_path), BATCHES[make]
    frozen = qgraph.freeze(prefix, FreezeOptions(target="onnx", runtime=runtime, batch_size=batch),
                           calib_data={"data": np.concatenate([images(2, seed) for seed in (1, 2)])})
    assert len(frozen.report["quantized"]) > 5 and not frozen.report["float"]
    (judged,) = frozen.report["agreement"]["tasks"]
    assert judged["task"] == "detection" and len(judged["outputs"]) == 3 and judged["metrics"]["ap50"] > 70
    feeds, graph = {"data": images(batch, 1)}, open_model(prefix).as_graph("comparing")
    want, found = run_mxnet(graph, feeds), frozen.model.executor().run(feeds)
    assert [a.shape for a in found] == [a.shape for a in want]
    assert found_again(want, found) >= 0.7
    assert found_again(run_mxnet(graph, {"data": images(batch, 3)}), found) <= 0.3
