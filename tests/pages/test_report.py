"""The page of a report: what is on it, that names cannot break it, and that a damaged file is one line."""

from __future__ import annotations

import copy
import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DIGITS

import qgraph
from qgraph import FreezeOptions
from qgraph.cli.main import main
from qgraph.commands import plot
from qgraph.commands.reports import page_of
from qgraph.errors import FormatError
from qgraph.pages.look import DARK, LIGHT, NOISE_LEVELS, SERIES, noise_level
from qgraph.pages.network import boxes
from qgraph.pages.page import anchor
from qgraph.pages.report import command, report_page
from qgraph.quant.recipe import LayerChoice, Recipe

MODEL = str(DIGITS / "digits-symbol.json")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a frozen digits network, with histograms and a layer in float."""
    frozen = qgraph.freeze(MODEL, FreezeOptions(target="onnx", effort="fast", calib="kl", exclude=("conv0",)))
    made = str(tmp_path_factory.mktemp("page") / "q")
    frozen.save(made)
    return made


@pytest.fixture
def report(prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{prefix}.report.json").read_text())
    return found


class Page(HTMLParser):
    """What a browser would make of the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.data = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.texts.append(data.strip())
        elif self._open == "script" and not self.data:
            self.data = data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


# ---- what is on it --------------------------------------------------------------------------------------------------

def test_the_report_holds_what_the_page_shows(report: dict[str, Any]) -> None:
    """Each against the network itself: its weights, its codes, the operators that passes took out."""
    graph = qgraph.load(MODEL, str(DIGITS / "digits-0000.params"))
    assert [row["file"] for row in report["model"]] == ["digits-symbol.json", "digits-0000.params"]
    assert all(len(row["sha256"]) == 64 for row in report["model"])
    layers = {row["name"] for row in report["quantized"]}
    assert layers == report["layers"].keys() and len(layers) == 8
    weights = report["layers"]["digits_dense_fwd"]["weights"]
    assert weights["channels"] == len(graph.params["digits_dense_weight"]) == len(weights["largest"])
    np.testing.assert_allclose(weights["largest"], np.abs(graph.params["digits_dense_weight"]).max(axis=1), rtol=0.01)
    assert report["layers"]["digits_pointwise_fwd"]["reads"] == ["digits_depthwise_fwd"]
    fold = next(row for row in report["passes"] if row["name"] == "fold-bn")
    assert fold["ops"] == {"BatchNorm": -8}
    assert [node["name"] for node in report["network"]][:2] == ["data", "digits_conv0_fwd"]
    noise = {row["name"]: row for row in report["noise"]["layers"]}
    assert noise["digits_conv0_fwd"]["added_noise"] < noise["digits_depthwise_fwd"]["added_noise"]
    assert 15 < noise["digits_dense_fwd"]["sqnr_db"] < 60
    histogram = report["histograms"]["digits_depthwise_fwd"]
    assert set(histogram["ranges"]) == {"naive", "kl", "mse", "percentile"}
    assert histogram["ranges"]["naive"] == pytest.approx(report["tensors"]["digits_depthwise_fwd"]["observed"])
    assert histogram["ranges"]["kl"][1] == pytest.approx(report["tensors"]["digits_depthwise_fwd"]["high"], rel=0.01)
    signed = [row for row in report["tensors"].values() if row["source"] != ["weights"] and row["observed"][0] < -0.1]
    assert signed and all(row["low"] == pytest.approx(row["chosen"][0], abs=row["scale"]) for row in signed)
    codes = report["departure"]["codes"]["digits_depthwise_fwd"]
    assert 30 < codes["used"] <= codes["of"] == 256 and sum(codes["counts"]) % report["departure"]["images"] == 0


def test_the_page_shows_them(report: dict[str, Any]) -> None:
    page = Page(report_page(report))
    shown = " ".join(page.texts)
    for text in ("8 of 9 layers with weights compute in integers for onnx", "excluded by 'conv0'", "fold-bn",
                 "qgraph freeze digits-symbol.json", report["graph_hash"], report["model"][1]["sha256"]):
        assert text in shown, text
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    links = {str(attrs["href"])[1:] for attrs in page.all("a")}
    assert links <= ids and {anchor(row["name"]) for row in report["quantized"]} <= ids & links
    data = json.loads(page.data)
    assert {row["name"]: row["sqnr"] for row in data["noise"]} == {
        row["name"]: row["sqnr_db"] for row in report["noise"]["layers"]}
    layer = data["layers"][anchor("digits_pointwise_fwd")]
    assert layer["histogram"]["counts"] == report["histograms"]["digits_depthwise_fwd"]["counts"]
    assert [one["name"] for one in layer["histogram"]["ranges"] if one["chosen"]] == ["kl"]


