"""Quantized graphs as ONNX: what the file says, and what onnxruntime computes from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest
from helpers import DIGITS, VNNI
from networks import Net, table_of
from onnx import numpy_helper

import qgraph
from qgraph.commands.departure import kernel_departure
from qgraph.commands.freeze import freeze, freeze_all
from qgraph.commands.line import pipeline, split
from qgraph.engines import executor
from qgraph.errors import FormatError, QGraphError, UnsupportedError
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.options import FreezeOptions
from qgraph.passes import PIPELINES
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.limit_saturation import NOTICED
from qgraph.quant.spec import QParams, quantize
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.fusion import INTEGER_OPS, fusion
from qgraph.targets.onnx.model import OnnxModel, load
from qgraph.targets.onnx.runtime import Executor
from qgraph.targets.registry import get_target, with_options

Feeds = dict[str, np.ndarray]
# by op of the graph: none of these has a quantized form in onnxruntime
FLOAT = {"deconvolution", "float_between"}


def frozen(name: str, **options: Any) -> tuple[Graph, Feeds, OnnxModel]:
    """A small network, folded, calibrated on its own input, with fake_quantize nodes, and as ONNX."""
    g, feeds = networks.build(name)
    return (*quantized(g, feeds, **options), )


def quantized(g: Graph, feeds: Feeds, **options: Any) -> tuple[Graph, Feeds, OnnxModel]:
    of_target = {name: options.pop(name) for name in ("isa", "int4") if name in options}
    steps = split(pipeline(FreezeOptions(target=with_options("onnx", **of_target), **options)))[1]
    table = table_of(g, feeds)
    PassManager(tuple(dataclasses.replace(s, table=table) if isinstance(s, Calibrate) else
                      dataclasses.replace(s, feeds=feeds) if hasattr(s, "feeds") else s for s in steps)).run(g)
    return g, feeds, to_onnx(g, {k: v.shape for k, v in feeds.items()})


# ---- what onnxruntime computes --------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), networks.in_turns(
    [{}, {"isa": "avx2"}, {"isa": "vnni"}, {"granularity": "layer"}, {"granularity": "group"}, {"weight_bits": 4},
     {"act_bits": 5}, {"weight_bits": 2, "act_bits": 3}]), ids=str)
def test_codes_are_those_of_exact_arithmetic(name: str, options: dict[str, Any]) -> None:
    """Every integer tensor, op by op on the same integers: equal, but for ties that float32 decides otherwise."""
    g, feeds, model = frozen(name, **options)
    found = kernel_departure(g, model, feeds, "half-even", lambda m, watch: Executor(m, watch, exact=True))
    assert found["within_one"] >= 99.9, found["layers"]
    assert set(found["layers"]) == {g.inputs(fq)[0].key for fq in model.codes}
    equal = [layer["equal"] for layer in found["layers"].values()]
    assert np.mean(equal, dtype=float) > 99 if equal else name in FLOAT


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_op_by_op_and_optimized_agree(name: str) -> None:
    """onnxruntime's own rewriting changes nothing but ties."""
    _, feeds, model = frozen(name)
    plain = Executor(model, optimize=False).run(feeds)
    for a, b in zip(plain, Executor(model, exact=True).run(feeds)):
        assert np.abs(a - a[:1]).max() > 0
        assert np.abs(a - b).max() <= 0.05 * np.abs(a).max()


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_what_is_quantized_runs_on_integers(name: str) -> None:
    g, _, model = frozen(name)
    found = fusion(g, model)
    assert found["float"] == {}
    layers = [n for n in g.toposort() if n.op in ("Convolution", "FullyConnected")
              and g.inputs(n)[1].node.op == "fake_quantize"]
    assert found["integer"] >= len(layers)
    assert found["ops"].get("QLinearConv", 0) == sum(n.op == "Convolution" for n in layers)
    assert found["ops"].get("QGemm", 0) == sum(n.op == "FullyConnected" for n in layers)


