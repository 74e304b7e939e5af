"""Target `mxnet`: real int8 kernels, on every shape of network, under every way to run them, on both kinds of CPU.

`networks.py` builds the networks and says how it judges them.  AVX2 without VNNI is another process: oneDNN asks for it
once.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from helpers import ROOT, VNNI

from qgraph import passes
from qgraph.errors import OptionError, UnsupportedError
from qgraph.formats.mxnet import load
from qgraph.formats.mxnet_writer import save
from qgraph.ir.graph import Fused, Graph, Node, Port
from qgraph.ir.rewrite import PassManager
from qgraph.quant.spec import QParams
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets.mxnet import int8 as mxnet_int8
from qgraph.targets.mxnet.runtime import Executor
from qgraph.targets.registry import get_target

pytestmark = pytest.mark.mxnet

# With VNNI the positive top weight of a layer that reads signed codes counts 63.5 instead of 64 (see `mxnet_weights`)
SIGNED_TOPS = {"residual_linear", "squeeze_excite", "fused_clip"} if VNNI else set()


def cases(*known: str) -> list[Any]:
    return [pytest.param(n, marks=[pytest.mark.xfail(strict=True, reason="signed codes with VNNI: top weight 63.5")])
            if n in known else n for n in networks.NETWORKS]


@pytest.fixture(scope="session")
def native() -> dict[str, networks.Facts]:
    return {name: networks.examine(name) for name in networks.NETWORKS}


@pytest.fixture(scope="session")
def avx2() -> dict[str, Any]:
    """The same facts from a process whose oneDNN does without AVX-512 and VNNI."""
    env = {**os.environ, "DNNL_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, networks.__file__], env=env, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# ---- every network --------------------------------------------------------------------------------------------------

def check_runs_alike(facts: networks.Facts) -> None:
    """Loads in Module under the default bind and in SymbolBlock; both agree with our executor bit for bit."""
    assert facts["block"] and facts["again"] and facts["shapes"] and facts["finite"]
    assert facts["module"], facts["module_error"]


def check_right(facts: networks.Facts) -> None:
    assert facts["varies"]
    assert all(s is not None and s > 25 for s in facts["sqnr"]), facts["sqnr"]
    assert facts["unjudged"] == [] and facts["layers"]
    assert facts["output"] < 1e-5


def check_exact(facts: networks.Facts) -> None:
    assert {k: v for k, v in facts["layers"].items() if v["within_one"] < 99.9} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_network_runs_alike_everywhere(name: str, native: dict[str, networks.Facts]) -> None:
    check_runs_alike(native[name])
    check_right(native[name])


@pytest.mark.parametrize("name", cases(*SIGNED_TOPS))
def test_network_is_exact(name: str, native: dict[str, networks.Facts]) -> None:
    check_exact(native[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_network_on_a_cpu_without_vnni(name: str, avx2: dict[str, networks.Facts]) -> None:
    check_runs_alike(avx2[name])
    check_right(avx2[name])
    check_exact(avx2[name])


def test_weight_codes_on_a_cpu_without_vnni(avx2: dict[str, Any]) -> None:
    """Wrong ones of 12,288 each. A signed FullyConnected is never written, see `signed-dense`."""
    assert avx2["wrong_codes"] == {"False True": 0, "False False": 0, "True False": 0}


# what must be in integers, so that no network is right by being left in float
OPS = {
    "conv_pool_conv": {"_sg_mkldnn_conv": 3, "_contrib_quantized_pooling": 1, "_sg_mkldnn_fully_connected": 1},
    "concats": {"_sg_mkldnn_conv": 5, "_contrib_quantized_concat": 3, "_contrib_quantized_pooling": 3},
    "concat_signs": {"Concat": 1, "_contrib_quantized_concat": 0},  # it would round once more
    "concat_clips": {"Concat": 1, "_contrib_quantized_concat": 0},
    "concat_shared_readers": {"_sg_mkldnn_conv": 4, "_contrib_quantized_concat": 2},
    "residual_identity": {"_sg_mkldnn_conv": 5, "_contrib_dequantize": 1},
    "residual_downsample": {"_sg_mkldnn_conv": 5, "_contrib_dequantize": 1},
    "residual_linear": {"_sg_mkldnn_conv": 9, "_contrib_dequantize": 1},
    "residual_unsigned_operand_no_act": {"_sg_mkldnn_conv": 3, "_contrib_quantized_elemwise_add": 1},
    "residual_three": {"_sg_mkldnn_conv": 4, "_contrib_quantized_elemwise_add": 2},
    "dense_behind_flatten": {"_sg_mkldnn_conv": 1, "_contrib_quantized_flatten": 1},
    "one_by_one_head": {"_sg_mkldnn_conv": 2, "_sg_mkldnn_fully_connected": 1},
    "deconvolution": {"_sg_mkldnn_conv": 2, "Deconvolution": 1},
    "fused_clip": {"_sg_mkldnn_conv": 4, "_contrib_dequantize": 1},
}


@pytest.mark.parametrize("name", OPS)
def test_integers_flow(name: str, native: dict[str, networks.Facts]) -> None:
    found = native[name]["ops"]
    assert {op: found.get(op, 0) for op in OPS[name]} == OPS[name], found
    if "residual" in name and name != "residual_three" and "no_act" not in name:
        assert "elemwise_add" not in found and "_contrib_quantized_elemwise_add" not in found  # all fused


def test_grouped_convolutions_stay_in_float(native: dict[str, networks.Facts]) -> None:
    """The grouped one does, the depthwise one does not."""
    assert native["grouped"]["ops"]["Convolution"] >= 1
    g, _ = networks.build("grouped")
    reasons = {n.name: get_target("mxnet").refuse(g, n) for n in g.nodes("Convolution")}
    assert [name for name, reason in reasons.items() if reason] == ["conv1"]
    assert "grouped convolutions with wrong scales" in reasons["conv1"]


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_excluded_layers(name: str) -> None:
    """Every other layer in float: integers and floats meet everywhere, and MXNet's own fusing must not go wrong."""
    g, feeds = networks.build(name)
    table = networks.calibrated(g, feeds)
    for exclude in networks.exclusions(g):
        if not exclude:
            continue
        facts = networks.examine_graph(g, feeds, table, "mxnet", exclude=exclude)
        assert facts["block"] and facts["again"] and facts["shapes"] and facts["finite"] and facts["varies"]
        assert facts["module_error"] < 2e-6, exclude  # what is float is fused by MXNet
        assert all(s is None or s > 25 for s in facts["sqnr"]), (exclude, facts["sqnr"])
        assert facts["unjudged"] == [], exclude
        if name not in SIGNED_TOPS:
            check_exact(facts)


