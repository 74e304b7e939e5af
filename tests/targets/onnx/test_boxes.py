"""Anchors, decoding and suppression: onnxruntime and the NumPy kernels give MXNet's rows, those of -1 among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import run_mxnet

from qgraph.errors import UnsupportedError
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.detect import centers
from qgraph.semantics.infer import infer
from qgraph.semantics.interpreter import run
from qgraph.targets.onnx.emit import to_onnx

pytestmark = pytest.mark.mxnet
Feeds = dict[str, np.ndarray]

COUNT, CLASSES = 60, 3


def separated(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Scores of 0..1, no two of them near each other."""
    count = int(np.prod(shape))
    return (rng.permutation(count).reshape(shape).astype(np.float32) + 0.5) / count


def boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Corners in 0..1; many overlap by more than half."""
    middle = rng.integers(1, 4, (*shape, 2)) / 4 + rng.normal(size=(*shape, 2)) * 0.04
    half = rng.uniform(0.08, 0.14, (*shape, 2))
    return np.concatenate([middle - half, middle + half], -1).astype(np.float32)


def detections(seed: int, *shape: int) -> np.ndarray:
    """Rows of id, score, box and one number more."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, CLASSES, (*shape, 1)).astype(np.float32)
    more = rng.normal(size=(*shape, 1)).astype(np.float32)
    return np.concatenate([ids, separated(rng, *shape)[..., None], boxes(rng, *shape), more], -1)


def graph(op: str, feeds: Feeds, attrs: dict[str, Any], n_out: int = 1, **params: np.ndarray) -> tuple[Graph, Node]:
    g = Graph()
    inputs = [g.add("null", name=name) for name in feeds] + [g.add_param(*item) for item in params.items()]
    node = g.add(op, inputs, "node", n_out=n_out, attrs=attrs)
    g.heads = [Port(node, index) for index in range(n_out)]
    return g, node


def compare(op: str, batches: dict[int, Feeds], attrs: dict[str, Any], n_out: int = 1, *, kernel: bool = True,
            atol: float = 1e-6, **params: np.ndarray) -> list[np.ndarray]:
    """Equal in MXNet, onnxruntime (one model for all batch sizes) and NumPy; what MXNet gives for the last batch."""
    import onnxruntime

    first = next(iter(batches.values()))
    g, node = graph(op, first, attrs, n_out, **params)
    model = to_onnx(g, {name: array.shape for name, array in first.items()})
    session = onnxruntime.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    for feeds in batches.values():
        want = run_mxnet(g, feeds)
        inferred = infer(g, {name: array.shape for name, array in feeds.items()})
        read = {i.name for i in session.get_inputs()}
        found = session.run(None, {name: array for name, array in feeds.items() if name in read})
        for index, (a, b) in enumerate(zip(want, found)):
            assert a.shape == b.shape == inferred[Port(node, index)]
            assert np.abs(a - b).max() <= atol * max(np.abs(a).max(), 1)
        if kernel:
            for a, b in zip(want, run(g, feeds)):
                assert a.shape == b.shape and np.abs(a - b).max() <= atol * max(np.abs(a).max(), 1)
    return want


NMS: list[dict[str, Any]] = [
    {}, {"id_index": 0}, {"id_index": 0, "force_suppress": True}, {"id_index": 0, "background_id": 1},
    {"overlap_thresh": 0.2, "id_index": 0}, {"overlap_thresh": 0.7}, {"overlap_thresh": 1}, {"overlap_thresh": 0},
    {"valid_thresh": 0.4}, {"valid_thresh": 0.4, "topk": 25, "id_index": 0}, {"topk": 7}, {"topk": 1000},
    {"valid_thresh": 2}, {"valid_thresh": -1}, {"topk": 0},
    {"in_format": "center", "id_index": 0}, {"in_format": "center", "out_format": "center", "topk": 20},
    {"in_format": "center", "out_format": "corner", "topk": 20}, {"out_format": "center", "id_index": 0},
    {"coord_start": 0, "score_index": 5, "id_index": 4}, {"coord_start": 3, "score_index": 2},
    {"background_id": 1}, {"background_id": -1, "id_index": 0, "valid_thresh": 0.2},
]


