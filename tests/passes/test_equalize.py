"""equalize: what it may scale, that the outputs stay, what it gains and when it does nothing. No MXNet needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import networks
import numpy as np
import pytest
from networks import Net

from qgraph.analysis.channels import as_the_users, channel_ends
from qgraph.analysis.difference import Difference
from qgraph.analysis.scalings import channel_scalings
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import PassManager
from qgraph.passes import PIPELINES
from qgraph.passes._readings import Look, on_the_reference, read_sample
from qgraph.passes.equalize import Equalize
from qgraph.quant.spec import QSpec
from qgraph.semantics.interpreter import run


def finished(n: Net, *heads: Node) -> tuple[Graph, dict[str, np.ndarray]]:
    g = n.done(*heads)
    PassManager(PIPELINES["float"]).run(g)
    return g, {"data": np.random.default_rng(3).normal(size=(16, *n.shape)).astype(np.float32)}


def small() -> Net:
    return Net(5, channels=3, size=6)


def sqnr(g: Graph, q: Graph, feeds: dict[str, np.ndarray]) -> list[float]:
    found = []
    for want, got in zip(run(g, feeds), run(q, feeds)):
        difference = Difference()
        difference.update(want, got)
        assert difference.sqnr is not None
        found.append(float(difference.sqnr))
    return found


def quantized(g: Graph, feeds: dict[str, np.ndarray], **options: Any) -> Graph:
    """For mxnet-sim."""
    q = g.copy()
    PassManager(tuple(networks.steps("mxnet-sim", networks.table_of(q, feeds), feeds, **options))).run(q)
    return q


# ---- what may be scaled, and the outputs stay -----------------------------------------------------------------------

def prelu(n: Net, x: Node) -> Node:
    return n.op("LeakyReLU", x, n.param("gamma", 4), act_type="prelu")


def constant(n: Net, x: Node) -> Node:
    factors = np.array([0.5, 2, 1, 3], np.float32).reshape(1, 4, 1, 1)
    return n.op("broadcast_mul", x, n.g.add_param("factors", factors))


def summed(n: Net, x: Node) -> Node:
    return n.act(n.op("elemwise_add", x, n.conv(n.x, 4, 1, "", name="branch")), "relu")


def added_three(n: Net, x: Node) -> Node:
    return n.op("add_n", x, n.conv(n.x, 4, 1, name="b1"), n.conv(n.x, 4, 1, name="b2"), num_args=3)


def joined(n: Net, x: Node) -> Node:
    return n.concat(n.conv(n.x, 2, 1, name="branch"), x)


THROUGH: dict[str, tuple[Callable[[Net, Node], Node], int]] = {  # -> how many orders of channels there are
    "relu": (lambda n, x: n.act(x, "relu"), 1),
    "leaky": (lambda n, x: n.op("LeakyReLU", x, act_type="leaky", slope=0.1), 1),
    "prelu": (prelu, 1),
    "max pooling": (lambda n, x: n.pool(x), 1),
    "average pooling": (lambda n, x: n.pool(x, "avg"), 1),
    "global pooling": (lambda n, x: n.global_pool(x), 1),
    "adaptive pooling": (lambda n, x: n.op("_contrib_AdaptiveAvgPooling2D", x, output_size=(2, 2)), 1),
    "upsampling": (lambda n, x: n.op("UpSampling", x, scale=2, sample_type="nearest", num_args=1), 1),
    "padding": (lambda n, x: n.op("Pad", x, mode="edge", pad_width=(0, 0, 0, 0, 1, 1, 1, 1)), 1),
    "number": (lambda n, x: n.op("_mul_scalar", x, scalar=-2.5), 1),
    "constant": (constant, 1),
    "sum": (summed, 1),
    "sum of three": (added_three, 1),
    "concatenation": (joined, 2),
    "twice": (lambda n, x: n.concat(x, x), 1),
    "depthwise": (lambda n, x: n.conv(x, 4, groups=4, name="depthwise"), 2),
    "groups": (lambda n, x: n.conv(x, 6, groups=2, name="groups"), 2),
    "transposed": (lambda n, x: n.deconv(x, 4), 2),
}


@pytest.mark.parametrize("reader", ["convolution", "dense", "flat"])
@pytest.mark.parametrize("kind", THROUGH)
def test_outputs_stay(kind: str, reader: str) -> None:
    """With factors that an earlier run found, of every order of channels."""
    n = small()
    through, count = THROUGH[kind]
    x = through(n, n.conv(n.x, 4, act="", name="first"))
    if reader == "convolution":
        head = n.conv(x, 5, 1, "", name="last")
    else:
        flat = n.op("Flatten", n.op("_contrib_AdaptiveAvgPooling2D", x, output_size=(2, 2)))
        flat = n.op("Dropout", flat) if reader == "flat" else flat
        head = n.dense(flat, 4 * n.channels[x], 5)
    g, feeds = finished(n, head)
    orders = channel_scalings(g)
    assert len(orders) == count
    rng = np.random.default_rng(0)
    factors = {order.writers[0].name: rng.uniform(0.1, 9, order.count).tolist() for order in orders}
    q = g.copy()
    assert Equalize(factors=factors).run(q) == count
    q.verify()
    for want, got in zip(run(g, feeds), run(q, feeds)):
        assert np.abs(want - got).max() < 2e-6 * np.abs(want).max()
        assert np.abs(want - want[:1]).max() > 0.1 * np.abs(want).max()
    theirs = {node.name: node for node in g.dag}
    scaled = [node for node in q.nodes() if node.scales is not None]
    assert len(scaled) >= count
    values = run(q, feeds, [Port(node) for node in scaled])
    for node, want, got in zip(scaled, run(g, feeds, [Port(theirs[node.name]) for node in scaled]), values):
        assert np.abs(want - as_the_users(got, node)).max() < 2e-6 * np.abs(want).max(), node
        assert np.abs(want - got).max() > 0.1 * np.abs(want).max(), node


def shared(n: Net, x: Node) -> Node:
    weight = n.g.add_param("w", n.weight(4, 4, 1, 1))
    return n.op("elemwise_add", n.conv(x, 4, 1, weight=weight, name="s1"), n.conv(x, 4, 1, weight=weight, name="s2"))


STOPS: dict[str, Callable[[Net, Node], Node]] = {
    "clip": lambda n, x: n.act(x, "relu6"),
    "sigmoid": lambda n, x: n.act(x, "sigmoid"),
    "tanh": lambda n, x: n.op("tanh", x),
    "softmax": lambda n, x: n.op("softmax", x, axis=1),
    "LRN": lambda n, x: n.op("LRN", x, nsize=3),
    "InstanceNorm": lambda n, x: n.op("InstanceNorm", x, n.param("gamma", 4), n.param("beta", 4)),
    "L2Normalization": lambda n, x: n.op("L2Normalization", x, mode="channel"),
    "unknown op": lambda n, x: n.op("_contrib_somebodys", x),
    "slice": lambda n, x: n.op("slice_axis", x, channels=2, axis=1, begin=0, end=2),
    "number": lambda n, x: n.op("_plus_scalar", x, scalar=1.0),
    "padding with ones": lambda n, x: n.op("Pad", x, mode="constant", constant_value=1,
                                           pad_width=(0, 0, 0, 0, 1, 1, 1, 1)),
    "elu": lambda n, x: n.op("LeakyReLU", x, act_type="elu"),
    "input": lambda n, x: n.op("elemwise_add", x, n.x),
    "shared weight": shared,
    "product": lambda n, x: n.op("elemwise_mul", x, x),
}


@pytest.mark.parametrize("kind", STOPS)
def test_what_forbids_factors(kind: str) -> None:
    n = Net(5, channels=4, size=6)
    g, _ = finished(n, n.conv(STOPS[kind](n, n.conv(n.x, 4, act="", name="first")), 5, 1, "", name="last"))
    assert "first" not in {node.name for order in channel_scalings(g) for node in order.writers}


def test_outputs_of_the_network_keep_their_channels() -> None:
    n = small()
    x = n.conv(n.x, 4, name="first")
    g, _ = finished(n, n.conv(x, 4, name="last"), n.pool(x))
    assert channel_scalings(g) == []


# ---- what it gains --------------------------------------------------------------------------------------------------

def uneven() -> tuple[Graph, dict[str, np.ndarray]]:
    """BatchNorms of gammas from 1/100 to 100, and readers that are trained to it.

    """
    n = Net(7, channels=3, size=8)
    gamma = np.logspace(-2, 2, 16).astype(np.float32)[np.random.default_rng(1).permutation(16)]
    x = n.conv(n.x, 16, act="", name="first")
    beta, mean = n.param("beta", 16), n.param("mean", 16)
    n.g.params["beta"] *= gamma
    var = n.g.add_param("var", np.ones(16, np.float32))
    x = n.op("BatchNorm", x, n.g.add_param("gamma", gamma), beta, mean, var, fix_gamma=False, eps=1e-5)
    x = n.conv(n.act(x, "relu"), 8, name="second")
    n.g.params["second_weight"] /= gamma[:, None, None]
    return finished(n, n.head(x))


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_uneven_channels_gain_10_db(granularity: str) -> None:
    g, feeds = uneven()
    q = g.copy()
    step = Equalize(feeds=feeds, granularity="tensor" if granularity == "layer" else granularity)
    assert PassManager((step,)).run(q) >= 1
    test = {"data": np.random.default_rng(9).normal(size=(32, 3, 8, 8)).astype(np.float32)}
    before, after = (sqnr(g, quantized(graph, feeds, granularity=granularity), test) for graph in (g, q))
    assert after[0] > before[0] + 10
    assert after[0] > 28


def test_even_channels_are_left_alone() -> None:
    n = small()
    x = n.conv(n.x, 8, 1, name="first")
    n.g.params["first_weight"][:] = n.g.params["first_weight"][:1]
    n.g.params["first_bias"][:] = 0.1
    g, feeds = finished(n, n.head(n.conv(x, 8)))
    digest = g.digest()
    for granularity in ("channel", "group", "tensor"):
        assert Equalize(feeds=feeds, granularity=granularity).run(g) == 0
    assert g.digest() == digest


def test_a_second_run_finds_its_work_done() -> None:
    g, feeds = uneven()
    assert Equalize(feeds=feeds).run(g) > 0
    digest = g.digest()
    assert Equalize(feeds=feeds).run(g) == 0 and g.digest() == digest


@pytest.mark.parametrize("feeds", [None, {"data": np.ones((1, 3, 8, 8), np.float32)}])
def test_without_two_images_nothing_is_known(feeds: dict[str, np.ndarray] | None) -> None:
    g, _ = uneven()
    assert Equalize(feeds=feeds).run(g) == 0


def test_dead_channels_stay_and_factors_are_bounded() -> None:
    g, feeds = uneven()
    g.params["first_weight"][3] = 0
    g.params[g.inputs(named(g, "first"))[2].node.name][3] = 0
    Equalize(feeds=feeds).run(g)
    scales = np.array(named(g, "first").scales)
    assert scales[3] == 1 and 1 <= scales.min() < scales.max() == 256


def with_another(feeds: dict[str, np.ndarray], channel: int, largest: Callable[[np.ndarray], float]) -> Any:
    """A sweep over the sample and one image more, in pieces of three; a channel of "first" is larger in that one."""
    def sweep(g: Graph, ports: Sequence[Port], look: Look) -> None:
        values = dict(zip(ports, run(g, feeds, list(ports))))
        count = len(feeds["data"])
        assert count % 2 == 0
        for start in range(0, count, 3):
            look.add((start, min(3, count - start), {port: x[start:start + 3] for port, x in values.items()}))
        look.add((count, 1, {port: value[:1] for port, value in values.items()}))
        more = {port: value[:1].copy() for port, value in values.items()}
        for port, value in more.items():
            if port.node.name == "first":
                value[:, channel].flat[0] = largest(values[port][:, channel])
        look.add((count + 1, 1, more))

    return sweep


def test_a_sample_does_not_depend_on_the_pieces() -> None:
    g, feeds = uneven()
    layers = [node for node in g.toposort() if node.op in ("Convolution", "FullyConnected")]
    ports = [g.inputs(node)[0] for node in layers]
    values = dict(zip(ports, run(g, feeds, ports)))
    found = []
    for size in (1, 3, 16):
        look = Look(g, layers, ports, 15)
        for start in range(0, 16, size):
            look.add((start, min(size, 16 - start), {port: x[start:start + size] for port, x in values.items()}))
        found.append(look)
    for node, port in zip(layers, ports):
        for half in range(2):
            reads = [(look.read(node) or ())[half] for look in found]
            assert all(np.array_equal(reads[0], other) for other in reads) and reads[0].std() > 0
            assert np.isin(reads[0], np.append(values[port][:15][half::2], 0)).all()
        assert all(np.array_equal(look.ranges[port], channel_ends(values[port], 16)) for look in found)


def test_ranges_that_only_other_images_show_are_respected() -> None:
    """A channel that is small in the sample and large elsewhere is not made large."""
    g, feeds = uneven()
    alone = g.copy()
    Equalize(feeds=feeds).run(alone)
    small = int(np.argmax(named(alone, "first").scales))

    Equalize(feeds=feeds, sweep=with_another(feeds, small, lambda values: 1e3)).run(g)
    scales = named(g, "first").scales
    assert scales is None or scales[small] < 2


def large_before_its_activation() -> tuple[Graph, dict[str, np.ndarray]]:
    """One channel of eight is small behind its PReLU, and large in front of it."""
    n = Net(7, channels=3, size=8)
    x = n.conv(n.x, 8, act="", name="first")
    gamma = np.full(8, 0.5, np.float32)
    gamma[2] = 1e-3
    n.g.params["first_bias"][2] = -20
    x = n.op("LeakyReLU", x, n.g.add_param("gamma", gamma), act_type="prelu")
    x = n.conv(x, 8, name="second")
    n.g.params["second_weight"][:, 2] *= 300
    return finished(n, n.head(x))


def test_what_is_quantized_between_layers_counts() -> None:
    """For mxnet-sim that channel gets more of the codes; others round it in front of the PReLU, too."""
    found = {}
    for between in (False, True):
        g, feeds = large_before_its_activation()
        Equalize(feeds=feeds, between=between).run(g)
        found[between] = (named(g, "first").scales or (1,) * 8)[2]
    assert found[False] > 10 and found[True] < 4


@pytest.mark.parametrize(("act", "limit"), [("relu", 0), ("", 64)])
def test_weights_on_signed_data_have_fewer_codes(act: str, limit: int) -> None:
    n = small()
    g, feeds = finished(n, n.conv(n.conv(n.x, 4, act=act, name="first"), 4, name="second"))
    second, spec = named(g, "second"), QSpec(8, True, narrow=True, granularity="channel")
    ports = [g.inputs(second)[0]]
    look = Look(g, [second], ports, 16)
    look.add(on_the_reference(g, ports, feeds, None))
    assert read_sample(g, {second: spec}, QSpec(8), look, 64)[second].spec.limit == limit


def test_channels_that_differ_between_the_halves_get_more_room() -> None:
    """Three times the range in one half leaves room for three times more than that."""
    g, feeds = uneven()
    alone = g.copy()
    Equalize(feeds=feeds).run(alone)
    before = np.array(named(alone, "first").scales)
    channel = int(np.argmax((before > 8) & (before < 64)))

    Equalize(feeds=feeds, sweep=with_another(feeds, channel, lambda values: 3 * values.max())).run(g)
    after = np.array(named(g, "first").scales)
    assert 6 < before[channel] / after[channel] < 14
    assert np.array_equal(np.delete(after, channel), np.delete(before, channel))


def named(g: Graph, name: str) -> Node:
    return next(node for node in g.dag if node.name == name)


# ---- factors of an earlier run --------------------------------------------------------------------------------------

def test_factors_of_an_earlier_run_give_the_same_graph() -> None:
    g, feeds = uneven()
    first, again = g.copy(), g.copy()
    Equalize(feeds=feeds).run(first)
    factors = {n.name: list(n.scales) for n in first.dag if n.scales and ops.kind(n) == ops.COMPUTE}
    assert Equalize(factors=factors, feeds=feeds).run(again) == len(factors)
    assert again.digest() == first.digest()


@pytest.mark.parametrize("factors", [{}, {"first": [1.0, 2.0]}, {"nobody": [2.0] * 16}])
def test_factors_that_do_not_fit_change_nothing(factors: dict[str, list[float]]) -> None:
    g, feeds = uneven()
    assert Equalize(factors=factors, feeds=feeds).run(g) == 0


def test_scales_are_part_of_the_text() -> None:
    g, feeds = uneven()
    Equalize(feeds=feeds).run(g)
    again = Graph.parse(g.text())
    assert again.text() == g.text() and named(again, "first").scales == named(g, "first").scales
