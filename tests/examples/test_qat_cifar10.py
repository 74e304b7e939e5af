"""`examples/qat_cifar10.py` on a few images: the table, a MobileNet that is trained first, going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import CASES

pytest.importorskip("gluoncv")

import qat_cifar10  # noqa: E402

pytestmark = [pytest.mark.mxnet, pytest.mark.slow, pytest.mark.cases("cifar10", "cifar_resnet20_v1")]
FEW = ["--data", str(CASES / "cifar10"), "--train-images", "192", "--test-images", "200", "--batch-size", "32"]


def table(*flags: str) -> dict[str, float]:
    """What the last columns of the printed table say: ranges -> top-1."""
    done = CliRunner().invoke(qat_cifar10.main, [*FEW, *flags], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.output.splitlines()
            if line.startswith("| ") and not line.startswith("| types")]
    return {row[3] or "float": float(row[4]) for row in rows}


def test_a_trained_network(tmp_path: Path) -> None:
    params = CASES / "cifar_resnet20_v1" / "cifar_resnet20_v1.gluon.params"
    found = table("--params", str(params), "--quant-type", "channel", "--bits", "8", "--epochs", "1", "--lr", "0.001",
                  "--output", str(tmp_path / "net"))
    assert set(found) == {"float", "kl", "naive", "retrained, 1 epochs"}
    assert found["float"] > 80 and all(abs(rate - found["float"]) < 4 for rate in found.values())
    assert (tmp_path / "net-channel-symbol.json").is_file()


@pytest.mark.docs
def test_a_mobilenet_is_trained_first_and_goes_on(tmp_path: Path) -> None:
    flags = ["--model", "mobilenet0.25", "--zoom", "2", "--quant-type", "layer", "--no-fake-bn", "--bits", "8",
             "--float-epochs", "6", "--float-lr", "0.02", "--lr", "0.001", "--output", str(tmp_path / "net")]
    first = table(*flags, "--epochs", "1")
    assert json.loads((tmp_path / "net-layer.json").read_text()) == {"epochs": 1}
    trained = (tmp_path / "net-float.params").read_bytes()
    second = table(*flags, "--epochs", "2")
    assert json.loads((tmp_path / "net-layer.json").read_text()) == {"epochs": 2}
    assert (tmp_path / "net-float.params").read_bytes() == trained and second["float"] == first["float"]
    assert {*first, *second} == {"float", "kl", "naive", "retrained, 1 epochs", "retrained, 2 epochs"}