def test_a_layer_that_onnxruntime_leaves_in_float_is_named() -> None:
    """Signed codes without zero point behind relu: the engine keeps the activation, and the layer, in float."""
    g, _, model = frozen("conv_pool_conv")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    scale = next(n.input[1] for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "conv0")
    for node in proto.graph.node:  # a scale per channel, which onnxruntime does not fuse, on the first layer's output
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] == scale:
            node.op_type = {"QuantizeLinear": "Identity", "DequantizeLinear": "Identity"}[node.op_type]
            del node.input[1:]
    found = fusion(g, OnnxModel(proto, codes=model.codes))
    assert "conv0" in found["float"] and "float" in found["float"]["conv0"]


# ---- the file -------------------------------------------------------------------------------------------------------

def test_weights_biases_and_activations_are_stored_as_said() -> None:
    g, feeds, model = frozen("conv_pool_conv", isa="vnni")
    arrays = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    by_output = {n.output[0]: n for n in model.proto.graph.node}
    conv = next(n for n in model.proto.graph.node if n.op_type == "Conv")
    data, weight, bias = (by_output[name] for name in conv.input)
    assert {n.op_type for n in (data, weight, bias)} == {"DequantizeLinear"}
    node = g.find(conv.output[0])
    fq = g.inputs(node)[1].node
    assert isinstance(fq.quant, QParams)
    codes = arrays[weight.input[0]]
    assert codes.dtype == np.int8 and np.array_equal(codes, quantize(g.params[g.inputs(fq)[0].node.name], fq.quant))
    assert np.array_equal(arrays[weight.input[1]], fq.quant.scale) and weight.attribute[0].i == 0
    assert arrays[bias.input[0]].dtype == np.int32
    assert np.allclose(arrays[bias.input[1]], arrays[data.input[1]] * arrays[weight.input[1]], rtol=1e-6)
    assert arrays[data.input[2]].dtype == np.uint8 and arrays[data.input[2]] > 0  # the input is signed
    assert all(arrays[n.input[1]].ndim == 0 for n in model.proto.graph.node if n.op_type == "QuantizeLinear")
    assert not {i.name for i in model.proto.graph.input} & set(arrays)
    assert [d.dim_param for d in model.proto.graph.input[0].type.tensor_type.shape.dim][0] == "N"
    assert model.proto.opset_import[0].version == 21 and model.proto.ir_version == 10
    assert "Relu" not in {n.op_type for n in model.proto.graph.node}  # the quantizers behind it cut at zero


@pytest.mark.parametrize("name", ["conv_pool_conv", "residual_downsample", "deconvolution", "dense_behind_flatten"])
def test_what_is_excluded_stays_in_float(name: str) -> None:
    """onnxruntime quantizes the weights of float layers between quantizers by itself unless it is kept from it."""
    layers = [n.name for n in networks.build(name)[0].toposort() if n.op in ("Convolution", "FullyConnected")]
    for layer in layers:
        g, feeds, model = frozen(name, exclude=(layer,))
        found = kernel_departure(g, model, feeds, "half-even", lambda m, watch: Executor(m, watch, exact=True))
        assert found["within_one"] == 100 and found["output"] < 0.01
        assert all(x["equal"] > 99.8 for x in found["layers"].values()), (layer, found["layers"])
        ops_of = fusion(g, model)["ops"]
        assert sum(ops_of.get(op, 0) for op in ("Conv", "FusedConv", "Gemm", "FusedGemm")) == 1


