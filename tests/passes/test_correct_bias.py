"""Mean errors leave the outputs, layer by layer, as far as the images show them for sure."""

from __future__ import annotations

import networks
import numpy as np
import pytest

from qgraph import Graph
from qgraph.calibration.collect import collect
from qgraph.data.open import open_data
from qgraph.ir.graph import Port
from qgraph.ir.rewrite import PassManager
from qgraph.passes.bake_weights import BakeWeights
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.correct_bias import CorrectBias
from qgraph.passes.insert_fake_quantize import InsertFakeQuantize
from qgraph.semantics.interpreter import run

NET = """
%data = input
%w0 = param float32 (8, 3, 3, 3)
%b0 = param float32 (8)
%c0 = Convolution(%data, %w0, %b0) {kernel=(3, 3) num_filter=8 act_type=relu}
%w1 = param float32 (8, 1, 3, 3)
%b1 = param float32 (8)
%c1 = Convolution(%c0, %w1, %b1) {kernel=(3, 3) num_filter=8 num_group=8}
%w2 = param float32 (5, 8)
%b2 = param float32 (5)
%p = Pooling(%c1) {global_pool=True kernel=(1, 1) pool_type=avg}
%d = FullyConnected(%p, %w2, %b2) {num_hidden=5}
return %d
"""


def quantized(images: int = 12, bits: int = 4) -> tuple[Graph, Graph, dict[str, np.ndarray]]:
    """(in float, quantized with weights cut towards zero, images)"""
    rng = np.random.default_rng(6)
    original = Graph.parse(NET)
    for name, array in original.params.items():
        original.params[name] = rng.normal(0.1, 0.4, array.shape).astype(np.float32)
    feeds = {"data": rng.random((images, 3, 9, 9)).astype(np.float32)}
    table = collect(original, open_data(feeds, batch_size=4), runtime="onnxruntime")
    g = original.copy()
    InsertFakeQuantize(weight_bits=bits).run(g)
    Calibrate(table=table).run(g)
    for name in ("w0", "w1", "w2"):
        g.params[name] = g.params[name] * np.float32(0.93)
    BakeWeights().run(g)
    return original, g, feeds


def mean_errors(original: Graph, g: Graph, feeds: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Of each channel of a layer, beside the spread of its values."""
    want, found = (run(graph, feeds, [Port(graph.find(name))])[0].astype(np.float64) for graph in (original, g))
    axes = (0, *range(2, want.ndim))
    return np.abs((found - want).mean(axis=axes)) / want.std(axis=axes).max()


@pytest.mark.parametrize("name", ["c0", "c1", "d"])
def test_mean_errors_leave(name: str) -> None:
    original, g, feeds = quantized()
    before = mean_errors(original, g, feeds, name)
    assert CorrectBias("half-even", original, feeds).run(g) == 3
    assert before.max() > 0.05 and mean_errors(original, g, feeds, name).max() < 0.2 * before.max()
    assert CorrectBias("half-even", original, feeds).run(g) == 0


def test_it_helps_on_other_images() -> None:
    original, g, feeds = quantized()
    others = {"data": np.random.default_rng(7).random((60, 3, 9, 9)).astype(np.float32)}

    def noise() -> float:
        return float(np.square(run(g, others)[0] - run(original, others)[0]).mean())

    before = noise()
    CorrectBias("half-even", original, feeds).run(g)
    assert noise() < 0.5 * before


def test_one_image_shows_nothing_for_sure() -> None:
    original, g, feeds = quantized()
    digest = g.digest()
    assert CorrectBias("half-even", original, {"data": feeds["data"][:1]}).run(g) == 0 and g.digest() == digest
    assert CorrectBias("half-even", None, feeds).run(g) == CorrectBias("half-even", original).run(g) == 0


def test_channels_in_another_order_are_compared_with_their_own() -> None:
    original, g, feeds = quantized()
    twin = g.copy()
    order = np.random.default_rng(8).permutation(8)
    for name in ("w0", "b0", "w1", "b1"):
        twin.params[name] = twin.params[name][order]
    twin.params["w2"] = twin.params["w2"][:, order]
    for name in ("c0", "c1"):
        twin.find(name).layout = tuple(order.tolist())
    for weight, _ in ((n, n.quant) for n in twin.nodes("fake_quantize") if n.quant.granularity == "channel"):
        if len(weight.quant.scale) == 8:
            weight.quant = weight.quant.spec.with_numbers(weight.quant.scale[order])
    for graph in (g, twin):
        CorrectBias("half-even", original, feeds).run(graph)
    np.testing.assert_allclose(twin.params["b0"], g.params["b0"][order], atol=1e-6)
    np.testing.assert_allclose(run(twin, feeds)[0], run(g, feeds)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", ["mxnet-sim", "onnx"])
def test_it_is_in_the_lines_that_it_helps(target: str) -> None:
    g, feeds = networks.build("residual_linear")
    manager = PassManager(tuple(networks.steps(target, networks.table_of(g, feeds), feeds, g.copy(), weight_bits=3,
                                               effort="best")))
    manager.run(g)
    assert [record.changed > 3 for record in manager.records if record.name == "correct-bias"] == [True]
