"""ncnn's files: written and read back, hostile ones, and the commands that write and read them."""

from __future__ import annotations

import contextlib
import json
import random
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import DIGITS, PLAIN
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import qgraph
from qgraph import FreezeOptions, Graph, Port
from qgraph.cli.main import main
from qgraph.commands.inspect import inspect_model
from qgraph.data.preprocess import PRESETS, Preprocess
from qgraph.errors import FormatError, OptionError, QGraphError
from qgraph.targets.ncnn.emit import to_ncnn
from qgraph.targets.ncnn.files import SLOTS, Layer, Weight, param_text, parse_param, read_bin
from qgraph.targets.ncnn.model import NcnnModel, load
from qgraph.targets.ncnn.note import usage_note
from qgraph.targets.ncnn.runtime import Executor, is_installed

MODEL = str(DIGITS / "digits-symbol.json")
SHAPE = "data:1,1,24,24"


def sample() -> NcnnModel:
    """A layer of every type with weights, an array, floats, a Split."""
    rng = np.random.default_rng(0)

    def floats(n: int) -> Weight:
        return Weight(rng.normal(size=n).astype(np.float32))

    layers = [
        Layer("Input", "data", [], ["data"], {0: 5, 1: 4, 2: 3}),
        Layer("Convolution", "conv", ["data"], ["conv"], {0: 2, 1: 1, 5: 1, 6: 6, 8: 102, 9: 3, 10: [0.0, 6.0]},
              [Weight(np.arange(6, dtype=np.int8).reshape(2, 3, 1, 1), True), *(floats(n) for n in (2, 2, 1, 1))]),
        Layer("ConvolutionDepthWise", "dw", ["conv"], ["dw"], {0: 2, 1: 1, 5: 0, 6: 2, 7: 2, 8: 1},
              [Weight(np.array([3, -4], np.int8), True), floats(2), floats(1)]),
        Layer("Split", "split", ["dw"], ["a", "b", "c"]),
        Layer("PReLU", "prelu", ["a"], ["pa"], {0: 2}, [floats(2)]),
        Layer("BatchNorm", "bn", ["b"], ["pb"], {0: 2, 1: 1e-5}, [floats(2) for _ in range(4)]),
        Layer("Deconvolution", "deconv", ["c"], ["pc"], {0: 1, 1: 1, 5: 1, 6: 2}, [
            Weight(rng.normal(size=2).astype(np.float32), True), floats(1)]),
        Layer("MemoryData", "anchors", [], ["anchors"], {0: 3, 1: 2}, [floats(6)]),
        Layer("Normalize", "norm", ["pa"], ["pn"], {0: 0, 1: 1, 3: 1}, [floats(1)]),
        Layer("InnerProduct", "fc", ["pb"], ["out"], {0: 3, 1: 1, 2: 9}, [
            Weight(rng.normal(size=9).astype(np.float32), True), floats(3)]),
    ]
    return NcnnModel(layers, ["pc", "anchors", "pn", "out"])


def write(model: NcnnModel, folder: Path, stem: str = "m") -> str:
    path = folder / f"{stem}.param"
    path.write_text(model.param)
    (folder / f"{stem}.bin").write_bytes(model.bin)
    return str(path)


# ---- both ways ------------------------------------------------------------------------------------------------------

def test_what_is_written_reads_back(tmp_path: Path) -> None:
    model = sample()
    found = load(write(model, tmp_path))
    assert (found.param, found.bin, found.outputs, found.inputs) == (model.param, model.bin, model.outputs,
                                                                     {"data": (0, 3, 4, 5)})
    assert found.requantized == {"conv"} and found.stopped == ""
    assert found.bin[:4] == struct.pack("<I", 0x000D4B38) and len(found.layers[1].weights[0].array) == 6


