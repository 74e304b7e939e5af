"""Target `mxnet-sim`: codes bit for bit, accumulators exactly, for every bit width, granularity and kind of layer."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Callable

import networks
import numpy as np
import pytest
from helpers import TESTS
from networks import Net, run_block, run_module, same

from qgraph import passes
from qgraph.analysis.difference import Difference
from qgraph.commands.departure import kernel_departure
from qgraph.errors import UnsupportedError
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import PassManager
from qgraph.passes.insert_fake_quantize import weight_spec
from qgraph.quant.spec import QParams, QSpec, fake_quantize, quantize, with_range
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.semantics.interpreter import accumulate
from qgraph.targets.mxnet import sim as mxnet_sim
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.mxnet.runtime import Executor

pytestmark = pytest.mark.mxnet

LAYERS: dict[str, Callable[[Net], Graph]] = {
    "conv": lambda n: n.done(n.conv(n.x, 6, act="", stride=2)),
    "conv-bias": lambda n: n.done(n.conv(n.x, 6, act="")),
    "grouped": lambda n: n.done(n.conv(n.x, 8, act="", groups=2, bias=False)),
    "depthwise": lambda n: n.done(n.conv(n.x, 4, act="", groups=4, bias=False)),
    "deconv": lambda n: n.done(n.deconv(n.x, 5, act="")),
    "deconv-grouped": lambda n: n.done(grouped_deconv(n)),
    "dense": lambda n: n.done(n.dense(n.x, 4 * 49, 6)),
    "dense-rows": lambda n: n.done(dense_rows(n)),
}


def grouped_deconv(n: Net) -> Node:
    weight = n.g.add_param("w", n.weight(4, 3, 3, 3))
    return n.op("Deconvolution", n.x, weight, kernel=(3, 3), num_filter=6, num_group=2, no_bias=True)


def dense_rows(n: Net) -> Node:
    """flatten=False: the last axis is multiplied."""
    weight = n.g.add_param("w", n.weight(5, 7))
    return n.op("FullyConnected", n.x, weight, num_hidden=5, no_bias=True, flatten=False)


@pytest.mark.parametrize("granularity", ["layer", "group", "channel"])
@pytest.mark.parametrize("layer", LAYERS)
def test_codes_and_accumulators_of_one_layer(layer: str, granularity: str) -> None:
    """Every bit width: what the layer reads is on the grid bit for bit, its output tells the integer accumulator."""
    net = Net(7, channels=4, size=7)
    g = LAYERS[layer](net)
    feeds = {"data": net.rng.normal(size=(2, *net.shape)).astype(np.float32)}
    table = networks.calibrated(g, feeds)
    for weight_bits, act_bits, signed in [(b, b, "auto") for b in range(2, 9)] + [(2, 8, "unsigned"), (8, 3, "signed")]:
        q = networks.quantize(g, table, "mxnet-sim", granularity=granularity, weight_bits=weight_bits,
                              act_bits=act_bits, act_signed=signed)
        lowered = mxnet_sim.lower(q)
        node = next(n for n in q.nodes() if n.op in ("Convolution", "Deconvolution", "FullyConnected"))
        x_fq, w_fq = (p.node for p in q.inputs(node)[:2])
        assert x_fq.quant.signed == (signed == "signed") and x_fq.quant.bits == act_bits
        assert (x_fq.quant.zero_point != 0) == (signed == "auto")  # its values have both signs
        assert w_fq.quant.granularity == {"layer": "tensor", "group": "channel" if "dense" in layer else "group",
                                          "channel": "channel"}[granularity]
        found = {n.name: n for n in lowered.nodes()}
        codes, sums, output = Executor(lowered, [
            Port(found["data_q_codes"]), Port(found[f"{node.name}_sums"]), Port(found[node.name])]).run(feeds)
        want = quantize(feeds["data"], x_fq.quant, "mxnet")
        assert np.array_equal(codes, want - x_fq.quant.zero_point)
        assert len(np.unique(want)) > 2 ** act_bits * (0.4 if signed == "auto" else 0.3)

        inputs = next(i for n, i, _ in Reference(q).walk(feeds) if n is node)
        written = lowered.params[lowered.inputs(found[f"{node.name}_sums"])[1].node.name]
        assert np.array_equal(written, inputs[1].codes)
        assert np.abs(written).max() == 2 ** (weight_bits - 1) - 1  # narrow: -127..127
        exact = accumulate(node, *inputs[:2])
        if len(inputs) > 2:
            exact = exact + inputs[2].codes.reshape((-1,) if layer.startswith("dense") else (1, -1, 1, 1))
        assert np.array_equal(sums, exact)
        assert len(np.unique(exact)) > (10 if weight_bits > 3 else 2)
        assert np.array_equal(output, Reference(q, rounding="mxnet").run(feeds)[0])


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks(name: str) -> None:
    """Module under MXNet's default bind, SymbolBlock and our executor agree; near the float network; exact codes."""
    g, feeds = networks.build(name)
    facts = networks.examine_graph(g, feeds, networks.calibrated(g, feeds), "mxnet-sim")
    assert facts["block"] and facts["again"] and facts["shapes"] and facts["finite"] and facts["varies"]
    assert facts["module_error"] < 1e-6  # MXNet fuses what is float
    assert all(s is None or s > 20 for s in facts["sqnr"]), facts["sqnr"]
    assert not facts["unjudged"]
    assert all(v["equal"] == 100 for v in facts["layers"].values()), facts["layers"]
    assert facts["output"] < 1e-6  # a softmax or a float layer at the end


