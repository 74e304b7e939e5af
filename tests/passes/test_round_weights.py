"""Layers are rounded one after the other, each on what those before it give; biases take what is left on average."""

from __future__ import annotations

import tracemalloc

import networks
import numpy as np
import pytest

from qgraph import Graph
from qgraph.calibration.collect import collect
from qgraph.data.open import open_data
from qgraph.ir.graph import Port
from qgraph.passes import _float_reads, round_weights
from qgraph.passes._float_reads import KeptReads
from qgraph.passes.bake_weights import BakeWeights
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.insert_fake_quantize import InsertFakeQuantize
from qgraph.passes.round_weights import RoundWeights
from qgraph.quant.spec import QParams
from qgraph.semantics.interpreter import run

NET = """
%data = input
%w0 = param float32 (8, 3, 3, 3)
%b0 = param float32 (8)
%c0 = Convolution(%data, %w0, %b0) {kernel=(3, 3) num_filter=8 act_type=relu}
%w1 = param float32 (8, 1, 3, 3)
%b1 = param float32 (8)
%c1 = Convolution(%c0, %w1, %b1) {kernel=(3, 3) num_filter=8 num_group=8 act_type=relu}
%w2 = param float32 (12, 4, 1, 1)
%b2 = param float32 (12)
%c2 = Convolution(%c1, %w2, %b2) {kernel=(1, 1) num_filter=12 num_group=2 act_type=relu}
%w3 = param float32 (5, 12)
%b3 = param float32 (5)
%p = Pooling(%c2) {global_pool=True kernel=(1, 1) pool_type=avg}
%d = FullyConnected(%p, %w3, %b3) {num_hidden=5}
return %d
"""
LAYERS = {"c0": "w0", "c1": "w1", "c2": "w2", "d": "w3"}


def images(count: int, seed: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).random((count, 3, 9, 9))
    return {"data": (x + np.roll(x, 1, 2) + np.roll(x, 1, 3)).astype(np.float32)}


def quantized(bits: int = 4, granularity: str = "channel") -> tuple[Graph, Graph, dict[str, np.ndarray]]:
    """(in float, quantized but not rounded, images)"""
    rng = np.random.default_rng(6)
    original = Graph.parse(NET)
    for name, array in original.params.items():
        original.params[name] = rng.normal(0.1, 0.4, array.shape).astype(np.float32)
    feeds = images(16, 5)
    table = collect(original, open_data(feeds, batch_size=4), runtime="onnxruntime")
    g = original.copy()
    InsertFakeQuantize(weight_bits=bits, granularity=granularity).run(g)
    Calibrate(table=table).run(g)
    return original, g, feeds


def noise(original: Graph, g: Graph, feeds: dict[str, np.ndarray]) -> float:
    return float(np.square(run(g, feeds)[0] - run(original, feeds)[0]).mean())


def codes(g: Graph, layer: str) -> tuple[np.ndarray, QParams]:
    fq = g.inputs(g.find(layer))[1].node
    assert isinstance(fq.quant, QParams)
    weight = g.params[g.inputs(fq)[0].node.name]
    return weight / fq.quant.scale.reshape(-1, *(1,) * (weight.ndim - 1)), fq.quant


@pytest.mark.parametrize(("bits", "granularity", "left"), [
    (8, "channel", 0.9), (8, "tensor", 0.5), (8, "group", 0.6), (4, "channel", 0.25), (4, "tensor", 0.25)])
def test_it_helps_on_other_images(bits: int, granularity: str, left: float) -> None:
    original, g, feeds = quantized(bits, granularity)
    plain = g.copy()
    BakeWeights().run(plain)
    assert RoundWeights("half-even", feeds, original).run(g) == len(LAYERS)
    others = images(60, 7)
    assert noise(original, g, others) < left * noise(original, plain, others)


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_on_their_grid(layer: str) -> None:
    original, g, feeds = quantized(3)
    before = codes(g, layer)[1].scale
    RoundWeights("half-even", feeds, original).run(g)
    found, qp = codes(g, layer)
    assert np.abs(found - np.rint(found)).max() < 1e-4 and np.abs(found).max() <= qp.qmax + 1e-4
    assert (qp.scale < 1.41 * before).all() and (qp.scale < before).any()


def test_with_8_bits_a_channel_scales_stay() -> None:
    original, g, feeds = quantized(8)
    before = {layer: codes(g, layer)[1].key for layer in LAYERS}
    RoundWeights("half-even", feeds, original).run(g)
    assert {layer: codes(g, layer)[1].key for layer in LAYERS} == before


