"""What freeze says at its end: one screen, however large the network is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from helpers import DIGITS

import qgraph
from qgraph import FreezeOptions
from qgraph.cli.summary import summary
from qgraph.commands.frozen import Frozen


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    options = FreezeOptions(target="onnx", effort="fast", num_calib=8)
    return qgraph.freeze(str(DIGITS / "digits-symbol.json"), options)


def grown(frozen: Frozen, **changes: Any) -> Frozen:
    found = copy.copy(frozen)
    found.report = {**frozen.report, **changes}
    return found


def test_a_large_network_fits_on_a_screen(frozen: Frozen) -> None:
    agreement = frozen.report["agreement"]
    many = {"float": [{"name": f"layer{number}", "op": "Convolution", "reason": "excluded by 'op:Convolution'"}
                      for number in range(300)],
            "agreement": {**agreement, "tasks": agreement["tasks"] * 40},
            "saturation": [{"layer": f"conv{number}", "missed_percent": number / 10, "chosen": 1.0, "why": "so"}
                           for number in range(200)]}
    lines = summary([grown(frozen, **many)], ["a.onnx"])
    assert len(lines) < 20 and max(map(len, lines)) < 160
    assert lines[0].endswith("(in float: layer0, layer1, layer2, layer3, layer4, layer5, ...)")
    saturation = [line for line in lines if "conv" in line and "off by more" in line]
    assert [line.split("conv")[1].split(":")[0] for line in saturation] == ["199", "198", "197"]
    assert any("and 197 more layers, see the report" in line for line in lines)
    assert lines[-1] == "wrote       a.onnx" and lines[-2].startswith("time        ")


def test_why_layers_stay_in_float(frozen: Frozen) -> None:
    """Unless the user wants it."""
    left = [{"name": name, "op": "Convolution", "reason": reason} for name, reason in (
        ("a", "excluded by 'a'"), ("b", "no kernel"), ("c", "no kernel"), ("d", "negative input"))]
    assert [line.strip() for line in summary([grown(frozen, float=left)], [])[1:3]] == [
        "b and 1 more stay in float: no kernel", "d stays in float: negative input"]


def test_several_targets_are_columns(frozen: Frozen, capsys: pytest.CaptureFixture[str]) -> None:
    other = grown(frozen, quantized=frozen.report["quantized"][:5])
    assert summary([frozen, other], ["a", "b"]) == ["wrote       a", "wrote       b"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("quantized")] == [
        ["quantized", "9", "of", "9", "layers", "5", "of", "5", "layers"]]
    assert [line.split()[0] for line in lines if line.strip() and not line.startswith(" ")] == [
        "quantized", "agreement", "kernels", "onnxruntime", "size", "time"]
