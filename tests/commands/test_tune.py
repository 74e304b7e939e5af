"""`qgraph tune` on the digits network: what it finds keeps the bounds, and a run that was stopped goes on."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import DIGITS

from qgraph.cli.main import main
from qgraph.commands import tune as tuning
from qgraph.commands.goal import SIZE, Goal
from qgraph.commands.tune import Tuned, tune
from qgraph.commands.tune_bench import Bench
from qgraph.commands.tune_costs import measured_costs
from qgraph.commands.tune_rows import HOPELESS
from qgraph.errors import CheckFailed, ClusterError, OptionError
from qgraph.options import FreezeOptions
from qgraph.quant.recipe import Recipe
from qgraph.workers import Here

MODEL = str(DIGITS / "digits-symbol.json")
OPTIONS = FreezeOptions(target="onnx", effort="fast", runtime="onnxruntime", float_check=False, num_calib=16,
                        batch_size=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "test.npz"
    with np.load(DIGITS / "digits-test.npz") as test:
        np.savez(path, data=test["data"][:128], label=test["label"][:128])
    return str(path)


@pytest.fixture(scope="module")
def small(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, str]:
    """A network in 4 bits as far as 33 dB allow, and its prefix."""
    prefix = str(tmp_path_factory.mktemp("tuned") / "s")
    return tune(MODEL, data, Goal(min_metrics=(("sqnr_db", 33.0),), minimize=SIZE), OPTIONS, prefix=prefix), prefix


@pytest.mark.slow
def test_it_is_smaller_than_in_8_bits_and_keeps_the_bound(small: tuple[Tuned, str]) -> None:
    tuned, prefix = small
    sizes = {row.what: row.size for row in tuned.rows.found.values()}
    assert tuned.row.standings["sqnr_db"].value >= 33 and tuned.judged["sqnr_db"].compatible
    choices = [choice for _, choice in tuned.row.recipe.layers]
    assert {choice.weight_bits for choice in choices} >= {4} and len(choices) < 9
    assert tuned.row.size == min(row.size for row in tuned.rows.found.values() if row.keeps)
    assert len(sizes) < 40 and tuned.ended == "done" and tuned.judged_images == 64
    written = Recipe.load(f"{prefix}.recipe.yaml")
    assert written.layers == tuned.row.recipe.layers and written.graph
    assert Path(f"{prefix}.onnx").stat().st_size == tuned.size
    assert "| **>** |" in Path(f"{prefix}.tune.md").read_text()
    page = Path(f"{prefix}.tune.html").read_text()
    assert page.count("<circle") == len(tuned.rows.found) and page.count('r="7"') == 1
    assert f"<strong>{tuned.row.what}</strong>" in page


def test_a_run_goes_on_without_measuring_again(small: tuple[Tuned, str], data: str, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last rows taken away, as by a kill, those alone are measured; the result is the same."""
    tuned, prefix = small
    body = json.loads(Path(f"{prefix}.tune.json").read_text())
    lost = [row["recipe"] for row in body["rows"][-2:]]
    body["rows"], body["result"] = body["rows"][:-2], None
    (tmp_path / "s.tune.json").write_text(json.dumps(body))
    (tmp_path / "s.sensitivity.json").write_bytes(Path(f"{prefix}.sensitivity.json").read_bytes())
    measured = []
    measure = Bench.measure
    monkeypatch.setattr(Bench, "measure", lambda self, c: measured.append(c.recipe.to_dict()) or measure(self, c))
    again = tune(MODEL, data, Goal(min_metrics=(("sqnr_db", 33.0),), minimize=SIZE), OPTIONS,
                 prefix=str(tmp_path / "s"))
    assert measured == lost and again.row == tuned.row
    assert (tmp_path / "s.onnx").read_bytes() == Path(f"{prefix}.onnx").read_bytes()
    with pytest.raises(OptionError, match="its rows are of another run \\(goal"):
        tune(MODEL, data, Goal(max_drop=1.0, minimize=SIZE), OPTIONS, prefix=prefix)


def test_a_hopeless_candidate_sees_few_images(small: tuple[Tuned, str]) -> None:
    rows = small[0].rows.found.values()
    assert {row.images for row in rows if row.state != HOPELESS} == {64}
    assert all(row.images < 64 for row in rows if row.state == HOPELESS)


def test_what_workers_are_sent_can_be_sent(data: str) -> None:
    job = tuning.Job(MODEL, OPTIONS, Goal(max_drop=1.0), data)
    run = pickle.loads(pickle.dumps(partial(tuning.measure, job)))  # noqa: S301  (our own)
    assert run.func is tuning.measure and run.args == (job,)


