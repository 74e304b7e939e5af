"""Networks whose inputs are no images freeze and convert: indices, lengths, boxes."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.commands.convert import convert
from qgraph.commands.freeze import freeze
from qgraph.ir.graph import Graph, Node, Port
from qgraph.options import FreezeOptions

pytestmark = pytest.mark.mxnet
RNG = np.random.default_rng(0)


def dense(g: Graph, value: Node, name: str, units: int, width: int, **attrs: str) -> Node:
    weight = g.add_param(f"{name}_weight", RNG.normal(0, 0.4, (units, width)).astype(np.float32))
    return g.add("FullyConnected", [value, weight], name, num_hidden=str(units), no_bias="True", **attrs)


def sentences(masked: bool) -> Graph:
    """ids -> Embedding -> dense -> relu [-> SequenceMask by length] -> mean -> dense."""
    g = Graph()
    table = g.add_param("table", RNG.normal(size=(30, 8)).astype(np.float32))
    words = g.add("Embedding", [g.add("null", name="ids"), table], "words", input_dim="30", output_dim="8")
    value = g.add("Activation", [dense(g, words, "first", 16, 8, flatten="False")], "act", act_type="relu")
    if masked:
        value = g.add("SequenceMask", [value, g.add("null", name="length")], "mask", use_sequence_length="True",
                      axis="1")
    g.heads = [Port(dense(g, g.add("mean", [value], axis="1"), "last", 5, 16))]
    return g


def regions() -> Graph:
    """data -> conv -> relu -> ROIAlign by rois -> dense."""
    g = Graph()
    weight = g.add_param("conv_weight", RNG.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32))
    conv = g.add("Convolution", [g.add("null", name="data"), weight], "conv", kernel="(3, 3)", pad="(1, 1)",
                 stride="(2, 2)", num_filter="4", no_bias="True")
    act = g.add("Activation", [conv], "act", act_type="relu")
    found = g.add("_contrib_ROIAlign", [act, g.add("null", name="rois")], "align", pooled_size="(3, 3)",
                  spatial_scale="0.5", sample_ratio="2")
    g.heads = [Port(dense(g, found, "last", 5, 36))]
    return g


IDS = {"ids": RNG.integers(0, 30, (12, 7)).astype(np.float32)}
LENGTHS = {**IDS, "length": RNG.integers(1, 8, 12).astype(np.float32)}
BOXES = {"data": RNG.normal(size=(12, 3, 16, 16)).astype(np.float32),
         "rois": np.array([[i, 1, 2, 9, 12] for i in range(12)], np.float32)}


@pytest.mark.parametrize("target", ["mxnet", "mxnet-sim"])
@pytest.mark.parametrize(("g", "data"), [(sentences(False), IDS), (sentences(True), LENGTHS), (regions(), BOXES)],
                         ids=["indices", "lengths", "boxes"])
def test_they_freeze(g: Graph, data: dict[str, np.ndarray], target: str) -> None:
    report = freeze(g, FreezeOptions(target=target), calib_data=data).report
    assert report["quantized"] and report["agreement"]["sqnr_db"] > 25


def test_they_convert() -> None:
    assert convert(sentences(False), input_shape=["ids:1,7"]).report["difference"] < 1e-5
    assert convert(regions(), input_shape=["data:1,3,16,16", "rois:1,5"]).report["difference"] < 1e-5