def test_a_weight_of_several_layers_is_stored_once() -> None:
    """Both readers find it, also where onnxruntime rewrites the weights for kernels that do not saturate."""
    g, feeds, model = frozen("shared_weight", isa="vnni")
    codes = [t for t in model.proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(codes) == 2 and fusion(g, model)["ops"]["QLinearConv"] == 3
    for want, got in zip(Executor(model, optimize=False).run(feeds), Executor(model, exact=True).run(feeds)):
        assert np.abs(want - got).max() < 1e-6 * np.abs(want).max()


def test_four_bit_storage() -> None:
    g, feeds, model = frozen("conv_pool_conv", int4=True)
    kinds = {t.data_type for t in model.proto.graph.initializer}
    assert onnx.TensorProto.INT4 in kinds and "QuantizeLinear" not in {n.op_type for n in model.proto.graph.node}
    want, got = Reference(g).run(feeds)[0], Executor(model).run(feeds)[0]
    assert np.abs(want - got).max() <= 1e-5 * np.abs(want).max()
    assert model.size < frozen("conv_pool_conv", weight_bits=4)[2].size
    with pytest.raises(QGraphError, match="mxnet: found 'int4=true', want OPTION=VALUE with one of fast"):
        get_target("mxnet{int4=true}")


def test_the_same_bytes_again() -> None:
    assert frozen("concats")[2].to_bytes() == frozen("concats")[2].to_bytes()


def test_another_batch_size_and_a_file(tmp_path: Path) -> None:
    _, feeds, model = frozen("residual_downsample")
    path = tmp_path / "x.onnx"
    path.write_bytes(model.to_bytes())
    again = load(path)
    assert again.size == path.stat().st_size and again.inputs == {"data": (0, *feeds["data"].shape[1:])}
    whole = Executor(again).run(feeds)[0]
    for start in range(2):
        part = Executor(again).run({"data": feeds["data"][start:start + 1]})[0]
        assert np.allclose(part, whole[start:start + 1], atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a model", b"\x08\x0a" * 50])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="x.onnx"):
        load(path)


def test_cut_files_are_refused_or_read(tmp_path: Path) -> None:
    whole, path = frozen("conv_pool_conv")[2].to_bytes(), tmp_path / "x.onnx"
    refused = 0
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        try:
            load(path)
        except FormatError:
            refused += 1
    assert refused > len(whole) // 97 // 2


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    model = frozen("conv_pool_conv")[2]
    onnx.save(model.proto, tmp_path / "x.onnx", save_as_external_data=True, location="../../etc/passwd.bin"
              if False else "w.bin", size_threshold=0)
    with pytest.raises(FormatError, match="in other files"):
        load(tmp_path / "x.onnx")


def test_an_op_without_a_converter_is_named() -> None:
    n = Net(0)
    g = n.g
    g.heads = [Port(g.add("_contrib_mystery", [n.x], "odd"))]
    with pytest.raises(UnsupportedError, match=r"odd:_contrib_mystery: there is no ONNX converter.*converter\("):
        to_onnx(g)


# ---- freezing -------------------------------------------------------------------------------------------------------

def freeze_digits(**options: Any) -> Any:
    with np.load(DIGITS / "digits-calib.npz") as file:
        data = {"data": file[file.files[0]]}
    options = {"target": "onnx", "calib": "kl", **options}
    return freeze(str(DIGITS / "digits-symbol.json"), FreezeOptions(**options), calib_data=data)


@pytest.fixture(scope="module")
def digits() -> Any:
    return freeze_digits()


def test_freezing_says_what_onnxruntime_does(digits: Any) -> None:
    """Without VNNI `--isa auto` leaves overflow that costs less than fewer codes would, unnamed up to NOTICED."""
    report = digits.report
    assert report["onnxruntime"]["float"] == {} and report["float"] == []
    assert report["departure"]["within_one"] >= (100 if VNNI else 100 * (1 - NOTICED)) and report["saturation"] == []
    assert report["agreement"]["top1"] > 97
    assert report["onnxruntime"]["ops"]["QLinearConv"] == sum(x["op"] == "Convolution" for x in report["quantized"])
    assert {"onnxruntime", "onnx"} <= set(report["versions"])


def test_with_isa_avx2_no_processor_overflows() -> None:
    report = freeze_digits(target="onnx{isa=avx2}").report
    assert report["departure"]["within_one"] == 100 and report["saturation"] == []


def test_channel_orders_are_written(digits: Any) -> None:
    """`compare` puts reordered channels back by them."""
    orders = digits.model.channel_orders
    wanted = {n.name for n in digits.graph.dag if n.layout is not None}
    assert set(orders) == wanted
    for order in orders.values():
        assert sorted(order) == list(range(len(order)))


def test_two_targets_one_calibration(tmp_path: Path) -> None:
    with np.load(DIGITS / "digits-calib.npz") as file:
        np.savez(tmp_path / "calib.npz", data=file[file.files[0]])
    options = [FreezeOptions(target=t, calib_data=str(tmp_path / "calib.npz")) for t in ("mxnet-sim", "onnx")]
    both, paths = freeze_all(str(DIGITS / "digits-symbol.json"), options, str(tmp_path / "x"))
    names = {Path(p).name for p in paths}
    assert names == {"x-symbol.json", "x-0000.params", "x.onnx", "x.calib.json", "x.recipe.yaml",
                     "x.mxnet-sim.report.json",
                     "x.onnx.report.json", "x.mxnet-sim.report.html", "x.onnx.report.html"}
    assert both[0].table is both[1].table
    assert json.loads((tmp_path / "x.onnx.report.json").read_text())["target"] == "onnx"
    with pytest.raises(QGraphError, match="as another target does"):
        freeze_all(str(DIGITS / "digits-symbol.json"), [options[0], FreezeOptions(
            target="mxnet", calib_data=options[0].calib_data)], str(tmp_path / "y"))
    assert not list(tmp_path.glob("y*"))


@pytest.mark.parametrize("runtime", [pytest.param("mxnet", marks=pytest.mark.mxnet), "onnxruntime"])
def test_the_table_does_not_depend_on_the_engine(runtime: str) -> None:
    from qgraph.calibration.collect import collect
    from qgraph.data.open import open_data

    g, feeds = networks.build("residual_downsample")
    PassManager(PIPELINES["float"]).run(g)
    table = collect(g, open_data({"data": feeds["data"]}), "kl", runtime=runtime)
    want = Reference(g, [Port(g.find(k)) for k in table.entries]).run(feeds)
    for entry, value in zip(table.entries.values(), want):
        assert (entry.min, entry.max) == pytest.approx((value.min(), value.max()), rel=1e-5, abs=1e-6)


def test_runtimes_say_what_they_cannot_run(digits: Any) -> None:
    with pytest.raises(QGraphError, match="MXNet cannot run an ONNX model"):
        executor(digits.model, "x", "mxnet")
    with pytest.raises(QGraphError, match="want one of auto, mxnet, onnxruntime"):
        executor(MxnetModel(digits.graph), "x", "tensorflow")


@pytest.mark.slow
def test_compare_and_evaluate_read_onnx(tmp_path: Path, digits: Any) -> None:
    from qgraph.commands.compare import compare
    from qgraph.commands.evaluate import evaluate

    digits.save(tmp_path / "d")
    test = str(DIGITS / "digits-test.npz")
    path, model = str(tmp_path / "d.onnx"), str(DIGITS / "digits-symbol.json")
    scores = evaluate(path, test, model)
    assert scores["agreement"] > 97 and scores["top1"] > 95
    found = compare(model, path, test)
    assert found["agreement"] == scores["agreement"]
    quantized = {x["name"] for x in digits.report["quantized"]}
    assert quantized <= {x["name"] for x in found["layers"]}
    assert all(x["sqnr_db"] > 20 for x in found["layers"])
    qgraph.convert(model, input_shape="data:1,1,24,24").save(tmp_path / "float")
    converted = compare(str(tmp_path / "float.onnx"), path, test)
    assert converted["agreement"] == scores["agreement"] and len(converted["layers"]) >= len(quantized) - 1
    assert all(x["sqnr_db"] > 20 for x in converted["layers"]), converted["layers"]
    itself = compare(path, path, test)
    assert itself["output"]["sqnr_db"] is None and len(itself["layers"]) >= len(quantized)


@pytest.mark.slow
def test_integer_ops_are_those_of_onnxruntime() -> None:
    """Names in the table that no fused graph can contain would hide a layer in float."""
    seen: set[str] = set()
    for name in networks.NETWORKS:
        g, _, model = frozen(name)
        seen |= set(fusion(g, model)["ops"])
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "QGemm", "QLinearGlobalAveragePool"} <= seen & INTEGER_OPS
