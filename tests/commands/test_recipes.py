"""A recipe decides what `freeze` and `simulate` do with single layers; what is impossible is refused before work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DIGITS

import qgraph
from qgraph.cli.main import main
from qgraph.commands.frozen import Frozen
from qgraph.errors import CalibrationError, OptionError, QGraphError, UnsupportedError
from qgraph.options import FreezeOptions
from qgraph.quant.recipe import IN_FLOAT, LayerChoice, Recipe

MODEL = str(DIGITS / "digits-symbol.json")
HEAD = "format: qgraph-recipe\nversion: 1\n"
FAST: dict[str, Any] = {"effort": "fast", "num_calib": 16, "float_check": False}


def freeze(recipe: str | Recipe | None, target: str = "onnx", **options: Any) -> Frozen:
    table = options.pop("calib_table", None)
    given = FreezeOptions(target=target, recipe=recipe, runtime="onnxruntime", **{**FAST, **options})
    return qgraph.freeze(MODEL, given, calib_table=table)


@pytest.fixture(scope="module")
def mixed() -> Frozen:
    return freeze(Recipe(calib="mse", layers=(
        ("*pointwise*", LayerChoice(weight_bits=4, act_bits=IN_FLOAT)), ("res1_conv1", LayerChoice(in_float=True)),
        ("res1_conv2", LayerChoice(calib="naive", weight_bits=6, granularity="tensor")),
        ("dense", LayerChoice(act_bits=4)))))


def test_each_layer_is_as_the_recipe_says(mixed: Frozen) -> None:
    layers = {row["name"]: row for row in mixed.report["quantized"]}
    found = {name: (row["weight"], row["granularity"]) for name, row in layers.items()}
    assert found["digits_pointwise_fwd"] == ("s4", "channel")
    assert found["digits_res1_conv2_fwd"] == ("s6", "layer")
    assert found["digits_conv0_fwd"] == ("s8", "channel")
    assert layers["digits_dense_fwd"]["data"] == "u4" and layers["digits_conv0_fwd"]["data"] == "u8"
    assert {row["name"]: row["reason"] for row in mixed.report["float"]} == {
        "digits_res1_conv1_fwd": "the recipe leaves it in float"}
    assert mixed.table is not None
    fq = next(f for f in mixed.report["layers"]["digits_res1_conv2_fwd"]["reads"])
    assert mixed.table.entries[fq].method == "naive" and mixed.table.method == "mse"
    assert mixed.report["agreement"]["sqnr_db"] > 15


def test_onnx_stores_weights_alone_in_4_bits_and_says_what_is_float(mixed: Frozen) -> None:
    import onnx

    stored = {t.name: t.data_type for t in mixed.model.proto.graph.initializer}  # type: ignore[attr-defined]
    assert stored["digits_pointwise_weight_q/codes"] == onnx.TensorProto.INT4
    assert stored["digits_res1_conv2_weight_q/codes"] == onnx.TensorProto.INT8
    assert set(mixed.report["onnxruntime"]["float"]) == {"digits_pointwise_fwd"}  # it reads what an integer layer wrote
    wide = freeze(Recipe(layers=(("res1_conv2", LayerChoice(act_bits=16)),)))
    assert {row["name"]: row["data"] for row in wide.report["quantized"]}["digits_res1_conv2_fwd"] == "u16"
    assert "digits_res1_conv2_fwd" in wide.report["onnxruntime"]["float"]
    assert wide.report["departure"]["within_one"] > 99


def test_the_table_of_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["onnx", "2", "to", "4", "float", "floats", "4"] in [line[:7] for line in lines]


def test_the_recipe_that_is_written_freezes_the_same(mixed: Frozen, tmp_path: Path) -> None:
    paths = mixed.save(tmp_path / "m")
    written = str(tmp_path / "m.recipe.yaml")
    assert written in paths
    again = freeze(written)
    assert again.model.files("")[".onnx"] == mixed.model.files("")[".onnx"]
    assert again.recipe == mixed.recipe
    assert again.table is not None and mixed.table is not None
    assert again.table.to_json() == mixed.table.to_json()


def test_a_table_that_a_recipe_made_serves_it_again(mixed: Frozen) -> None:
    assert mixed.recipe is not None and mixed.table is not None
    again = freeze(mixed.recipe, calib="naive", calib_table=mixed.table)
    assert again.model.files("")[".onnx"] == mixed.model.files("")[".onnx"]
    other = Recipe(calib="mse", layers=(*mixed.recipe.layers, ("res1_conv2", LayerChoice(calib="kl"))))
    with pytest.raises(CalibrationError, match="was chosen by naive, and the recipe says kl"):
        freeze(other, calib_table=mixed.table)
    with pytest.raises(CalibrationError, match="were chosen for 4 bits, want 8"):
        freeze(Recipe(calib="mse", layers=mixed.recipe.layers[:3]), calib_table=mixed.table)


def test_the_recipe_of_another_model_is_refused(mixed: Frozen) -> None:
    with pytest.raises(CalibrationError, match="recipe belongs to another model"):
        freeze(Recipe(graph="0" * 32))


@pytest.mark.parametrize(("target", "choice", "said"), [
    ("onnx", LayerChoice(weight_bits=12), "conv0.*target onnx has no layer of 12-bit weights and 8-bit"),
    ("onnx", LayerChoice(act_bits=12), r"no layer of 8-bit weights and 12-bit.*mxnet-sim can \(--target mxnet-sim"),
    ("mxnet", LayerChoice(weight_bits=4), "mxnet has no layer of 4-bit weights.*it has weights 8, activations 8"),
    ("mxnet", LayerChoice(granularity="tensor"), "cannot carry granularity layer exactly, it has channel"),
    ("ncnn", LayerChoice(act_bits=IN_FLOAT), "target ncnn has no layer of 8-bit weights and float activations"),
])
def test_what_the_target_lacks_is_refused_by_name(target: str, choice: LayerChoice, said: str) -> None:
    from qgraph.commands.line import pipeline

    with pytest.raises(UnsupportedError, match=said):
        pipeline(FreezeOptions(target=target, recipe=Recipe(layers=(("conv0", choice),))))


def test_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--calib kl: the recipe says mse; leave one of them out"):
        freeze(Recipe(calib="mse"), calib="kl")
    with pytest.raises(OptionError, match="calib kl needs ranges that are observed"):
        freeze(Recipe(layers=(("conv0", LayerChoice(calib="kl")),)), "mxnet-sim", calib="online")


@pytest.mark.parametrize(("pattern", "said"), [
    ("res1_conv9", "recipe, layer res1_conv9: matches nothing; close names: digits_res1_conv"),
    ("*pool*", "recipe, layer \\*pool\\*: .*which has no weights"),
])
def test_an_unknown_layer_is_refused_with_close_names(pattern: str, said: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgraph.commands.freeze.find_images", None)  # before any image is read
    with pytest.raises(OptionError, match=said):
        freeze(Recipe(layers=((pattern, LayerChoice(weight_bits=4)),)))


def test_simulate_takes_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its row is that of freezing with it; rows of another recipe are not gone on with."""
    with np.load(DIGITS / "digits-test.npz") as test:
        np.savez(tmp_path / "test.npz", data=test["data"][:48], label=test["label"][:48])
    (tmp_path / "r.yaml").write_text(
        HEAD + "calib: mse\neffort: fast\nlayers: {'*': {weights: 2}, dense: {float: true}}")
    args = ["simulate", MODEL, "--data", str(tmp_path / "test.npz"), "--num-calib", "16", "--runtime", "onnxruntime",
            "--output", str(tmp_path / "s"), "--recipe", str(tmp_path / "r.yaml")]
    assert main(args) == 0
    row = capsys.readouterr().out.splitlines()[3].split("|")
    assert row[2].strip() == "mse"
    frozen = freeze(str(tmp_path / "r.yaml"), "mxnet-sim", judge_data=str(tmp_path / "test.npz"))
    assert float(row[-2]) == frozen.report["agreement"]["top1"] < 99
    (tmp_path / "r.yaml").write_text(HEAD + "effort: fast")
    assert main(args) == 1
    assert "finished rows are of another run (recipe:" in capsys.readouterr().err


