"""`qgraph diff`: what changed between two frozen results, and whether it is worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import DIGITS, GOLDEN

from qgraph.cli.main import main
from qgraph.commands.diff import diff
from qgraph.commands.freeze import freeze
from qgraph.errors import DataError, FormatError, OptionError
from qgraph.options import FreezeOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a: as it is.  b: one layer in float, weights of 4 bits.  Judged on the same images."""
    place: Path = tmp_path_factory.mktemp("diff")
    for name, options in (("a", {}), ("b", {"weight_bits": 4, "exclude": ("digits_conv0",)})):
        wanted = FreezeOptions(target="mxnet-sim", effort="fast", num_calib=8, float_check=False,
                               judge_data=str(DIGITS / "digits-calib.npz"),
                               calib_table=str(GOLDEN / "frozen" / "calib.json"), **options)
        freeze(str(DIGITS / "digits"), wanted, calib_data=str(DIGITS / "digits-calib.npz")).save(str(place / name))
    return place


def test_what_changed(folder: Path) -> None:
    found = diff(folder / "a", folder / "b")
    assert found["same_network"] and {row["name"] for row in found["about"]} == {"--exclude", "--weight-bits"}
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["digits_conv0_fwd"]["b"].startswith("float: excluded") and "x s8" in rows["digits_conv0_fwd"]["a"]
    assert len(rows) == 9 and sum("x s4 per channel" in row["b"] for row in rows.values()) == 8
    ranges = {row["name"]: row for row in found["ranges"]}
    assert ranges["digits_dense_weight"]["percent"] == pytest.approx(100 * (127 / 7 - 1), rel=0.01)
    assert ranges["digits_conv0_weight"]["b"] is None and "digits_depthwise_fwd" not in ranges
    assert "digits_dense_weight_codes" in {row["name"] for row in found["codes"]}
    sqnr = next(row for row in found["metrics"] if row["metric"] == "sqnr_db")
    assert sqnr["worse"] and sqnr["b"] < sqnr["a"] - 5 and found["worse"]


def test_nothing_changed(folder: Path) -> None:
    found = diff(folder / "a", folder / "a.report.json")
    assert found["layers"] == found["ranges"] == found["about"] == found["worse"] == [] and found["codes"] is None
    assert diff(folder / "a", folder / "a-symbol.json")["codes"] == []


def test_tables_and_reports(folder: Path, tmp_path: Path) -> None:
    table = json.loads((folder / "a.calib.json").read_text())
    table["entries"]["digits_pool_fwd"]["high"] *= 1.1
    other = tmp_path / "other.calib.json"
    other.write_text(json.dumps(table))
    for first in ("a.calib.json", "a.report.json"):
        found = diff(folder / first, other, beyond=5)
        changed = [row for row in found["ranges"] if row["percent"] is not None]
        assert [row["name"] for row in changed] == ["digits_pool_fwd"]
        assert changed[0]["percent"] == pytest.approx(10, 0.2)
        assert found["metrics"] == [] and found["worse"] is None
    assert not [row for row in diff(folder / "a.calib.json", other, beyond=15)["ranges"]]


def test_fail_on_worse(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(folder / "a"), str(folder / "b")
    assert main(["diff", a, b]) == 0
    told = capsys.readouterr().out
    assert "excluded by 'digits_conv0'" in told and "WORSE" in told
    assert main(["diff", a, b, "--fail-on", "worse", "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["worse"] and "sqnr_db of digits_dense_fwd went from" in said.err
    assert main(["diff", b, a, "--fail-on", "worse"]) == 0
    assert main(["diff", a, f"{a}.calib.json", "--fail-on", "worse"]) == 1
    assert "no metric of the same images" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "error", "words"), [
    ("c", OptionError, "did you mean"), ("c.onnx", OptionError, "no such file"),
    ("digits.npz", OptionError, "no frozen model"), ("bad.report.json", FormatError, "not a report"),
    ("many.report.json", FormatError, "one target"), ("text.report.json", FormatError, "not a report")])
def test_mistakes(folder: Path, name: str, error: type[Exception], words: str) -> None:
    report: dict[str, Any] = json.loads((folder / "a.report.json").read_text())
    report["tensors"]["data"]["scale"] = {}
    (folder / "bad.report.json").write_text(json.dumps(report))
    (folder / "many.report.json").write_text(json.dumps({"mxnet": report}))
    (folder / "text.report.json").write_text("[" * 9)
    (folder / "digits.npz").write_bytes(b"PK")
    with pytest.raises(error, match=words):
        diff(folder / "a", folder / name)


def test_metrics_of_other_images_are_not_compared(folder: Path, tmp_path: Path) -> None:
    report = json.loads((folder / "b.report.json").read_text())
    report["agreement"]["images"] += 1
    (tmp_path / "b.report.json").write_text(json.dumps(report))
    assert diff(folder / "a", tmp_path / "b")["metrics"] == []
    assert main(["diff", str(folder / "a"), str(tmp_path / "b"), "--fail-on", "worse"]) == 1
    report["tensors"], report["quantized"], report["float"] = {}, [], []
    (tmp_path / "b.report.json").write_text(json.dumps(report))
    with pytest.raises(OptionError, match="one network"):
        diff(folder / "a", tmp_path / "b")


def test_it_cannot_be_told_without_metrics() -> None:
    from qgraph.commands.diff import check_not_worse

    with pytest.raises(DataError, match="--judge-data"):
        check_not_worse({"worse": None, "judged": {"a": None, "b": None}})
