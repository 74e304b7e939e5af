"""`qgraph.simulate` and `qgraph simulate`: rows are what freezing, evaluation and the reference say, and are kept."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DIGITS, MXNET, VNNI

import qgraph
from qgraph import FreezeOptions, Strategy, simulate
from qgraph.cli.main import main
from qgraph.commands.plot import draw
from qgraph.commands.simulate import PRESETS, grid
from qgraph.commands.strategies import HEAD, Simulation
from qgraph.errors import FormatError, OptionError, QGraphError
from qgraph.semantics.interpreter import Executor as Reference

MODEL = str(DIGITS / "digits")
IMAGES = 128


@pytest.fixture(scope="module")
def test_set() -> dict[str, np.ndarray]:
    with np.load(DIGITS / "digits-test.npz") as found:
        return {"data": found["data"][:IMAGES].astype(np.float32), "label": found["label"][:IMAGES].astype(np.int64)}


@pytest.fixture(scope="module")
def test_file(test_set: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "test.npz"
    np.savez(path, **test_set)
    return str(path)


def top1(classes: np.ndarray, labels: np.ndarray) -> float:
    return round(100 * float((classes == labels).mean()), 2)


# ---- rows -----------------------------------------------------------------------------------------------------------

STRATEGIES = [Strategy(), Strategy(granularity="layer", weight_bits=4, act_bits=6, exclude_first=True),
              Strategy(calib="kl", act_signed="signed", merge_bn=False, weight_bits=3),
              Strategy(winograd="F43", weight_bits=5)]


@pytest.mark.slow
@pytest.mark.xfail(not MXNET and not VNNI, strict=True, reason="where onnxruntime simulates, its kernels saturate")
def test_rows_are_what_freezing_and_the_reference_say(test_set: dict[str, np.ndarray]) -> None:
    data, labels = test_set["data"], test_set["label"]
    few = FreezeOptions(num_calib=24)
    found = simulate(MODEL, test_set, STRATEGIES, few)
    plain = qgraph.evaluate(MODEL, test_set)
    g = qgraph.load(f"{MODEL}-symbol.json", f"{MODEL}-0000.params")
    float_classes = Reference(g).run({"data": data})[0].argmax(1)
    assert {k: found.float_row[k] for k in ("images", "top1", "top5")} == {
        k: plain[k] for k in ("images", "top1", "top5")}
    rows = [found.row(strategy) for strategy in STRATEGIES]
    assert len({row["sqnr_db"] for row in rows}) == len(STRATEGIES)
    for strategy, row in zip(STRATEGIES, rows):
        options = strategy.apply(dataclasses.replace(few, target="mxnet-sim"))
        frozen = qgraph.freeze(MODEL, options)
        classes = Reference(frozen.graph, rounding="mxnet").run({"data": data})[0].argmax(1)
        assert row["images"] == IMAGES and row["top1"] == top1(classes, labels)
        assert row["agreement"] == top1(classes, float_classes)


@pytest.mark.mxnet
def test_online_rows_are_what_the_reference_says(test_set: dict[str, np.ndarray]) -> None:
    data, labels = test_set["data"], test_set["label"]
    strategy = Strategy(calib="online", act_bits=3, granularity="layer")
    found = simulate(MODEL, test_set, [strategy], FreezeOptions(batch_size=32))
    g = qgraph.freeze(MODEL, strategy.apply(FreezeOptions(target="mxnet-sim"))).graph
    reference = Reference(g, rounding="mxnet")
    classes = np.concatenate([reference.run({"data": data[i:i + 32]})[0].argmax(1) for i in range(0, IMAGES, 32)])
    assert found.row(strategy)["top1"] == top1(classes, labels)
    assert (classes != reference.run({"data": data})[0].argmax(1)).any()  # of another batch, other ranges


@pytest.mark.mxnet
def test_the_images_that_skip_leaves_out_calibrate(test_set: dict[str, np.ndarray]) -> None:
    data = test_set["data"].copy()
    data[::4] *= 0.25  # ranges of these clip the others
    source = {**test_set, "data": data}
    strategy = Strategy(act_bits=3)
    found = simulate(MODEL, source, [strategy], FreezeOptions(skip="::4"))
    frozen = qgraph.freeze(MODEL, strategy.apply(FreezeOptions(target="mxnet-sim")), calib_data=data[::4])
    keep = np.arange(IMAGES) % 4 != 0
    classes = Reference(frozen.graph, rounding="mxnet").run({"data": data[keep]})[0].argmax(1)
    assert found.row(strategy)["top1"] == top1(classes, test_set["label"][keep])
    assert found.row(strategy)["top1"] < simulate(MODEL, source, [strategy]).row(strategy)["top1"]


def test_without_labels_there_is_the_agreement(test_set: dict[str, np.ndarray]) -> None:
    strategy = Strategy(weight_bits=2, act_bits=3)
    found = simulate(MODEL, test_set["data"], [strategy])
    row = found.row(strategy)
    assert row["top1"] is None and 20 < row["agreement"] < 100
    pytest.importorskip("matplotlib")
    assert draw(found).startswith(b"\x89PNG")


def test_the_plot_says_what_it_lacks(test_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["simulate", MODEL, "--data", test_file, "--plot", "--output", str(tmp_path / "sim")]) == 1
    assert 'pip install "qgraph[plot]"' in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_grid_is_every_combination_once() -> None:
    found = grid(granularity=("layer", "channel"), weight_bits=(8, 4, 4))
    assert found == [Strategy("layer"), Strategy("layer", weight_bits=4), Strategy("channel"),
                     Strategy("channel", weight_bits=4)]


def test_the_original_table() -> None:
    cells = [strategy.cells() for strategy in PRESETS["original"]()]
    assert len(set(cells)) == 18  # and the float row
    assert cells[0] == ("uint8", "-", "int8", "layer", "-", "-")
    assert cells[-1] == ("int8", "KL", "int8", "channel", "yes", "yes")
    for column, counts in ((0, {"uint8": 8, "int8": 10}), (1, {"-": 6, "naive (EMA)": 6, "KL": 6}),
                           (4, {"yes": 6, "-": 12}), (3, {"layer": 9, "channel": 9}), (5, {"yes": 16, "-": 2})):
        values = [row[column] for row in cells]
        assert {value: values.count(value) for value in set(values)} == counts


@pytest.mark.parametrize("wrong", [Strategy(weight_bits=1), Strategy(act_bits=17), Strategy(granularity="kernel"),
                                   Strategy(act_signed="sometimes"), Strategy(calib="best"), Strategy(winograd="F83")])
def test_what_is_no_strategy_is_refused_before_any_work(wrong: Strategy, test_set: dict[str, np.ndarray]) -> None:
    seen: list[Any] = []
    with pytest.raises(QGraphError, match="1|17|kernel|sometimes|best|F83"):
        simulate(MODEL, test_set["data"], [Strategy(), wrong], each=seen.append)
    assert not seen


def test_online_ranges_want_mxnet(test_set: dict[str, np.ndarray]) -> None:
    with pytest.raises(OptionError, match=r"only MXNet can .* and this runs on onnxruntime"):
        simulate(MODEL, test_set["data"], [Strategy(calib="online")], FreezeOptions(runtime="onnxruntime"))


@pytest.mark.slow
def test_onnxruntime_computes_the_rows_too(test_set: dict[str, np.ndarray]) -> None:
    source = test_set
    row = simulate(MODEL, source, [STRATEGIES[1]], FreezeOptions(runtime="onnxruntime")).row(STRATEGIES[1])
    g = qgraph.freeze(MODEL, STRATEGIES[1].apply(FreezeOptions(target="mxnet-sim"))).graph
    classes = Reference(g, rounding="mxnet").run({"data": test_set["data"]})[0].argmax(1)
    assert abs(row["top1"] - top1(classes, test_set["label"])) < 100 * 2 / IMAGES


# ---- what is written, and going on -----------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_command(test_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = tmp_path / "sim"
    plots = importlib.util.find_spec("matplotlib") is not None
    command = ["simulate", MODEL, "--data", test_file, "--weight-bits", "8,2", "--exclude-first", "both",
               "--output", str(prefix), *(["--plot"] if plots else [])]
    assert main(command) == 0
    out = capsys.readouterr().out
    text = (tmp_path / "sim.md").read_text()
    assert out.startswith(text) and (f"wrote       {prefix}.png" in out) is plots
    head = [*HEAD, "Top-1", "Agreement"]
    assert text.splitlines()[0].split() == " | ".join(["", *head, ""]).split() and len(text.splitlines()) == 2 + 5
    with open(tmp_path / "sim.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == head and [row[2] for row in table[1:]] == ["float32", "int8", "int8", "int2", "int2"]
    assert not plots or (tmp_path / "sim.png").read_bytes().startswith(b"\x89PNG")
    assert main(["simulate", MODEL, "--data", test_file, "--json", "--output", str(tmp_path / "one")]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["rows"] == [{**one["rows"][0], "weight_bits": 8, "granularity": "channel", "calib": "auto"}]
    both = json.loads((tmp_path / "sim.json").read_text())
    assert one["rows"][0]["top1"] == both["rows"][0]["top1"] and one["float"]["top1"] == both["float"]["top1"]


def _rows(path: Path) -> list[list[str]]:
    """The cells of a table but for the ruler below its head, which is as wide as the widest cell."""
    head, _, *rows = path.read_text().splitlines()
    return [row.split() for row in (head, *rows)]


@pytest.mark.slow
def test_what_was_stopped_goes_on(test_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from qgraph.commands.rows import Job, Rows

    quantized, made = Rows.quantized, []

    def stop_at(limit: int) -> None:
        def counted(self: Rows, strategy: Strategy, job: Job) -> Any:
            if len(made) == limit:
                raise KeyboardInterrupt
            made.append(strategy)
            return quantized(self, strategy, job)
        monkeypatch.setattr(Rows, "quantized", counted)

    command = ["simulate", MODEL, "--data", test_file, "--weight-bits", "8,4,2", "--num-calib", "16",
               "--effort", "fast", "--output", str(tmp_path / "sim")]
    stop_at(2)
    assert main(command) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    partial = _rows(tmp_path / "sim.md")
    assert len(partial) == 1 + 3
    stop_at(3)
    assert main(command) == 0
    assert [s.weight_bits for s in made] == [8, 4, 2]
    whole = _rows(tmp_path / "sim.md")
    assert whole[:len(partial)] == partial and len(whole) == 1 + 4
    assert main(command) == 0 and len(made) == 3  # nothing is left to do
    monkeypatch.setattr(Rows, "quantized", quantized)
    assert main([*command, "--weight-bits", "4,6"]) == 0  # two rows here, and all four in the JSON
    assert len((tmp_path / "sim.md").read_text().splitlines()) == 2 + 3
    assert len(json.loads((tmp_path / "sim.json").read_text())["rows"]) == 4
    assert main([*command, "--exclude", "last"]) == 1
    assert "the finished rows are of another run (exclude: [], now ['last'])" in capsys.readouterr().err
    assert main([*command, "--exclude", "last", "--restart"]) == 0
    assert len(json.loads((tmp_path / "sim.json").read_text())["rows"]) == 3


def test_rows_of_other_images_are_not_taken(test_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many images of the same file, but others."""
    command = ["simulate", MODEL, "--data", test_file, "--output", str(tmp_path / "sim"), "--calib-data", test_file]
    assert main([*command, "--select", "::4", "--calib-select", "::4"]) == 0
    assert main([*command, "--select", "::4", "--calib-select", "1::4"]) == 1
    assert "the finished rows are of another run (calibration_digest" in capsys.readouterr().err
    assert main([*command, "--select", "1::4", "--calib-select", "::4"]) == 1
    assert "the finished rows are of another run (" in capsys.readouterr().err
    assert main([*command, "--select", "::4", "--calib-select", "::4"]) == 0


