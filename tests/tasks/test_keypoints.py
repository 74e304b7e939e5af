"""Keypoints: which outputs are some, how heat maps are read, PCK and OKS against a second implementation."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.errors import DataError, OptionError
from qgraph.formats.mxnet import load
from qgraph.passes.canonicalize import Canonicalize
from qgraph.tasks.base import Head
from qgraph.tasks.keypoints import COCO_SIGMAS, Keypoints
from qgraph.tasks.registry import assign, heads_of

BEHIND = ("Convolution", "Activation", "BatchNorm", "Deconvolution")
INPUT = ((1, 3, 128, 96),)


def maps(images: int = 5, points: int = 17) -> Keypoints:
    return Keypoints([Head("out", (images, points, 32, 24), images, BEHIND, INPUT)])


def coordinates(points: int = 17) -> Keypoints:
    return Keypoints([Head("out", (4, points, 2), 4, (), INPUT)])


def ids(count: int) -> list[str]:
    return [f"people[{number}]" for number in range(count)]


def bumps(rng: np.random.Generator, images: int, points: int = 17) -> np.ndarray:
    """Heat maps with one bump each, of which some lie at the border."""
    centres = rng.uniform(-0.5, [31.5, 23.5], (images, points, 2))
    y, x = np.mgrid[:32, :24]
    away = (y - centres[..., 0, None, None]) ** 2 + (x - centres[..., 1, None, None]) ** 2
    return (np.exp(-away / 8) + rng.normal(size=away.shape) * 0.01).astype(np.float32)


# ------------------------------------------------------------------------------------------ a second implementation


def plain_points(output: np.ndarray) -> np.ndarray:
    """`get_final_preds` of GluonCV, point by point; its maps with no value above 0 apart."""
    _, _, height, width = output.shape
    found = np.zeros((*output.shape[:2], 2))
    for n, p in np.ndindex(*output.shape[:2]):
        heat = output[n, p]
        y, x = divmod(int(heat.argmax()), width)
        found[n, p] = x, y
        if 1 < x < width - 1 and 1 < y < height - 1:
            found[n, p] += 0.25 * np.sign([heat[y, x + 1] - heat[y, x - 1], heat[y + 1, x] - heat[y - 1, x]])
    return found * [96 / width, 128 / height]


def plain_oks(points: np.ndarray, label: np.ndarray, sigmas: np.ndarray) -> float:
    """As pycocotools' COCOeval.computeOks has it, where ground truth and detection are one person each."""
    xg, yg, vg = label[:, 0], label[:, 1], label[:, 2]
    seen = label[vg > 0]
    area = max(np.ptp(seen[:, 0]), 1) * max(np.ptp(seen[:, 1]), 1)
    variances = (sigmas * 2) ** 2
    dx, dy = points[:, 0] - xg, points[:, 1] - yg
    e = (dx**2 + dy**2) / variances / (area + np.spacing(1)) / 2
    e = e[vg > 0]
    return float(np.sum(np.exp(-e)) / e.shape[0])


def size(points: np.ndarray) -> float:
    return max(np.ptp(points[:, 0]), np.ptp(points[:, 1]))


def test_heat_maps_are_read_as_by_a_second_implementation() -> None:
    output = bumps(np.random.default_rng(1), 6)
    np.testing.assert_array_equal(maps().points(output), plain_points(output))
    flat = np.zeros((1, 17, 32, 24), np.float32)
    np.testing.assert_array_equal(maps().points(flat), 0)
    hand = np.zeros((1, 1, 32, 24), np.float32)
    hand[0, 0, 10, 7], hand[0, 0, 10, 8], hand[0, 0, 9, 7] = 3, 2, 1
    np.testing.assert_array_equal(maps(1, 1).points(hand), [[[7.25 * 4, 9.75 * 4]]])


