"""What was trained quantized is what is frozen."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import DIGITS, run_mxnet

mx = pytest.importorskip("mxnet")  # a class below is a block of Gluon
pytest.importorskip("sklearn")
import qat_digits  # noqa: E402
from mxnet.gluon import nn  # noqa: E402

import qgraph  # noqa: E402
from qgraph.cli.main import main  # noqa: E402
from qgraph.engines import executor  # noqa: E402
from qgraph.errors import CalibrationError, FormatError, OptionError, UnsupportedError  # noqa: E402
from qgraph.formats.mxnet_marks import MARK, mark_of, restore  # noqa: E402
from qgraph.ir.graph import Graph, Port  # noqa: E402
from qgraph.qat import convert_model, gen_conv2d_converter, gen_dense_converter, qparams_init  # noqa: E402
from qgraph.quant.spec import QParams  # noqa: E402
from qgraph.targets.mxnet.sim import lower  # noqa: E402

pytestmark = pytest.mark.mxnet
SPLIT = qat_digits.load_digits_split()
IMAGES, LABELS = SPLIT.test_data[:300], SPLIT.test_label[:300]


@functools.lru_cache(maxsize=3)  # a trained network holds a gigabyte
def trained(bits: int, quant_type: str, fake_bn: bool, epochs: int = 1) -> Any:
    """Made once for each choice: who changes it takes `epochs=0`, which nobody else has with that choice."""
    mx.random.seed(0)
    net = qat_digits.quantized_network(qat_digits.DEFAULT_OUTPUT, SPLIT, bits, quant_type, fake_bn)
    if epochs:
        retrain(net, epochs)
    return net


@functools.cache
def trained_with_signs() -> Any:
    """Every layer, per channel, with activations as signed as they are."""
    mx.random.seed(0)
    net = qat_digits.trained_network(qat_digits.DEFAULT_OUTPUT)
    options = {"in_signed": "auto", "quant_type": "channel"}
    convert_model(net, convert_fn={nn.Conv2D: gen_conv2d_converter(fake_bn=True, **options),
                                   nn.Dense: gen_dense_converter(**options)})
    qparams_init(net, calib_data=SPLIT.calib_data)
    net.quantize_offline()
    retrain(net, 1)
    return net


def retrain(net: Any, epochs: int) -> None:
    some = SPLIT._replace(train_data=SPLIT.train_data[:320], train_label=SPLIT.train_label[:320])
    qat_digits.retrain(net, some, epochs, 0.01, "local")


def module_logits(symbol: Any, arg: Any, aux: Any) -> np.ndarray:
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", IMAGES.shape)], for_training=False)
    module.set_params(arg, aux)
    module.forward(mx.io.DataBatch([mx.nd.array(IMAGES)]), is_train=False)
    return module.get_outputs()[0].asnumpy()


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "quant_type", "fake_bn"), [
    (3, "group", False), (4, "channel", True), (8, "layer", True), (8, "layer", False)])
def test_frozen_equals_trained(bits: int, quant_type: str, fake_bn: bool, tmp_path: Path) -> None:
    """Bit for bit: the network, the frozen model op by op and under MXNet's default bind, and the exported files."""
    net = trained(bits, quant_type, fake_bn)
    want = qat_digits.logits(net, IMAGES)
    assert np.abs(want - want[:1]).max() > 1 and (want.argmax(1) == LABELS).mean() > 0.7
    frozen = qgraph.freeze(net, qgraph.FreezeOptions(target="mxnet-sim"))
    assert np.array_equal(executor(frozen.model, "").run({"data": IMAGES})[0], want)
    assert np.array_equal(run_mxnet(frozen.model.ir, {"data": IMAGES})[0], want)
    assert np.array_equal(frozen.module(IMAGES.shape).predict(mx.io.NDArrayIter(IMAGES, batch_size=300)).asnumpy(),
                          want)
    prefix = str(tmp_path / "net")
    net.export(prefix)
    assert np.array_equal(module_logits(*mx.model.load_checkpoint(prefix, 0)), want)
    again = qgraph.load(f"{prefix}-symbol.json", f"{prefix}-0000.params")
    kinds = {(n.quant.dtype, n.quant.granularity) for n in again.nodes("fake_quantize")}
    layers = [[n.name for n in g.nodes() if n.op in ("Convolution", "FullyConnected")]
              for g in (again, qgraph.from_gluon(net))]
    assert layers[0] == layers[1]
    granularity = {"layer": "tensor"}.get(quant_type, quant_type)
    assert (f"u{bits}", "tensor") in kinds and (f"s{bits}", granularity) in kinds
    assert np.array_equal(executor(qgraph.freeze(again, qgraph.FreezeOptions(target="mxnet-sim")).model, "")
                          .run({"data": IMAGES})[0], want)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "quant_type", "fake_bn", "target"), [
    (8, "layer", False, "onnx"), (8, "layer", False, "mxnet"), (8, "layer", True, "mxnet --fast"),
    (4, "channel", True, "onnx"), (8, "channel", True, "mxnet"),
    (8, "channel", True, "mxnet --fast")])  # each network is trained once
