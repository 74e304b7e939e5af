"""Classes of pixels: counted as scikit-learn counts, added up exactly, and claimed where a network segments."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytest
from helpers import CASES, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.commands.evaluate import runnable
from qgraph.commands.open_model import open_model
from qgraph.engines import runtime
from qgraph.errors import DataError, OptionError
from qgraph.ir.graph import Graph
from qgraph.tasks import segmentation
from qgraph.tasks.base import Head
from qgraph.tasks.registry import assign, heads_of
from qgraph.tasks.segmentation import Pixels, Segmentation, classes_of


def head(*shape: int, behind: Sequence[str] = (), like: Sequence[int] = (2, 3, 8, 8), images: int = 0) -> Head:
    return Head("scores", shape, images or shape[0], tuple(behind), (tuple(like),))


def task(scores: np.ndarray) -> Segmentation:
    return Segmentation([head(*scores.shape)])


def scores_of(classes: np.ndarray, count: int) -> np.ndarray:
    """Scores with these classes on top: (images, height, width) -> (images, count, height, width)."""
    noise = np.random.default_rng(0).uniform(size=(len(classes), count, *classes.shape[1:]))
    return (noise + 2 * (np.arange(count)[:, None, None] == classes[:, None])).astype(np.float32)


def sklearn_says(want: np.ndarray, found: np.ndarray) -> dict[str, float]:
    metrics = pytest.importorskip("sklearn.metrics")
    matrix = metrics.confusion_matrix(want.ravel(), found.ravel())
    return {"pixels": 100 * np.trace(matrix) / matrix.sum(),
            "miou": 100 * metrics.jaccard_score(want.ravel(), found.ravel(), average="macro", labels=np.unique(want))}


# ---- what is counted ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count, size", [(2, (5, 7)), (21, (40, 30)), (255, (30, 30)), (300, (30, 30))])
def test_agreement_is_that_of_scikit_learn(count, size):
    rng = np.random.default_rng(count)
    want = rng.integers(0, max(2, count - 3), (3, *size))  # some classes do not occur
    found = np.where(rng.random(want.shape) < 0.7, want, rng.integers(0, count, want.shape))
    a, b = scores_of(want, count), scores_of(found, count)
    assert task(a).agreement([a], [b], 0).result() == pytest.approx(sklearn_says(want, found), abs=1e-6)
    assert task(a).agreement([a], [a], 0).result() == {"pixels": 100.0, "miou": 100.0}


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_a_score_leaves_out_255_and_negative_numbers(kind):
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 6, (4, 12, 10))
    found = np.where(rng.random(masks.shape) < 0.6, masks, rng.integers(0, 6, masks.shape))
    out = rng.random(masks.shape) < 0.2
    labels = np.where(out, 255 if kind is np.uint8 else rng.choice([255, -1, -7], masks.shape), masks).astype(kind)
    scores = scores_of(found, 6)
    result = task(scores).score([scores], list(labels), ["a", "b", "c", "d"], 0).result()
    assert result == pytest.approx(sklearn_says(masks[~out], found[~out]), abs=1e-6)
    assert task(scores).score([scores], labels, ["a", "b", "c", "d"], 0).result() == result


def test_255_is_a_class_where_the_model_has_so_many():
    masks = np.full((1, 2, 2), 255)
    scores = scores_of(masks, 300)
    assert task(scores).score([scores], masks, ["a"], 0).result() == {"pixels": 100.0, "miou": 100.0}


@pytest.mark.parametrize("masks, found, pixels, miou", [
    ([[0, 0], [0, 0]], [[0, 0], [0, 0]], 100, 100),  # one class
    ([[0, 0], [0, 0]], [[1, 1], [1, 1]], 0, 0),  # empty: nothing of what is found is there
    ([[0, 0], [1, 1]], [[0, 0], [1, 0]], 75, 100 * (2 / 3 + 1 / 2) / 2),
    ([[0, 0], [1, 1]], [[2, 0], [1, 1]], 75, 100 * (1 / 2 + 1) / 2),  # a class that only the model sees
    ([[0, 255], [255, 255]], [[0, 1], [2, 1]], 100, 100),  # what is left out makes no class occur
    ([[255, 255], [-1, 255]], [[0, 1], [2, 1]], None, None),  # nothing is left
])
def test_masks_by_hand(masks, found, pixels, miou):
    scores = scores_of(np.array([found]), 3)
    result = task(scores).score([scores], [np.array(masks)], ["a"], 0).result()
    assert result == {"pixels": pixels, "miou": miou if miou is None else pytest.approx(miou, abs=1e-9)}


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), images=st.integers(1, 8), cuts=st.sets(st.integers(1, 7)),
       shuffle=st.randoms(use_true_random=False))
def test_any_split_merges_to_the_same_bits(seed, images, cuts, shuffle):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(images, 7, 6, 5)).astype(np.float32)
    b = a + 0.5 * rng.normal(size=a.shape).astype(np.float32)
    masks, where = rng.integers(-1, 7, (images, 6, 5)), [str(number) for number in range(images)]
    judge = task(a)
    bounds = [0, *sorted(cut for cut in cuts if cut < images), images]
    parts = [slice(low, high) for low, high in zip(bounds, bounds[1:])]
    shuffle.shuffle(parts)
    agreements = [judge.agreement([a[part]], [b[part]], part.start) for part in parts]
    scores = [judge.score([b[part]], masks[part], where[part], part.start) for part in parts]
    for tallies, whole in ((agreements, judge.agreement([a], [b], 0)), (scores, judge.score([b], masks, where, 0))):
        merged = reduce(Pixels.__add__, tallies)
        assert merged.result() == whole.result()
        for name in ("want", "found", "both"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))


def test_a_tally_is_of_whole_numbers_and_does_not_grow_with_images():
    a = normal(6, 5, 4, 4)
    few, many = (task(a).agreement([a[:n]], [a[:n]], 0) for n in (1, 6))
    for name in ("want", "found", "both"):
        assert getattr(few, name).dtype == np.int64 and getattr(few, name).shape == getattr(many, name).shape == (6,)


# ---- the best class of a pixel --------------------------------------------------------------------------------------

@settings(max_examples=40)
@given(seed=st.integers(0, 1000), count=st.sampled_from([2, 3, 21, 255, 256, 257]), levels=st.integers(1, 40))
def test_classes_are_those_of_argmax(seed, count, levels):
    """Few levels make many ties: the first class wins."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-levels, levels, (count, 3, 5)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    np.testing.assert_array_equal(classes_of(scores), scores.argmax(0).ravel())