def test_the_text() -> None:
    lines = sample().param.splitlines()
    assert lines[:2] == ["7767517", "10 12"]
    assert lines[3].split() == ["Convolution", "conv", "1", "1", "data", "conv", "0=2", "1=1", "5=1", "6=6", "8=102",
                                "9=3", "-23310=2,0.0,6.0"]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_fit_what_ncnn_scans(value: float) -> None:
    """At most 15 characters, with a point or an exponent, and the float32 that it was."""
    text = param_text([Layer("ReLU", "a", [], ["a"], {0: value})]).split("0=")[1].strip()
    assert len(text) <= 15 and any(mark in text for mark in ".e")
    assert np.float32(text) == np.float32(np.clip(value, -3.402823e38, 3.402823e38))


def test_other_storages_of_weights(tmp_path: Path) -> None:
    """fp16 (padded), the old tag of fp32, and a codebook of 256 floats."""
    layer = Layer("InnerProduct", "fc", ["data"], ["out"], {0: 1, 1: 0, 2: 3})
    values = np.array([1.0, -2.0, 0.5], np.float32)
    book = np.zeros(256, np.float32)
    book[:3] = values
    for data in (struct.pack("<I", 0x01306B47) + values.astype("<f2").tobytes() + bytes(2),
                 struct.pack("<I", 0x0002C056) + values.tobytes(),
                 struct.pack("<I", 7) + book.tobytes() + bytes([0, 1, 2, 0])):
        layer.weights.clear()
        assert read_bin([layer], data, "x.bin") == ""
        np.testing.assert_array_equal(layer.weights[0].array, values)


def test_a_type_without_a_row_stops_the_bin() -> None:
    layers = [Layer("PReLU", "p", [], ["a"], {0: 1}), Layer("MultiHeadAttention", "m", ["a"], ["b"]),
              Layer("PReLU", "q", ["b"], ["c"], {0: 1})]
    assert read_bin(layers, bytes(100), "x.bin") == "m"
    assert [len(layer.weights) for layer in layers] == [1, 0, 0]


@pytest.mark.parametrize(("change", "words"), [
    (("7767517", "7767518"), "m.param: found '7767518' in the first line"),
    (("10 12", "11 12"), r"m.param:2: found '11 12', want the numbers of layers \(10 follow\)"),
    (("10 12", "10 13"), "want 12, as the layers make"),
    (("1 1 conv dw", "1 1 cunv dw"), "dw reads 'cunv': found no layer that makes it"),
    (("1 1 pa pn", "1 1 a pn"), "norm reads 'a': found a second layer that reads it; ncnn wants a Split"),
    (("1 1 pa pn", "1 9 pa pn"), "m.param:11: found 1 and 9 blobs"),
    (("prelu   ", "bn   "), "found a second layer called bn"), (("0=5", "0"), "want ID=VALUE"),
    (("0=5", "77=5"), "want ID=VALUE"), (("0=5", "0=5x"), "want whole numbers"),
    (("0=5", "0=99999999999"), "want whole numbers"), (("-23310=2", "-23310=3"), "as many as it says"),
    (("0=2 1=1.0e-05", "0=2000000 1=1.0e-05"), "m.bin: bn: wants 8000000 bytes at"),
    (("0=2 1=1.0e-05", "0=-2 1=1.0e-05"), "m.bin: bn: found -2 values"), (("2=9", "2=8"), "m.bin: found"),
])
def test_a_broken_param_is_named(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    model = sample()
    path = write(model, tmp_path)
    text = model.param.replace("1e-05", "1.0e-05")
    assert change[0] in text
    Path(path).write_text(text.replace(*change, 1))
    with pytest.raises(FormatError, match=words):
        load(path)


def test_a_bin_that_is_cut_off_or_missing(tmp_path: Path) -> None:
    model = sample()
    path = write(model, tmp_path)
    (tmp_path / "m.bin").write_bytes(model.bin[:-1])
    with pytest.raises(FormatError, match="m.bin: fc: wants 12 bytes at .*cut off, or belongs to another"):
        load(path)
    (tmp_path / "m.bin").write_bytes(model.bin + bytes(4))
    with pytest.raises(FormatError, match="m.bin: found .* bytes, want"):
        load(path)
    (tmp_path / "m.bin").unlink()
    with pytest.raises(OptionError, match="m.bin: no such file"):
        load(path)


def test_names_that_ncnn_cannot_read() -> None:
    for name in ("a b", "x" * 256, ""):
        with pytest.raises(FormatError, match="ncnn wants names"):
            param_text([Layer("ReLU", name, [], ["a"])])


# ---- hostile files --------------------------------------------------------------------------------------------------

def mutated(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    out = bytearray(data)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 8))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[rng.randrange(len(out)):]
    elif kind == 2:
        a, b = rng.randrange(len(out)), rng.randrange(len(out))
        out[a:a + rng.randrange(40)] = out[b:b + rng.randrange(40)]
    elif kind == 3:
        at = rng.randrange(len(out) - 4)
        out[at:at + 4] = struct.pack("<I", rng.choice((0, 1, 7, 0xFFFFFFFF, 0x7FFFFFFF, 0x000D4B38, 0x01306B47)))
    elif kind == 4:  # a number of the text becomes another
        found = [m for m in re.finditer(rb"-?\d+", data)]
        if found:
            at = rng.choice(found)
            out[at.start():at.end()] = rng.choice((b"0", b"-1", b"2147483647", b"-2147483648", b"99999999999999999999",
                                                   b"-23300", b"1e999", b"nan", b"1.5", b"", b"233", b"65536"))
    else:
        lines = data.split(b"\n")
        rng.shuffle(lines)
        out = bytearray(b"\n".join(lines))
    return bytes(out)