def test_agreement_is_that_of_a_second_implementation() -> None:
    rng = np.random.default_rng(2)
    a = bumps(rng, 20)
    b = (a + rng.normal(size=a.shape) * 0.25).astype(np.float32)
    found = maps(20).agreement([a], [b], 0).result()
    away = [np.linalg.norm(x - y, axis=1) / size(x) for x, y in zip(plain_points(a), plain_points(b))]
    assert found == pytest.approx({"distance": np.mean(away), "pck": 100 * np.mean(np.array(away) < 0.05)}, abs=1e-9)
    assert 50 < found["pck"] < 95 and found["distance"] > 0
    assert maps(20).agreement([a], [a], 0).result() == {"distance": 0.0, "pck": 100.0}


def labelled(rng: np.random.Generator, images: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.concatenate([rng.uniform(0, 96, (images, points, 2)), rng.integers(0, 3, (images, points, 1))], axis=2)
    return label, label[:, :, :2] + rng.normal(size=(images, points, 2)) * 4


@pytest.mark.parametrize("points", [17, 5])
def test_scores_are_those_of_a_second_implementation(points: int) -> None:
    label, found = labelled(np.random.default_rng(3), 30, points)
    label[4, :, 2] = 0  # of an image with no visible point
    label[5, 1:, 2], label[5, 0, 2] = 0, 2  # and with one
    want_pck, want_oks, sigmas = [], [], np.array(COCO_SIGMAS) if points == 17 else np.full(points, 0.05)
    for row, at in zip(label, found):
        seen = row[:, 2] > 0
        if seen.any():
            longer = size(row[seen]) or 128
            want_pck += (np.linalg.norm(at - row[:, :2], axis=1)[seen] / longer < 0.05).tolist()
            want_oks.append(plain_oks(at, row, sigmas))
    result = coordinates(points).score([found], label, ids(30), 0).result()
    assert result == pytest.approx({"pck": 100 * np.mean(want_pck), "oks": np.mean(want_oks)}, abs=1e-9)
    assert 20 < result["pck"] < 95 and 0.1 < result["oks"] < 0.95
    flat = coordinates(points).score([found], label.reshape(30, -1).astype(np.float32), ids(30), 0).result()
    assert flat == pytest.approx(result, abs=1e-3)  # a .rec holds rows of float32
    label[..., 2] = 0
    assert coordinates(points).score([found], label, ids(30), 0).result() == {"pck": None, "oks": None}


def test_perfect_points() -> None:
    label, _ = labelled(np.random.default_rng(4), 6, 17)
    label[..., 2] = 2
    assert coordinates().score([label[..., :2]], label, ids(6), 0).result() == {"pck": 100.0, "oks": 1.0}


def test_coordinates_in_three_shapes() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.uniform(0, 96, (4, 6, 2)), rng.uniform(0, 96, (4, 6, 2))
    b[:2] = a[:2] + 1
    want = coordinates(6).agreement([a], [b], 0).result()
    assert want["pck"] >= 50
    flat, scored = Keypoints([Head("out", (4, 12), 4)]), Keypoints([Head("out", (4, 6, 3), 4)])
    assert flat.agreement([a.reshape(4, 12)], [b.reshape(4, 12)], 0).result() == want
    more = [np.concatenate([x, rng.random((4, 6, 1))], axis=2) for x in (a, b)]
    assert scored.agreement(more[:1], more[1:], 0).result() == want


def test_points_that_say_nothing() -> None:
    one = Keypoints([Head("out", (2, 1, 2), 2, (), INPUT)])  # parts of the input, 128
    found = one.agreement([np.zeros((2, 1, 2))], [np.array([[[0, 6.3]], [[0, 6.5]]])], 0).result()
    assert found == pytest.approx({"distance": 0.05, "pck": 50.0})
    a = np.array([[[0, 0], [10, 20]]], np.float32)
    broken = np.array([[[np.nan, 0], [10, np.inf]]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert coordinates(2).agreement([a], [broken], 0).result()["pck"] == 0
        assert coordinates(2).agreement([broken], [broken], 0).result() == {"distance": 0.0, "pck": 100.0}
        label = np.array([[[0, 0, 1], [10, 20, 1]]])
        assert coordinates(2).score([broken], label, ids(1), 0).result() == {"pck": 0.0, "oks": 0.0}


def test_any_split_gives_the_same_bits() -> None:
    rng = np.random.default_rng(6)
    a = bumps(rng, 40)
    b = (a + rng.normal(size=a.shape) * 0.25).astype(np.float32)
    label, _ = labelled(rng, 40, 17)
    want = maps(40).agreement([a], [b], 0).result(), maps(40).score([b], label, ids(40), 0).result()
    for _ in range(3):
        cuts = [0, *sorted(set(rng.integers(1, 40, 5).tolist())), 40]
        parts = [slice(x, y) for x, y in zip(cuts, cuts[1:])]
        pair = []
        for part in (parts[i] for i in rng.permutation(len(parts))):
            new = [maps().agreement([a[part]], [b[part]], part.start),
                   maps().score([b[part]], label[part], ids(40)[part], part.start)]
            pair = [x + y for x, y in zip(pair, new)] if pair else new
        assert tuple(tally.result() for tally in pair) == want


@pytest.mark.parametrize("label, message", [
    (np.zeros((2, 17, 2)), r"^a: its label has the shape \(17, 2\), want x, y, visible for 17 points each"),
    (np.zeros(2, int), r"^a: its label has the shape \(\), want x, y, visible"),
    (np.full((2, 17, 3), np.nan), r"^a: its label has values that are not finite, or a visibility below 0"),
    (np.concatenate([np.ones((1, 17, 3)), -np.ones((1, 17, 3))]), r"^b: its label has values that are not finite, or"),
])
def test_wrong_labels(label: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        coordinates().score([np.zeros((2, 17, 2))], label, ["a", "b"], 0)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="a: the output out has 3 rows for 2 images"):
        coordinates().score([np.zeros((3, 17, 2))], label, ["a", "b"], 0)


# ------------------------------------------------------------------------------------------------- which outputs


@pytest.mark.mxnet
def test_simple_pose_of_gluoncv() -> None:
    import mxnet as mx
    from gluoncv.model_zoo import get_model

    mx.random.seed(0)
    network = get_model("simple_pose_resnet18_v1b", pretrained=False, pretrained_base=False)
    network.initialize()
    image = mx.nd.random.uniform(shape=(2, 3, 64, 32))
    output = network(image).asnumpy()
    g = load(network(mx.sym.var("data")))
    Canonicalize().run(g)
    (found,) = assign(heads_of(["out"], [output], 2, g, {"data": image.asnumpy()}))
    assert found.task.name == "keypoints" and output.shape == (2, 17, 16, 8)
    assert found.task.agreement([output], [output], 0).result() == {"distance": 0.0, "pck": 100.0}


def test_which_outputs() -> None:
    for shape, behind, like, count in (
        ((2, 17, 32, 24), BEHIND, INPUT, 1),
        ((2, 17, 32, 24), ("Convolution", "Deconvolution"), INPUT, 1),
        ((2, 17, 128, 96), BEHIND, INPUT, 0),  # as large as the input: segmentation
        ((2, 17, 32, 24), ("Deconvolution", "Convolution"), INPUT, 0),
        ((2, 17, 32, 24), ("Convolution", "Activation", "BatchNorm", "Convolution", "Deconvolution"), INPUT, 0),
        ((2, 17, 32, 24), BEHIND, (), 0), ((2, 17, 32, 24), (), INPUT, 0),
        ((4, 17, 32, 24), BEHIND, INPUT, 0), ((2, 17, 1, 1), BEHIND, INPUT, 0), ((2, 34), (), INPUT, 0),
    ):
        assert len(Keypoints.claims([Head("out", shape, 2, behind, like)])) == count, (shape, behind)


def test_coordinates_by_choice() -> None:
    head = Head("out", (2, 34), 2, ("FullyConnected",), INPUT)
    assert assign([head])[0].task.name == "classification"
    assert assign([head], ["keypoints"])[0].task.name == "keypoints"
    for shape in ((2, 33), (2, 17, 4), (34,), (4, 34), (2, 17, 1, 1)):
        with pytest.raises(OptionError, match="--task keypoints: the output out has the shape .* for 2 images, want"):
            assign([Head("out", shape, 2, (), INPUT)], ["keypoints"])
