"""The commands that write and read Tengine's files; the trained networks; one calibration for all targets."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CASES, DIGITS, MXNET, PLAIN, run_mxnet
from tmfile import check_structure

import qgraph
from qgraph import FreezeOptions
from qgraph.cli.main import main
from qgraph.commands.frozen import Frozen
from qgraph.commands.inspect import inspect_model
from qgraph.data.preprocess import PRESETS
from qgraph.errors import OptionError, QGraphError
from qgraph.formats.mxnet import load as load_mxnet
from qgraph.semantics.interpreter import Executor
from qgraph.targets.tengine.export import TAKEN
from qgraph.targets.tengine.files import to_bytes
from qgraph.targets.tengine.model import TengineModel, load
from qgraph.targets.tengine.note import usage_note

MODEL = str(DIGITS / "digits-symbol.json")
CALIB = str(DIGITS / "digits-calib.npz")


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The digits frozen for tengine and others in one command: (folder, the report of tengine)."""
    folder = tmp_path_factory.mktemp("tengine")
    targets = ["tengine", "mxnet-sim", "onnx", "ncnn"]
    code = main(["freeze", MODEL, "--calib-data", CALIB, "-q", "--output", str(folder / "m"),
                 *(word for target in targets for word in ("--target", target))])
    assert code == 0
    return folder, json.loads((folder / "m.tengine.report.json").read_text())


def digits() -> np.ndarray:
    with np.load(CALIB) as found:
        return np.asarray(next(found[key] for key in found if found[key].ndim == 4), np.float32)


# ---- what freezing writes -------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_one_calibration_serves_all_targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from qgraph.commands import line

    swept: list[int] = []
    collect = line.collect
    monkeypatch.setattr(line, "collect", lambda *a, **k: swept.append(1) or collect(*a, **k))
    targets = ["tengine", "ncnn", "onnx", "mxnet-sim"]
    assert main(["freeze", MODEL, "--calib-data", CALIB, "-q", "--output", str(tmp_path / "m"),
                 *(word for target in targets for word in ("--target", target))]) == 0
    assert swept == [1]
    scales = [json.loads((tmp_path / f"m.{t}.report.json").read_text())["calibration"] for t in targets]
    assert all(found == scales[0] for found in scales)


def test_what_is_written(frozen: tuple[Path, dict[str, Any]]) -> None:
    folder, report = frozen
    model = load(str(folder / "m.tmfile"))
    check_structure(model.tm)
    assert to_bytes(model.tm) == (folder / "m.tmfile").read_bytes()
    assert report["tengine"]["read_back_images"] == 4 and report["departure"] is None
    assert report["agreement"]["top1"] >= 99 and report["size"]["after"] == (folder / "m.tmfile").stat().st_size
    assert report["tengine"]["equivalents"][0].startswith("every value is -127..127 with one scale")
    note = (folder / "m.tengine.md").read_text()
    data = model.tm.tensors[model.tm.layers[model.tm.inputs[0]].outputs[0]]
    assert f"| `data` | input | 1 x 1 x 24 x 24 | {float(data.scales[0]):.9g} |" in note  # type: ignore[index]
    assert "convert_tool -f mxnet -m m-tengine-symbol.json" in note and "quant_tool_int8" in note


def test_the_scale_file_names_what_the_export_has(frozen: tuple[Path, dict[str, Any]]) -> None:
    """Every value of the export but those inside a layer, by the layer's own name and by its relu's."""
    folder, _ = frozen
    rows = dict(line.rsplit(" ", 2)[:2] for line in (folder / "m.scale").read_text().splitlines())
    assert all(line.endswith(" 0") and len(line.split()) == 3 for line in (folder / "m.scale").read_text().splitlines())
    g = load_mxnet(str(folder / "m-tengine-symbol.json"), str(folder / "m-tengine-0000.params"))
    values = {n.name for n in g.nodes() if n.name not in g.params}
    missing = values - set(rows)
    assert missing <= {"digits_flatten0_flatten0"} | {n.name for n in g.nodes("Flatten")} and "data" in rows
    steps = {t.name: t.scales[0] for t in load(str(folder / "m.tmfile")).tm.tensors
             if t.scales is not None and len(t.scales) == 1}
    shared = set(steps) & set(rows)
    assert len(shared) > 8 and all(np.float32(rows[name]) == steps[name] for name in shared)
    fused = [n for n in g.nodes("Activation") if g.inputs(n)[0].node.op == "Convolution"]
    assert fused and all(rows[n.name] == rows[g.inputs(n)[0].node.name] for n in fused)


