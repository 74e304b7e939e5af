"""Ranges taken from the batch that is being run (`--calib online`): the formula, the reference, and MXNet's graph."""

from __future__ import annotations

from typing import Any

import networks
import numpy as np
import pytest
from networks import Net

import qgraph
from qgraph.commands.line import pipeline
from qgraph.errors import OptionError, UnsupportedError
from qgraph.ir.graph import Graph, Port
from qgraph.options import FreezeOptions
from qgraph.quant.spec import QSpec, fake_quantize, online_params
from qgraph.semantics.interpreter import Executor as Reference


def online(g: Graph, **options: object) -> Graph:
    """A quantized copy, without a table or data."""
    return networks.quantize(g, None, "mxnet-sim", calib="online", **options)


def test_the_range_is_the_mean_of_the_images_largest_values() -> None:
    batch = np.array([[-8.0, 1.0, 0.5], [2.0, -1.0, 3.0]], np.float32)
    signed = online_params(QSpec(8, True, online=True), batch)
    assert np.isclose(float(signed.scale) * 127, (8 + 3) / 2)
    unsigned = online_params(QSpec(8, False, online=True), batch)
    assert np.isclose(float(unsigned.scale) * 255, (1 + 3) / 2)


def test_images_of_zeros_keep_a_finite_step() -> None:
    assert 0 < float(online_params(QSpec(8, False, online=True), np.zeros((2, 3), np.float32)).scale) < 1e-12


@pytest.mark.mxnet
@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize(("signed", "narrow"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 12)])
def test_mxnet_computes_what_the_reference_computes(bits: int, signed: bool, narrow: bool,
                                                      shape: tuple[int, ...]) -> None:
    from qgraph.targets.mxnet.runtime import Executor

    rng = np.random.default_rng(bits)
    x = rng.normal(size=shape).astype(np.float32)
    x[0] *= 3  # its large values are clipped
    g = Graph()
    spec = QSpec(bits, signed, narrow=narrow, online=True)
    g.heads = [Port(g.add("fake_quantize", [g.add("null", name="data")], "q", quant=spec))]
    found = Executor(g).run({"data": x})[0]
    params = online_params(spec, x)
    assert np.array_equal(found, fake_quantize(x, params, "mxnet"))
    assert np.array_equal(found, Reference(g).run({"data": x})[0])
    assert len(np.unique(found)) > 2 and found.max() < x.max()
    assert not np.allclose(Executor(g).run({"data": x[1:]})[0], found[1:])  # another batch, another range


@pytest.mark.mxnet
def test_a_batch_of_zeros_stays_zero() -> None:
    from qgraph.targets.mxnet.runtime import Executor

    g = Graph()
    g.heads = [Port(g.add("fake_quantize", [g.add("null", name="data")], "q", quant=QSpec(8, False, online=True)))]
    assert not Executor(g).run({"data": np.zeros((2, 3), np.float32)})[0].any()


@pytest.mark.mxnet
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["conv_pool_conv", "residual_downsample", "dense_behind_flatten", "squeeze_excite"])
def test_whole_networks(name: str, bits: int) -> None:
    from qgraph.targets.mxnet.runtime import Executor

    g, feeds = networks.build(name)
    q = online(g, act_bits=bits)
    kinds = {fq.quant.signed for fq in q.nodes("fake_quantize") if fq.quant is not None and fq.quant.online}
    assert kinds and None not in kinds
    found, wanted = Executor(q).run(feeds)[0], Reference(q).run(feeds)[0]
    assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
    assert not np.allclose(found, Executor(g).run(feeds)[0], rtol=1e-4)


@pytest.mark.mxnet
def test_freezing_online_wants_no_calibration(tmp_path: object) -> None:
    g, feeds = networks.build("conv_pool_conv")
    shape = ",".join(map(str, feeds["data"].shape))
    bare = qgraph.freeze(g, FreezeOptions(target="mxnet-sim", calib="online", input_shape=(shape,)))
    assert bare.table is None and bare.report["agreement"] is None
    frozen = qgraph.freeze(g, FreezeOptions(target="mxnet-sim", calib="online"), calib_data=feeds["data"])
    assert frozen.table is None and frozen.report["agreement"]["images"] == len(feeds["data"])
    prefix = f"{tmp_path}/net"
    frozen.save(prefix)
    from qgraph.targets.mxnet.runtime import Executor

    again = qgraph.load(f"{prefix}-symbol.json", f"{prefix}-0000.params")
    assert np.array_equal(Executor(again).run(feeds)[0], Executor(frozen.model.ir).run(feeds)[0])  # type: ignore


@pytest.mark.parametrize("options", [{"calib": "online"}, {"calib": "naive", "act_bits": 12}])
def test_what_onnxruntime_lacks_is_judged_in_numpy(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    g, feeds = networks.build("conv_pool_conv")
    frozen = qgraph.freeze(g, FreezeOptions(target="mxnet-sim", runtime="onnxruntime", batch_size=2, **options),
                           calib_data=feeds["data"])
    assert "in NumPy on one batch" in caplog.text
    found = frozen.report["agreement"]
    assert found["images"] == 2 and 20 < found["sqnr_db"] < 80
    feeds = {"data": feeds["data"][:2]}
    want, got = Reference(g).run(feeds)[0], Reference(frozen.graph).run(feeds)[0]
    assert np.isclose(found["sqnr_db"], 10 * np.log10((want ** 2).sum() / ((want - got) ** 2).sum()), atol=0.02)


@pytest.mark.parametrize("target", ["mxnet", "onnx", "ncnn", "tengine"])
def test_targets_of_fixed_ranges_refuse(target: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot carry --calib online; mxnet-sim can"):
        pipeline(FreezeOptions(target=target, calib="online"))


def test_a_table_is_refused() -> None:
    net = Net(0)
    with pytest.raises(OptionError, match="no --calib-table"):
        qgraph.freeze(net.done(net.conv(net.x, 4)),
                      FreezeOptions(target="mxnet-sim", calib="online", calib_table="t.calib.json"))


def test_the_text_of_a_graph_keeps_the_choice() -> None:
    g = Graph()
    spec = QSpec(8, True, online=True)
    g.heads = [Port(g.add("fake_quantize", [g.add("null", name="data")], "q", quant=spec))]
    assert "s8 tensor online" in g.text()
    assert Graph.parse(g.text()).find("q").quant == spec
