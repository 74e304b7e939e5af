"""Calibration images distilled from BatchNorm statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qgraph.calibration import distill as module
from qgraph.calibration.distill import _Match, distill
from qgraph.errors import CalibrationError
from qgraph.ir.graph import Graph, Node, Port

SHAPE = (1, 3, 16, 16)


def images(count: int, seed: int, size: float = 1.0) -> np.ndarray:
    """What the networks below were "trained" on: smooth, of correlated channels, off centre. N x 3 x 16 x 16."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4)) + 2 * rng.standard_normal((count, 1, 4, 4))
    return ((coarse.repeat(4, 2).repeat(4, 3) + 0.2 * rng.standard_normal((count, *SHAPE[1:])) + 0.5)
            * size).astype(np.float32)


def conv(g: Graph, x: Node, channels: tuple[int, int], rng: np.random.Generator, stride: int = 1) -> Node:
    w = rng.standard_normal((channels[1], channels[0], 3, 3)).astype(np.float32) / np.sqrt(9 * channels[0])
    return g.add("Convolution", [x, g.add_param("w", w)], kernel="(3, 3)", pad="(1, 1)", stride=(stride, stride),
                 num_filter=channels[1], no_bias=True)


def norm(g: Graph, x: Node, channels: int, rng: np.random.Generator, axis: int = 1) -> Node:
    arrays = [rng.uniform(0.5, 1.5, channels), rng.normal(0, 0.5, channels), np.zeros(channels), np.ones(channels)]
    params = [g.add_param(k, a.astype(np.float32)) for k, a in zip(("gamma", "beta", "mean", "var"), arrays)]
    return g.add("BatchNorm", [x, *params], fix_gamma=False, eps=1e-5, axis=axis)


def train(g: Graph, feeds: dict[str, np.ndarray]) -> None:
    """Set every moving mean and variance to the statistics on `feeds`, layer by layer."""
    from qgraph.targets.mxnet import runtime as mxnet
    for bn in g.nodes("BatchNorm"):
        ports = g.inputs(bn)
        axis = int(bn.attrs["axis"])
        value = mxnet.run(g, feeds, [ports[0]])[0] if ports[0].node.op != "null" else feeds[ports[0].node.name]
        others = tuple(i for i in range(value.ndim) if i != axis)
        g.params[ports[3].node.name] = value.mean(others)
        g.params[ports[4].node.name] = value.var(others)


def network(size: float = 1.0, dead: bool = False) -> Graph:
    """conv-bn-relu, three times, the second behind a Dropout, the third beside a shortcut; a classifier."""
    rng = np.random.default_rng(0)
    g = Graph()
    x = g.add("null", name="data")
    x = g.add("Activation", [norm(g, conv(g, x, (3, 8), rng), 8, rng)], act_type="relu")
    if dead:
        g.params["w"][:2] = 0
    x = g.add("Dropout", [x], p=0.5)
    x = short = g.add("Activation", [norm(g, conv(g, x, (8, 12), rng, 2), 12, rng)], act_type="relu")
    x = norm(g, conv(g, x, (12, 12), rng), 12, rng)
    x = g.add("Activation", [g.add("elemwise_add", [x, short])], act_type="relu")
    x = norm(g, x, 12, rng)
    w = g.add_param("fc_weight", rng.standard_normal((5, 12 * 64)).astype(np.float32))
    fc = g.add("FullyConnected", [x, w], num_hidden=5, no_bias=True)
    g.heads = [Port(fc)]
    train(g, {"data": images(256, seed=1, size=size)})
    return g


def mismatch(g: Graph, x: np.ndarray) -> float:
    return _Match(g, {"data": x.shape}).loss({"data": x})


@pytest.mark.mxnet
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_distilled_images_reproduce_the_statistics(size):
    g = network(size)
    text, digest = g.text(), g.digest()
    x = distill(g, {"data": SHAPE}, count=32)["data"]
    assert (g.text(), g.digest()) == (text, digest)
    assert x.shape == (32, *SHAPE[1:]) and x.dtype == np.float32 and np.isfinite(x).all()
    real = images(32, seed=2, size=size)
    noise = np.random.default_rng(3).normal(real.mean(), real.std(), real.shape).astype(np.float32)
    assert mismatch(g, x) < mismatch(g, noise) / 10
    assert mismatch(g, x) < 4 * mismatch(g, real)
    assert 0.5 < x.std() / real.std() < 2


@pytest.mark.mxnet
def test_ranges_are_near_the_real_ones():
    from qgraph.targets.mxnet.runtime import run
    g = network()
    watch = [g.inputs(n)[0] for n in g.nodes("BatchNorm")]
    real = [np.abs(v).max() for v in run(g, {"data": images(32, seed=2)}, watch)]
    found = [np.abs(v).max() for v in run(g, distill(g, {"data": SHAPE}, count=32), watch)]
    assert all(0.6 < a / b < 1.6 for a, b in zip(found, real)), np.divide(found, real)