# ---- particular promises --------------------------------------------------------------------------------------------

def lowered(name: str, **options: Any) -> tuple[Graph, Graph, dict[str, np.ndarray]]:
    g, feeds = networks.build(name)
    q = networks.quantize(g, networks.calibrated(g, feeds), **options)
    return q, networks.lower(q), feeds


def test_files_load_in_a_module_and_in_a_block(tmp_path: Path) -> None:
    import mxnet as mx

    _, low, feeds = lowered("residual_downsample")
    save(low, tmp_path / "net")
    want = Executor(low).run(feeds)[0]
    module = mx.mod.Module.load(str(tmp_path / "net"), 0, label_names=None)
    module.bind([("data", feeds["data"].shape)], for_training=False)
    module.forward(mx.io.DataBatch([mx.nd.array(feeds["data"])]), is_train=False)
    assert np.array_equal(module.get_outputs()[0].asnumpy(), want)
    block = mx.gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"],
                                         str(tmp_path / "net-0000.params"))
    assert np.array_equal(block(mx.nd.array(feeds["data"])).asnumpy(), want)
    again = load(tmp_path / "net-symbol.json", tmp_path / "net-0000.params")
    assert np.array_equal(Executor(again).run(feeds)[0], want)


def test_the_batch_size_changes_nothing() -> None:
    _, low, feeds = lowered("residual_identity")
    whole = Executor(low).run(feeds)[0]
    single = [Executor(low).run({"data": feeds["data"][i:i + 1]})[0] for i in range(len(whole))]
    assert np.array_equal(np.concatenate(single), whole)


