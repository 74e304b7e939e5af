"""The table of ops: its columns, and `qgraph ops`, which prints it beside the tables of rules, kernels and targets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qgraph.cli.main import main
from qgraph.commands.ops import columns, describe_op, ops_table
from qgraph.errors import OptionError
from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.infer import RULES
from qgraph.semantics.kernels import KERNELS
from qgraph.targets.ncnn.convert import CONVERTERS as NCNN
from qgraph.targets.onnx.convert import CONVERTERS as ONNX
from qgraph.targets.tengine.convert import CONVERTERS as TENGINE
from qgraph.targets.tengine.convert import FLOAT_ONLY


def node(op: str, **attrs: str) -> Node:
    return Node(op, "node", attrs)


# ---- the columns ----------------------------------------------------------------------------------------------------

def test_what_may_carry_an_activation_has_no_attribute_of_it() -> None:
    assert set(ops.FUSING) == {"Convolution", "Deconvolution", "FullyConnected", "elemwise_add"}
    assert all(not {"act_type", "a_min", "a_max"} & {*ops.OPS[op].defaults} for op in ops.FUSING)


def test_kinds_are_of_attributes_in_the_row() -> None:
    for row in ops.OPS.values():
        assert all({*attrs} <= {*row.defaults} for attrs in row.kinds.values())


@pytest.mark.parametrize(("op", "attrs", "kind"), [
    ("Pooling", {}, ops.PASS), ("Pooling", {"pool_type": "avg"}, ops.AVERAGE),
    ("Pooling", {"pool_type": "sum"}, ops.FLOAT),
    ("UpSampling", {}, ops.PASS), ("UpSampling", {"sample_type": "bilinear"}, ops.FLOAT),
    ("Pad", {}, ops.PASS), ("Pad", {"mode": "edge"}, ops.FLOAT), ("Pad", {"constant_value": "1"}, ops.FLOAT),
    ("Convolution", {}, ops.COMPUTE), ("NoSuchOp", {}, ops.FLOAT)])
def test_kind(op: str, attrs: dict[str, str], kind: str) -> None:
    assert ops.kind(node(op, **attrs)) == kind


@pytest.mark.parametrize(("op", "head"), [
    ("Softmax", ops.SQUASHES), ("SoftmaxOutput", ops.SQUASHES), ("log_softmax", ops.SQUASHES),
    ("LogisticRegressionOutput", ops.SQUASHES), ("SVMOutput", ops.REPEATS), ("MAERegressionOutput", ops.REPEATS),
    ("softmin", ""), ("FullyConnected", ""), ("NoSuchOp", "")])
def test_heads_of_the_training(op: str, head: str) -> None:
    assert ops.head(node(op)) == head


@pytest.mark.parametrize(("layout", "first", "images"), [
    ("None", True, True), ("NCHW", True, True), ("NCDHW", True, False), ("NHWC", False, False)])
def test_layouts(layout: str, first: bool, images: bool) -> None:
    conv = node("Convolution", kernel="(3, 3)", layout=layout)
    assert (ops.channels_first(conv), ops.is_2d(conv)) == (first, images)


def test_an_optional_number() -> None:
    assert ops.attr(node("softmax"), "temperature") is None
    assert ops.attr(node("softmax", temperature="None"), "temperature") is None
    assert ops.attr(node("softmax", temperature="2.5"), "temperature") == 2.5


# ---- the command ----------------------------------------------------------------------------------------------------

def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["ops", *args]) == 0
    return capsys.readouterr().out


def test_the_table_is_what_the_tables_say(capsys: pytest.CaptureFixture[str]) -> None:
    table: dict[str, Any] = json.loads(said(capsys, "--json"))
    assert set(table) == set(ops.OPS) - {"null", "fake_quantize"}
    for column, there in (("shape rule", RULES), ("kernel", KERNELS), ("onnx", ONNX), ("tengine", TENGINE)):
        assert {op for op, row in table.items() if row[column]} == set(there) & set(table) != set()
    assert {op for op, row in table.items() if row["ncnn"] == "yes"} == set(NCNN)
    assert table["_zeros"]["ncnn"] == "constant" and "_zeros" not in NCNN
    assert {op for op, row in table.items() if row["tengine"] == "float"} == FLOAT_ONLY


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys).splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert all(op in rows for op in ops_table())
    assert rows["Pooling"].split() == ["Pooling", "pass,", "average,", "float", *["yes"] * 5]
    counts = {column: sum(bool(row[column]) for row in ops_table().values()) for column in columns()}
    assert lines[-1] == f"{len(ops_table())} ops: " + ", ".join(f"{name} {count}" for name, count in counts.items())


def test_one_op(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "Convolution").splitlines()
    assert lines[0] == "Convolution" and "inputs      data weight bias" in lines
    assert "tengine     yes" in lines and "kind        compute" in lines and "aliases     Convolution_v1" in lines
    assert any("num_group=1" in line for line in lines)
    assert any("may carry the activation behind it" in line for line in lines)


def test_one_op_by_another_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "split", "--json"))
    assert found == json.loads(said(capsys, "SliceChannel", "--json")) and found["name"] == "SliceChannel"
    assert found["attributes"] == {"num_outputs": 1, "axis": 1, "squeeze_axis": False} and found["aliases"] == ["split"]
    assert set(found["carried"]) == set(columns()) and found["carried"]["tengine"] == ""


def test_an_unknown_op(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="no op is called 'Convolutoin'; did you mean Convolution or "):
        describe_op("Convolutoin")
    assert main(["ops", "null"]) == 1
    assert "no op is called 'null'" in capsys.readouterr().err
