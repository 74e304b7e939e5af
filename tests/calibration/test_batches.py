"""The images that freezing looks at: in batches, or one by one where the network takes no more."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from helpers import normal

from qgraph import engines
from qgraph.calibration.images import CalibrationImages, as_the_network_takes_them, find_images
from qgraph.commands.freeze import freeze
from qgraph.data.open import open_data
from qgraph.errors import CalibrationError
from qgraph.ir.graph import Graph, Port
from qgraph.options import FreezeOptions

pytest.importorskip("onnxruntime")


def network(shape: str) -> Graph:
    """conv -> Reshape: with a batch axis, or with a batch of one inside."""
    g = Graph()
    weight = g.add_param("conv_weight", normal(4, 3, 3, 3) * np.float32(0.3))
    conv = g.add("Convolution", [g.add("null", name="data"), weight], "conv", kernel="(3, 3)", num_filter="4",
                 no_bias="True")
    flat = g.add("Reshape", [conv], "flat", shape=shape)
    fc = g.add_param("fc_weight", normal(5, 4) * np.float32(0.3))
    dense = g.add("FullyConnected", [g.add("mean", [flat], "mean", axis="2"), fc], "fc", num_hidden="5", no_bias="True")
    g.heads = [Port(dense)]
    return g


def images(batch_size: int = 4) -> CalibrationImages:
    return CalibrationImages(open_data(normal(6, 3, 8, 8), batch_size=batch_size))


@pytest.mark.parametrize(("shape", "size"), [("(0, 0, -1)", 4), ("(1, 4, -1)", 1), ("(1, 4, 36)", 1)])
def test_a_batch_of_one_inside_the_network_is_found(shape: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "qgraph")
    found = as_the_network_takes_them(images(), network(shape), engines.runtime("testing", "onnxruntime"))
    assert [len(batch) for batch in found.data] == ([4, 2] if size == 4 else [1] * 6)
    assert len(caplog.records) == (size == 1) and ("one image at a time" in caplog.text) == (size == 1)
    assert len(found.sample["data"]) == (6 if size == 4 else 1)


def test_a_stream_is_taken_apart() -> None:
    data = open_data([(normal(3, 3, 8, 8), np.arange(3))])
    alone = list(data.one_by_one())
    assert [(len(b), b.labels.tolist()) for b in alone] == [(1, [0]), (1, [1]), (1, [2])]
    assert np.array_equal(np.concatenate([b.feeds["data"] for b in alone]), next(iter(data)).feeds["data"])


def test_such_a_network_freezes_without_being_told(caplog: pytest.LogCaptureFixture) -> None:
    arrays = np.abs(normal(8, 3, 8, 8))
    frozen = freeze(network("(1, 4, -1)"), FreezeOptions(target="onnx", runtime="onnxruntime"), calib_data=arrays)
    assert frozen.report["calibration"]["images"] == 8
    assert frozen.report["agreement"]["images"] == 8 and frozen.report["agreement"]["sqnr_db"] > 25
    assert caplog.text.count("one image at a time") == 1


def test_indices_are_not_distilled() -> None:
    g = network("(0, 0, -1)")
    ids = g.add("null", name="ids")
    table = g.add_param("table", np.ones((9, 5), np.float32))
    g.heads.append(Port(g.add("Embedding", [ids, table], "emb", input_dim="9", output_dim="5")))
    options = FreezeOptions(input_shape=("data:1,3,8,8", "ids:1,4"))
    with pytest.raises(CalibrationError, match="input ids is no image: emb:Embedding reads whole numbers from 0 to 8"):
        find_images("", g, options, None, needed=True, progress=None)