@pytest.mark.parametrize("changed", ["label", "data", "calib"])
def test_rows_of_a_file_that_was_changed_are_not_taken(changed: str, test_file: str, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    """Behind its first images."""
    with np.load(test_file) as read:
        arrays = {name: read[name][:200].copy() for name in ("data", "label")}
    files = {name: str(tmp_path / f"{name}.npz") for name in ("seen", "calib")}
    command = ["simulate", MODEL, "--data", files["seen"], "--calib-data", files["calib"], "--output",
               str(tmp_path / "sim")]
    for name in files.values():
        np.savez(name, **arrays)
    assert main(command) == 0
    key = changed if changed != "calib" else "data"
    arrays[key][-12:] = 3
    np.savez(files["seen" if changed != "calib" else "calib"], **arrays)
    assert main(command) == 1
    assert "the finished rows are of another run (" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "said"), [
    (["--weight-bits", "8,17"], "found '17', want a comma-separated list of 2, 3, "),
    (["--granularity", "layer,kernel"], "found 'kernel', want a comma-separated list of layer, group, channel"),
    (["--act-signed", "maybe"], "want a comma-separated list of auto, signed, unsigned"),
    (["--calib", "kl,best"], "found 'best'"),
    (["--winograd", "F32"], "found 'F32', want a comma-separated list of none, F23, F43, F63"),
    (["--grid", "original", "--weight-bits", "4"], "--grid is a ready table and --weight-bits makes another"),
])
def test_wrong_lists_are_one_line(flags: list[str], said: str, test_file: str,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", MODEL, "--data", test_file, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize(("flags", "said"), [
    (["--data", "nowhere.rec"], "nowhere.rec"),
    (["--data", "{data}", "--output", "no/such/folder/x"], "the folder no/such/folder does not exist"),
    (["--data", "{data}", "--exclude", "conv9"], "matches nothing"),
    (["--data", "{data}", "--calib-select", "some"], "--calib-select is 'some', want START:STOP:STEP"),
])
def test_mistakes_are_one_line(flags: list[str], said: str, test_file: str, tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    flags = [flag.format(data=test_file) for flag in flags]
    where = [] if "--output" in flags else ["--output", str(tmp_path / "sim")]
    assert main(["simulate", MODEL, *flags, *where]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def rows() -> Simulation:
    found = Simulation({"model": "m"}, [Strategy()])
    scores = {"images": 2, "top1": 50.0, "top5": None, "scores": {"top1": 50.0}}
    found.set_float(scores)
    found.add(Strategy(), {**scores, "agreement": 100.0, "worst": "fc", "sqnr_db": 31.5})
    return found


def test_rows_survive_a_file() -> None:
    assert Simulation.from_json(rows().to_json()).to_json() == rows().to_json()
    assert Simulation.from_json(rows().to_json()).to_markdown() == rows().to_markdown()


@pytest.mark.parametrize("change", [
    lambda body: body.update(format="other"), lambda body: body.pop("about"), lambda body: body.update(rows=[1]),
    lambda body: body["rows"][0].update(weight_bits="8"), lambda body: body["rows"][0].pop("top1"),
    lambda body: body["float"].update(scores=[1]), lambda body: body["float"].update(scores={"top1": "x"}),
    lambda body: body["rows"][0].update(sqnr_db="x"),
    lambda body: body["rows"][0].update(top1=[1]), lambda body: body["rows"][0].update(act_signed="atto"),
    lambda body: body["rows"][0].update(weight_bits=0)])
def test_files_that_hold_something_else_are_refused(change: Any) -> None:
    body = json.loads(rows().to_json())
    change(body)
    with pytest.raises(FormatError, match="x.json: not the finished rows of a simulation"):
        Simulation.from_json(json.dumps(body), "x.json")


def test_text_that_is_no_json_is_refused() -> None:
    for text in ("", "{", "[" * 100000, "null"):
        with pytest.raises(FormatError):
            Simulation.from_json(text)