@pytest.mark.mxnet
def test_the_loss_is_the_written_formula_and_its_gradient_is_right():
    g = network()
    x = images(4, seed=5) * 0.7
    want = 0.0
    from qgraph.targets.mxnet.runtime import run
    for bn in g.nodes("BatchNorm"):
        ports = g.inputs(bn)
        value, m, v = run(g, {"data": x}, [ports[0]])[0], g.param(ports[3]), g.param(ports[4]) + 1e-5
        d, r = (value.mean((0, 2, 3)) - m) / np.sqrt(v), (value.var((0, 2, 3)) + 1e-5) / v
        want += ((d * d + r - 1 - np.log(r)) / 2).mean()
    match = _Match(g, {"data": x.shape})
    assert match.loss({"data": x}) == pytest.approx(want, rel=1e-4)
    gradient = match.gradient({"data": x})["data"]
    step = gradient / np.abs(gradient).max() * 1e-3
    rise = match.loss({"data": x + step}) - match.loss({"data": x - step})
    assert rise == pytest.approx(2 * float((gradient * step).sum()), rel=0.03)


@pytest.mark.mxnet
def test_same_seed_same_images_and_batches_differ():
    g = network()
    first = distill(g, {"data": SHAPE}, count=20, seed=7, steps=3)["data"]
    again = distill(g, {"data": (99, *SHAPE[1:])}, count=20, seed=7, steps=3)["data"]
    other = distill(g, {"data": SHAPE}, count=20, seed=8, steps=3)["data"]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({row.tobytes() for row in first}) == 20


@pytest.mark.mxnet
@pytest.mark.parametrize("count", [1, 17, 33])
def test_any_count_and_progress(count):
    calls: list[tuple[int, int]] = []
    x = distill(network(), {"data": SHAPE}, count=count, steps=2, progress=lambda *at: calls.append(at))["data"]
    total = 2 * math.ceil(count / module.BATCH)
    assert len(x) == count
    assert calls == [(i, total) for i in range(1, total + 1)]


@pytest.mark.mxnet
def test_dead_and_broken_channels_do_no_harm():
    g = network(dead=True)
    last = g.inputs(g.nodes("BatchNorm")[-1])
    g.params[last[4].node.name][3] = np.nan
    g.params[last[3].node.name][4] = np.inf
    noise = images(16, seed=3)
    assert np.isfinite(_Match(g, {"data": noise.shape}).gradient({"data": noise})["data"]).all()
    x = distill(g, {"data": SHAPE}, count=16)["data"]
    assert np.isfinite(x).all()
    assert 0 < mismatch(g, x) < 0.1


def test_a_network_without_batchnorm_is_told_to_bring_data():
    g = Graph()
    g.heads = [Port(g.add("Activation", [g.add("null", name="data")], act_type="relu"))]
    with pytest.raises(CalibrationError, match="--calib-data"):
        distill(g, {"data": SHAPE})


@pytest.mark.mxnet
def test_an_input_without_a_shape_is_named():
    with pytest.raises(CalibrationError, match="data"):
        distill(network(), {"image": SHAPE})


@pytest.mark.mxnet
def test_several_inputs_of_several_ranks():
    """A BatchNorm on the data itself, one over the last axis, one behind a dense layer on a vector."""
    rng = np.random.default_rng(1)
    g = Graph()
    image, vector = g.add("null", name="image"), g.add("null", name="vector")
    a = conv(g, norm(g, image, 3, rng), (3, 6), rng)
    a = norm(g, g.add("transpose", [a], axes="(0, 2, 3, 1)"), 6, rng, axis=3)
    w = g.add_param("dense", rng.standard_normal((8, 5)).astype(np.float32))
    b = norm(g, g.add("FullyConnected", [vector, w], num_hidden=8, no_bias=True), 8, rng)
    a = g.add("FullyConnected", [a, g.add_param("last", np.ones((8, 6 * 256), np.float32))], num_hidden=8, no_bias=True)
    late = g.add("null", name="late")  # feeds no BatchNorm
    g.heads = [Port(g.add("add_n", [a, b, late], num_args=3))]
    feeds = {"image": images(128, seed=1), "vector": rng.normal(1, 2, (128, 5)).astype(np.float32),
             "late": np.zeros((128, 8), np.float32)}
    train(g, feeds)
    found = distill(g, {"image": SHAPE, "vector": (1, 5), "late": (1, 8), "other": (1, 2)}, count=16, steps=40)
    assert {k: v.shape for k, v in found.items()} == {"image": (16, 3, 16, 16), "vector": (16, 5), "late": (16, 8)}
    assert 0.1 < found["late"].std() < 2
    shapes = {k: (16, *v.shape[1:]) for k, v in feeds.items()}
    noise = {k: np.random.default_rng(3).standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    match = _Match(g, shapes)
    assert match.loss(found) < match.loss(noise) / 10