@pytest.mark.parametrize(("bits", "left"), [(3, 0.1), (8, 0.2)])
def test_mean_errors_leave(bits: int, left: float) -> None:
    original, g, feeds = quantized(bits)
    plain = g.copy()
    BakeWeights().run(plain)
    RoundWeights("half-even", feeds, original).run(g)
    want, before, after = (run(graph, feeds)[0].mean(axis=0) for graph in (original, plain, g))
    assert np.abs(after - want).max() < left * np.abs(before - want).max()


def test_one_image_shows_no_mean_error_for_sure() -> None:
    original, g, feeds = quantized(3)
    RoundWeights("half-even", {"data": feeds["data"][:1]}, original).run(g)
    assert all(np.array_equal(g.params[name], original.params[name]) for name in ("b0", "b1", "b2", "b3"))


def test_a_second_run_and_weights_that_training_left_on_a_grid_change_nothing() -> None:
    original, g, feeds = quantized(4)
    RoundWeights("half-even", feeds, original).run(g)
    digest = g.digest()
    assert RoundWeights("half-even", feeds, original).run(g) == 0 and g.digest() == digest


def test_channels_in_another_order_are_compared_with_their_own() -> None:
    original, g, feeds = quantized(3)
    twin = g.copy()
    order = np.random.default_rng(8).permutation(8)
    for name in ("w0", "b0", "w1", "b1"):
        twin.params[name] = twin.params[name][order]
    for name in ("c0", "c0_q", "c1", "c1_q"):
        for node in [n for n in twin.nodes() if n.name == name]:
            node.layout = tuple(order.tolist())
    for fq in twin.nodes("fake_quantize"):
        qp = fq.quant
        if isinstance(qp, QParams) and qp.granularity == "channel" and fq.name in ("w0_q", "w1_q"):
            fq.quant = qp.spec.with_numbers(qp.scale[order])
    found = []
    for graph in (g, twin):
        RoundWeights("half-even", feeds, original).run(graph)
        found.append(run(graph, feeds, [Port(graph.find("c1"))])[0])
    np.testing.assert_allclose(found[1], found[0][:, order], rtol=1e-4, atol=1e-4)


def test_it_holds_what_is_alive_not_what_all_layers_read() -> None:
    n = networks.Net(3, channels=16, size=64)
    x = n.x
    for number in range(8):
        x = n.conv(x, 16, name=f"conv{number}")
    g = n.done(x)
    feeds = {"data": n.rng.normal(size=(4, *n.shape)).astype(np.float32)}
    table = networks.table_of(g, feeds)
    original = g.copy()
    InsertFakeQuantize().run(g)
    Calibrate(table=table).run(g)
    tracemalloc.start()
    RoundWeights("mxnet", feeds, original).run(g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = feeds["data"].nbytes  # of a layer
    assert peak < 30 * one, peak / one


@pytest.mark.parametrize("bits", [4, 8])
def test_targets_share_what_the_float_network_reads(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, g, feeds = quantized(bits)
    walks: list[int] = []

    def rounded(kept: KeptReads | None) -> dict[str, np.ndarray]:
        taken: list[np.ndarray] = []
        patches = round_weights.patches
        again = g.copy()
        with monkeypatch.context() as patched:
            patched.setattr(round_weights, "patches", lambda *args: taken.append(patches(*args)) or taken[-1])
            RoundWeights(feeds=feeds, original=original, kept_reads=kept).run(again)
        walks.append(len(taken) // len(LAYERS))
        return again.params

    kept = KeptReads()
    with monkeypatch.context() as patched:
        patched.setattr(_float_reads, "KEPT_BYTES", 0)
        full = KeptReads()
    found = [rounded(each) for each in (None, kept, kept, full, full)]
    assert walks == [2, 2, 1, 2, 2]  # the quantized network and the float one
    assert all(np.array_equal(found[0][name], each[name]) for each in found for name in found[0])


def test_a_bias_that_is_computed_stays_as_it_is() -> None:
    original = Graph.parse(NET.replace("%c0 = Convolution(%data, %w0, %b0)", "%b = _mul_scalar(%b0) {scalar=2.0}\n"
                                       "%c0 = Convolution(%data, %w0, %b)"))
    rng = np.random.default_rng(6)
    for name, array in original.params.items():
        original.params[name] = rng.normal(0.1, 0.4, array.shape).astype(np.float32)
    feeds = images(4, 5)
    table = networks.table_of(original, feeds)
    g = original.copy()
    InsertFakeQuantize(weight_bits=3).run(g)
    Calibrate(table=table).run(g)
    assert RoundWeights("half-even", feeds, original).run(g) == len(LAYERS)
    assert np.array_equal(g.params["b0"], original.params["b0"])