@pytest.mark.slow
@settings(max_examples=600)
@given(seed=st.integers(0, 1 << 32), which=st.sampled_from(["param", "bin", "both"]))
def test_mutated_files_given_to_inspect(seed: int, which: str, tmp_path: Path) -> None:
    """A clear error or a report, never a crash."""
    rng, model = random.Random(seed), sample()
    path = tmp_path / "m.param"
    param, data = model.param.encode(), model.bin
    path.write_bytes(mutated(param, rng) if which != "bin" else param)
    (tmp_path / "m.bin").write_bytes(mutated(data, rng) if which != "param" else data)
    try:
        json.dumps(inspect_model(str(path)))
    except QGraphError as error:
        assert 0 < len(str(error)) < 1000 and "m." in str(error)


@pytest.mark.slow
@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    for candidate in (text, f"7767517\n1 1\n{text}", f"7767517\n1 1\nInput a 0 1 a {text}"):
        with contextlib.suppress(FormatError):
            parse_param(candidate, "x")


# ---- commands -------------------------------------------------------------------------------------------------------

@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command's stdout, or stderr for another code than 0."""
    def call(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        found = capsys.readouterr()
        return found.err if code else found.out
    return call


def test_freeze_writes_all_that_ncnn_takes(tmp_path: Path, run: Callable[..., str]) -> None:
    text = run("freeze", MODEL, "--target", "ncnn", "--calib", "kl", "--exclude", "last", "--output", tmp_path / "q")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"q.param", "q.bin", "q.table", "q-folded-symbol.json", "q-folded-0000.params", "q.ncnn.md",
                     "q.calib.json", "q.recipe.yaml", "q.report.json", "q.report.html"}
    assert "quantized   8 of 9 layers" in text and "ncnn        8 int8 layers" in text
    report = json.loads((tmp_path / "q.report.json").read_text())
    assert report["target"] == "ncnn" and report["rounding"] == "half-away"
    assert report["size"]["after"] == sum((tmp_path / f"q.{s}").stat().st_size for s in ("param", "bin"))
    if is_installed():
        assert report["agreement"]["top1"] >= 99 and report["departure"]["within_one"] >= 99.9
        assert report["versions"]["ncnn"]
    table = [line.split()[0] for line in (tmp_path / "q.table").read_text().splitlines()]
    int8 = [name for name in table if "_param_" not in name]
    assert table == [f"{name}_param_0" for name in int8] + int8
    found = json.loads(run("inspect", tmp_path / "q.param", "--json"))
    assert [layer["name"] for layer in found["layers"] if layer["weight"] == "int8"] == int8
    assert "weight" in run("inspect", tmp_path / "q.param")


