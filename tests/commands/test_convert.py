"""`qgraph convert` and what it promises; `qgraph inspect` of ONNX models; the example with an op of its own."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from checkpoints import GENERATIONS, arrays, generation
from helpers import DIGITS, EXAMPLES, PLAIN, ROOT, load_example, run_example, run_mxnet

import qgraph
from qgraph.cli.main import main
from qgraph.commands.open_model import find_output
from qgraph.errors import OptionError, QGraphError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.semantics import interpreter as reference
from qgraph.semantics.infer import RULES
from qgraph.semantics.kernels import KERNELS
from qgraph.targets.onnx.convert import CONVERTERS, Context
from qgraph.targets.onnx.model import load as load_onnx
from qgraph.targets.onnx.runtime import Executor

SHAPE = ["--input-shape", "data:1,1,24,24"]
RTOL = 2e-6  # of the largest output: sums of float32 in another order


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with the digits network as net-*."""
    for name in ("-symbol.json", "-0000.params", "-calib.npz"):
        shutil.copy(f"{DIGITS}/digits{name}", tmp_path / f"net{name}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_mxnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mxnet", None)


def old_checkpoint(folder: Path, key: str = "param") -> str:
    """Prefix of files that another generation of MXNet wrote: convolution, BatchNorm, SoftmaxOutput, a shape hint."""
    prefix = str(folder / "old")
    qgraph.save(qgraph.load(generation(key), arrays()), prefix, 3)
    Path(f"{prefix}-symbol.json").write_text(json.dumps(generation(key)))
    return prefix


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main(argv) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("parameters: ")]
    assert captured.out == "" and len(lines) == 1 and lines[0].startswith("qgraph: error: "), captured
    return lines[0]


def batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def assert_close(want: np.ndarray, found: np.ndarray) -> None:
    """Equal up to rounding, and not the same for every image."""
    assert want.shape == found.shape
    assert np.abs(want - want[:1]).max() > 1e-3 * np.abs(want).max()
    assert np.abs(want - found).max() <= RTOL * np.abs(want).max()


# ---- to ONNX --------------------------------------------------------------------------------------------------------

@pytest.mark.mxnet
@pytest.mark.parametrize("name", ["conv_pool_conv", "residual_linear", "concats"])
def test_onnx_computes_what_mxnet_computes(name: str) -> None:
    g = networks.NETWORKS[name](networks.Net(5))
    converted = qgraph.convert(g, input_shape="data:1,3,12,12")
    x = batch(3, 3, 12, 12)
    for want, found in zip(run_mxnet(g, {"data": x}), Executor(converted.model).run({"data": x})):
        assert_close(want, found)
    assert converted.report["compared_with"] == "MXNet" and 0 < converted.report["difference"] < RTOL
    assert converted.report["outputs"] == [h.key for h in g.heads]
    assert converted.report["inputs"] == {"data": [0, 3, 12, 12]}


def test_without_mxnet_the_reference_judges(no_mxnet: None) -> None:
    g = networks.residual_linear(networks.Net(5))
    converted = qgraph.convert(g, input_shape="data:1,3,12,12")
    assert converted.report["compared_with"] == "the NumPy reference" and 0 < converted.report["difference"] < RTOL
    x = batch(3, 3, 12, 12)
    assert_close(reference.run(g, {"data": x})[0], Executor(converted.model).run({"data": x})[0])