def test_it_loads_nothing_and_can_be_read_aloud(report: dict[str, Any]) -> None:
    page = Page(report_page(report))
    policy = next(attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy
    for tag, attrs in page.tags:
        assert tag not in ("iframe", "object", "embed", "form"), tag
        for name in ("src", "href", "action", "data"):
            assert not attrs.get(name) or str(attrs[name]).startswith(("#", "data:")), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
    assert len(page.all("table")) == len(page.all("caption")) > 5
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))
    assert len(page.all("figure")) == len(page.all("figcaption")) > 10


def test_without_images_it_says_what_is_not_known(report: dict[str, Any]) -> None:
    report.update(agreement=None, departure=None, noise=None, histograms={}, network=None, calibration=None)
    shown = " ".join(Page(report_page(report)).texts)
    assert "The outputs were not judged" in shown and "too large to be drawn" in shown and "Not known" in shown


def test_a_naive_calibration_has_codes_and_no_histogram(report: dict[str, Any]) -> None:
    report["histograms"], report["calibration"]["method"] = {}, "naive"
    page = Page(report_page(report))
    assert any("keeps the smallest and the largest value, and no histogram" in text for text in page.texts)
    layer = json.loads(page.data)["layers"][anchor("digits_pointwise_fwd")]
    assert "histogram" not in layer and sum(layer["codes"]["counts"]) > 0


def test_a_ruined_network_is_told_on_top_and_shares_have_a_column(report: dict[str, Any]) -> None:
    report["ruin"] = {"outputs": [{"names": ["out"], "task": "classification", "metric": "top1", "value": 12.0,
                                   "least": 80.0}], "layers": ["digits_dense_fwd"], "try": ["--calib kl"]}
    assert "Share of error" not in report_page(report)
    report["budget"] = {"shares": {"digits_dense_fwd": 0.251}}
    shown = " ".join(Page(report_page(report)).texts)
    assert "out: top-1 12 %, want at least 80 %" in shown and "Share of error, %" in shown
    assert "25.1 % of the error of the outputs is its own" in shown


def test_the_command_makes_the_same_options_again() -> None:
    options = FreezeOptions(target="onnx{isa=avx2}", exclude=("conv0", "op:Dense layer"), mean=("1,2,3"), bgr=True,
                            merge_bn=False, num_calib=7, user_passes=("m:X@fold-bn",))
    found = command({"model": [{"file": "n-symbol.json", "sha256": ""}], "options": options.to_dict()})
    assert found == ("qgraph freeze n-symbol.json --bgr --exclude conv0 --exclude 'op:Dense layer' --mean 1,2,3 "
                     "--no-merge-bn --num-calib 7 --target 'onnx{isa=avx2}' --pass m:X@fold-bn")


# ---- names are not markup -------------------------------------------------------------------------------------------

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onclick='alert(1)'&amp;</style>${x}{{7*7}}"