def test_the_float_checkpoint_is_what_the_tools_want(tmp_path: Path) -> None:
    """BatchNorm folded, no fused activations, and weights of which ncnn2int8 makes the codes of the int8 file."""
    frozen = qgraph.freeze(MODEL, FreezeOptions(target="ncnn", runtime="onnxruntime"))
    frozen.save(tmp_path / "q")
    folded = qgraph.load(tmp_path / "q-folded-symbol.json", tmp_path / "q-folded-0000.params")
    assert not folded.nodes("BatchNorm") and not folded.nodes("fake_quantize")
    assert all(node.fused is None for node in folded.nodes("Convolution"))
    for layer in frozen.model.int8_layers:
        scales = layer.weights[-3 if layer.number(8) > 100 else -2].array
        codes = layer.weights[0].array
        weight = folded.param(folded.inputs(folded.find(layer.name))[1])
        assert weight is not None
        product = weight * scales.reshape(-1, *[1] * (weight.ndim - 1))
        np.testing.assert_array_equal(np.trunc(product + np.copysign(np.float32(0.5), product)), codes)


@pytest.mark.slow
@pytest.mark.mxnet
def test_one_command_calibrates_once(tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    from qgraph.commands import line

    calls: list[int] = []
    real = line.collect
    monkeypatch.setattr(line, "collect", lambda *a, **k: calls.append(1) or real(*a, **k))
    run("freeze", MODEL, "--target", "mxnet", "--target", "onnx", "--target", "ncnn", *PLAIN, "--output",
        tmp_path / "q")
    assert len(calls) == 1
    names = {p.name for p in tmp_path.iterdir()}
    assert {"q-symbol.json", "q-0000.params", "q.onnx", "q.param", "q.bin", "q.table", "q.calib.json",
            "q.mxnet.report.json", "q.onnx.report.json", "q.ncnn.report.json"} <= names
    alone = qgraph.freeze(MODEL, FreezeOptions(target="ncnn", effort="fast", calib="naive"),
                          calib_table=str(tmp_path / "q.calib.json"))
    assert alone.model.bin == (tmp_path / "q.bin").read_bytes()


@pytest.mark.slow
def test_ranges_are_for_the_codes_of_the_target() -> None:
    """kl looks at 127 codes for ncnn; a table for several targets leaves signs open, and the report says so."""
    own = qgraph.freeze(MODEL, FreezeOptions(target="ncnn", calib="kl"))
    assert own.table is not None and own.table.signed is True
    other = qgraph.freeze(MODEL, FreezeOptions(target="onnx", calib="kl")).table
    assert other is not None and other.signed is None
    shared = qgraph.freeze(MODEL, FreezeOptions(target="ncnn"), calib_table=other)
    assert any("suit its codes better" in text for text in shared.report["ncnn"]["equivalents"])
    assert not any("suit its codes better" in text for text in own.report["ncnn"]["equivalents"])


@pytest.mark.slow
@pytest.mark.ncnn
def test_convert_eval_and_compare(tmp_path: Path, run: Callable[..., str]) -> None:
    text = run("convert", MODEL, "--to", "ncnn", "--input-shape", SHAPE, "--output", tmp_path / "f")
    assert float(text.split("difference  ")[1].split()[0]) < 1e-5
    data = str(DIGITS / "digits-test.npz")
    run("freeze", MODEL, "--target", "ncnn", *PLAIN, "--output", tmp_path / "q", "-q")
    found = json.loads(run("eval", tmp_path / "q.param", "--data", data, "--reference", MODEL, "--json", "-q"))
    assert found["images"] == 600 and found["agreement"] >= 99
    plain = json.loads(run("eval", tmp_path / "f.param", "--data", data, "--reference", MODEL, "--json", "-q"))
    assert plain["agreement"] == 100
    pair = json.loads(run("compare", MODEL, tmp_path / "q.param", "--data", data, "--json", "-q"))
    layers = {layer["name"]: layer["sqnr_db"] for layer in pair["layers"]}
    assert len(layers) >= 9 and min(layers.values()) > 15
    both = json.loads(run("compare", tmp_path / "f.param", tmp_path / "q.param", "--data", data, "--json", "-q"))
    assert both["agreement"] >= 99


def test_convert_refuses_what_has_no_converter(tmp_path: Path, run: Callable[..., str]) -> None:
    g = Graph()
    x = g.add("null", name="data")
    conv = g.add("Convolution", [x, g.add_param("w", np.ones((2, 3, 1, 1), np.float32))], "conv", kernel=(1, 1),
                 num_filter=2, no_bias=True)
    g.heads = [Port(g.add("topk", [conv], "peaks", k=2))]
    qgraph.save(g, tmp_path / "m")
    error = run("convert", tmp_path / "m-symbol.json", "--to", "ncnn", code=1)
    assert "peaks:topk: there is no ncnn converter" in error and "--outputs" in error and "Traceback" not in error
    text = run("convert", tmp_path / "m-symbol.json", "--to", "ncnn", "--outputs", "conv", "--input-shape",
               "data:1,3,4,4")
    assert "outputs     conv" in text


# ---- the note -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("preset", [name for name, p in PRESETS.items() if not p.is_identity])
def test_mean_and_norm_say_what_the_preprocessing_does(preset: str) -> None:
    chosen = PRESETS[preset]
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    want = Preprocess(**{**chosen.to_dict(), "resize": None, "crop": None})(Image.fromarray(pixels))
    mean, norm = (np.array(v, np.float64).reshape(-1, 1, 1) for v in chosen.mean_norm)
    channels = pixels.transpose(2, 0, 1)[::-1] if chosen.bgr else pixels.transpose(2, 0, 1)
    np.testing.assert_allclose((channels - mean) * norm, want, atol=1e-5)


@pytest.mark.ncnn
def test_the_code_of_the_note_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    """It gives the class that ncnn gives on what freezing's own preprocessing makes of the image."""
    rng, chosen = np.random.default_rng(0), Preprocess.from_options("imagenet", resize=20, crop=16)
    g = Graph()
    weight = g.add_param("w", rng.normal(size=(50, 3, 16, 16)).astype(np.float32))
    conv = g.add("Convolution", [g.add("null", name="data"), weight], "conv", kernel=(16, 16), num_filter=50,
                 no_bias=True)
    g.heads = [Port(g.add("Flatten", [conv], "scores"))]
    model = to_ncnn(g, {"data": (1, 3, 16, 16)})
    write(model, tmp_path, "net")
    image = Image.fromarray(rng.integers(0, 256, (30, 41, 3)).astype(np.uint8))
    image.save(tmp_path / "image.jpg", quality=95)
    note = usage_note("net", model.inputs, model.outputs, chosen)
    code = note.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 18 and "`scores` | output" in note
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "note", "exec"), {})
    want = Executor(model).run({"data": chosen(Image.open(tmp_path / "image.jpg"))[None]})[0]
    assert int(capsys.readouterr().out) == int(want.argmax())


def test_the_tables_of_types_do_not_overlap() -> None:
    from qgraph.targets.ncnn.files import PLAIN

    assert not PLAIN & set(SLOTS)


def test_without_the_package_files_are_written_unjudged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        run: Callable[..., str],
                                                        caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    text = run("freeze", MODEL, "--target", "ncnn", "--output", tmp_path / "q")
    assert "wrote" in text and "agreement" not in text
    report = json.loads((tmp_path / "q.report.json").read_text())
    assert report["agreement"] is None and report["departure"] is None and report["ncnn"]["int8"] == 9
    text = run("convert", MODEL, "--to", "ncnn", "--input-shape", SHAPE, "--output", tmp_path / "f")
    assert "not compared" in text
    error = run("eval", tmp_path / "q.param", "--data", DIGITS / "digits-test.npz", code=1)
    assert 'pip install "qgraph[ncnn]"' in error and "Traceback" not in error