def test_writing_is_deterministic_and_leaves_the_graph_alone() -> None:
    q, low, _ = lowered("concats")
    digest = q.digest()
    assert mxnet_int8.lower(q).digest() == low.digest()
    assert q.digest() == digest
    assert lowered("concats")[1].digest() == low.digest()


def test_ranges_are_written_with_all_digits() -> None:
    """MXNet's own passes write six decimals, which makes a range of 1e-7 zero."""
    g, feeds = networks.build("conv_pool_conv")
    for name in [n for n in g.params if n.startswith("conv0")]:
        g.params[name] = g.params[name] * np.float32(1e-7)
    g.params["conv1_weight"] = g.params["conv1_weight"] * np.float32(1e7)
    facts = networks.examine_graph(g, feeds, networks.calibrated(g, feeds), "mxnet")
    assert facts["module"] and facts["sqnr"][0] > 25
    check_exact(facts)


def test_provenance() -> None:
    """Every node of the written graph says which layers of the user's it stands for."""
    _, low, _ = lowered("residual_downsample")
    known = {n.name for n in networks.NETWORKS["residual_downsample"](networks.Net(0)).dag}
    for node in low.nodes():
        if node.op.startswith("_sg_") or node.op.startswith("_contrib_quantized"):
            assert node.origin and set(node.origin) <= known, node


def test_a_dead_channel_gives_its_bias() -> None:
    _, low, feeds = lowered("dead_channels")
    watched = next(n for n in low.nodes() if n.name == "c0")
    codes = Executor(low, [Port(watched)]).run(feeds)[0]
    step = float(watched.attrs["max_calib_range"]) / 255.5
    bias = networks.build("dead_channels")[0].params["c0_bias"]
    assert not codes[:, 1].any()
    assert np.abs(codes[:, 5] - np.clip(np.rint(bias[5] / step), 0, 255)).max() <= 1


def test_a_huge_bias_does_not_break_the_layer() -> None:
    """MXNet lowers the scale of weights whose bias does not fit int32."""
    g, feeds = networks.build("conv_pool_conv")
    bias = g.params["conv1_bias"].copy()
    bias[0] = 1e6
    g.params["conv1_bias"] = bias
    g.params["conv1_weight"] = g.params["conv1_weight"].copy()
    g.params["conv1_weight"][0] *= np.float32(1e-9)
    facts = networks.examine_graph(g, feeds, networks.calibrated(g, feeds), "mxnet")
    assert facts["module"] and facts["finite"]
    check_exact(facts)


# ---- what it cannot carry -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("options", "message"), [
    ({"granularity": "layer"}, "target mxnet cannot carry --granularity layer exactly; mxnet-sim or onnx.* can"),
    ({"granularity": "group"}, "target mxnet cannot carry --granularity group exactly; mxnet-sim or onnx.* can"),
    ({"weight_bits": 4},
     r"target mxnet cannot carry --weight-bits 4 exactly; mxnet-sim or onnx.* can \(--target mxnet-sim\)"),
    ({"act_bits": 7}, "target mxnet cannot carry --act-bits 7 exactly; mxnet-sim or onnx.* can"),
    ({"act_signed": "signed"}, "target mxnet cannot carry --act-signed signed exactly; mxnet-sim.* can"),
])
def test_the_target_that_can_is_named(options: dict[str, Any], message: str) -> None:
    g, _ = networks.build("dense_only")
    with pytest.raises(UnsupportedError, match=message):
        networks.quantize(g, None, **options)