def test_a_hostile_name_is_text(report: dict[str, Any]) -> None:
    harmless = Page(report_page(report))
    text = json.dumps(report).replace("digits_pointwise_fwd", json.dumps(HOSTILE)[1:-1])
    page = Page(report_page(json.loads(text)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in harmless.tags]
    assert HOSTILE in page.texts and anchor(HOSTILE) in json.loads(page.data)["layers"]
    assert "49" not in anchor(HOSTILE)


# ---- files ----------------------------------------------------------------------------------------------------------

def test_the_command_writes_the_page_of_freeze_again(prefix: str, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again.html"
    assert main(["report", f"{prefix}.report.json", "--output", str(again)]) == 0
    assert capsys.readouterr().out == f"wrote       {again}\n"
    assert again.read_bytes() == Path(f"{prefix}.report.html").read_bytes()
    copied = tmp_path / "c.report.json"
    copied.write_bytes(Path(f"{prefix}.report.json").read_bytes())
    assert main(["report", str(copied)]) == 0
    assert (tmp_path / "c.report.html").read_bytes() == again.read_bytes()


@pytest.mark.parametrize("content, fragment", [
    ("", "not JSON"), ("[]", "not a report"), ('{"format": "qgraph-report"}', "version 1, this qgraph shows 2"),
    ('{"format": "qgraph-report", "version": 2}', "target is missing"), ("[" * 100_000, "nested too deeply"),
    ("1" * 5000, "digits"), ('{"a": NaN}', "NaN")])
def test_what_is_no_report_is_one_line(content: str, fragment: str, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.report.json"
    path.write_text(content)
    assert main(["report", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("qgraph: error: ") and fragment in said and said.count("\n") == 1
    assert not (tmp_path / "x.report.html").exists()


def test_a_missing_file_and_two_files_for_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "no.json")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main(["report", "a", "b", "--output", "c"]) == 1
    assert "there are 2 reports" in capsys.readouterr().err


def places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a report."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [where, *(place for key, one in inside for place in places(one, (*where, key)))]


def test_a_damaged_report_is_an_error_of_ours_or_a_page(report: dict[str, Any], tmp_path: Path) -> None:
    rng = random.Random(5)
    paths = [place for place in places(report) if place]
    refused = 0
    for place in rng.sample(paths, 150):
        damaged = copy.deepcopy(report)
        holder = damaged
        for key in place[:-1]:
            holder = holder[key]
        if rng.random() < 0.2 and isinstance(holder, dict):
            del holder[place[-1]]
        else:
            holder[place[-1]] = rng.choice([None, "x", "\ud800", -1, 0, [], {}, 1e308, True, [1], {"a": None}])
        path = tmp_path / "d.report.json"
        path.write_text(json.dumps(damaged))
        try:
            page_of(path)
        except FormatError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 50


# ---- parts ----------------------------------------------------------------------------------------------------------

def test_long_chains_become_boxes() -> None:
    nodes = [{"name": f"n{number}", "op": "Convolution", "reads": [number - 1] if number else []}
             for number in range(30)]
    nodes.append({"name": "sum", "op": "elemwise_add", "reads": [29, 10]})
    found = boxes(nodes, {node["name"]: {"name": node["name"]} for node in nodes})
    assert [cell["name"] for box in found["boxes"] for cell in box["cells"]] == [node["name"] for node in nodes]
    assert [box["count"] for box in found["boxes"]] == [6, 5, 6, 6, 6, 1, 1]  # n10 has two readers
    assert found["boxes"][0]["label"] == "n0 … n5" and [1, 6] in found["edges"] and len(found["edges"]) == 7


def test_colours_tell_levels_and_can_be_read() -> None:
    assert [noise_level(value) for value in (None, 45.0, *NOISE_LEVELS, 9.9)] == [0, 0, 0, 1, 2, 3, 4]
    assert len(set(SERIES)) == len(plot._MARKERS) == len(set(plot._MARKERS))  # lines of a plot differ in both
    for colours in (LIGHT, DARK):
        assert colours.keys() == LIGHT.keys()
        for ink in ("ink", "soft", "accent", "warn"):
            for ground in ("page", "surface"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(a: str, b: str) -> float:
    """By WCAG 2."""
    def light(colour: str) -> float:
        parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue
    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def test_the_budget_goes_into_the_report(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "q.report.json"
    written.write_bytes(Path(f"{prefix}.report.json").read_bytes())
    assert "Share of error" not in page_of(written)[1]
    assert main(["report", str(written), "--budget", MODEL]) == 0
    told = capsys.readouterr().out.splitlines()
    budget = json.loads(written.read_text())["budget"]
    assert budget["shares"].keys() == {row["name"] for row in json.loads(written.read_text())["quantized"]}
    assert 0.5 < sum(budget["shares"].values()) < 1.5
    largest = max(budget["shares"], key=lambda layer: budget["shares"][layer])
    assert told[0].startswith("budget ") and told[1].endswith(f" % of {largest}")
    assert "Share of error" in (tmp_path / "q.report.html").read_text()


def test_a_budget_of_another_model_is_refused(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (DIGITS / "digits-symbol.json", DIGITS / "digits-0000.params", DIGITS / "digits-calib.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "digits-symbol.json").write_text((DIGITS / "digits-symbol.json").read_text() + "\n")
    assert main(["report", f"{prefix}.report.json", "--budget", str(tmp_path / "digits")]) == 1
    assert "is of another model, digits-symbol.json, digits-0000.params" in capsys.readouterr().err
    assert main(["report", f"{prefix}.report.json", "--data", "x"]) == 1
    assert "--budget MODEL-symbol.json" in capsys.readouterr().err


def test_a_budget_knows_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(layers=(("*res1_conv1*", LayerChoice(in_float=True)),))
    qgraph.freeze(MODEL, FreezeOptions(target="onnx", effort="fast", recipe=recipe)).save(tmp_path / "q")
    assert main(["report", str(tmp_path / "q.report.json"), "--budget", MODEL]) == 0
    shares = json.loads((tmp_path / "q.report.json").read_text())["budget"]["shares"]
    assert len(shares) == 8 and "digits_res1_conv1_fwd" not in shares


@pytest.mark.parametrize(("option", "value"), [("batch_size", "x"), ("preprocess", [1]), ("select", 7), ("recipe", 3),
                                               ("calib", 5), ("exclude", 5), ("unheard_of", 1)])
def test_damaged_options_are_one_line(option: str, value: Any, report: dict[str, Any], tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "q.report.json"
    path.write_text(json.dumps({**report, "options": {**report["options"], option: value}}))
    assert main(["report", str(path), "--budget", MODEL]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and option in error