STRATEGIES: dict[str, dict[str, Any]] = {
    "8 bits": {}, "few bits per layer": {"weight_bits": 5, "act_bits": 4, "granularity": "layer"},
    "first in float, no merge": {"merge_bn": False, "exclude": ("first",), "granularity": "group"},
    "winograd": {"winograd": "F43"}, "online": {"calib": "online"}, "many bits": {"act_bits": 12, "weight_bits": 4},
    "online, few bits, no merge": {"calib": "online", "merge_bn": False, "act_bits": 5, "exclude": ("first",)}}


@pytest.mark.parametrize(("name", "strategy"), networks.in_turns(STRATEGIES))
def test_whole_networks_compute_what_the_reference_computes(name: str, strategy: str) -> None:
    """Every code of every tensor."""
    g, feeds = networks.build(name)
    options = STRATEGIES[strategy]
    table = None if options.get("calib") == "online" else networks.calibrated(g, feeds)
    q = networks.quantize(g, table, "mxnet-sim", **options)
    lowered = mxnet_sim.lower(q)
    found = {n.name: n for n in lowered.nodes()}
    read = [fq for fq in q.nodes("fake_quantize") if q.param(q.inputs(fq)[0]) is None]
    wanted = {node: out[0] for node, _, out in Reference(q, rounding="mxnet").walk(feeds)}
    for fq, codes in zip(read, Executor(lowered, [Port(found[f"{fq.name}_codes"]) for fq in read]).run(feeds)):
        assert np.array_equal(codes, wanted[fq].centered), fq.name
    assert read and len(np.unique(wanted[read[-1]].real)) > 3
    want, got = wanted[q.heads[0].node].real, Executor(lowered).run(feeds)[0]
    assert np.abs(got - want).max() < 1e-6 * np.abs(want).max()


OTHER_KERNELS = """
import sys
sys.path.insert(0, {tests!r})
import networks, numpy as np
from qgraph.targets.mxnet.runtime import Executor
from qgraph.semantics.interpreter import Executor as Reference

for name in ("residual_downsample", "concats", "grouped", "fused_clip"):
    g, feeds = networks.build(name)
    q = networks.quantize(g, networks.calibrated(g, feeds), "mxnet-sim", merge_bn=False, exclude=("first",))
    got, want = Executor(q).run(feeds)[0], Reference(q, rounding="mxnet").run(feeds)[0]
    print(name, np.array_equal(got, want), len(np.unique(want)) > 8)
"""


