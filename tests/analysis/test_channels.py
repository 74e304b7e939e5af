"""Orders of channels: which are free, that changing them changes no output, and that `compare` speaks of the user's."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from helpers import VNNI
from networks import Net, steps, table_of

from qgraph.analysis.channels import Order, channel_orders, reorder
from qgraph.errors import FormatError
from qgraph.ir import attributes
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import PassManager
from qgraph.quant.spec import QParams
from qgraph.semantics.interpreter import run

Free = list[tuple[int, set[tuple[str, int]]]]

# network -> (channels, {(convolution that reads them, from its input channel)}) of every order that is free
FREE: dict[str, Free] = {
    "conv_pool_conv": [(8, {("conv1", 0)}), (12, {("conv2", 0)})],
    "concats": [(8, {("conv1", 0), ("conv2", 0)}), (6, {("conv3", 0), ("conv4", 0), ("conv4", 20)}),
                (10, {("conv3", 6), ("conv4", 6)}), (4, {("conv4", 16)})],
    "concat_mixed": [],  # a part is the network's input, another is added to nothing that is known
    "concat_shared_readers": [],  # read by FullyConnected in the end
    "residual_identity": [(8, {("conv2", 0)}), (8, {("conv4", 0)})],  # the trunk ends in FullyConnected
    "residual_downsample": [(8, {("conv1", 0), ("conv3", 0)}), (12, {("conv2", 0)})],
    "residual_swapped": [],  # the trunk is an output
    "residual_linear": [(8, {("conv1", 0)}), (12, {("conv4", 0)}), (12, {("conv7", 0)}),  # past depthwise ones
                        (6, {("conv2", 0), ("conv5", 0), ("conv8", 0)})],
    "residual_of_input": [],
    "residual_three": [(8, {("conv1", 0), ("conv2", 0), ("conv3", 0)})],
    "heads": [(8, {("conv1", 0), ("conv2", 0)})],
    "squeeze_excite": [(4, {("conv3", 0)})],  # broadcast_mul ends the others
    "dense_behind_flatten": [], "dense_only": [], "deconvolution": [],
    "one_by_one_head": [(8, {("conv1", 0)}), (8, {("conv2", 0)})],
    "grouped": [],
    "shared_weight": [], "shared_weight_both_signs": [],
    "fused_clip": [(8, {("conv2", 0)})],
    "leaky": [],
    "upsampling": [(8, {("conv1", 0), ("conv2", 0), ("conv4", 0)}), (8, {("conv3", 0), ("conv4", 8)})],
}


def free(orders: list[Order]) -> Free:
    return sorted(((o.count, {(n.name, start) for n, start in o.readers}) for o in orders), key=repr_of)


def repr_of(order: tuple[int, set[tuple[str, int]]]) -> str:
    return f"{order[0]:6} {sorted(order[1])}"


def quantized(name: str, target: str = "mxnet", **options: Any) -> tuple[Graph, Graph, dict[str, np.ndarray]]:
    g, feeds = networks.build(name)
    q = g.copy()
    PassManager(tuple(steps(target, table_of(g, feeds), **options))).run(q)
    return g, q, feeds


def shuffle(g: Graph, seed: int = 0, together: int = 1) -> int:
    """Another order wherever one is free; `together` neighbouring channels stay neighbours."""
    rng = np.random.default_rng(seed)
    orders = channel_orders(g)
    for order in orders:
        reorder(g, order, rng.permutation(np.arange(order.count).reshape(-1, together)).ravel())
    g.verify()
    return len(orders)


# ---- what is free ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", FREE)
def test_which_orders_are_free(name: str) -> None:
    """In the float graph and in the quantized one."""
    for g in quantized(name)[:2]:
        assert free(channel_orders(g)) == sorted(FREE[name], key=repr_of)


@pytest.mark.parametrize("name", ["conv_pool_conv", "concats", "residual_linear", "upsampling"])
def test_excluded_layers_follow_as_well(name: str) -> None:
    g, feeds = networks.build(name)
    table = table_of(g, feeds)
    for exclude in networks.exclusions(g):
        q = g.copy()
        PassManager(tuple(steps("mxnet", table, exclude=exclude))).run(q)
        assert free(channel_orders(q)) == sorted(FREE[name], key=repr_of)


def param(n: Net, *shape: int) -> Any:
    return n.param("constant", *shape)


MIXED = {
    "sum with a constant": lambda n, x: n.op("elemwise_add", x, param(n, networks.IMAGES, 8, 12, 12)),
    "constant times": lambda n, x: n.op("elemwise_mul", param(n, networks.IMAGES, 8, 12, 12), x, channels=8),
    "concatenation with a constant": lambda n, x: n.concat(
        with_channels(n, param(n, networks.IMAGES, 8, 12, 12), 8), x),
    "doubling that joins": lambda n, x: n.op("UpSampling", x, n.conv(n.x, 8), channels=16, scale=1, num_args=2,
                                             sample_type="nearest"),
    "two filters a channel": lambda n, x: n.conv(x, 16, groups=8),
    "groups": lambda n, x: n.conv(x, 8, groups=2),
    "softmax over channels": lambda n, x: n.op("softmax", x, axis=1),
    "sum of unlike parts": lambda n, x: n.op("elemwise_add", n.concat(x, n.conv(x, 4)),
                                             n.concat(n.conv(x, 4), n.conv(x, 8))),
}


def with_channels(n: Net, node: Any, channels: int) -> Any:
    n.channels[node] = channels
    return node


@pytest.mark.parametrize("name", MIXED)
def test_what_fixes_an_order(name: str) -> None:
    n = Net(3)
    x = n.conv(n.x, 8, name="fixed")
    g = n.done(n.head(n.conv(MIXED[name](n, x), 8, name="reader")))
    assert not [o for o in channel_orders(g) if o.nodes and o.nodes[0][0].name == "fixed"]
    feeds = {"data": n.rng.normal(size=(networks.IMAGES, *n.shape)).astype(np.float32)}
    want = run(g, feeds)
    shuffle(g)
    assert np.allclose(run(g, feeds)[0], want[0], atol=1e-5)


def test_a_scale_of_neighbouring_channels_fixes_their_order() -> None:
    """Of a group of filters; of an activation per channel."""
    g, q, _ = quantized("conv_pool_conv", "mxnet-sim")
    assert len(channel_orders(q)) == 2
    weight = q.inputs(q.find("conv0"))[1].node
    per_channel = weight.quant
    assert isinstance(per_channel, QParams)
    weight.quant = dataclasses.replace(per_channel, granularity="group", groups=2, scale=per_channel.scale[:2],
                                       zero_point=per_channel.zero_point[:2])
    assert free(channel_orders(q)) == [(12, {("conv2", 0)})]
    data = q.inputs(q.find("conv2"))[0].node
    assert isinstance(data.quant, QParams) and data.op == "fake_quantize"
    data.quant = dataclasses.replace(data.quant, granularity="channel", axis=1,
                                     scale=np.full(12, data.quant.scale), zero_point=np.zeros(12))
    assert free(channel_orders(q)) == []


def test_a_tensor_joined_with_itself() -> None:
    n = Net(4)
    x = n.conv(n.x, 6, name="a")
    g = n.done(n.head(n.conv(n.concat(x, x), 8, name="b")))
    feeds = {"data": n.rng.normal(size=(2, *n.shape)).astype(np.float32)}
    before = run(g, feeds)
    assert free(channel_orders(g)) == [(6, {("b", 0), ("b", 6)})]
    new = np.array([3, 1, 5, 0, 2, 4])
    reorder(g, channel_orders(g)[0], new)
    assert np.allclose(run(g, feeds)[0], before[0], atol=1e-5)
    assert g.nodes("Concat")[0].layout == (*new, *new + 6)


# ---- changing them --------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize(("target", "granularity"), [("mxnet", "channel"), ("mxnet-sim", "channel"),
                                                     ("mxnet-sim", "layer"), ("mxnet-sim", "group")])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_order_gives_the_same_outputs_bit_for_bit(name: str, target: str, granularity: str) -> None:
    """In exact integers, with biases, quantizers and scales per channel, twice in a row."""
    _, q, feeds = quantized(name, target, granularity=granularity)
    want = run(q, feeds)
    weights = {name: array.copy() for name, array in q.params.items()}
    for seed in range(2):
        changed = shuffle(q, seed)
        got = run(q, feeds)
        assert all(np.array_equal(a, b) for a, b in zip(want, got))
    assert bool(changed) == any(not np.array_equal(weights[k], v) for k, v in q.params.items())


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_order_of_a_float_graph_gives_the_same_outputs(name: str) -> None:
    g, feeds = networks.build(name)
    want = run(g, feeds)
    shuffle(g)
    for a, b in zip(want, run(g, feeds)):
        assert np.allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_the_arrays_of_a_copy_are_left_alone() -> None:
    _, q, _ = quantized("concats")
    digest = q.digest()
    assert shuffle(q.copy()) and q.digest() == digest


def test_nodes_remember_their_order() -> None:
    """Of every tensor, over several changes: put back into the user's order, it is what it was."""
    g, q, feeds = quantized("concats")
    nodes = [n for n, _, _ in itertools.chain.from_iterable(o.nodes for o in channel_orders(q))]
    want = run(q, feeds, [Port(n) for n in nodes])
    shuffle(q, 1)
    shuffle(q, 2)
    moved = 0
    for node, before, now in zip(nodes, want, run(q, feeds, [Port(n) for n in nodes])):
        order = node.layout
        back = np.empty_like(now)
        back[:, np.arange(now.shape[1]) if order is None else list(order)] = now
        moved += order is not None and not np.array_equal(now, before)
        assert np.array_equal(back, before), node
    assert moved > 5