@pytest.mark.parametrize("runtime", [pytest.param("mxnet", marks=pytest.mark.mxnet), "onnxruntime"])
@pytest.mark.parametrize("key", GENERATIONS)
def test_every_generation_becomes_the_same_onnx(key: str, runtime: str, tmp_path: Path) -> None:
    converted = qgraph.convert(old_checkpoint(tmp_path, key), runtime=runtime)
    assert converted.report["outputs"] == ["softmax"] and converted.report["inputs"] == {"data": [0, 3, 8, 8]}
    assert converted.report["ops"]["before"] == {"BatchNorm": 1, "Convolution": 1, "SoftmaxOutput": 1}
    assert converted.report["ops"]["after"] == {"BatchNormalization": 1, "Conv": 1, "Softmax": 1}
    assert 0 < converted.report["difference"] < RTOL
    x = batch(2, 3, 8, 8)
    [found] = Executor(converted.model).run({"data": x})
    assert_close(reference.run(qgraph.load(generation(key), arrays()), {"data": x})[0], found)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_files_are_written_and_said(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "net-symbol.json", "--to", "onnx", *SHAPE]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "inputs      data Nx1x24x24" and out[-1] == "wrote       net.onnx"
    assert any(line.startswith("difference  ") and "of the largest output (with " in line for line in out)
    x = batch(2, 1, 24, 24)
    want = reference.run(qgraph.load("net-symbol.json", "net-0000.params"), {"data": x})
    assert_close(want[0], Executor(load_onnx("net.onnx")).run({"data": x})[0])

    assert main(["convert", "net", "--to", "onnx", *SHAPE, "--output", "b.onnx", "--json", "-q"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == "" and report["files"] == ["b.onnx"]
    assert report["size"]["after"] == Path("b.onnx").stat().st_size
    assert Path("b.onnx").read_bytes() == Path("net.onnx").read_bytes()


def test_outputs_cut_the_network(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["convert", "net", "--to", "onnx", *SHAPE, "--output", "cut", "-q", "--json"]
    assert main([*argv, "--outputs", "digits_pool_fwd_output0", "--outputs", "digits_conv0_fwd"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"] == ["digits_pool_fwd", "digits_conv0_fwd"] and "Gemm" not in report["ops"]["after"]
    g = qgraph.load("net-symbol.json", "net-0000.params")
    x = batch(2, 1, 24, 24)
    wanted = reference.run(g, {"data": x}, [Port(g.find("digits_pool_fwd")), Port(g.find("digits_conv0_fwd"))])
    for want, found in zip(wanted, Executor(load_onnx("cut.onnx")).run({"data": x})):
        assert_close(want, found)


def test_a_shape_that_is_not_known(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Height and width stay open; nothing is run, which is said with what would tell the shape."""
    assert main(["convert", "net", "--to", "onnx"]) == 0
    captured = capsys.readouterr()
    assert "difference  not compared" in captured.out and "inputs      data Nx1xNxN" in captured.out
    assert "was not run" in captured.err and "--input-shape data:1,3,224,224" in captured.err
    g, model = qgraph.load("net-symbol.json", "net-0000.params"), load_onnx("net.onnx")
    for size in (24, 20):
        x = batch(2, 1, size, size)
        assert_close(reference.run(g, {"data": x})[0], Executor(model).run({"data": x})[0])

    with pytest.raises(UnsupportedError, match="data: not even the number of dimensions .*--input-shape data:"):
        qgraph.convert(two_parts())


@pytest.mark.parametrize(("text", "key"), [("a", "a"), ("a_output", "a"), ("a:0", "a"), ("parts:1", "parts:1"),
                                           ("parts_output1", "parts:1"), ("b_output", "b_output"), ("a_output0", "a")])
def test_spellings_of_an_output(text: str, key: str) -> None:
    assert find_output(two_parts(), text).key == key


@pytest.mark.parametrize(("text", "message"), [
    ("part", "did you mean parts?"), ("parts:2", "parts:SliceChannel has no output 2, want 0 to 1"),
    ("data", "an input or a parameter"), ("zzzzz", "the last ones are a, parts, b_output"), ("", "no operator"),
])
def test_outputs_that_are_none(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        find_output(two_parts(), text)


def two_parts() -> Graph:
    g = Graph()
    a = g.add("exp", [g.add("null", name="data")], "a")
    parts = g.add("SliceChannel", [a], "parts", n_out=2, num_outputs=2)
    b = g.add("elemwise_add", [Port(parts, 0), Port(parts, 1)], "b_output")
    g.heads = [Port(b)]
    return g


@pytest.mark.parametrize("what", ["inner", "last"])
def test_a_wrong_converter_is_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_mxnet: None) -> None:
    """Also behind a softmax, which hides what is small, and in the softmax itself."""
    def wrong(c: Context, x: str, *rest: str) -> Any:
        y = CORRECT(c, x, *rest)
        return c.op("Mul", y, c.const(np.float32(1.001))) if what == "inner" else c.op("Softmax", x, axis=-1)

    op = "BatchNorm" if what == "inner" else "softmax"
    CORRECT = CONVERTERS[op]
    monkeypatch.setitem(CONVERTERS, op, wrong)
    hidden = ("gamma", "beta") if what == "inner" else ()  # logits so small that the softmax hides the mistake
    values = {k: v * 1e-5 if k.endswith(hidden) else v for k, v in arrays().items()}
    g = qgraph.load(json.dumps(generation("attr")).replace('"eps"', '"fix_gamma": "False", "eps"'), values)
    with pytest.raises(QGraphError, match="is a bug of qgraph; nothing was written"):
        qgraph.convert(g)


def test_an_op_that_nothing_else_can_run_is_not_compared(monkeypatch: pytest.MonkeyPatch,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(CONVERTERS, "Doubled", lambda c, x: c.op("Mul", x, c.const(np.float32(2))))
    g = Graph()
    g.heads = [Port(g.add("Doubled", [g.add("null", name="data")], "double"))]
    with caplog.at_level(logging.WARNING, "qgraph"):
        converted = qgraph.convert(g, input_shape=["data:1,4"])
    assert converted.report["difference"] is None and converted.report["compared_with"] is None
    assert "no kernel for Doubled" in caplog.text
    x = batch(2, 4)
    assert np.array_equal(Executor(converted.model).run({"data": x})[0], 2 * x)


# ---- to MXNet -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key", GENERATIONS)
def test_to_mxnet_writes_the_newest_files(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = old_checkpoint(tmp_path, key)
    assert main(["convert", f"{prefix}-symbol.json", "--to", "mxnet"]) == 0
    names = [f"{prefix}-converted-symbol.json", f"{prefix}-converted-0000.params"]
    out = capsys.readouterr().out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("wrote")] == names
    assert "difference" not in out
    written = json.loads(Path(names[0]).read_text())
    assert written["attrs"] == {"mxnet_version": ["int", 10901]}
    assert qgraph.load(*names).digest() == qgraph.load(generation(key), arrays()).digest()


@pytest.mark.mxnet
def test_to_mxnet_runs_in_mxnet(tmp_path: Path) -> None:
    import mxnet as mx
    converted = qgraph.convert(old_checkpoint(tmp_path), "mxnet", outputs=["bn"])
    assert converted.report["outputs"] == ["bn"] and converted.report["inputs"] == {"data": [16, 3, 8, 8]}
    converted.save(tmp_path / "new")
    symbol, arg, aux = mx.model.load_checkpoint(str(tmp_path / "new"), 0)
    assert symbol.list_outputs() == ["bn_output"]
    x = batch(2, 3, 8, 8)
    bound = symbol.bind(mx.cpu(), {"data": mx.nd.array(x), **arg}, grad_req="null", aux_states=aux)
    g = qgraph.load(generation("param"), arrays())
    assert_close(reference.run(g, {"data": x}, [Port(g.find("bn"))])[0], bound.forward(is_train=False)[0].asnumpy())


@pytest.mark.mxnet
def test_a_block_is_converted() -> None:
    import mxnet as mx
    block = mx.gluon.nn.HybridSequential()
    block.add(mx.gluon.nn.Conv2D(4, 3, activation="relu"), mx.gluon.nn.Dense(3))
    mx.random.seed(0)
    block.initialize(mx.init.Uniform(0.5))
    block.hybridize()
    x = mx.nd.array(batch(2, 2, 6, 6))
    want = block(x).asnumpy()
    converted = qgraph.convert(block, input_shape=["data:1,2,6,6"])
    assert_close(want, Executor(converted.model).run({"data": x.asnumpy()})[0])


# ---- what goes wrong ------------------------------------------------------------------------------------------------

def test_mistakes_are_one_line(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = ["--to", "onnx"]
    assert "no such file" in error_of(["convert", "nett-symbol.json", *to], capsys)
    assert "did you mean net-symbol.json" in error_of(["convert", "nett-symbol.json", *to], capsys)
    assert "there.params: no such file" in error_of(["convert", "net", *to, "--params", "there.params"], capsys)
    assert "--epoch can be 0" in error_of(["convert", "net", *to, "--epoch", "4"], capsys)
    assert "did you mean digits_pool_fwd" in error_of(["convert", "net", *to, "--outputs", "digits_pool"], capsys)
    assert "no input 'dat'" in error_of(["convert", "net", *to, "--input-shape", "dat:1,1,24,24"], capsys)
    assert "want NAME:N,C,H,W" in error_of(["convert", "net", *to, "--input-shape", "data:1,x"], capsys)
    assert "digits_conv0_fwd" in error_of(["convert", "net", *to, "--input-shape", "data:1,2,24,24"], capsys)
    assert "does not exist" in error_of(["convert", "net", *to, *SHAPE, "--output", "nix/net"], capsys)
    assert "this is a folder" in error_of(["convert", "net", *to, *SHAPE, "--output", "./"], capsys)
    assert "overwrite the model" in error_of(["convert", "net", "--to", "mxnet", "--output", "net"], capsys)
    assert "is for --to onnx" in error_of(["convert", "net", "--to", "mxnet", *SHAPE], capsys)
    assert main(["convert", "net"]) == 2 and main(["convert", "net", "--to", "caffe"]) == 2
    assert not list(net.glob("*.onnx")) and not list(net.glob("*converted*"))
    with pytest.raises(OptionError, match="--to caffe: want mxnet, onnx, ncnn or tengine"):
        qgraph.convert("net", "caffe")
    with pytest.raises(OptionError, match="would overwrite the model itself"):
        qgraph.convert("net", "mxnet").save("net")
    with pytest.raises(OptionError, match="--runtime tvm"):
        qgraph.convert("net", input_shape=SHAPE[1], runtime="tvm")


def test_parameters_that_are_not_there(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net-0000.params").unlink()
    assert "give --params FILE" in error_of(["convert", "net-symbol.json", "--to", "onnx"], capsys)


def test_mxnet_that_is_asked_for_and_not_there(net: Path, capsys: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mxnet", None)
    argv = ["convert", "net", "--to", "onnx", *SHAPE, "--runtime", "mxnet"]
    assert "needs mxnet, which is not installed" in error_of(argv, capsys)


def test_an_op_without_a_converter_is_named_with_the_example(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    symbol = Path("net-symbol.json")
    symbol.write_text(symbol.read_text().replace('"op": "Pooling"', '"op": "MyPooling"'))
    line = error_of(["convert", "net", "--to", "onnx", *SHAPE], capsys)
    assert "digits_pool_fwd:MyPooling" in line and "examples/custom_converter.py" in line and "--outputs NAME" in line
    assert (EXAMPLES / "custom_converter.py").is_file()
    assert main(["convert", "net", "--to", "onnx", *SHAPE, "-q", "--outputs", "digits_res2_relu"]) == 0


@pytest.mark.mxnet
def test_frozen_models_are_refused(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["freeze", "net", "--output", "int8", "--target", "mxnet", *PLAIN, "-q"]) == 0
    for to in ("onnx", "mxnet"):
        assert "is frozen for MXNet's own integer operators" in error_of(["convert", "int8", "--to", to], capsys)


@pytest.mark.mxnet
@pytest.mark.parametrize("to", ["ncnn", "tengine"])
def test_a_simulated_model_is_no_float_model(to: str, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["freeze", "net", "--output", "sim", "--target", "mxnet-sim", *PLAIN, "-q"]) == 0
    error = error_of(["convert", "sim", "--to", to, *SHAPE], capsys)
    assert "sim: is quantized already" in error and "want the float model" in error


def test_an_onnx_model_is_refused(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "net", "--to", "onnx", *SHAPE, "-q"]) == 0
    assert "converting wants an MXNet model" in error_of(["convert", "net.onnx", "--to", "mxnet"], capsys)


# ---- inspect --------------------------------------------------------------------------------------------------------

def test_inspect_a_float_onnx_model(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "net", "--to", "onnx", *SHAPE, "-q"]) == 0
    capsys.readouterr()
    assert main(["inspect", "net.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frozen"] is False and found["layers"] == []
    assert found["producer"] == f"qgraph {qgraph.__version__}" and found["opset"] == {"ai.onnx": 21}
    assert found["inputs"] == {"data": ["N", 1, 24, 24]} and found["outputs"] == {"digits_dense_fwd": ["N", 10]}
    params = qgraph.load("net-symbol.json", "net-0000.params").params
    assert found["params"]["numbers"] == sum(a.size for a in params.values())
    assert found["params"]["bytes"] == 4 * found["params"]["numbers"]
    assert main(["inspect", "net.onnx"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("float model, ") and "data Nx1x24x24" in out and "opset ai.onnx 21" in out


@pytest.mark.parametrize("bits", [8, 6])
def test_inspect_a_frozen_onnx_model(net: Path, bits: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["freeze", "net", "--target", "onnx", "--act-bits", str(bits), *PLAIN, "-q"]) == 0
    capsys.readouterr()
    assert main(["inspect", "net-quantized.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frozen"] is True and found["ops"]["QuantizeLinear"] == len(found["layers"]) > 9
    report = json.loads(Path("net-quantized.report.json").read_text())["tensors"]
    for row in found["layers"]:
        said = report[row["name"]]
        assert row["scale"] == pytest.approx(said["scale"]) and row["dtype"] in ("uint8", "int8")
        assert row["range"][1] - row["range"][0] == pytest.approx(row["scale"] * (2 ** bits - 1))
        assert row["range"][0] <= 0 <= row["range"][1]
    assert main(["inspect", "net-quantized.onnx"]) == 0
    assert "frozen model, " in (out := capsys.readouterr().out) and "zero point" in out


def test_inspect_says_what_is_no_onnx_model(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("junk.onnx").write_bytes(b"\x00junk")
    assert "junk.onnx" in error_of(["inspect", "junk.onnx"], capsys)
    assert "did you mean junk.onnx" in error_of(["inspect", "jun.onnx"], capsys)


# ---- the example ----------------------------------------------------------------------------------------------------

def test_custom_converter_runs(tmp_path: Path) -> None:
    done = run_example("custom_converter.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Mul" in done.stdout and "difference 0.0" in done.stdout
    assert "output     0.00 0.00 0.00 0.00 0.36 1.07 1.79 2.50" in done.stdout


def test_custom_converter_is_what_makes_it_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (CONVERTERS, KERNELS, RULES, ops.OPS):
        monkeypatch.setitem(table, "MyScale", None)  # so that they are as they were, afterwards
        monkeypatch.delitem(table, "MyScale")
    with monkeypatch.context() as inside:
        example = load_example("custom_converter")
        inside.delitem(CONVERTERS, "MyScale")
        with pytest.raises(UnsupportedError, match="scale:MyScale.*custom_converter.py"):
            qgraph.convert(example.network(), input_shape="data:1,2,2,2")
    assert qgraph.convert(example.network(), input_shape="data:1,2,2,2").report["difference"] == 0.0


def test_converting_without_mxnet_imports_none_of_it(tmp_path: Path) -> None:
    model = str(DIGITS / "digits")
    code = (f"import sys; sys.modules['mxnet'] = None; sys.path.insert(0, {str(ROOT)!r}); import qgraph\n"
            f"found = qgraph.convert({model!r}, input_shape=['data:1,1,24,24'], runtime='onnxruntime')\n"
            f"print(found.save({str(tmp_path / 'net')!r}), found.report['compared_with'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0 and "the NumPy reference" in done.stdout, done.stderr
    assert (tmp_path / "net.onnx").is_file()