@pytest.mark.parametrize("isa", ["SSE41", "AVX2"])
def test_other_processors_compute_the_same(isa: str) -> None:
    """oneDNN leaves the instructions of newer ones alone: its kernels, layouts and the order of its sums are others."""
    script = OTHER_KERNELS.format(tests=str(TESTS))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "DNNL_MAX_CPU_ISA": isa})
    assert done.returncode == 0, done.stderr[-1000:]
    assert [line.split()[1:] for line in done.stdout.splitlines()] == [["True", "True"]] * 4, done.stdout


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(9, 17))
def test_more_bits_than_mxnet_has(bits: int, signed: bool) -> None:
    """In float arithmetic, and so to the last bit what the reference computes, on ties and beyond the range too."""
    rng = np.random.default_rng(bits)
    spec = QSpec(bits, signed)
    for high in (1.0, 0.37, 91.3, 5e-6, 3e7):
        params = with_range(spec, -high if signed else 0.0, high)
        ties = (np.arange(spec.qmin, spec.qmax, 37) + 0.5).astype(np.float32) * params.scale
        x = np.concatenate([rng.normal(size=20000).astype(np.float32) * np.float32(high / 2), ties,
                            np.array([0, -0.0, 2 * high, -2 * high, 1e30, -1e30], np.float32)])[None]
        g = Graph()
        g.heads = [Port(g.add("fake_quantize", [g.add("null", name="data")], "q", quant=params))]
        want = fake_quantize(x, params, "mxnet")
        assert np.array_equal(Executor(g).run({"data": x})[0], want)
        assert len(np.unique(want)) > 500


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(12, 12), (16, 16), (4, 10)])
def test_networks_of_many_bits(weight_bits: int, act_bits: int) -> None:
    g, feeds = networks.build("residual_downsample")
    table = networks.calibrated(g, feeds)
    q = networks.quantize(g, table, "mxnet-sim", weight_bits=weight_bits, act_bits=act_bits)
    want = Reference(q, rounding="mxnet").run(feeds)[0]
    got = Executor(q).run(feeds)[0]
    exact = Reference(g).run(feeds)[0]
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()  # sums leave what float32 holds exactly
    if weight_bits > 8:
        coarse = Reference(networks.quantize(g, table, "mxnet-sim"), rounding="mxnet").run(feeds)[0]
        assert np.abs(got - exact).max() < np.abs(coarse - exact).max() / 8


@pytest.mark.parametrize(("bits", "floor"), [(8, 30), (7, 26), (6, 20), (5, 14), (4, 7)])
def test_every_bit_is_worth_something(bits: int, floor: float) -> None:
    g, feeds = networks.build("residual_downsample")
    table = networks.calibrated(g, feeds)
    want = Executor(g).run(feeds)[0]
    found = {}
    for granularity in ("layer", "channel"):
        difference = Difference()
        difference.update(want, Executor(mxnet_sim.lower(networks.quantize(
            g, table, "mxnet-sim", weight_bits=bits, act_bits=bits, granularity=granularity))).run(feeds)[0])
        found[granularity] = difference.sqnr
    assert found["channel"] > floor, found  # type: ignore[operator]


@pytest.mark.parametrize("exclude", [("first",), ("last",), ("op:Convolution",), ("conv1", "conv3")])
def test_excluded_layers_compute_in_float(exclude: tuple[str, ...]) -> None:
    g, feeds = networks.build("residual_downsample")
    q = networks.quantize(g, networks.calibrated(g, feeds), "mxnet-sim", exclude=exclude)
    lowered = mxnet_sim.lower(q)
    out = Executor(lowered).run(feeds)
    assert same(out, run_block(lowered, feeds))
    assert np.allclose(run_module(lowered, feeds)[0], out[0], rtol=1e-5, atol=1e-5)
    model = MxnetModel(*mxnet_sim.lower_with_codes(q), centered=True)
    assert kernel_departure(q, model, feeds, "mxnet", lambda m, watch: m.executor(watch))["within_one"] == 100