@pytest.mark.parametrize("pixels", [1, 7, 8, 9])
def test_parts_of_the_pixels_are_as_good_as_all(monkeypatch, pixels):
    scores = normal(4, pixels, 8)
    whole = classes_of(scores)
    monkeypatch.setattr(segmentation, "PIXELS", 8)
    np.testing.assert_array_equal(classes_of(scores), whole)
    np.testing.assert_array_equal(classes_of(np.moveaxis(scores, 0, 2).copy().transpose(2, 0, 1)), whole)


def test_a_nan_is_of_no_class():
    """So a frozen model that gives NaN is ruined, and not a model of backgrounds."""
    a = scores_of(np.zeros((1, 4, 4), int), 3)
    b = a.copy()
    b[0, 2, :2] = np.nan
    assert classes_of(b[0]).tolist() == [3] * 8 + [0] * 8
    assert task(a).agreement([a], [b], 0).result() == {"pixels": 50.0, "miou": 50.0}
    assert task(a).agreement([b], [b], 0).result() == {"pixels": 100.0, "miou": 100.0}


# ---- what cannot be judged ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("label, message", [
    (np.zeros((4, 4), int), "b.png: its mask has 4 x 4 pixels .*output scores 5 x 6"),
    (np.zeros((10, 12), int), "b.png: its mask has 10 x 12 pixels .*output scores 5 x 6"),
    (np.zeros((6, 5), int), "b.png: its mask has 6 x 5 pixels"),
    (np.full((5, 6), 3), "b.png: its mask holds the class 3, but the model has 3 classes"),
    (np.full((5, 6), 2**64 - 1, np.uint64), "b.png: its mask holds the class 1844674407370955161"),
    (np.full((5, 6), 1e30), "b.png: its mask holds the class 10000"),
    (np.full((5, 6), np.inf), "b.png: its mask holds the class inf"),
    (np.full((5, 6), 0.5), "b.png: its mask holds 0.5, want whole numbers"),
    (np.full((5, 6), np.nan), "b.png: its mask holds nan, want whole numbers"),
    (np.zeros((5, 6, 3), np.uint8), r"b.png: its label is uint8 of the shape \(5, 6, 3\), want a mask"),
    (np.int64(1), r"b.png: its label is int64 of the shape \(\), want a mask"),
    (np.full((5, 6), "cat"), "b.png: its label is <U3 of the shape"),
])
def test_a_bad_mask_is_one_line_that_names_the_image(label, message):
    scores = normal(2, 3, 5, 6)
    with pytest.raises(DataError, match=message) as caught:
        task(scores).score([scores], [np.zeros((5, 6), int), label], ["a.png", "b.png"], 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape, images", [((2, 5), 2), ((2, 1, 8, 8), 2), ((4, 3, 8, 8), 2), ((2, 3, 8), 2)])
def test_other_outputs_are_refused_by_name(shape, images):
    with pytest.raises(OptionError, match=re.escape(f"the output scores has the shape {shape} for {images} images")):
        assign([head(*shape, images=images)], ["segmentation"])


# ---- claims ---------------------------------------------------------------------------------------------------------

def sure(*heads: Head) -> dict[int, float]:
    return {claim.outputs[0]: claim.sure for claim in Segmentation.claims(heads)}


@pytest.mark.parametrize("found, expected", [
    (head(2, 5, 8, 8, behind=["Convolution"]), 0.8),
    (head(2, 5, 8, 8), 0.8),  # of an ONNX file nothing more is known
    (head(2, 5, 8, 8, behind=["SoftmaxOutput", "Crop", "Deconvolution"]), 0.9),
    (head(2, 5, 8, 8, behind=["Crop", "Deconvolution"]), 0.9),
    (head(2, 5, 4, 4, behind=["_contrib_BilinearResize2D"]), 0.7),
    (head(2, 5, 4, 4, behind=["softmax"]), 0.7),
    (head(2, 3, 8, 8, behind=["softmax"]), 0.9),
    (head(2, 3, 8, 8, behind=["Convolution"]), 0.5),  # an image from an image has this shape too
    (head(2, 5, 4, 4, behind=["Convolution", "Deconvolution"]), 0),  # heat maps
    (head(2, 3, 32, 32, behind=["Deconvolution"]), 0),  # an image that is larger than the input
    (head(2, 1, 8, 8), 0),
    (head(2, 5, 1, 1, behind=["softmax"]), 0),  # a classifier
    (head(2, 5, 1, 1, like=(2, 3, 1, 1)), 0),
    (head(6, 5, 8, 8, images=2), 0),
    (head(2, 5, 8), 0),
    (head(2, 5, 8, 8, like=(2, 100)), 0),
])
def test_claims_by_shape_and_ops(found, expected):
    assert sure(found).get(0, 0) == expected


def test_scores_and_boxes_on_coarse_maps_are_a_detector():
    scores, boxes = head(2, 2, 4, 4, behind=["softmax"]), head(2, 4, 4, 4, behind=["Convolution"])
    assert sure(scores) == {0: 0.7} and sure(scores, boxes) == {}
    assert sure(scores, head(2, 2, 2, 2, behind=["softmax"])) == {}  # maps of several sizes
    assert sure(boxes, head(2, 5, 8, 8, behind=["Convolution"])) == {1: 0.8}


def heads_of_graph(g: Graph, feeds: dict[str, np.ndarray]) -> list[Head]:
    """The outputs of a graph that was run on these feeds."""
    outputs = runtime("this test")(g).run(feeds)
    return heads_of([port.key for port in g.heads], outputs, len(next(iter(feeds.values()))), g, feeds)


def heads_of_block(net: Any, *shape: int) -> list[Head]:
    """The outputs of a Gluon block with random weights."""
    import mxnet as mx

    from qgraph.formats.gluon import from_gluon

    net.initialize(mx.init.Xavier())
    return heads_of_graph(from_gluon(net, shape), {"data": normal(*shape)})


def tasks_of(heads: Sequence[Head]) -> list[tuple[str, tuple[int, ...], float]]:
    return [(found.task.name, found.outputs, found.sure) for found in assign(heads)]


def gluoncv_segmentation(kind: str) -> Any:
    """GluonCV's heads of FCN, PSPNet and DeepLab, and its auxiliary head, on three small convolutions."""
    from gluoncv.model_zoo.deeplabv3 import _DeepLabHead
    from gluoncv.model_zoo.fcn import _FCNHead
    from gluoncv.model_zoo.pspnet import _PSPHead
    from mxnet.gluon import nn

    options = {"height": 8, "width": 8}
    heads = {"fcn": lambda: _FCNHead(16, 5), "psp": lambda: _PSPHead(5, feature_map_height=8, feature_map_width=8),
             "deeplab": lambda: _DeepLabHead(5, **options)}

    class Network(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.middle, self.base = nn.HybridSequential(), nn.HybridSequential()
                self.middle.add(nn.Conv2D(16, 3, 4, 1, activation="relu"))
                self.base.add(nn.Conv2D(2048 if kind != "fcn" else 16, 3, 2, 1, activation="relu"))
                self.head, self.aux = heads[kind](), _FCNHead(16, 5)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            c3 = self.middle(x)
            resized = [F.contrib.BilinearResize2D(x, height=64, width=64)
                       for x in (self.head(self.base(c3)), self.aux(c3))]
            return tuple(resized)

    return Network()


@pytest.mark.mxnet
@pytest.mark.parametrize("kind", ["fcn", "psp", "deeplab"])
def test_gluoncv_networks_segment_with_both_heads(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        heads = heads_of_block(gluoncv_segmentation(kind), 2, 3, 64, 64)
    assert tasks_of(heads) == [("segmentation", (0,), 0.9), ("segmentation", (1,), 0.9)]


@pytest.mark.mxnet
def test_a_unet_segments():
    from mxnet.gluon import nn

    class UNet(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.down, self.low = (nn.Conv2D(8, 3, 1, 1, activation="relu") for _ in range(2))
                self.pool, self.up = nn.MaxPool2D(), nn.Conv2DTranspose(8, 2, 2)
                self.last = nn.Conv2D(3, 1)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            side = self.down(x)
            return self.last(F.concat(side, self.up(self.low(self.pool(side))), dim=1))

    assert tasks_of(heads_of_block(UNet(), 2, 1, 32, 32)) == [("segmentation", (0,), 0.8)]


@pytest.mark.mxnet
def test_heat_maps_of_a_pose_network_are_not_claimed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gluoncv.model_zoo import get_model

        net = get_model("simple_pose_resnet18_v1b", pretrained=False, pretrained_base=False, num_joints=4)
    (found,) = heads = heads_of_block(net, 1, 3, 64, 64)
    assert found.shape == (1, 4, 16, 16) and found.behind[:1] == ("Convolution",)
    assert Segmentation.claims(heads) == []


@pytest.mark.cases("detectors/retinaface_mnet025_16")
@pytest.mark.mxnet
def test_heads_of_a_detector_are_not_claimed():
    prefix = CASES / "detectors/retinaface_mnet025_16/retinaface_mnet025_16"
    g = runnable(open_model(str(prefix)).model).ir
    heads = heads_of_graph(g, {g.data_inputs()[0].name: normal(1, 3, 256, 256)})
    assert sum(head.rank == 4 for head in heads) >= 2
    assert Segmentation.claims(heads) == []