# ---- compare --------------------------------------------------------------------------------------------------------

@pytest.mark.mxnet
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_compare_speaks_of_the_users_channels(name: str) -> None:
    """In MXNet's int8 kernels, which depend on the order only where they saturate.

    Without VNNI they add neighbouring channels in 16 bits. The pairs of these networks do not overflow (networks.Net),
    so there pairs stay together.
    """
    from qgraph.commands.compare import compare
    from qgraph.targets.mxnet.int8 import lower

    g, q, feeds = quantized(name)
    before = compare(g, lower(q), feeds)
    moved = shuffle(q, together=1 if VNNI else 2)
    after = compare(g, lower(q), feeds)
    assert [row["name"] for row in before["layers"]] == [row["name"] for row in after["layers"]]
    for a, b in zip(before["layers"], after["layers"]):
        assert a["sqnr_db"] == b["sqnr_db"] or abs(a["sqnr_db"] - b["sqnr_db"]) < 0.05, (a["name"], moved)
    assert before["output"]["sqnr_db"] == pytest.approx(after["output"]["sqnr_db"], abs=0.05)


GARBAGE = ["", "[", "null", "7", "[]", "[0,0,1,2,3,4,5,6]", "[1,2,3,4,5,6,7,8]", '"01234567"', "[[0,1],[2]]", "{}",
           "[1e400,0]", "[NaN]", "[99999999999999999999]", "[" * 100_000, '["a"]']