@pytest.mark.mxnet
def test_bits_and_weights_alone_are_simulated() -> None:
    recipe = Recipe(effort="fast", layers=(("*", LayerChoice(act_bits=IN_FLOAT, weight_bits=5)),
                                           ("dense", LayerChoice(act_bits=16))))
    given = FreezeOptions(target="mxnet-sim", recipe=recipe, **{**FAST, "effort": "standard"})
    rows = {row["name"]: row for row in qgraph.freeze(MODEL, given).report["quantized"]}
    assert rows["digits_dense_fwd"]["data"] == "u16" and rows["digits_dense_fwd"]["weight"] == "s5"
    assert {row["data"] for name, row in rows.items() if "dense" not in name} == {"float"}


def test_a_wrong_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(HEAD + "layers: {conv0: {weights: 99}}")
    assert main(["freeze", MODEL, "--recipe", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "x")]) == 1
    assert "layers.conv0.weights: 99 is greater than the maximum of 16" in capsys.readouterr().err
    assert main(["freeze", MODEL, "--recipe", str(tmp_path / "no.yaml"), "--output", str(tmp_path / "x")]) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err
    assert isinstance(FreezeOptions(recipe=Recipe()).to_dict()["recipe"], dict)
    with pytest.raises(QGraphError, match="want a path"):
        FreezeOptions(recipe=3)  # type: ignore[arg-type]