def columns(rows: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """The same rows with the columns where the attributes say."""
    start, score, ident = (attrs.get(key, other) for key, other in
                           (("coord_start", 2), ("score_index", 1), ("id_index", 0)))
    out = np.zeros_like(rows)
    free = [i for i in range(7) if i not in (score, ident, *range(start, start + 4))]
    order = {score: 1, **({ident: 0} if ident >= 0 else {}), **{start + i: 2 + i for i in range(4)}}
    order.update(zip(free, [i for i in range(7) if i not in order.values()]))
    for to, source in order.items():
        out[..., to] = rows[..., source]
    return out


@pytest.mark.parametrize("attrs", NMS, ids=lambda attrs: ",".join(f"{k}={v}" for k, v in attrs.items()) or "plain")
def test_box_nms(attrs: dict[str, Any]) -> None:
    batches = {}
    for batch in (2, 1, 3):
        rows = detections(batch, batch, COUNT)
        if attrs.get("in_format") == "center":
            rows[..., 2:6] = centers(rows[..., 2:6])
        rows[:, ::3, 2:6] -= 0.3  # some begin below 0
        batches[batch] = {"x": columns(rows, attrs)}
    (found,) = compare("_contrib_box_nms", batches, attrs)
    score = found[..., attrs.get("score_index", 1)]
    assert (score == -1).any() == (attrs not in ({"overlap_thresh": 1}, {"topk": 0}))
    assert (score > 0).any() == (attrs != {"valid_thresh": 2})


@pytest.mark.parametrize("shape", [(2, 3, 20, 7), (1, 2, 2, 9, 7)])
def test_box_nms_of_other_ranks(shape: tuple[int, ...]) -> None:
    compare("_contrib_box_nms", {0: {"x": detections(1, *shape[:-1])}}, {"id_index": 0, "topk": 12})


def test_box_nms_of_boxes_without_an_area() -> None:
    rows = detections(5, 2, 20)
    rows[:, ::2, 4:6] = rows[:, ::2, 2:4] - 0.05  # turned round
    rows[:, ::5, 2:6] = -1
    compare("_contrib_box_nms", {0: {"x": rows}}, {"overlap_thresh": 0.3})


@pytest.mark.parametrize("attrs", [
    {}, {"sizes": (0.2, 0.4, 0.7), "ratios": (1, 2, 0.5)}, {"sizes": (0.9,), "clip": True, "ratios": (2,)},
    {"sizes": (0.3, 0.2), "ratios": (0.5, 3), "steps": (0.1, 0.2), "offsets": (0.3, 0.6)}])
def test_multi_box_prior(attrs: dict[str, Any]) -> None:
    compare("_contrib_MultiBoxPrior", {0: {"x": np.zeros((2, 3, 5, 7), np.float32)}}, attrs)


@pytest.mark.parametrize("attrs", [
    {}, {"nms_threshold": 0.2, "threshold": 0.5}, {"force_suppress": True, "nms_threshold": 0.3}, {"clip": False},
    {"nms_topk": 20}, {"nms_topk": 400, "nms_threshold": 1}, {"variances": (0.2, 0.1, 0.3, 0.15)},
    {"nms_threshold": -1}, {"nms_threshold": 0}, {"threshold": 2}, {"nms_topk": 5, "threshold": 0.6}],
    ids=lambda attrs: ",".join(f"{k}={v}" for k, v in attrs.items()) or "plain")
def test_multi_box_detection(attrs: dict[str, Any]) -> None:
    batches = {}
    for batch in (2, 1, 3):
        rng = np.random.default_rng(batch)
        # the best class of most boxes is no background, and differs from box to box
        scores = separated(rng, batch, CLASSES + 1, COUNT) * np.array([0.5, 1, 1, 1], np.float32)[:, None]
        batches[batch] = {"cls_prob": scores, "loc_pred": rng.normal(size=(batch, 4 * COUNT)).astype(np.float32)}
    compare("_contrib_MultiBoxDetection", batches, attrs, atol=1e-5, anchor=boxes(np.random.default_rng(9), 1, COUNT))


@pytest.mark.parametrize("attrs", [{}, {"format": "center"}])
@pytest.mark.parametrize("shapes", [((2, 5), (7,)), ((6,), (2, 3)), ((4,), (4,))])
def test_box_iou(attrs: dict[str, Any], shapes: tuple[tuple[int, ...], ...]) -> None:
    rng = np.random.default_rng(0)
    left, right = (boxes(rng, *shape) for shape in shapes)
    compare("_contrib_box_iou", {0: {"x": left}}, attrs, right=right)


PROPOSALS: list[dict[str, Any]] = [
    {}, {"threshold": 0.4}, {"rpn_post_nms_top_n": 200}, {"rpn_pre_nms_top_n": 10}, {"rpn_min_size": 40},
    {"rpn_pre_nms_top_n": -1, "threshold": 0.95}, {"output_score": True}, {"iou_loss": True},
    {"scales": (2, 3), "ratios": (0.5, 1, 3), "feature_stride": 8}]


@pytest.mark.parametrize("op", ["_contrib_Proposal", "_contrib_MultiProposal"])
@pytest.mark.parametrize("attrs", PROPOSALS, ids=lambda a: ",".join(f"{k}={v}" for k, v in a.items()) or "plain")
def test_proposal(op: str, attrs: dict[str, Any]) -> None:
    attrs = {"rpn_post_nms_top_n": 20, "scales": (2, 4), "ratios": (0.5, 1), "rpn_min_size": 8, **attrs}
    each = len(attrs["scales"]) * len(attrs["ratios"])
    size = np.array([1, 1, 1] if "feature_stride" not in attrs else [0.5, 0.5, 1], np.float32)
    batches = {}
    for batch in (2, 1, 3) if "Multi" in op else (1,):
        rng = np.random.default_rng(batch)
        batches[batch] = {
            "cls_prob": separated(rng, batch, 2 * each, 6, 7),
            "bbox_pred": (rng.normal(size=(batch, 4 * each, 6, 7)) * 0.2).astype(np.float32),
            "im_info": np.array([[90, 100, 1], [80, 112, 1.5], [96, 112, 1]], np.float32)[:batch] * size}
    compare(op, batches, attrs, 1 + attrs.get("output_score", False), kernel=False, atol=1e-5)


def test_anchors_of_an_unknown_map_are_refused() -> None:
    g, _ = graph("_contrib_MultiBoxPrior", {"x": np.zeros(0)}, {})
    with pytest.raises(UnsupportedError, match="needs the shape of x"):
        to_onnx(g)