def test_time_is_up(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "measured_costs", lambda bench, minimize: tuning.Costs(bench.layers, 0))
    with pytest.raises(CheckFailed, match="minutes are over, and of 0 candidates none keeps the goal"):
        tune(MODEL, data, Goal(max_drop=0), OPTIONS, prefix=str(tmp_path / "t"), budget=1e-9)


@pytest.mark.mxnet
def test_without_times_of_operators_they_are_shared_out_by_products(data: str) -> None:
    options = dataclasses.replace(OPTIONS, target="mxnet", runtime="mxnet")
    bench = Bench(MODEL, options, Goal(max_drop=1), data)
    costs = measured_costs(bench, "latency")
    assert costs.seconds.keys() == bench.layers.keys() and all(min(pair) > 0 for pair in costs.seconds.values())
    parts = [pair[0] / sum(seconds[0] for seconds in costs.seconds.values()) for pair in costs.seconds.values()]
    others = [pair[1] / sum(seconds[1] for seconds in costs.seconds.values()) for pair in costs.seconds.values()]
    assert np.allclose(parts, others)
    first, dense = costs.seconds["digits_conv0_fwd"][0], costs.seconds["digits_dense_fwd"][0]
    weights = {name: bench.layers[name] for name in ("digits_conv0_fwd", "digits_dense_fwd")}
    positions = 24 * 24  # of the first convolution; the dense layer has one
    assert first / dense == pytest.approx(weights["digits_conv0_fwd"] * positions / weights["digits_dense_fwd"])


@pytest.mark.mxnet
def test_time_is_asked_of_the_engine_that_runs_here(data: str) -> None:
    bench = Bench(MODEL, dataclasses.replace(OPTIONS, target="mxnet"), Goal(max_drop=1), data)
    with pytest.raises(OptionError, match="mxnet is not timed here .it runs on mxnet.; --minimize size needs no"):
        measured_costs(bench, "latency")


def test_the_command(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = str(tmp_path / "c")
    assert main(["tune", MODEL, "--data", data, "--target", "onnx", "--max-drop", "1", "--runtime", "onnxruntime",
                 "--no-float-check", "--effort", "fast", "--num-calib", "16", "--output", prefix]) == 0
    out = capsys.readouterr().out
    assert "chosen      all 8-bit weights, auto (9 layers quantized)" in out and "ms          integers:" in out
    assert f"wrote       {prefix}.recipe.yaml" in out and "ended       done: 1 candidates" in out
    body = json.loads(Path(f"{prefix}.tune.json").read_text())
    assert body["result"]["judged_images"] == 64 and body["costs"]["seconds"]["digits_conv0_fwd"][0] > 0


@pytest.mark.parametrize(("flags", "code", "said"), [
    (["--target", "onnx"], 1, "nothing says what may be lost"),
    (["--target", "mxnet-sim", "--max-drop", "1"], 1, "mxnet-sim simulates"),
    (["--target", "onnx", "--min-metric", "top1"], 1, "want NAME=X"),
    (["--target", "onnx", "--min-metric", "sqnr=30"], 1, "did you mean sqnr_db?"),
    (["--target", "onnx", "--minimize", "size", "--max-size", "100"], 1, "--max-size 100: with 4-bit weights alone"),
])
def test_what_cannot_be_is_one_line(flags: list[str], code: int, said: str, data: str, tmp_path: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", MODEL, "--data", data, "--runtime", "onnxruntime", "--output", str(tmp_path / "x"),
                 "--no-float-check", *flags]) == code
    assert said in capsys.readouterr().err


def test_workers_read_the_same_files(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are absolute on workers, and what not all of them find is told before anything is measured."""
    class Elsewhere(Here):
        apart, seeing, asked = True, True, ()

        def see(self, paths: Sequence[Path]) -> bool:
            self.asked = paths
            return self.seeing

    monkeypatch.chdir(Path(data).parent)
    job = tuning.Job(MODEL, dataclasses.replace(OPTIONS, labels="labels.csv"), Goal(max_drop=1.0), "test.npz")
    workers = Elsewhere()
    there = job.elsewhere(["net.params"], "net", workers)
    assert (there.model, there.data, there.judge_data) == (MODEL, data, None)
    folder = Path(data).parent
    assert [*workers.asked] == [folder / "net.params", folder / "net-calib.npz", Path(data), folder / "labels.csv"]
    workers.seeing = False
    with pytest.raises(ClusterError, match="not every worker finds the model and the images"):
        tune(MODEL, data, Goal(max_drop=1.0), OPTIONS, prefix=str(folder / "t"), workers=workers)
