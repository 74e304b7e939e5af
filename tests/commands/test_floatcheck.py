"""The float check: what may differ, which op is named, and how to go on without it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from qgraph import engines
from qgraph.cli.main import main
from qgraph.commands import convert as conversion
from qgraph.commands.floatcheck import TOLERANCE, relative_error, rounding_bounds, run_checked
from qgraph.errors import PassError, QGraphError
from qgraph.formats.mxnet_writer import save
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import Pass
from qgraph.passes import PIPELINES
from qgraph.targets.onnx.convert import CONVERTERS, Context

pytest.importorskip("onnxruntime")
FEEDS = {"data": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}


def small(gain: float = 1.0) -> Graph:
    """conv0 -> bn0 -> relu0 -> conv1 -> sin(gain * x), which makes much of the last bits where the gain is large."""
    g, rng = Graph(), np.random.default_rng(1)
    x = g.add("null", name="data")

    def conv(value: object, name: str, channels: int) -> object:
        weight = g.add_param(f"{name}_weight", rng.normal(0, 0.3, (4, channels, 3, 3)).astype(np.float32))
        return g.add("Convolution", [value, weight], name, kernel="(3, 3)", pad="(1, 1)", num_filter="4",
                     no_bias="True")

    first = conv(x, "conv0", 3)
    stats = [g.add_param(f"bn0_{key}", rng.uniform(0.5, 1.5, 4).astype(np.float32))
             for key in ("gamma", "beta", "moving_mean", "moving_var")]
    relu = g.add("Activation", [g.add("BatchNorm", [first, *stats], "bn0", fix_gamma="False")], "relu0",
                 act_type="relu")
    second = conv(relu, "conv1", 4)
    g.heads = [Port(g.add("sin", [g.add("_mul_scalar", [second], "loud", scalar=str(gain))], "wave"))]
    return g


class Louder(Pass):
    """A pass that breaks its promise."""

    name = "louder"
    preserves_float = True
    factor = 1.01

    def run(self, g: Graph) -> int:
        weight = next(n for n in g.dag if n.name == "conv1_weight")
        g.params[weight.name] = g.params[weight.name] * np.float32(self.factor)
        return 1


class Rounder(Louder):
    """A pass that moves the last bits."""

    name = "rounder"
    factor = 1 + 2**-22


def executor() -> engines.Engine:
    return engines.runtime("testing", "onnxruntime")


def test_the_pass_and_the_op_are_named() -> None:
    line = PIPELINES["float"]
    with pytest.raises(PassError, match="pass louder changed the outputs by 0.0.*, first at conv1:Convolution; .*"
                                        "--no-float-check"):
        run_checked((*line[:3], Louder(), *line[3:]), small(), FEEDS, executor())


def test_what_rounding_alone_does_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    noisy = small(gain=1000.0)
    bounds = rounding_bounds(noisy, noisy.heads, FEEDS, executor())
    assert TOLERANCE < bounds[0] < 0.05
    assert TOLERANCE < run_checked((Rounder(),), noisy, FEEDS, executor()) <= bounds[0]
    assert "rounding alone" in caplog.text


def test_the_bound_of_a_sound_network_stays() -> None:
    g = small()
    assert rounding_bounds(g, g.heads, FEEDS, executor()) == [TOLERANCE]
    with pytest.raises(PassError, match=f"want below {TOLERANCE:.2g}"):
        run_checked((Louder(),), g, FEEDS, executor())


def test_it_can_be_waived(caplog: pytest.LogCaptureFixture) -> None:
    assert run_checked((Louder(),), small(), FEEDS, executor(), check=False) == 0
    assert "WARNING: --no-float-check" in caplog.text


@pytest.fixture
def wrong_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """relu is converted wrongly."""
    def negative(c: Context, x: str) -> str:
        return str(c.op("Neg", x))

    monkeypatch.setitem(CONVERTERS, "Activation", negative)


@pytest.mark.usefixtures("wrong_converter")
def test_a_wrong_conversion_names_the_op_that_departs_first(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(QGraphError, match="the onnx model is wrong: wave differs by .*, first at relu0:Activation. "
                                          "This is a bug of qgraph.*--no-float-check"):
        conversion.convert(small(), input_shape=["data:1,3,8,8"])
    found = conversion.convert(small(), input_shape=["data:1,3,8,8"], float_check=False)
    assert found.report["difference"] is None and "WARNING: --no-float-check" in caplog.text


def test_a_conversion_may_differ_by_what_rounding_does(caplog: pytest.LogCaptureFixture) -> None:
    noisy = small(gain=1000.0)
    caplog.set_level(logging.WARNING, "qgraph")
    found = conversion.convert(noisy, input_shape=["data:1,3,8,8"])
    assert relative_error(np.ones(1), np.ones(1)) == 0 <= found.report["difference"] < 0.05


def test_random_outputs_are_refused_with_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    g = small()
    g.heads = [Port(g.add("Dropout", [g.heads[0]], "mc", mode="always"))]
    monkeypatch.chdir(tmp_path)
    save(g, "net")
    for argv in (["convert", "net", "--to", "onnx", "--input-shape", "data:1,3,8,8"],
                 ["freeze", "net", "--input-shape", "data:1,3,8,8"]):
        assert main(argv) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("qgraph: error: mc:Dropout: drops at inference, too (mode=always)")
        assert "--outputs wave" in said and "bug" not in said
