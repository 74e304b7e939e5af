"""What only a simulation can carry: weights quantized in Winograd's domains, BatchNorms behind quantized layers."""

from __future__ import annotations

import dataclasses

import networks
import numpy as np
import pytest
from networks import Net

import qgraph
from qgraph import FreezeOptions
from qgraph.commands.line import pipeline, split
from qgraph.commands.report import quantized_layers
from qgraph.errors import OptionError, UnsupportedError
from qgraph.ir.graph import Fused, Graph
from qgraph.ir.rewrite import PassManager
from qgraph.passes.winograd_weights import DOMAINS, WinogradWeights, in_domain
from qgraph.quant.spec import QSpec, quantize
from qgraph.semantics.interpreter import Executor as Reference

# y = A^T [(G g G^T) . (B^T d B)] A, from the papers (Lavin and Gray 2015; F(6,3) as in wincnn), for points that G has
B_T = {
    "F23": [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    "F43": [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1]],
    "F63": [[1, 0, -21 / 4, 0, 21 / 4, 0, -1, 0], [0, 1, 1, -17 / 4, -17 / 4, 1, 1, 0],
            [0, -1, 1, 17 / 4, -17 / 4, -1, 1, 0], [0, 1 / 2, 1 / 4, -5 / 2, -5 / 4, 2, 1, 0],
            [0, -1 / 2, 1 / 4, 5 / 2, -5 / 4, -2, 1, 0], [0, 2, 4, -5 / 2, -5, 1 / 2, 1, 0],
            [0, -2, 4, 5 / 2, -5, -1 / 2, 1, 0], [0, -1, 0, 21 / 4, 0, -21 / 4, 0, 1]],
}
A_T = {
    "F23": [[1, 1, 1, 0], [0, 1, -1, -1]],
    "F43": [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    "F63": [[1, 1, 1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 1 / 2, -1 / 2, 0], [0, 1, 1, 4, 4, 1 / 4, 1 / 4, 0],
            [0, 1, -1, 8, -8, 1 / 8, -1 / 8, 0], [0, 1, 1, 16, 16, 1 / 16, 1 / 16, 0],
            [0, 1, -1, 32, -32, 1 / 32, -1 / 32, 1]],
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_domain_is_that_of_a_convolution(domain: str) -> None:
    transform, at, bt = DOMAINS[domain], np.array(A_T[domain]), np.array(B_T[domain])
    rng = np.random.default_rng(0)
    tile, w = rng.normal(size=(len(bt), len(bt))), rng.normal(size=(3, 3))
    y = at @ ((transform @ w @ transform.T) * (bt @ tile @ bt.T)) @ at.T
    want = [[(tile[i:i + 3, j:j + 3] * w).sum() for j in range(len(at))] for i in range(len(at))]
    assert np.allclose(y, want, atol=1e-9)


@pytest.mark.parametrize("domain", DOMAINS)
def test_there_and_back_is_the_filter(domain: str) -> None:
    transform = DOMAINS[domain]
    weight, inverse = np.random.default_rng(2).normal(size=(4, 3, 3, 3)), np.linalg.pinv(transform)
    assert np.allclose(inverse @ (transform @ weight @ transform.T) @ inverse.T, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("granularity", ["tensor", "group", "channel"])
def test_weights_are_rounded_there(domain: str, granularity: str) -> None:
    """Against the sums written out: codes of every value of the domain, then the least-squares filter."""
    rng = np.random.default_rng(1)
    weight = (rng.normal(size=(4, 2, 3, 3)) * np.array([1, 2, 0.1, 5])[:, None, None, None]).astype(np.float32)
    spec = QSpec(5, True, narrow=True, granularity=granularity, groups=2 if granularity == "group" else 0)
    found = in_domain(weight, spec, DOMAINS[domain], "half-even")
    matrix = np.kron(DOMAINS[domain], DOMAINS[domain])  # of the 9 values of a filter, row by row
    values = (weight.reshape(8, 9).astype(np.float64) @ matrix.T).astype(np.float32).reshape(4, -1)
    count = {"tensor": 1, "group": 2, "channel": 4}[granularity]
    step = (np.abs(values.reshape(count, -1)).max(axis=1) / 15).repeat(4 // count)[:, None]
    codes = np.rint(values / step).reshape(8, -1)
    want = np.linalg.lstsq(matrix, (codes * step.repeat(2, axis=0)).T, rcond=None)[0].T.reshape(weight.shape)
    assert np.allclose(found, want, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, weight, rtol=1e-2)
    fine = in_domain(weight, QSpec(16, True, granularity="channel"), DOMAINS[domain], "half-even")
    assert np.allclose(fine, weight, atol=2e-3)


def winograd_net() -> tuple[Graph, dict[str, np.ndarray]]:
    n = Net(3)
    x = n.conv(n.x, 8)
    x = n.conv(x, 8, groups=8)
    x = n.conv(x, 8, stride=2)
    x = n.conv(x, 8, kernel=1)
    images = np.random.default_rng(0).normal(size=(3, 3, 12, 12))
    return n.done(n.head(n.conv(x, 8))), {"data": images.astype(np.float32)}


def test_only_3x3_of_stride_1_is_concerned() -> None:
    g, feeds = winograd_net()
    q = networks.quantize(g, networks.calibrated(g, feeds), "mxnet-sim", winograd="F43", weight_bits=6)
    layers = [n for n in q.toposort() if n.op in ("Convolution", "FullyConnected")]
    marked = [n.rounded is not None for n in layers]
    assert marked == [True, True, False, False, True, False]
    for layer, inside in zip(layers, marked):
        assert (q.inputs(layer)[1].node.op == "fake_quantize") is not inside
        assert q.inputs(layer)[0].node.op == "fake_quantize"
    assert WinogradWeights(domain="F43").run(q) == 0
    want, plain = Reference(g).run(feeds)[0], networks.quantize(g, networks.calibrated(g, feeds), "mxnet-sim")
    error, least = (np.abs(Reference(graph, rounding="mxnet").run(feeds)[0] - want).max() for graph in (q, plain))
    assert 1.5 * least < error < 0.5 * np.abs(want).max()


@pytest.mark.mxnet
def test_winograd_frozen_for_mxnet(tmp_path: object) -> None:
    from qgraph.targets.mxnet.runtime import Executor

    g, feeds = winograd_net()
    frozen = qgraph.freeze(g, FreezeOptions(target="mxnet-sim", winograd="F23"), calib_data=feeds["data"])
    assert [layer["weight"] for layer in frozen.report["quantized"]] == [
        "s8 F23", "s8 F23", "s8", "s8", "s8 F23", "s8"]
    assert not frozen.report["float"]
    frozen.save(f"{tmp_path}/m")
    again = qgraph.load(f"{tmp_path}/m-symbol.json", f"{tmp_path}/m-0000.params")
    got = Executor(again).run(feeds)[0]
    assert np.array_equal(got, Executor(frozen.model.ir).run(feeds)[0])  # type: ignore[arg-type]
    assert np.array_equal(got, Reference(frozen.graph, rounding="mxnet").run(feeds)[0])


def bn_net() -> tuple[Graph, dict[str, np.ndarray]]:
    """Two layers with BatchNorms, one channel of each negated and one dead."""
    n = Net(5)
    rng = np.random.default_rng(5)
    x = n.x
    for width in (8, 8):
        conv = n.conv(x, width, act="")
        values = {"gamma": rng.uniform(0.1, 3, width), "beta": rng.normal(size=width), "mean": rng.normal(size=width),
                  "var": rng.uniform(0.1, 4, width)}
        values["gamma"][:2] = -0.7, 0.0
        params = [n.g.add_param(f"{conv.name}_{name}", v.astype(np.float32)) for name, v in values.items()]
        x = n.act(n.op("BatchNorm", conv, *params, fix_gamma=False, eps=1e-3), "relu")
    return n.done(n.head(x)), {"data": rng.normal(size=(3, 3, 12, 12)).astype(np.float32)}


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_batchnorms_go_into_the_scales_behind_the_rounding(granularity: str) -> None:
    """Codes are those of the weights alone; the reference with BatchNorms apart computes the same."""
    g, feeds = bn_net()
    table = networks.calibrated(g, feeds)
    q = networks.quantize(g, table, "mxnet-sim", merge_bn=False, granularity=granularity)
    assert not q.nodes("BatchNorm")
    apart = g.copy()
    PassManager(tuple(dataclasses.replace(step, table=table) if step.name == "calibrate" else step for step in split(
        pipeline(FreezeOptions(target="mxnet-sim", merge_bn=False, granularity=granularity)))[1]
        if step.name in ("insert-fake-quantize", "calibrate"))).run(apart)
    assert len(apart.nodes("BatchNorm")) == 2
    layers = list(zip(q.nodes("Convolution"), apart.nodes("Convolution")))
    for ours, alone in layers:
        codes, plain = (quantize(h.param(h.inputs(fq)[0]), fq.quant, "mxnet") for h, fq in (
            (q, q.inputs(ours)[1].node), (apart, apart.inputs(alone)[1].node)))
        assert np.array_equal(codes[0], -plain[0]) and not codes[1].any() and plain[1].any()
        assert np.array_equal(codes[2:], plain[2:])
        assert (q.inputs(ours)[1].node.quant.granularity, ours.fused) == ("channel", Fused("relu"))
    found, want = (Reference(h, rounding="mxnet").run(feeds)[0] for h in (q, apart))
    rows = quantized_layers(q)
    assert [row["granularity"] for row in rows] == [granularity] * 3 and {row["weight"] for row in rows} == {"s8"}
    assert len(layers) == 2 and np.ptp(want, axis=0).max() > 0.1
    assert np.abs(found - want).max() < 0.02 * np.abs(want).max()  # biases are rounded to whole steps


@pytest.mark.parametrize("target", ["mxnet", "onnx", "ncnn", "tengine"])
@pytest.mark.parametrize(("options", "flag"), [({"merge_bn": False}, "--no-merge-bn"),
                                               ({"winograd": "F43"}, "--winograd")])
def test_integer_targets_refuse(target: str, options: dict[str, object], flag: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{target} cannot carry {flag}; mxnet-sim can"):
        pipeline(FreezeOptions(target=target, **options))  # type: ignore[arg-type]


def test_what_is_no_domain_is_refused() -> None:
    with pytest.raises(OptionError, match="--winograd is 'F83', want one of none, F23, F43, F63"):
        pipeline(FreezeOptions(target="mxnet-sim", winograd="F83"))