def test_preactivation_residual_is_right_under_the_default_bind() -> None:
    """``conv2(relu(c)) + c``: MXNet's own fusion miscomputes it in float; what we write is not that pattern."""
    g, feeds = networks.build("residual_preactivation")
    q = networks.quantize(g, networks.calibrated(g, feeds), "mxnet-sim")
    lowered = mxnet_sim.lower(q)
    assert np.allclose(run_module(lowered, feeds)[0], Executor(lowered).run(feeds)[0], rtol=1e-6, atol=1e-6)


# ---- what it cannot carry -------------------------------------------------------------------------------------------

def quantized(quant: QSpec) -> Graph:
    g = Graph()
    g.heads = [Port(g.add("fake_quantize", [g.add("null", name="data")], "q", quant=quant))]
    return g


@pytest.mark.parametrize(("quant", "message"), [
    (QSpec(8, True), "q: not calibrated, so it cannot be written"),
    (QParams(32, True, scale=1), "q: MXNet quantizes activations per tensor, to at most 16 bits"),
    (QParams(8, True, granularity="channel", scale=[1, 2, 3]), "found channel, 8 bits"),
])
def test_what_it_cannot_carry(quant: QSpec, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        mxnet_sim.lower(quantized(quant))


def test_what_is_trained_has_no_zero_point() -> None:
    g = quantized(QParams(8, False, scale=1, zero_point=128))
    mxnet_sim.lower(g)
    with pytest.raises(UnsupportedError, match="in a network to train without zero point"):
        mxnet_sim.lower(g, marked=True)


def test_the_graph_itself_is_left_alone() -> None:
    g, feeds = networks.build("concats")
    q = networks.quantize(g, networks.calibrated(g, feeds), "mxnet-sim")
    digest = q.digest()
    mxnet_sim.lower(q)
    assert q.digest() == digest


def test_weight_specs_of_groups() -> None:
    """`group` is one scale per convolution group, and per unit of a FullyConnected."""
    g = Graph.parse("""
        %data = input
        %w = param float32 (8, 2, 3, 3)
        %c = Convolution(%data, %w) {kernel=(3, 3) no_bias=True num_filter=8 num_group=4}
        %v = param float32 (8, 3, 2, 2)
        %d = Deconvolution(%c, %v) {kernel=(2, 2) num_filter=6 num_group=2}
        %u = param float32 (5, 6)
        %f = FullyConnected(%d, %u) {no_bias=True num_hidden=5}
        return %f""")
    PassManager(passes.PIPELINES["float"]).run(g)
    specs = [weight_spec(g.find(n), QSpec(8, True, granularity=gran)) for n in "cdf" for gran in ("group", "channel")]
    assert [(s.granularity, s.axis, s.groups) for s in specs] == [
        ("group", 0, 4), ("channel", 0, 1), ("group", 0, 2), ("channel", 1, 1), ("channel", 0, 1), ("channel", 0, 1)]


@pytest.mark.parametrize("name", ["concats", "residual_linear", "squeeze_excite", "upsampling"])
def test_the_codes_of_each_quantizer_are_where_it_says(name: str) -> None:
    g, feeds = networks.build(name)
    q = networks.quantize(g, networks.calibrated(g, feeds), "mxnet-sim")
    lowered, codes = mxnet_sim.lower_with_codes(q)
    assert lowered.text() == mxnet_sim.lower(q).text()
    assert set(codes) == {fq for fq in q.nodes("fake_quantize") if q.param(q.inputs(fq)[0]) is None}
    want = Reference(q, [Port(fq) for fq in codes]).run_tensors(feeds)
    for fq, exact, found in zip(codes, want, Executor(lowered, watch=list(codes.values())).run(feeds)):
        assert np.array_equal(exact.centered, found), fq
