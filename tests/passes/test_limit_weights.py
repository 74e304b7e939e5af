"""Which weights give up codes for CPUs that add two products in 16 bits, as onnxruntime does there."""

from __future__ import annotations

import dataclasses

import networks
import numpy as np
import pytest
from networks import Net, table_of

from qgraph.commands.line import pipeline, split
from qgraph.errors import OptionError
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.options import FreezeOptions
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.limit_weights import FACTORS, LimitWeights
from qgraph.quant.spec import QParams, quantize
from qgraph.semantics.saturation import can_overflow, pairs, sample_layers

Feeds = dict[str, np.ndarray]


def hot(groups: int = 1, channels: int = 8) -> tuple[Graph, Feeds]:
    """conv(relu-like data) with large equal weights in the first two output channels and small ones in the others."""
    n = Net(3, channels=channels)
    conv = n.conv(n.x, 8, groups=groups, act="relu")
    g = n.g
    g.heads = [Port(conv)]
    weight = np.full((8, channels // groups, 3, 3), 0.02, np.float32)
    weight[:2] = 1.0
    weight[2:, 0, 0, 0] = 1.0  # one large weight: no pair of large ones
    weight[2:, 1::2] *= -1
    g.params["conv0_weight"] = weight
    feeds = {"data": np.abs(n.rng.normal(size=(4, channels, 12, 12))).astype(np.float32)}
    return g, feeds


def before(g: Graph, feeds: Feeds, **options: object) -> Graph:
    """Quantized up to limit-weights."""
    steps = split(pipeline(FreezeOptions(target="onnx", **options)))[1]  # type: ignore[arg-type]
    names = [step.name for step in steps]
    table = table_of(g, feeds)
    PassManager(tuple(dataclasses.replace(s, table=table) if isinstance(s, Calibrate) else s
                      for s in steps[:names.index("limit-weights")])).run(g)
    return g


def scales(g: Graph) -> np.ndarray:
    qp = g.find("conv0_weight_q").quant
    assert isinstance(qp, QParams)
    return qp.scale


@pytest.mark.parametrize("isa", ["auto", "avx2"])
@pytest.mark.parametrize("groups", [1, 2])
def test_only_channels_that_overflow_give_up_codes(isa: str, groups: int) -> None:
    g, feeds = hot(groups)
    before(g, feeds)
    old = scales(g)
    step = LimitWeights(isa=isa, feeds=feeds)
    assert step.run(g) == 1
    factors = scales(g) / old
    assert (factors[:2] > (1.9 if isa == "avx2" else 1.1)).all() and np.allclose(factors[2:], 1)
    if isa == "avx2":
        assert step.run(g) == 0  # and again nothing


def test_nothing_overflows_on_vnni_and_nothing_is_known_without_images() -> None:
    g, feeds = hot()
    before(g, feeds)
    assert LimitWeights(isa="vnni", feeds=feeds).run(g) == 0 == LimitWeights().run(g)
    with pytest.raises(OptionError, match="want one of auto, vnni, avx2"):
        LimitWeights(isa="sse", feeds=feeds).run(g)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["channel", "layer", "group"])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_avx2_leaves_nothing_that_could_overflow(name: str, granularity: str) -> None:
    """Whatever the layers read: all codes 0..255 in the worst places."""
    g, feeds = networks.build(name)
    for node in g.dag:  # neighbours of one sign, which networks.py avoids
        if node.name in g.params and node.name.endswith("weight"):
            g.params[node.name] = np.abs(g.params[node.name])
    before(g, feeds, granularity=granularity)
    LimitWeights(isa="avx2", feeds=feeds).run(g)
    layers = sample_layers(g, feeds, "half-even", mlas=True)
    for layer in layers:
        assert not can_overflow(pairs(layer.w, layer.tap_major), layer.top).any(), layer.node


def test_the_error_with_overflow_gets_smaller() -> None:
    g, feeds = hot()
    before(g, feeds)
    layer, = sample_layers(g, feeds, "half-even", mlas=True)
    old = np.abs(layer.excess()).mean()
    LimitWeights(feeds=feeds).run(g)
    layer, = sample_layers(g, feeds, "half-even", mlas=True)
    assert np.abs(layer.excess()).mean() < 0.5 * old


def test_odd_channels_meet_across_taps() -> None:
    """(tap, channel) in a row, as MLAS reads: the last channel of a tap next to the first of the next."""
    codes = np.arange(2 * 3 * 2).reshape(2, 3, 2)  # (N, C, taps)
    found = pairs(codes, True)
    assert found.tolist()[0] == [[0, 2], [4, 1], [3, 5]]
    assert pairs(codes[:, :2], True).tolist() == [sorted_pairs(codes[i, :2]) for i in range(2)]
    assert pairs(codes[:, :1, :1], True).tolist() == [[[0, 0]], [[6, 0]]]


def sorted_pairs(two: np.ndarray) -> list[list[int]]:
    return [[int(two[0, tap]), int(two[1, tap])] for tap in range(two.shape[1])]


def test_the_bound_is_exact() -> None:
    weights = np.array([[[64, 64]], [[64, 65]], [[-64, -64]], [[-64, -65]], [[127, -127]]])
    assert can_overflow(weights, 255).tolist() == [False, True, False, True, False]


def test_factors_reach_what_cannot_overflow() -> None:
    assert FACTORS[0] == 1 and 127 / FACTORS[-1] <= 64


def test_codes_follow_the_new_scales() -> None:
    g, feeds = hot()
    before(g, feeds)
    LimitWeights(isa="avx2", feeds=feeds).run(g)
    qp = g.find("conv0_weight_q").quant
    assert isinstance(qp, QParams)
    codes = quantize(g.params["conv0_weight"], qp)
    assert np.abs(codes[:2]).max() <= 64 and np.abs(codes[2:]).max() == 127