@pytest.mark.parametrize("options", [{"weight_bits": 17}, {"weight_bits": 1}, {"granularity": "row"},
                                     {"act_signed": "maybe"}, {"target": "mxnet-int8"}])
def test_what_no_target_can(options: dict[str, Any]) -> None:
    g, _ = networks.build("dense_only")
    with pytest.raises(OptionError, match="mxnet takes .*mxnet-sim takes|did you mean"):
        networks.quantize(g, None, **options)


def one_layer(out: QParams | None, *, act: str = "relu", data: QParams | None = None, weight: QParams | None = None,
              codes: int | list[int] = 127) -> Graph:
    """codes: of the weights, or one of each output channel."""
    g = Graph()
    x = g.add("fake_quantize", [g.add("null", name="data")], "x", quant=data or QParams(8, False, scale=0.1))
    w = g.add_param("w", np.broadcast_to(np.reshape(codes, (-1, 1, 1, 1)), (4, 3, 1, 1)).astype(np.float32))
    fw = g.add("fake_quantize", [w], "w_q", quant=weight or QParams(8, True, granularity="channel", scale=np.ones(4)))
    y: Node = g.add("Convolution", [x, fw], "conv", kernel=(1, 1), num_filter=4, no_bias=True)
    y.fused = Fused(act, 0, 6) if act else None
    if out is not None:
        y = g.add("fake_quantize", [y], "y", quant=out)
    g.heads = [Port(y)]
    return g


def test_one_layer_is_written() -> None:
    assert len(mxnet_int8.lower(one_layer(QParams(8, False, scale=0.1))).nodes("_sg_mkldnn_conv")) == 1
    assert len(mxnet_int8.lower(one_layer(QParams(8, True, scale=0.1), act="")).nodes("_sg_mkldnn_conv")) == 1


U8, S8 = QParams(8, False, scale=0.1), QParams(8, True, scale=0.1)


