"""Ops that the reference has no kernel for, between quantized layers: they are carried in float, and nothing stops."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import qgraph
from qgraph import FreezeOptions, Graph
from qgraph.analysis.difference import Difference
from qgraph.engines import Engine, runtime
from qgraph.passes.round_weights import RoundWeights
from qgraph.semantics.kernels import KERNELS

BETWEEN = {
    "square": "%mid = square(%r)",
    "depth_to_space": "%mid = depth_to_space(%r) {block_size=2}",
    "bilinear UpSampling": "%up_weight = param float32 (8, 1, 4, 4)\n"
                           "%mid = UpSampling(%r, %up_weight) {num_args=2 num_filter=8 sample_type=bilinear scale=2}",
    "batch_dot": "%mid = batch_dot(%r, %r) {transpose_b=True}",
    "reverse": "%mid = reverse(%r) {axis=(3)}",
}


def network(between: str, rng: np.random.Generator) -> tuple[Graph, dict[str, np.ndarray]]:
    """conv, relu, these nodes, conv."""
    channels = 2 if "depth_to_space" in between else 8
    if "batch_dot" in between:
        between = ("%flat = Reshape(%r) {shape=(0, 0, -1)}\n" + between.replace("%r", "%flat").replace("%mid", "%dot")
                   + "\n%mid = expand_dims(%dot) {axis=1}")
        channels = 1
    g = Graph.parse(f"""
%data = input
%w0 = param float32 (8, 3, 3, 3)
%b0 = param float32 (8)
%c0 = Convolution(%data, %w0, %b0) {{kernel=(3, 3) num_filter=8 pad=(1, 1)}}
%r = Activation(%c0) {{act_type=relu}}
{between}
%w1 = param float32 (4, {channels}, 3, 3)
%b1 = param float32 (4)
%c1 = Convolution(%mid, %w1, %b1) {{kernel=(3, 3) num_filter=4 pad=(1, 1)}}
return %c1
""")
    for name, array in g.params.items():
        g.params[name] = rng.normal(0, 0.3, array.shape).astype(np.float32)
    return g, {"data": rng.normal(size=(8, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reference learns later."""
    for op in ("square", "depth_to_space", "UpSampling", "batch_dot", "reverse"):
        monkeypatch.delitem(KERNELS, op, raising=False)


def noise(g: Graph, frozen: qgraph.Frozen, feeds: dict[str, np.ndarray]) -> float:
    difference = Difference()
    difference.update(runtime("comparing")(g).run(feeds)[0], frozen.model.executor().run(feeds)[0])
    return float(difference.to_dict()["sqnr_db"])


@pytest.mark.mxnet
@pytest.mark.parametrize("target", ["mxnet", "mxnet-sim", "onnx"])
@pytest.mark.parametrize("op", BETWEEN)
def test_an_op_without_a_kernel_is_carried(op: str, target: str) -> None:
    g, feeds = network(BETWEEN[op], np.random.default_rng(5))
    found = qgraph.freeze(g, FreezeOptions(target=target), calib_data=feeds)
    assert [layer["name"] for layer in found.report["quantized"]] == ["c0", "c1"]
    assert noise(g, found, feeds) > 25
    if target != "mxnet-sim":
        assert found.report["departure"]["within_one"] > 99.5  # int16 pairs saturate on some CPUs
        assert "mid" in found.report["departure"]["layers"]


def test_it_is_measured_by_onnxruntime_where_that_runs_the_graph() -> None:
    g, feeds = network(BETWEEN["square"], np.random.default_rng(5))
    found = qgraph.freeze(g, FreezeOptions(target="onnx", runtime="onnxruntime"), calib_data=feeds)
    assert found.report["departure"]["within_one"] > 99.5  # int16 pairs saturate on some CPUs
    step, = (step for step in found.report["passes"] if step["name"] == "round-weights")
    assert step["changed"] == 2


def test_what_nothing_measures_keeps_plain_rounding(caplog: pytest.LogCaptureFixture,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    g, feeds = network(BETWEEN["square"], np.random.default_rng(5))
    make = Engine.__call__

    def alone(engine: Engine, graph: Graph, *args: object, **more: object) -> object:
        if len(graph.nodes("square")) == 1 and not graph.nodes("Convolution"):
            raise RuntimeError("no square\nsecond line")
        return make(engine, graph, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "__call__", alone)
    caplog.set_level(logging.WARNING, "qgraph")
    found = qgraph.freeze(g, FreezeOptions(target="onnx", runtime="onnxruntime"), calib_data=feeds)
    said = [r.getMessage() for r in caplog.records if "square" in r.getMessage()]
    assert len(said) == 1 and "mid:square" in said[0] and said[0].endswith("plain rounding (no square)")
    step, = (step for step in found.report["passes"] if step["name"] == "round-weights")
    assert step["changed"] == 1  # c0
    layers = found.report["departure"]["layers"]
    assert "c1" in layers and "mid" not in layers  # behind the codes that the kernel wrote the reference goes on


def test_a_kernel_of_our_own_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    g, feeds = network("%mid = sqrt(%r)", np.random.default_rng(5))
    assert "sqrt" in KERNELS
    monkeypatch.setattr(Engine, "run_op", lambda *_: pytest.fail("asked the engine"))
    qgraph.freeze(g, FreezeOptions(target="onnx", runtime="onnxruntime"), calib_data=feeds)
    assert "run_op" in RoundWeights().fields()


def test_a_layer_that_is_lent_keeps_its_fused_activation() -> None:
    g = Graph.parse("%x = input\n%w = param float32 (2, 3, 1, 1)\n"
                    "%c = Convolution(%x, %w) {act_type=relu kernel=(1, 1) no_bias=True num_filter=2}\nreturn %c\n")
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    (found,) = runtime("a test", "onnxruntime").run_op(g.find("c"), [x, g.params["w"]], [False, True])
    assert found.min() == 0 < found.max()
