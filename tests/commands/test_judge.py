"""Every output is judged by its task, in every command by the same numbers, and a ruined model says so."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CASES, EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net

import qgraph
from qgraph import FreezeOptions
from qgraph.cli.main import main
from qgraph.commands.judge import Judge
from qgraph.commands.network import FloatNetwork
from qgraph.commands.ruin import ruin
from qgraph.commands.strategies import Strategy
from qgraph.data.open import Batch
from qgraph.errors import OptionError
from qgraph.formats.mxnet_writer import save
from qgraph.ir.graph import Graph
from qgraph.options import JudgeOptions
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.mxnet.sim import lower
from qgraph.targets.registry import get_target

IMAGES = np.random.default_rng(5).uniform(0, 1, (24, 3, 16, 16)).astype(np.float32)


def scores(n: Net) -> Graph:
    return n.done(n.head(n.conv(n.x, 8), 5))


def maps(n: Net) -> Graph:
    return n.done(n.conv(n.conv(n.x, 8), 5, act=""))


def boxes(n: Net) -> Graph:
    """(N, 256, 6): of a class, with a score of 0 to 1."""
    x = n.op("transpose", n.conv(n.conv(n.x, 8), 6, act="sigmoid"), axes=(0, 2, 3, 1))
    return n.done(n.op("Reshape", x, shape=(0, -1, 6)))


def steps(n: Net) -> Graph:
    """(16, N, 5): a row of scores for every column of the image."""
    x = n.op("mean", n.conv(n.conv(n.x, 8), 5, act=""), axis=2)
    return n.done(n.op("transpose", x, axes=(2, 0, 1)))


def two(n: Net) -> Graph:
    x = n.conv(n.x, 8)
    return n.done(n.conv(x, 4, act="", name="near"), n.conv(n.conv(x, 8), 2, act="", name="far"))


NETWORKS = {"classification": scores, "embedding": scores, "segmentation": maps, "keypoints": maps, "text": steps,
            "detection": boxes, "values": two}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", data=IMAGES)
    return tmp_path


def result(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> dict[str, Any]:
    assert main([*args, "--json", "-q"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def near(value: Any) -> Any:
    """Equal to three digits: engines fuse what nobody looks at, and then floats differ in their last bits."""
    if isinstance(value, dict):
        return {key: near(part) for key, part in value.items()}
    if isinstance(value, list):
        return [near(part) for part in value]
    return pytest.approx(value, rel=2e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("task", NETWORKS)
def test_every_command_gives_the_same_numbers(task: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(NETWORKS[task](Net(3)), folder / "net")
    flags = ["--task", task, "--batch-size", "8"]
    freeze = ["freeze", "net", "--target", "mxnet-sim", "--weight-bits", "4", "--calib-data", "images.npz"]
    frozen = result(capsys, *freeze, "--output", "q", *flags, "--runtime", "onnxruntime")["agreement"]
    assert frozen["images"] == 24 and frozen["calibrated_on_it"]
    assert {row["task"] for row in frozen["tasks"]} == {task}
    same = ["--data", "images.npz", *flags, "--runtime", "onnxruntime"]
    judged = result(capsys, "eval", "q", "--reference", "net", *same)["judged"]
    compared = result(capsys, "compare", "net", "q", *same)["judged"]
    keys = ("images", "tasks", "outputs", "worst", "agreement", "sqnr_db")
    assert [judged[key] for key in keys] == near([frozen[key] for key in keys])
    assert [compared[key] for key in keys] == near([frozen[key] for key in keys])
    assert 0 < frozen["sqnr_db"] < 60
    rows = qgraph.simulate("net", "images.npz", [Strategy(weight_bits=4)],
                           FreezeOptions(task=(task,), batch_size=8, runtime="onnxruntime"), calib_data=IMAGES)
    row = rows.row(Strategy(weight_bits=4))
    assert row is not None and [row[key] for key in ("agreement", "worst", "sqnr_db")] == [
        frozen[key] for key in ("agreement", "worst", "sqnr_db")]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 23), max_size=4), st.sampled_from(["classification", "embedding", "values"]))
def test_any_split_into_batches_gives_the_same_numbers(cuts: list[int], task: str) -> None:
    rng = np.random.default_rng(2)
    want = rng.normal(size=(24, 5)).astype(np.float32)
    found = (want + rng.normal(size=want.shape) * 0.4).astype(np.float32)
    labels = rng.integers(0, 5, 24)

    def judged(edges: list[int]) -> tuple[Any, Any]:
        judge = Judge(["out"], options=JudgeOptions(task=(task,)))
        for a, b in zip(edges, edges[1:]):
            batch = Batch({"data": IMAGES[a:b]}, labels[a:b], [str(i) for i in range(a, b)])
            judge.add(batch, [found[a:b]], [want[a:b]])
        return judge.agreement(), judge.scores()

    assert judged([0, *sorted(set(cuts)), 24]) == judged([0, 24])


def test_rows_are_not_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """(T * N, C): a percentage is one of rows, and labels per image cannot judge them."""
    n = Net(4)
    x = n.op("transpose", n.op("mean", n.conv(n.conv(n.x, 8), 5, act=""), axis=2), axes=(2, 0, 1))
    save(n.done(n.op("Reshape", x, shape=(-3, 0))), folder / "rows")
    same = ["--data", "images.npz", "-q"]
    assert main(["freeze", "rows", "--target", "mxnet-sim", "--weight-bits", "2", "--calib-data", "images.npz",
                 "--output", "q", "-q"]) == 0
    capsys.readouterr()
    assert main(["compare", "rows", "q", *same, "--min-agreement", "100"]) == 3
    said = capsys.readouterr()
    assert "% top-1" in said.out and "on 24 images" in said.out and "want at least 100 %" in said.err
    np.savez("labelled.npz", data=IMAGES, label=np.zeros(24, np.int64))
    assert main(["eval", "rows", "--data", "labelled.npz", "-q"]) == 1
    assert "has 256 rows for 16 images" in capsys.readouterr().err


def test_the_worst_output_is_named_and_gated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    g = two(Net(3))
    g.params["far_weight"][:] = np.where(np.arange(2)[:, None, None, None] == 0, 1.0, 1e-3)
    g.params["far_bias"][:] = 0
    save(g, folder / "net")
    args = ["freeze", "net", "--target", "onnx", "--granularity", "layer", "--weight-bits", "8", "--calib-data",
            "images.npz", "--output", "q"]
    assert main([*args, "-q"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("agreement"))
    assert "worst output" in line and "(of 2)" in line and "calibrated on the same images" in line
    found = result(capsys, "compare", "net", "q.onnx", "--data", "images.npz")
    by_name = {row["name"]: row["sqnr_db"] for row in found["judged"]["outputs"]}
    assert found["output"]["name"] == found["judged"]["worst"] == min(by_name, key=by_name.__getitem__)
    better = max(by_name.values())
    gate = ["compare", "net", "q.onnx", "--data", "images.npz", "-q", "--min-sqnr"]
    assert main([*gate, str(better - 0.01)]) == 3 and f"of {found['output']['name']} is" in capsys.readouterr().err
    assert main([*gate, str(min(by_name.values()) - 0.01)]) == 0


RETINAFACE = "detectors/retinaface_mnet025_16"


@pytest.mark.slow
@pytest.mark.cases(RETINAFACE)
def test_a_face_detector_says_how_each_head_is(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES / RETINAFACE
    monkeypatch.syspath_prepend(EXAMPLES)
    assert main(["freeze", str(case / f"{case.name}-symbol.json"), "--target", "onnx", "--calib-data",
                 str(case / "input.npz"), "--select", ":8", "--output", "q", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("agreement"))
    assert "worst output face_rpn_bbox_pred_stride16 (of 2)" in lines[at] and "on 8 images" in lines[at]
    assert "top-1" not in "".join(lines) and "dB SQNR in face_rpn_cls_prob_reshape_stride16" in lines[at + 1]
    found = result(capsys, "eval", "q.onnx", "--data", str(case / "input.npz"), "--select", "8:", "--reference",
                   str(case / case.name), "--decode", "retinaface_boxes:boxes")["judged"]
    boxes = next(row for row in found["tasks"] if row["task"] == "detection")
    assert boxes["metrics"]["ap50"] > 90 and found["agreement"] == boxes["metrics"]["ap50"]
    assert found["sqnr_db"] < 27 < max(row["sqnr_db"] for row in found["outputs"])


def test_a_ruined_model_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(maps(Net(3)), folder / "net")
    ruin = ["freeze", "net", "--target", "mxnet-sim", "--weight-bits", "2", "--granularity", "layer", "--task",
            "values", "--calib-data", "images.npz", "--output", "q", "-q"]
    assert main(ruin) == 0
    said = capsys.readouterr().err
    tries = [line.split("try ")[1] for line in said.splitlines() if "try " in line]
    assert "RUINED" in said and "want at least 15 dB" in said and "most noise comes from conv" in said
    assert [text.split()[0] for text in tries] == ["--effort", "--calib", "--granularity", "--weight-bits", "--exclude",
                                                   "training"]
    assert main([*ruin, "--strict"]) == 3
    assert "--strict: int8 has ruined conv1" in capsys.readouterr().err
    report = json.loads((folder / "q.report.json").read_text())
    assert report["ruin"]["outputs"][0]["names"] == ["conv1"] and report["agreement"]["tasks"][0]["ruined"]
    assert main(["freeze", "net", "--target", "mxnet-sim", "--calib-data", "images.npz", "--strict", "-q"]) == 0
    assert "RUINED" not in capsys.readouterr().err


@pytest.mark.parametrize(("target", "excludes"), [("mxnet", True), ("ncnn", True), ("tengine", False)])
def test_layers_are_left_in_float_where_the_target_can(target: str, excludes: bool) -> None:
    network = FloatNetwork(maps(Net(3)), FreezeOptions(target=target), get_target(target))
    agreement = {"tasks": [{"ruined": True, "outputs": ["conv1"], "task": "values", "main": "sqnr_db",
                            "metrics": {"sqnr_db": 3.0}}]}
    options = FreezeOptions(target="mxnet-sim", weight_bits=2, runtime="onnxruntime")
    model = lower(qgraph.freeze(maps(Net(3)), options, calib_data=IMAGES).graph)
    found = ruin(agreement, network, MxnetModel(model), {"data": IMAGES[:4]}, get_target(target))
    assert found is not None and found["layers"]
    assert any(text.startswith("--exclude conv") for text in found["try"]) is excludes


def test_what_calibration_leaves_out_is_judged_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(scores(Net(3)), folder / "net")
    freeze = ["freeze", "net", "--target", "onnx", "--calib-data", "images.npz"]
    for flags, images, same in ((["--select", "::3"], 16, False), (["--num-calib", "20"], 4, False), ([], 24, True),
                                (["--skip", "::2"], 12, True)):
        found = result(capsys, *freeze, *flags)["agreement"]
        assert (found["images"], found["calibrated_on_it"]) == (images, same), flags
    np.savez("other.npz", data=IMAGES[:5] + 1)
    found = result(capsys, *freeze, "--judge-data", "other.npz")["agreement"]
    assert (found["images"], found["data"], found["calibrated_on_it"]) == (5, "other.npz", False)


@pytest.mark.parametrize(("flags", "said"), [
    (["--task", "clasification"], "no task is called 'clasification'"),
    (["--task", "values:nope"], "the model has no output 'nope', it has fc"),
    (["--decode", "nowhere:boxes"], "--decode: no module 'nowhere'"), (["--decode", "boxes"], "want MODULE:FUNCTION"),
    (["--judge-data", "nowhere.npz"], "nowhere.npz: there is no such file")])
def test_mistakes_are_told_before_any_work(flags: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    save(scores(Net(3)), folder / "net")
    monkeypatch.setattr("qgraph.commands.freeze.collect_table", lambda *_, **__: 1 / 0)
    assert main(["freeze", "net", "--target", "onnx", "--calib-data", "images.npz", "-q", *flags]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_gates_look_at_every_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(scores(Net(3)), folder / "net")
    assert main(["freeze", "net", "--target", "onnx", "--calib-data", "images.npz", "--output", "q", "-q"]) == 0
    args = ["eval", "q.onnx", "--data", "images.npz", "-q"]
    capsys.readouterr()
    for flags, code, said in (
            (["--min-sqnr", "20"], 1, "want a model to compare with: --reference MODEL"),
            (["--reference", "net", "--min-metric", "top1=50"], 0, ""),
            (["--reference", "net", "--min-metric", "max_error=1e-9"], 3, "want at most 1e-09"),
            (["--reference", "net", "--min-metric", "cosine=0.9999999"], 3, "cosine of fc is"),
            (["--reference", "net", "--min-metric", "to1=50"], 1, "did you mean top1?"),
            (["--reference", "net", "--min-metric", "ap50=50"], 1, "is not known here, there are"),
            (["--reference", "net", "--min-metric", "top1"], 1, "want NAME=X such as top1=75"),
            (["--reference", "net", "--task", "values", "--min-agreement", "5"], 1, "--min-sqnr can")):
        assert main([*args, *flags]) == code, flags
        assert said in capsys.readouterr().err


def test_a_model_called_reference_is_not_taken_for_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(scores(Net(3)), folder / "reference")
    save(scores(Net(4)), folder / "net")
    args = ["--data", "images.npz", "--reference", "net", "-q"]
    assert main(["eval", "reference", *args]) == 1 and "whole file name" in capsys.readouterr().err
    assert main(["eval", "reference-symbol.json", *args]) == 0 and "output exact" not in capsys.readouterr().out


def test_outputs_of_other_shapes_are_refused() -> None:
    batch = Batch({"data": IMAGES[:2]}, None, ["a", "b"])
    with pytest.raises(OptionError, match=r"the models' outputs out have the shapes \(2, 4\) and \(2, 5\)"):
        Judge(["out"]).add(batch, [np.zeros((2, 5))], [np.zeros((2, 4))])


def test_simulations_do_not_saturate() -> None:
    """Kernels of onnxruntime do where a CPU has no VNNI."""
    images = str(EXAMPLES / "digits" / "digits-calib.npz")
    options = FreezeOptions(target="mxnet-sim", effort="fast", runtime="onnxruntime")
    model = str(EXAMPLES / "digits" / "digits")
    found = qgraph.freeze(model, options, calib_data=images)
    row = qgraph.simulate(model, images, [Strategy()], options, calib_data=images).row(Strategy())
    assert row is not None and found.report["agreement"]["sqnr_db"] > 30 and row["sqnr_db"] > 30


# ---- pieces ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", ["classification", "embedding", "detection", "segmentation", "values"])
def test_pieces_add_up_to_the_whole(task: str) -> None:
    """What is counted of pieces, which travelled, in any order, is what one judge counts of all images."""
    rng = np.random.default_rng(8)
    want = rng.uniform(0, 1, (13, *{"detection": (5, 6), "segmentation": (6, 4, 4)}.get(task, (6,))))
    found = want + rng.normal(0, 0.2, want.shape)
    if task == "detection":  # class, score and corners
        for boxes in (want, found):
            boxes[..., 0], boxes[..., 4:] = 0, boxes[..., 2:4] + 1
    images = [f"image {number}" for number in range(len(want))]
    labels = np.arange(13) % 3 if task in ("classification", "embedding") else None

    def add(judge: Judge, first: int, stop: int) -> None:
        part = slice(first, stop)
        feeds = {"data": np.zeros((stop - first, 3, 8, 8), np.float32)}
        judge.add(Batch(feeds, None if labels is None else labels[part], images[part]), [found[part]], [want[part]])

    def new() -> Judge:
        return Judge(["out"], options=JudgeOptions(task=(task,)))

    whole, shared = new(), new()
    for first in range(0, 13, 4):
        add(whole, first, min(first + 4, 13))
    shared.look(Batch({"data": np.zeros((4, 3, 8, 8), np.float32)}, None, images[:4]), [want[:4]])
    for first in (8, 0):
        piece = pickle.loads(pickle.dumps(shared)).blank(first)
        add(piece, first, first + 4)
        add(piece, first + 4, min(first + 8, 13))
        shared.counted.add(pickle.loads(pickle.dumps(piece.counted)))
    assert shared.images == whole.images == 13
    assert shared.agreement() == whole.agreement() and shared.scored() == whole.scored()
    assert whole.agreement()["tasks"][0]["task"] == task and whole.agreement()["sqnr_db"] < 40
