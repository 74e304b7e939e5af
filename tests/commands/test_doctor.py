"""`qgraph doctor`: every illness is found and named with its remedy, and a healthy network has none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from doctor_cases import FED, SICK, healthy, judge
from helpers import DIGITS

from qgraph.cli.main import main
from qgraph.commands.doctor import doctor
from qgraph.data.candidates import Feeding, feedings, pixels_of
from qgraph.data.preprocess import PRESETS, Preprocess
from qgraph.errors import OptionError
from qgraph.ir.graph import Graph, Port


@pytest.mark.parametrize("illness", SICK)
def test_an_illness_is_found_and_named(illness: str, tmp_path: Path) -> None:
    hit, above = judge(SICK[illness], tmp_path)
    assert hit, above


def test_a_healthy_network_has_none(tmp_path: Path) -> None:
    found = healthy().examine(tmp_path)
    assert found["counts"]["error"] == found["counts"]["warning"] == 0 and found["images"] == 24
    assert found["departure"] < 1e-3


def test_strict_fails_for_more_than_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patient = healthy()
    patient.put("bn1_gamma", slice(0, 14), 0.0)
    patient.examine(tmp_path)
    assert main(["doctor", str(tmp_path / "net"), "--strict", "-q"]) == 3
    said = capsys.readouterr()
    assert "conv1 (14 of 24)" in said.out and "note" not in said.out.splitlines()[0]
    assert "--strict: 0 errors, 1 warning" in said.err
    assert main(["doctor", str(tmp_path / "net"), "-q"]) == 0
    assert main(["doctor", str(DIGITS / "digits"), "--strict", "--json"]) == 0
    found = json.loads(capsys.readouterr().out[len(said.out):])
    assert found["findings"] == [] and found["ops"]["BatchNorm"]["onnx"] == "folded"
    assert found["ops"]["elemwise_add"] == {"count": 2, "mxnet": "int8", "mxnet-sim": "float", "onnx": "int8",
                                            "ncnn": "float", "tengine": "int8"}


def test_a_frozen_model_is_refused() -> None:
    g = Graph()
    g.heads = [Port(g.add("_contrib_quantize_v2", [g.add("null", name="data")], "data_q", n_out=3))]
    with pytest.raises(OptionError, match="quantized already"):
        doctor(g)


def test_ways_to_feed_are_undone_and_done() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4)).astype(np.float32)
    for way in feedings(3):
        back, now = pixels_of(way.apply(pixels), way.preprocess, ready=False) or (None, None)
        assert now == way.preprocess
        np.testing.assert_allclose(back, pixels, atol=0.01)
        assert Preprocess.from_options(**_options(way)) == way.preprocess, way.flags
    back, now = pixels_of(Feeding(PRESETS["tf"]).apply(pixels), Preprocess(), ready=True) or (None, None)
    np.testing.assert_allclose(back, pixels, atol=0.01)
    assert pixels_of(pixels * 9, Preprocess(), ready=True) is None
    assert {way.preprocess.channels for way in feedings(1)} == {1} and FED["preprocess"] == "imagenet"


def _options(way: Feeding) -> dict[str, object]:
    """What the flags say, as the command line reads them."""
    words = way.flags.split()
    found: dict[str, object] = {"bgr": "--bgr" in words}
    for name in ("scale", "mean", "std"):
        if f"--{name}" in words:
            found[name] = words[words.index(f"--{name}") + 1]
    if "--preprocess" not in words:
        return {**found, **({"scale": way.preprocess.scale} if "scale" in found else {})}
    preset = PRESETS[words[1]]
    return {"scale": preset.scale, "mean": preset.mean, "std": preset.std, "bgr": preset.bgr}
