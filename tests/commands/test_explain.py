"""`qgraph explain` and the error budget behind it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers import DIGITS

from qgraph import engines
from qgraph.cli.main import main
from qgraph.commands.explain import explain
from qgraph.commands.open_model import open_model
from qgraph.commands.trial import Trial
from qgraph.errors import CalibrationError, OptionError
from qgraph.ir.graph import Graph, Port
from qgraph.options import FreezeOptions
from qgraph.passes.canonicalize import Canonicalize

MODEL, IMAGES = str(DIGITS / "digits"), str(DIGITS / "digits-calib.npz")
CONV = "digits_res1_conv1_fwd"


@pytest.fixture(scope="module")
def trial() -> Trial:
    source = open_model(MODEL).as_graph("a test")
    Canonicalize().run(source)
    data = FreezeOptions(batch_size=16).open(IMAGES, {"data": ()}, 16)
    return Trial(source, data, FreezeOptions(), engines.runtime("a test"), images=16)


def test_the_budget_agrees_with_leaving_layers_out(trial: Trial) -> None:
    budget = trial.budget()
    assert len(budget.costs) == 9 and budget.noise == pytest.approx(trial.measured, rel=1e-4)
    assert 0.85 < budget.predicted / budget.noise < 1.2 and 0.85 < sum(map(budget.share, budget.costs)) < 1.2
    without = {layer: budget.noise - trial.noise(trial.without(layer)) for layer in trial.layers}
    truth = sorted(without, key=lambda layer: -without[layer])
    assert len({*truth[:3]} & {cost.layer for cost in budget.ranked()[:3]}) >= 2
    assert truth[0] == budget.ranked()[0].layer


def test_a_part_of_the_budget_is_that_of_the_whole(trial: Trial) -> None:
    whole = {cost.layer: cost for cost in trial.budget().costs}
    part = trial.budget([CONV]).costs
    assert [cost.layer for cost in part] == [CONV] and part[0].power == pytest.approx(whole[CONV].power, rel=1e-4)


def test_variants(trial: Trial) -> None:
    exact = trial.float_graph
    assert trial.noise(exact) < 1e-9 < trial.measured
    assert CONV not in [row.name for row in _quantized(trial, trial.without(CONV))]
    assert trial.noise(trial.with_bits(CONV, 4)) > 1.5 * trial.measured
    tensor = trial.input_of(CONV)
    assert tensor == "digits_pointwise_fwd" and trial.before(CONV) == ["digits_pointwise_fwd"]
    low, high = trial.range_of(tensor)
    assert trial.noise(trial.with_range(tensor, low, high)) == trial.measured
    assert trial.noise(trial.with_range(tensor, low, high / 10)) > 2 * trial.measured
    assert 0 < trial.at_layer(CONV) < 0.01


def _quantized(trial: Trial, g: Any) -> list[Any]:
    return [node for node in g.toposort() if len(g.inputs(node)) > 1 and g.inputs(node)[1].node.op == "fake_quantize"]


def test_a_layer_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", MODEL, "res1_conv1_bn", "--num-calib", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "digits_res1_conv1_bn_fwd" and found["op"] == "BatchNorm"
    passes = {row["pass"]: row["what"] for row in found["passes"]}
    assert passes["fold-bn"] == f"becomes {CONV} (Convolution)" and "relu" in passes["fuse-relu"]
    assert "u8 x s8" in passes["integer-flow"]
    assert found["became"] == [{"name": CONV, "op": "Convolution", "arithmetic": "u8 x s8 per channel"}]
    read = found["reads"]
    assert read["tensor"] == "digits_pointwise_fwd" and read["image"].startswith("digits-calib.npz[")
    assert read["scale"] == pytest.approx(read["high"] / 255, rel=1e-3) and CONV in read["readers"]
    assert {name for row in found["ranges"] for name in row["methods"]} == {"naive", "ema", "kl", "percentile", "mse",
                                                                            "auto"}
    assert [row["change"] for row in found["what_if"]] == [f"--exclude {CONV}", "16 bits for its weight and its input"]
    assert [*found["budget"]["before"]] == ["digits_pointwise_fwd"] and 0 < found["budget"]["own_at_output"] < 1


def test_a_tensor_and_an_excluded_layer_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    table = str(DIGITS.parents[1] / "tests" / "golden" / "frozen" / "calib.json")
    assert main(["explain", MODEL, "digits_pool_fwd", "--tensor", "--calib-table", table, "--num-calib", "8",
                 "--target", "onnx"]) == 0
    told = capsys.readouterr().out
    assert "read by" in told and "by naive, u8" in told and "for onnx" in told and "error" not in told
    assert main(["explain", MODEL, "conv0", "--exclude", "conv0", "--num-calib", "8"]) == 0
    assert "float: excluded by 'conv0'" in capsys.readouterr().out


def test_a_layer_that_the_target_leaves_in_float_costs_nothing() -> None:
    g = Graph()
    x = g.add("null", name="data")
    for number in range(2):
        weight = g.add_param(f"w{number}", np.random.default_rng(number).normal(size=(4, 4, 3)).astype(np.float32))
        x = g.add("Convolution", [x, weight], f"c{number}", kernel=(3,), pad=(1,), num_filter=4, no_bias=True)
        x = g.add("Activation", [x], f"a{number}", act_type="relu")
    g.heads = [Port(x)]
    images = np.random.default_rng(9).normal(size=(4, 4, 8)).astype(np.float32)
    with pytest.raises(OptionError, match="nothing is quantized"):
        explain(g, "c0", images, options=FreezeOptions(target="mxnet"))  # has no 1-D convolutions
    found = explain(g, "c0", images, options=FreezeOptions(target="onnx"))
    assert found["budget"]["own"] > 0 and found["became"][0]["arithmetic"].endswith("s8 per channel")


@pytest.mark.parametrize(("name", "tensor", "words"), [
    ("digits_dense_weight", False, "a parameter of digits_dense_fwd"), ("data", False, "--tensor data"),
    ("relu", False, "could be digits_conv0_relu_fwd"), ("digits_cnv0", False, "did you mean digits_conv0"),
    ("digits_pol_fwd", True, "did you mean digits_pool_fwd")])
def test_names_that_are_none(name: str, tensor: bool, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        explain(MODEL, name, IMAGES, tensor=tensor, options=FreezeOptions(num_calib=2))


def test_it_wants_images() -> None:
    source = open_model(MODEL).as_graph("a test")
    source.data_inputs()[0].attrs["__shape__"] = "(1, 1, 24, 24)"
    with pytest.raises(CalibrationError, match="--data PATH"):
        explain(source, "conv0")