@pytest.mark.parametrize("text", GARBAGE, ids=lambda t: t[:20])
def test_an_order_that_is_none_is_a_format_error(text: str) -> None:
    node = Node("Convolution", "conv0", {attributes.LAYOUT: text})
    with pytest.raises(FormatError, match="conv0:Convolution: __channel_order__: found .*, want a permutation"):
        attributes.take(node)


def test_an_order_of_other_channels_is_a_format_error() -> None:
    g, _ = networks.build("conv_pool_conv")
    g.find("conv0").layout = (1, 0, 2)
    digest = g.digest()
    with pytest.raises(FormatError, match="an order of 3, want 8"):
        shuffle(g)
    assert g.digest() == digest


@pytest.mark.mxnet
@pytest.mark.parametrize("text", ["[", "[0,0,1,2,3,4,5,6]", "{}", '"x"'])
def test_compare_refuses_a_file_with_a_wrong_order(text: str, tmp_path: Path) -> None:
    from qgraph.commands.compare import compare
    from qgraph.formats.mxnet_writer import save
    from qgraph.targets.mxnet.int8 import lower

    g, q, feeds = quantized("conv_pool_conv")
    assert shuffle(q)
    save(g, tmp_path / "float")
    save(lower(q), tmp_path / "int8")
    path = tmp_path / "int8-symbol.json"
    symbol = json.loads(path.read_text())
    node = next(n for n in symbol["nodes"] if n["name"] == "conv0")
    assert sorted(json.loads(node["attrs"][attributes.LAYOUT])) == list(range(8))
    assert compare(str(tmp_path / "float"), str(tmp_path / "int8"), feeds)["output"]["sqnr_db"] > 25
    node["attrs"][attributes.LAYOUT] = text
    path.write_text(json.dumps(symbol))
    with pytest.raises(FormatError, match="conv0.*want a permutation"):
        compare(str(tmp_path / "float"), str(tmp_path / "int8"), feeds)
