"""Where a network ends: `--outputs` for every command, and refusals that name it before anything is calibrated."""

from __future__ import annotations

import re

import numpy as np
import pytest

import qgraph
from qgraph import FreezeOptions, Graph, Port
from qgraph.commands import freeze as freezing
from qgraph.commands.convert import convert
from qgraph.commands.inspect import inspect_model
from qgraph.commands.simulate import simulate
from qgraph.errors import DataError, OptionError, UnsupportedError
from qgraph.semantics.cut import cuts
from qgraph.semantics.interpreter import run

IMAGES = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def embedding(tail: str = "Reshape") -> Graph:
    """data -> conv -> fc, the embedding; its margin wants the label, as in training."""
    g = Graph()
    conv = g.add("Convolution", [g.add("null", name="data"), g.add_param("conv_weight", weights(4, 3, 3, 3))], "conv",
                 kernel=(3, 3), num_filter=4, no_bias=True)
    fc = g.add("FullyConnected", [conv, g.add_param("fc_weight", weights(5, 144))], "fc", num_hidden=5, no_bias=True)
    hot = g.add("one_hot", [g.add("null", name="target")], "hot", depth=5)
    g.heads = [Port(g.add("elemwise_sub", [fc, hot], "margin"))]
    return g


def detector(op: str = "Strange") -> Graph:
    """Two heads on one convolution, decoded by an op that nobody knows, and an output beside it."""
    g = embedding()
    conv = next(n for n in g.dag if n.name == "conv")
    heads = [g.add("Convolution", [conv, g.add_param(f"{name}_weight", weights(2, 4, 1, 1))], name, kernel=(1, 1),
                   num_filter=2, no_bias=True) for name in ("scores", "boxes")]
    relu = g.add("Activation", [heads[1]], "act", act_type="relu")
    nil = g.add("_mul_scalar", [conv], "nil", scalar=0)
    grid = g.add("slice_like", [g.add_param("grid", weights(1, 2, 9, 9)), nil], "cells", axes=(2, 3))
    found = g.add(op, [g.add("softmax", [heads[0]], "probabilities", axis=1), relu, grid], "decoded")
    later = g.add("_mul_scalar", [g.add("Activation", [found], "sure", act_type="relu")], "pixels", scalar=8)
    g.heads = [Port(later), Port(next(n for n in g.dag if n.name == "fc"))]
    g.prune()
    return g


def test_data_without_a_label_name_the_way_out() -> None:
    with pytest.raises(DataError, match=r"want target: .*; or end the network before they are read: --outputs fc$"):
        qgraph.freeze(embedding(), FreezeOptions(target="onnx", runtime="onnxruntime"), calib_data={"data": IMAGES})


@pytest.mark.parametrize("target", ["onnx", pytest.param("mxnet", marks=pytest.mark.mxnet)])
def test_freeze_ends_at_the_outputs(target: str) -> None:
    g = embedding()
    runtime = "onnxruntime" if target == "onnx" else "auto"
    frozen = qgraph.freeze(g, FreezeOptions(target=target, outputs=("fc",), runtime=runtime),
                           calib_data={"data": IMAGES})
    assert frozen.report["options"]["outputs"] == ["fc"]
    assert list(frozen.model.inputs) == ["data"] and [n.name for n in g.data_inputs()] == ["data", "target"]
    g.heads = [Port(next(n for n in g.dag if n.name == "fc"))]
    g.prune()
    (want,), (found,) = run(g, {"data": IMAGES}), frozen.model.executor().run({"data": IMAGES})
    assert np.abs(found - want).max() < 0.05 * np.abs(want).max()


def test_inspect_and_simulate_end_at_the_outputs() -> None:
    shape = ("data:1,3,8,8",)
    found = inspect_model(embedding(), outputs=("conv",), target="onnx", input_shape=shape)
    assert list(found["inputs"]) == ["data"] and [layer["name"] for layer in found["layers"]] == ["conv"]
    options = FreezeOptions(outputs=("fc",), runtime="onnxruntime")
    rows = simulate(embedding(), {"data": IMAGES}, options=options, calib_data={"data": IMAGES})
    assert rows.float_row is not None and len(rows.strategies) == 1
    with pytest.raises(OptionError, match="--outputs fv: no operator"):
        inspect_model(embedding(), outputs=("fv",))


@pytest.mark.parametrize("target", ["onnx", "ncnn", "tengine"])
def test_what_a_target_cannot_carry_is_refused_before_any_work(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(freezing.floatcheck, "random_feeds", never)
    with pytest.raises(UnsupportedError) as refused:
        qgraph.freeze(detector(), FreezeOptions(target=target, runtime="onnxruntime", input_shape=("data:1,3,8,8",)),
                      calib_data={"data": IMAGES})
    assert ("nil:_mul_scalar" if target == "tengine" else "decoded:Strange") in str(refused.value)
    assert re.findall("--outputs ([a-z]+)", str(refused.value)) == ["probabilities", "act", "fc"]


def test_convert_names_the_same_places() -> None:
    with pytest.raises(UnsupportedError, match="--outputs probabilities --outputs act --outputs fc"):
        convert(detector(), "onnx", input_shape=("data:1,3,8,8",), runtime="onnxruntime")


FIRST = {  # networks whose first op ncnn does not have, and Tengine neither
    "words": """
%data = input
%weight = param float32 (20, 4)
%first = Embedding(%data, %weight) {input_dim=20 output_dim=4}
%halved = _mul_scalar(%data) {scalar=0.5}
%mask = tanh(%halved)
return %first %mask
""",
    "a volume": """
%data = input
%weight = param float32 (4, 3, 3, 3, 3)
%first = Convolution(%data, %weight) {kernel=(3, 3, 3) no_bias=True num_filter=4}
return %first
"""}


@pytest.mark.parametrize(("network", "shape"), [("words", "data:1,6"), ("a volume", "data:1,3,4,8,8")])
@pytest.mark.parametrize("to", ["ncnn", "tengine"])
def test_where_nothing_can_be_cut_off_other_targets_are_named(network: str, shape: str, to: str) -> None:
    g = Graph.parse(FIRST[network])
    g.params["weight"] = np.ones_like(g.params["weight"])
    want = "first:.*; no layer with weights is in front of it, but mxnet and onnx can carry the whole network$"
    with pytest.raises(UnsupportedError, match=want):
        convert(g, to, input_shape=(shape,))
    with pytest.raises(UnsupportedError, match=want):
        qgraph.freeze(g, FreezeOptions(target=to, runtime="onnxruntime", input_shape=(shape,)), calib_data={
            "data": np.ones((2, *map(int, shape.split(",")[1:])), np.float32)})


def test_cuts_are_in_front_of_what_is_lost_and_of_nothing_else() -> None:
    g = detector()
    assert cuts(g, {"decoded"}) == ["probabilities", "act", "fc"]
    assert cuts(g, {"nil"}) == cuts(g, {"cells"}) == ["probabilities", "act", "fc"]  # conv lends its shape alone
    assert cuts(g, {"scores", "boxes"}) == ["conv", "fc"]
    assert cuts(g, {"conv"}) == []