def test_other_targets_keep_ranges_and_codes(bits: int, quant_type: str, fake_bn: bool, target: str) -> None:
    net = trained(bits, quant_type, fake_bn)
    want = qat_digits.logits(net, IMAGES)
    texts = {"onnx": "onnx{isa=vnni}", "mxnet --fast": "mxnet{fast=true}"}
    options = qgraph.FreezeOptions(target=texts.get(target, target))
    frozen = qgraph.freeze(net, options)
    got = executor(frozen.model, "").run({"data": IMAGES})[0]
    assert (got.argmax(1) == want.argmax(1)).mean() > (0.985 if target == "mxnet --fast" else 0.995)
    assert [layer["name"] for layer in frozen.report["float"]] == ["digits_conv0_fwd"]
    blocks = {b.name: b for b in net.collect_quantized_blocks()}
    assert len(frozen.report["quantized"]) == len(blocks) == 8
    steps = {round(float(b.input_max.data().asscalar()) / b.qat.spec.qmax, 9) for b in blocks.values()}
    kept = {round(float(n.quant.scale), 9) for n in frozen.graph.nodes("fake_quantize") if n.quant.scale.ndim == 0}
    assert len(steps) == 7  # two layers read one tensor
    assert sum(min(abs(a - b) / a for b in kept) < 1e-5 for a in steps) >= (5 if target == "mxnet --fast" else 6)
    if target == "onnx":  # codes of the weights are those that were trained
        trained_graph = qgraph.from_gluon(net)
        for fq in trained_graph.nodes("fake_quantize"):
            source = trained_graph.inputs(fq)[0]
            array = trained_graph.param(source)
            if array is not None:
                found = frozen.graph.params[source.node.name]
                assert len(np.unique(np.abs(found).reshape(len(found), -1)[0])) <= 2 ** (bits - 1)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`net.export`, then `qgraph freeze` for two targets; the images of the last step lie beside it."""
    net = trained(8, "channel", True)
    prefix = str(tmp_path / "net")
    net.export(prefix)
    assert np.load(f"{prefix}-calib.npz")["data"].shape == (32, 1, 24, 24)
    for target in ("mxnet-sim", "onnx"):
        assert main(["freeze", f"{prefix}-symbol.json", "--target", target, "--output", f"{prefix}-{target}"]) == 0
        assert "quantized   8 of 9 layers (in float: digits_conv0_fwd)" in capsys.readouterr().out
    report = json.loads(Path(f"{prefix}-mxnet-sim.report.json").read_text())
    assert report["departure"]["within_one"] == 100 and report["agreement"]["top1"] > 90
    assert report["float"][0]["reason"] == "was not quantized in training"
    assert main(["freeze", f"{prefix}-symbol.json", "--weight-bits", "4", "--target", "onnx"]) == 1
    assert "is chosen with qgraph.qat.convert_model" in capsys.readouterr().err


def test_a_layer_trained_in_float_is_named_where_all_must_be_int8() -> None:
    with pytest.raises(UnsupportedError, match="digits_conv0_fwd:Convolution: stays in float .*trained in float"):
        qgraph.freeze(trained(8, "channel", False, epochs=0), qgraph.FreezeOptions(target="tengine"), calib_data=IMAGES)


def test_what_cannot_be_frozen_says_so() -> None:
    net = trained(4, "channel", True, epochs=0)
    with pytest.raises(UnsupportedError, match="was trained with 4 bits, which target mxnet cannot carry; mxnet-sim"):
        qgraph.freeze(net, qgraph.FreezeOptions(target="mxnet"))
    with pytest.raises(OptionError, match="--act-bits: this network was trained quantized"):
        qgraph.freeze(net, qgraph.FreezeOptions(target="onnx", act_bits=5))
    graph = qgraph.from_gluon(net)
    with pytest.raises((CalibrationError, OptionError), match="calib-data"):
        qgraph.freeze(graph, qgraph.FreezeOptions(target="onnx"))
    net.collect_quantized_blocks()[0].input_max.set_data(mx.nd.zeros(1))
    with pytest.raises(CalibrationError, match="no range for the input of digits_depthwise"):
        qgraph.from_gluon(net)


@pytest.mark.parametrize("quant_type", ["layer", "group", "channel"])
def test_every_kind_of_layer_is_frozen_as_it_trained(quant_type: str) -> None:
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Conv2D(8, 3, in_channels=1, groups=1), nn.BatchNorm(in_channels=8), nn.Activation("relu"),
                nn.Conv2DTranspose(8, 2, strides=2, groups=2, in_channels=8), nn.BatchNorm(in_channels=8),
                nn.Conv2D(12, 3, strides=2, groups=4, in_channels=8, activation="relu"), nn.GlobalAvgPool2D(),
                nn.Dense(10, in_units=12))
    net.initialize(mx.init.Xavier())
    convert_model(net, convert_fn={cls: gen_conv2d_converter(in_signed="auto", fake_bn=True, wt_width=5,
                                                             quant_type=quant_type)
                                   for cls in (nn.Conv2D, nn.Conv2DTranspose)})
    qparams_init(net, calib_data=SPLIT.calib_data)
    net.quantize_offline()
    net.hybridize(static_alloc=True, static_shape=True)
    want = qat_digits.logits(net, IMAGES)
    assert np.array_equal(run_mxnet(lower(qgraph.from_gluon(net)), {"data": IMAGES})[0], want)
    assert sum(b.qat.bn is not None for b in net.collect_quantized_blocks()) == 2


# ---- marks ----------------------------------------------------------------------------------------------------------

def marked(text: str, op: str = "_copy") -> Graph:
    g = Graph()
    w = g.add_param("w", np.ones((4, 2, 1, 1), np.float32))
    g.heads = [Port(g.add(op, [w], "q", attrs={MARK: text}))]
    return g


def test_marks_read_back_exactly() -> None:
    params = QParams(5, True, True, "channel", 0, scale=np.float32([0.1, 1 / 3, 1e-9, 7]))
    g = marked(mark_of(params))
    assert restore(g) == 1
    assert g.nodes("fake_quantize")[0].quant.key == params.key  # type: ignore[union-attr]


class Named(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
    """A convolution in float whose name ends as those of trained layers do where they are written."""

    def __init__(self) -> None:
        super().__init__(prefix="own_")
        self.kernel = self.params.get("kernel_codes", shape=(4, 8, 1, 1), init="xavier")

    def hybrid_forward(self, F: Any, x: Any, kernel: Any) -> Any:
        return F.Convolution(x, kernel, kernel=(1, 1), num_filter=4, no_bias=True, name="fwd_sums")


def test_only_what_was_trained_gets_its_name_back(tmp_path: Path) -> None:
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Conv2D(8, 3, in_channels=3))
    net.add(Named())
    net.initialize()
    data = mx.nd.random.normal(shape=(2, 3, 8, 8))
    convert_model(net)
    qparams_init(net, calib_data=data)
    net.quantize_offline()
    net(data)
    net.export(str(tmp_path / "net"))
    g = qgraph.load(str(tmp_path / "net-symbol.json"), str(tmp_path / "net-0000.params"))
    assert {n.name for n in g.nodes("Convolution")} == {"net_conv0_fwd", "own_fwd_sums"}
    assert {"net_conv0_weight", "own_kernel_codes"} <= set(g.params)


GOOD = json.loads(mark_of(QParams(5, True, True, "channel", 0, scale=np.ones(4))))


@pytest.mark.parametrize("text", [
    "", "[]", "{", "[" * 100000, "1e999", json.dumps({**GOOD, "bits": "5"}), json.dumps({**GOOD, "bits": True}),
    json.dumps({**GOOD, "bits": 10**9}), json.dumps({**GOOD, "axis": -1}), json.dumps({**GOOD, "axis": 9}),
    json.dumps({**GOOD, "scale": [1, 2, 3]}), json.dumps({**GOOD, "scale": [1, 2, 3, -1]}),
    json.dumps({**GOOD, "scale": [1, 2, 3, float("nan")]}), json.dumps({**GOOD, "scale": "x"}),
    json.dumps({**GOOD, "scale": [[1], 2]}), json.dumps({**GOOD, "granularity": "row"}),
    json.dumps({**GOOD, "more": 1})])
def test_bad_marks_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="q:"):
        restore(marked(text))


def test_marks_on_other_ops_are_refused() -> None:
    with pytest.raises(FormatError, match="which this op does not have"):
        restore(marked(json.dumps(GOOD), "Activation"))


@pytest.mark.parametrize("lines", [
    "%y = relu(%w) {__quantized__=bias}", "%y = broadcast_add(%w, %w) {__quantized__=bias}",
    "%c = FullyConnected(%x, %w) {no_bias=True num_hidden=4}\n%y = BatchNorm(%c, %x, %x, %x, %x) {__quantized__=bias}",
    "%c = FullyConnected(%x, %w) {no_bias=True num_hidden=4}\n%d = BatchNorm(%c, %w, %w, %w, %w) {__quantized__=bias}\n"
    "%y = broadcast_add(%c, %d)", "%y = _zeros() {__quantized__=as_is shape=(1,)}"])
def test_marks_of_other_graphs_are_refused(lines: str) -> None:
    g = Graph.parse(f"%x = input\n%w = param float32 (4, 4)\n{lines}\nreturn %y")
    with pytest.raises(FormatError, match="^[cdy]:"):
        restore(g)


# ---- examples -------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_qat_digits(tmp_path: Path) -> None:
    done = CliRunner().invoke(qat_digits.main, ["--epochs", "1", "--bits", "3", "--quant-type", "channel", "--output",
                                                str(tmp_path / "net")])
    assert done.exit_code == 0, done.output
    lines = dict(line.split(None, 1) for line in done.output.splitlines() if not line.startswith("epoch"))
    rate = {key: float(lines[key].split("%")[0]) for key in ("float", "quantized", "retrained")}
    assert lines["frozen"] == "equal to it, bit for bit"
    assert rate["float"] > 98 and rate["quantized"] < 50 and rate["retrained"] > 80
    assert (tmp_path / "net-symbol.json").is_file()


@pytest.mark.parametrize("target", ["onnx", "mxnet-sim"])
def test_fast_is_a_choice_of_one_target(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(DIGITS / "digits")
    assert main(["freeze", model, "--target", target, "--fast"]) == 1
    assert f"--fast: target {target} has no choice; it is for --target mxnet" in capsys.readouterr().err


def test_fast_is_for_what_was_trained() -> None:
    with pytest.raises(OptionError, match="--fast: is for networks that were trained quantized"):
        qgraph.freeze(str(DIGITS / "digits"), qgraph.FreezeOptions(target="mxnet{fast=true}"))


@pytest.mark.slow
@pytest.mark.parametrize("target", [pytest.param("ncnn", marks=pytest.mark.ncnn), "tengine"])
def test_engines_of_signed_codes_take_the_trained_ranges(target: str) -> None:
    """Without calibration data. Their activations have 127 codes where training had 255, to the same range."""
    net = trained_with_signs()
    want = qat_digits.logits(net, IMAGES)
    frozen = qgraph.freeze(net, qgraph.FreezeOptions(target=target))
    assert not frozen.report["float"] and len(frozen.report["quantized"]) == 9
    ends = {b.name: float(b.input_max.data().asscalar()) for b in net.collect_quantized_blocks()}
    kept = [float(n.quant.scale) * n.quant.qmax for n in frozen.graph.nodes("fake_quantize") if n.quant.scale.ndim == 0]
    assert all(min(abs(end - k) / end for k in kept) < 0.01 for end in ends.values()), (ends, kept)
    if target == "ncnn":
        got = executor(frozen.model, "").run({"data": IMAGES})[0]
    else:
        from qgraph.semantics.interpreter import Executor as Reference

        got = Reference(frozen.graph, rounding="half-away").run({"data": IMAGES})[0]
    got = got.reshape(want.shape)
    assert (got.argmax(1) == want.argmax(1)).mean() > 0.98 and not np.array_equal(got, want)