@pytest.mark.parametrize(("g", "message"), [
    (one_layer(S8), "conv:Convolution: MXNet's kernel writes u8 here, found s8"),
    (one_layer(U8, act=""), "conv:Convolution: MXNet's kernel writes s8 here, found u8"),
    (one_layer(U8, act="clip"), "conv:Convolution: behind a fused clip the range must end at a_max"),
    (one_layer(QParams(7, False, scale=0.1)), "y: MXNet's int8 tensors are 8 bits with one scale and no"),
    (one_layer(U8, data=QParams(4, False, scale=0.1)), "x: MXNet's int8 tensors are 8 bits with one scale"),
], ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_what_it_cannot_write(g: Graph, message: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(message).replace(r"\.\*", ".*")):
        mxnet_int8.lower(g)


FORMS = {
    "no reader that quantizes": ({"out": None}, "_sg_mkldnn_conv"),
    "one scale for all": ({"out": U8, "weight": QParams(8, True, scale=0.3)}, "_sg_mkldnn_conv"),
    "no code of a channel is the largest": ({"out": U8, "codes": [127, 3, 5, 100]}, "_sg_mkldnn_conv"),
    "none of the layer": ({"out": U8, "codes": [90, 3, 5, 100]}, "Convolution"),
    "signed data": ({"out": U8, "data": S8}, "Convolution"),
    "signed data, no reader that quantizes": ({"out": None, "data": S8, "act": "clip"}, "Convolution"),
    "a clip, read by floats": ({"out": None, "act": "clip"}, "_sg_mkldnn_conv"),
    "no activation": ({"out": None, "act": ""}, "_sg_mkldnn_conv"),
    "the lowest alone": ({"out": None, "act": "", "codes": [-127, 3, -5, 100],
                          "weight": QParams(8, True, narrow=True, scale=0.3)}, "_sg_mkldnn_conv"),
}


@pytest.mark.parametrize("name", FORMS)
def test_layers_that_the_calibrated_kernel_cannot_carry_are_exact(name: str) -> None:
    """Codes of weights that it would not find, or values that nobody quantizes: sums as int32, or floats."""
    options, op = FORMS[name]
    g = one_layer(**options)
    rng = np.random.default_rng(0)
    w, bias = g.params["w"], rng.normal(size=4).astype(np.float32) * 3
    if options.get("codes") is None:
        w[:, 1:] = rng.integers(-100, 101, w[:, 1:].shape)
    fq = g.find("w_q").quant
    g.params["w"] = (w * np.broadcast_to(fq.scale, 4).reshape(4, 1, 1, 1)).astype(np.float32)
    conv = g.find("conv")
    conv.attrs["no_bias"] = "False"
    g.set_inputs(conv, [*g.inputs(conv), g.add_param("b", bias)])
    feeds = {"data": rng.normal(size=(3, 3, 5, 5), scale=6).astype(np.float32)}
    lowered = mxnet_int8.lower(g)
    assert len(lowered.nodes(op)) == 1 and len(lowered.nodes("_sg_mkldnn_conv") + lowered.nodes("Convolution")) == 1
    want = Reference(g, rounding="mxnet").run(feeds)[0]
    for got in (networks.run_module(lowered, feeds)[0], Executor(lowered).run(feeds)[0]):
        step = float(g.find("y").quant.scale) if options["out"] is not None else 0
        off = np.abs(got - want) > 1e-5 * np.abs(want).max()
        assert off.mean() < 0.01 and np.abs(got - want).max() < 1.01 * step + 1e-5 * np.abs(want).max()
    assert len(np.unique(want)) > 2


def test_a_signed_sum_without_its_pass_is_refused() -> None:
    """MXNet ends such a sum at code 127; `signed-residual` is what takes care of it."""
    g, feeds = networks.build("residual_downsample")
    q = networks.quantize(g, networks.calibrated(g, feeds), passes=(
        "insert-fake-quantize,integer-flow,share-scales,calibrate,quantize-bias,bake-weights"))
    with pytest.raises(UnsupportedError, match="run the pass signed-residual"):
        mxnet_int8.lower(q)


def test_a_network_without_layers_is_copied() -> None:
    g = Graph.parse("%data = input\n%r = Activation(%data) {act_type=relu}\nreturn %r")
    PassManager(passes.PIPELINES["float"]).run(g)
    q = networks.quantize(g, None)
    assert mxnet_int8.lower(q).text() == g.text()


@pytest.mark.parametrize("name", ["concats", "residual_linear", "residual_of_pools", "squeeze_excite", "float_between"])
def test_the_codes_of_each_quantizer_are_where_it_says(name: str) -> None:
    """Of the same shape and type, and near those of the reference, which adds up no differences as kernels do.

    With VNNI, layers that read signed codes take a weight of 64 for 63.5, which shows in two of these networks.
    """
    near = 12 if VNNI and name in ("residual_linear", "squeeze_excite") else 2
    g, feeds = networks.build(name)
    q = networks.quantize(g, networks.calibrated(g, feeds))
    lowered, codes = mxnet_int8.lower_with_codes(q)
    assert lowered.text() == mxnet_int8.lower(q).text()
    assert set(codes) == {fq for fq in q.nodes("fake_quantize") if q.param(q.inputs(fq)[0]) is None}
    want = Reference(q, [Port(fq) for fq in codes]).run_tensors(feeds)
    for fq, exact, found in zip(codes, want, networks.Executor(lowered, watch=list(codes.values())).run(feeds)):
        assert found.dtype == (np.int8 if fq.quant.signed else np.uint8) and found.shape == exact.codes.shape, fq
        assert (np.abs(exact.codes - found.astype(np.int32)) <= near).mean() > 0.99, fq