@pytest.mark.mxnet
def test_the_export_has_the_lines_of_mxnet(frozen: tuple[Path, dict[str, Any]]) -> None:
    """What convert_tool matches line by line, and the V2 float32 arrays that it takes for granted."""
    folder, _ = frozen
    text = (folder / "m-tengine-symbol.json").read_text()
    lines = text.splitlines()
    assert lines[:2] == ["{", '  "nodes": ['] and '      "name": "data", ' in lines
    assert all(line.count("]") == line.count("[") for line in lines if '"inputs"' in line)
    graph = json.loads(text)
    assert {n["op"] for n in graph["nodes"]} <= TAKEN | {"null"}
    assert not any("attrs" in n for n in graph["nodes"] if n["op"] == "null")
    data = (folder / "m-tengine-0000.params").read_bytes()
    arrays = len([n for n in graph["nodes"] if n["op"] == "null"]) - 1
    assert data.count(struct.pack("<Ii", 0xF993FAC9, 0)) == arrays
    import mxnet as mx
    assert mx.sym.load_json(text).tojson() == text


@pytest.mark.mxnet
def test_the_export_is_the_folded_network(frozen: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = frozen
    x = digits()[:8]
    g = load_mxnet(str(folder / "m-tengine-symbol.json"), str(folder / "m-tengine-0000.params"))
    folded = load_mxnet(str(folder / "m-folded-symbol.json"), str(folder / "m-folded-0000.params"))
    (a,), (b,) = run_mxnet(g, {"data": x}), run_mxnet(folded, {"data": x})
    assert np.abs(a - b).max() < 0.1 * np.abs(b).max() and (a.argmax(1) == b.argmax(1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--granularity", "layer"), ("--weight-bits", "4"), ("--act-signed", "signed")])
def test_choices_that_have_an_equivalent(flags: tuple[str, ...], tmp_path: Path) -> None:
    assert main(["freeze", MODEL, "--calib-data", CALIB, "-q", *PLAIN, "--target", "tengine", "--output",
                 str(tmp_path / "m"), *flags]) == 0
    facts = json.loads((tmp_path / "m.report.json").read_text())["tengine"]["equivalents"]
    words = {"layer": "one scale per layer is repeated", "4": "weights of 4 bits are stored in 8"}
    assert flags[1] not in words or any(words[flags[1]] in fact for fact in facts)


@pytest.mark.parametrize(("flags", "words"), [
    (("--exclude", "first"), "Tengine's int8 models are so from inputs to outputs: freeze without --exclude"),
    (("--act-bits", "4"), "target tengine cannot carry --act-bits 4"),
    (("--act-signed", "unsigned"), "target tengine cannot carry --act-signed unsigned"),
])
def test_choices_that_have_none(flags: tuple[str, ...], words: str, tmp_path: Path,
                                capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["freeze", MODEL, "--calib-data", CALIB, "-q", *PLAIN, "--target", "tengine", "--output",
                 str(tmp_path / "m"), *flags]) != 0
    found = " ".join(capsys.readouterr().err.split())
    assert words in found and "Traceback" not in found and not list(tmp_path.iterdir())


def test_a_file_that_reads_back_wrongly_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    from qgraph.targets.tengine import nn as tengine_nn

    monkeypatch.setitem(tengine_nn.CONV_ACTS, "relu", -1)
    assert main(["freeze", MODEL, "--calib-data", CALIB, "-q", *PLAIN, "--target", "tengine",
                 "--output", str(tmp_path / "m")]) != 0
    assert "read back, differs from the frozen graph" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_module_names_the_engine(frozen: tuple[Path, dict[str, Any]]) -> None:
    model = load(str(frozen[0] / "m.tmfile"))
    with pytest.raises(OptionError, match="not frozen for MXNet; Tengine runs it"):
        Frozen(qgraph.Graph(), model, None, {}).module((1, 1, 24, 24))


def test_the_note_tells_the_shapes_of_the_outputs(frozen: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert main(["convert", MODEL, "--to", "tengine", "-q", "--input-shape", "data:2,1,24,24", "--output",
                 str(tmp_path / "m")]) == 0
    for folder in (frozen[0], tmp_path):
        assert "| `digits_dense_fwd` | output | 1 x 10 | " in (folder / "m.tengine.md").read_text()


def test_the_note_in_float_and_with_colours() -> None:
    text = usage_note("m", {"data": (0, 3, 8, 8)}, {"out": ()}, {}, PRESETS["imagenet"], why="op: why not")
    assert "TENGINE_MODE_FP32" in text and "float* input" in text and "op: why not" in text
    assert "| `out` | output | ? | float |" in text and "stand for no preprocessing" not in text


# ---- the other commands ---------------------------------------------------------------------------------------------

def test_eval_and_compare(frozen: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(frozen[0] / "m.tmfile")
    assert main(["eval", path, "--data", CALIB, "--reference", MODEL, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agreement"] >= 99 and found["images"] == len(digits())
    assert main(["compare", MODEL, path, "--data", CALIB, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["layers"]) >= 9 and all(row["sqnr_db"] > 15 for row in found["layers"])
    assert {"Convolution", "elemwise_add"} <= {row["op"] for row in found["layers"]}


def test_inspect(frozen: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(frozen[0] / "m.tmfile")
    found = inspect_model(path)
    assert (found["frozen"], found["engine"], found["inputs"]) == (True, "Tengine", {"data": [1, 1, 24, 24]})
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["data"]["op"] == "InputOp" and rows["data"]["writes"] == "int8" and rows["data"]["step"] > 0
    assert any(row["op"] == "Convolution" and row["weight"] == "int8" for row in rows.values())
    assert main(["inspect", path]) == 0
    text = capsys.readouterr().out
    assert text.startswith("frozen model") and "Convolution" in text and "step" in text


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", MODEL, "--to", "tengine", "--input-shape", "data:1,1,24,24", "--output",
                 str(tmp_path / "f.tmfile"), "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["difference"] < 1e-5 and report["inputs"] == {"data": [1, 1, 24, 24]}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "f-tengine-0000.params", "f-tengine-symbol.json", "f.tengine.md", "f.tmfile"]
    assert inspect_model(str(tmp_path / "f.tmfile"))["frozen"] is False
    x = digits()[:4]
    if not MXNET:
        return
    (want,) = run_mxnet(load_mxnet(MODEL, str(DIGITS / "digits-0000.params")), {"data": x})
    (found,) = load(str(tmp_path / "f.tmfile")).executor().run({"data": x})
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


def test_freezing_a_tengine_model_is_refused(frozen: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(OptionError, match="freezing wants an MXNet model .* found a Tengine model"):
        qgraph.freeze(str(frozen[0] / "m.tmfile"), FreezeOptions(target="tengine"))
    with pytest.raises(OptionError, match="a .tmfile of Tengine has its parameters inside"):
        inspect_model(str(frozen[0] / "m.tmfile"), params="x.params")
    with pytest.raises(OptionError, match="no such file, want a .tmfile of Tengine; did you mean .*m.tmfile"):
        inspect_model(str(frozen[0] / "n.tmfile"))


@pytest.mark.slow
def test_mutated_files_end_in_a_clear_error(frozen: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """inspect, and executing what it lets through: a QGraphError, or a result; nothing else."""
    whole = (frozen[0] / "m.tmfile").read_bytes()
    path, rng, refused = tmp_path / "m.tmfile", random.Random(7), 0
    words = [0, 1, 4, 12, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, len(whole), len(whole) - 4]
    start = len(whole) * 8 // 10  # tables and names lie behind the weights
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(start, len(data) - 4) & ~3 if rng.random() < 0.9 else rng.randrange(len(data) - 4)
            struct.pack_into("<I", data, at, rng.choice([*words, rng.getrandbits(32), rng.randrange(len(data))]))
        path.write_bytes(bytes(data[:rng.choice([len(data)] * 9 + [rng.randrange(len(data))])]))
        try:
            inspect_model(str(path))
            with contextlib.suppress(QGraphError):
                load(str(path)).executor().run({"data": np.zeros((1, 1, 24, 24), np.float32)})
        except QGraphError as error:
            refused += 1
            assert str(error).startswith(str(path))
    assert refused > 30


# ---- trained networks -----------------------------------------------------------------------------------------------

@pytest.mark.cases("cifar_resnet20_v1", "mobilenetv1_0.75_192_bn")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "nodes"), [
    ("cifar_resnet20_v1", (3, 32, 32), {"Convolution": 21, "Eltwise": 9}),
    ("mobilenetv1_0.75_192_bn", (3, 192, 192), {"Convolution": 27, "FullyConnected": 1}),
])
def test_trained_networks_read_back_exactly(name: str, shape: tuple[int, ...], nodes: dict[str, int],
                                            tmp_path: Path) -> None:
    """From the file that is written: a sound structure, and our own integers, every one."""
    prefix = CASES / name / name
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    found = qgraph.freeze(str(prefix), FreezeOptions(target="tengine"), calib_data=x)
    paths = found.save(str(tmp_path / "m"))
    model = load(paths[0])
    check_structure(model.tm)
    assert nodes.items() <= model.op_counts.items() and "Flatten" in model.op_counts
    (want,) = Executor(found.graph, rounding="half-away").run_tensors({"data": x[:2]})
    (got,) = model.executor().run_tensors({"data": x[:2]})
    assert np.unique(want.codes).size > 10
    np.testing.assert_array_equal(got.codes, want.codes)
    assert isinstance(found.model, TengineModel) and found.model.export is not None
