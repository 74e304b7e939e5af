"""Heights and widths that an ONNX model leaves open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import normal

from qgraph.cli.main import main
from qgraph.commands.convert import convert
from qgraph.commands.freeze import freeze
from qgraph.errors import OptionError, UnsupportedError
from qgraph.formats.mxnet_writer import save
from qgraph.ir.graph import Graph, Port
from qgraph.options import FreezeOptions
from qgraph.semantics.interpreter import run

pytest.importorskip("onnxruntime")
ANY = ["data:1,3,?,?"]


def network(tail: str, **attrs: str) -> Graph:
    """conv -> pool -> the tail."""
    g = Graph()
    weight = g.add_param("conv_weight", normal(4, 3, 3, 3) * np.float32(0.3))
    conv = g.add("Convolution", [g.add("null", name="data"), weight], "conv", kernel="(3, 3)", pad="(1, 1)",
                 num_filter="4", no_bias="True")
    pool = g.add("Pooling", [conv], "pool", kernel="(2, 2)", stride="(2, 2)", pool_type="max")
    more = []
    if tail == "FullyConnected":
        more = [g.add_param("tail_weight", normal(5, 4 * 16 * 16))]
    if tail == "broadcast_add":
        more = [g.add_param("tail_map", normal(1, 4, 112, 128))]
    g.heads = [Port(g.add(tail, [pool, *more], "tail", **attrs))]
    return g


CARRIED = [("Activation", {"act_type": "relu"}), ("Pooling", {"global_pool": "True", "pool_type": "avg"}),
           ("UpSampling", {"scale": "2", "sample_type": "nearest", "num_args": "1"}),
           ("Reshape", {"shape": "(0, 0, -1)"}), ("L2Normalization", {"mode": "channel"}), ("Flatten", {})]


@pytest.mark.parametrize(("tail", "attrs"), CARRIED)
def test_one_model_runs_at_any_size(tail: str, attrs: dict[str, str]) -> None:
    g = network(tail, **attrs)
    found = convert(g, input_shape=ANY, runtime="onnxruntime")
    assert found.model.inputs == {"data": (0, 3, 0, 0)}
    dims = [d.dim_param for d in found.model.proto.graph.input[0].type.tensor_type.shape.dim]
    assert dims[2] and dims[3] and dims[2] != dims[3]
    for size in ((1, 3, 8, 8), (2, 3, 12, 20)):
        feeds = {"data": normal(*size)}
        (want,), (got,) = run(g, feeds), found.model.executor().run(feeds)
        assert np.abs(want - got).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(("tail", "attrs"), [
    ("FullyConnected", {"num_hidden": "5", "no_bias": "True"}), ("Reshape", {"shape": "(1, 4, 112, -1)"}),
    ("broadcast_add", {})])
def test_the_op_that_wants_a_size_is_named(tail: str, attrs: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match=f"tail:{tail}.*--input-shape"):
        convert(network(tail, **attrs), input_shape=ANY, runtime="onnxruntime")


def test_a_frozen_model_keeps_them_open() -> None:
    g = network("Pooling", global_pool="True", pool_type="avg")
    arrays = normal(8, 3, 8, 8)
    options = FreezeOptions(target="onnx", input_shape=tuple(ANY), runtime="onnxruntime")
    frozen = freeze(g, options, calib_data=arrays)
    assert frozen.model.inputs == {"data": (0, 3, 0, 0)} and frozen.report["quantized"]
    other = normal(2, 3, 14, 10)
    (want,), (got,) = run(g, {"data": other}), frozen.model.executor().run({"data": other})
    assert np.abs(want - got).max() < 0.05 * np.abs(want).max()


def test_other_targets_want_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    g = network("Activation", act_type="relu")
    with pytest.raises(OptionError, match="sizes can be left open for onnx .*ncnn wants numbers"):
        convert(g, "ncnn", input_shape=ANY)
    monkeypatch.chdir(tmp_path)
    save(g, "net")
    np.savez("net-calib.npz", data=np.zeros((2, 3, 8, 8), np.float32))
    for argv in (["freeze", "net", "--target", "ncnn"], ["inspect", "net"]):
        assert main([*argv, "--input-shape", *ANY]) == 1
        assert "wants numbers" in capsys.readouterr().err.splitlines()[-1]
