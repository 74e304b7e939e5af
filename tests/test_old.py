"""Files that an earlier qgraph wrote go on working: frozen models, a calibration table, a report, a simulation.

tests/old/ was written at commit 54a56c5, with the network `residual_downsample` of networks.py (net-*), on images.npz:
sim-*, mxnet-*, q.onnx, q.param with q.bin, q.tmfile by `qgraph freeze`; calib.json with sim-*, report.json with q.onnx;
compared.json by `qgraph.compare` of each with the float model; outputs.npz holds what each computed; simulated.json by
`qgraph simulate --weight-bits 8,3 --runtime onnxruntime`. They are not written again: that is their use.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import MXNET, NCNN, TESTS, VNNI

import qgraph
from qgraph.cli.main import main
from qgraph.commands.open_model import open_model
from qgraph.engines import executor

OLD = TESTS / "old"
IMAGES = str(OLD / "images.npz")
NET = str(OLD / "net")
FROZEN = [pytest.param("mxnet", marks=pytest.mark.mxnet), pytest.param("sim", marks=pytest.mark.mxnet), "q.onnx",
          pytest.param("q.param", marks=pytest.mark.ncnn), "q.tmfile"]
SATURATING = ("mxnet", "q.onnx")  # were written where their kernels add in 16 bits, which shows in what they compute
COMPARED = json.loads((OLD / "compared.json").read_text())


def old_outputs(path: str) -> np.ndarray:
    with np.load(OLD / "outputs.npz") as found:
        return found[path]


def images() -> dict[str, np.ndarray]:
    with np.load(IMAGES) as found:
        return dict(found)


@pytest.mark.parametrize("path", FROZEN)
def test_a_frozen_model_computes_what_it_did(path: str) -> None:
    """Within what a rounding that another processor's floats decide otherwise can make: a tenth of the quantization."""
    if VNNI and path in SATURATING:
        pytest.skip("its outputs were written on a processor without VNNI")
    want = old_outputs(path)
    (found,) = executor(open_model(str(OLD / path)).model, "this test").run({"data": images()["data"]})
    assert found.shape == want.shape and np.abs(want - want[:1]).max() > 0.1 * np.abs(want).max()
    assert np.abs(found - want).max() <= 2e-3 * np.abs(want).max()


@pytest.mark.parametrize("path", FROZEN)
def test_it_is_judged_as_it_was(path: str) -> None:
    judged, want = qgraph.evaluate(str(OLD / path), IMAGES, reference=NET), old_outputs(path).reshape(16, -1)
    assert judged["images"] == 16
    assert judged["top1"] == pytest.approx(100 * (want.argmax(1) == images()["label"]).mean(), abs=0.01)


@pytest.mark.parametrize("path", FROZEN)
def test_it_is_compared_as_it_was(path: str) -> None:
    want, found = COMPARED[path], qgraph.compare(NET, str(OLD / path), IMAGES)
    assert found.keys() >= want.keys() and found["agreement"] == want["agreement"]
    near, layer_near = (0.5, 0.5) if VNNI and path in SATURATING else (0.1, 0.03)
    assert found["output"]["sqnr_db"] == pytest.approx(want["output"]["sqnr_db"], abs=near)
    rows = {row["name"]: row for row in found["layers"]}
    assert list(rows) == [row["name"] for row in want["layers"]]
    for row in want["layers"]:
        same = rows[row["name"]]
        assert same.keys() >= row.keys() and (same["op"], same["origin"]) == (row["op"], row["origin"])
        assert same["sqnr_db"] == pytest.approx(row["sqnr_db"], abs=layer_near), row["name"]


@pytest.mark.parametrize("path", ["mxnet", "sim", "q.onnx", "q.param", "q.tmfile"])
def test_it_is_known_as_frozen(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(OLD / path), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["frozen"] is True


def keys(value: Any) -> Any:
    """The fields of a report, without what they say."""
    return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None


def lacks(want: Any, found: Any) -> list[str]:
    return [k for k in want or {} if k not in (found or {})] + [
        f"{k}.{x}" for k in want or {} if k in (found or {}) for x in lacks(want[k], found[k])]


def test_a_calibration_table_is_taken_and_the_report_has_all_it_had(tmp_path: Path) -> None:
    """Its readers look for these fields; more may come."""
    frozen = qgraph.freeze(NET, qgraph.FreezeOptions(target="onnx", calib_data=IMAGES),
                           calib_table=str(OLD / "calib.json"))
    old = json.loads((OLD / "calib.json").read_text())
    assert frozen.table is not None and old["entries"].keys() == frozen.table.entries.keys()
    for name, entry in old["entries"].items():
        assert (frozen.table.entries[name].min, frozen.table.entries[name].max) == (entry["min"], entry["max"])
    frozen.save(tmp_path / "again")
    want, found = (json.loads(path.read_text()) for path in (OLD / "report.json", tmp_path / "again.report.json"))
    absent = {f"versions.{engine}" for engine, there in (("mxnet", MXNET), ("ncnn", NCNN)) if not there}
    assert set(lacks(keys(want), keys(found))) == absent
    assert (found["format"], found["quantized"], found["float"]) == (want["format"], want["quantized"], want["float"])
    assert found["agreement"]["sqnr_db"] > want["agreement"]["sqnr_db"] - 1  # weights are rounded otherwise by now


def test_a_simulation_goes_on(tmp_path: Path) -> None:
    """The numbers of finished rows are kept; a new one comes behind them."""
    written = tmp_path / "simulated.json"
    shutil.copy(OLD / "simulated.json", written)
    old = json.loads(written.read_text())
    command = ["simulate", f"{NET}-symbol.json", "--data", IMAGES, "--calib-data", IMAGES, "--runtime", "onnxruntime",
               "--output", str(tmp_path / "simulated"), "-q", "--calib", "naive", "--weight-bits"]
    assert main([*command, "8,3"]) == 0
    kept = json.loads(written.read_text())
    numbers = ("images", "top1", "top5", "agreement")
    assert [[row[key] for key in numbers] for row in kept["rows"]] == [[row[key] for key in numbers]
                                                                       for row in old["rows"]]
    assert [kept["float"][key] for key in numbers[:3]] == [old["float"][key] for key in numbers[:3]]
    assert main([*command, "8,3,2"]) == 0
    new = json.loads(written.read_text())
    assert new["float"] == kept["float"] and new["rows"][:2] == kept["rows"]
    assert [row["weight_bits"] for row in new["rows"]] == [8, 3, 2]
