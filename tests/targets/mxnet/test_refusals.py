"""What MXNet cannot run is named in one line: ops it lacks, ops that oneDNN cannot do, values that it dies of."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph import engines
from qgraph.errors import DataError, UnsupportedError
from qgraph.ir.graph import Graph, Port

pytestmark = pytest.mark.mxnet
RNG = np.random.default_rng(0)


def behind_a_conv(op: str, **attrs: str) -> Graph:
    g = Graph()
    data = g.add("null", name="data")
    weight = g.add_param("c_weight", RNG.normal(size=(4, 3, 3, 3)).astype(np.float32))
    conv = g.add("Convolution", [data, weight], "c", kernel="(3, 3)", num_filter="4", no_bias="True")
    more = [g.add_param("tail_weight", RNG.normal(size=(4, 4, 4, 4)).astype(np.float32))] if "kernel" in attrs else []
    tail = g.add(op, [conv, *more], "tail", **attrs)
    g.heads = [Port(g.add("Activation", [tail], "last", act_type="relu"))]
    return g


FEEDS = {"data": RNG.normal(size=(2, 3, 12, 12)).astype(np.float32)}


@pytest.mark.parametrize(("op", "attrs"), [("PSROIPooling", {}), ("Custom", {"op_type": "mine"})])
def test_an_op_that_mxnet_lacks(op: str, attrs: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match=f"^tail:{op}: this MXNet .* has no such op; --outputs c ends") as error:
        engines.runtime("testing", "mxnet")(behind_a_conv(op, **attrs))
    assert "onnxruntime" not in str(error.value)  # which has no such op either


def test_an_op_that_onednn_cannot_run_and_onnxruntime_can() -> None:
    g = behind_a_conv("Deconvolution", kernel="(4, 4)", stride="(2, 2)", target_shape="(20, 20)", num_filter="4")
    with pytest.raises(UnsupportedError, match="^tail:Deconvolution: MXNet cannot run it: .*"
                                               "--runtime onnxruntime runs it, or --outputs c ends the model"):
        engines.runtime("testing", "mxnet")(g).run(FEEDS)
    assert engines.runtime("testing", "onnxruntime")(g).run(FEEDS)[0].shape[0] == 2


def test_a_box_of_no_image_is_refused_before_mxnet_dies_of_it() -> None:
    g = Graph()
    data, rois = g.add("null", name="data"), g.add("null", name="rois")
    g.heads = [Port(g.add("_contrib_ROIAlign", [data, rois], "roi", pooled_size="(2, 2)", spatial_scale="1.0"))]
    run = engines.runtime("testing", "mxnet")(g)
    boxes = np.array([[0, 1, 1, 5, 5], [1, 1, 1, 50, 5]], np.float32)
    assert run.run({**FEEDS, "rois": boxes})[0].shape == (2, 3, 2, 2)
    with pytest.raises(DataError, match="input rois holds 16 in a batch of 2, want at most 1, .*roi:_contrib_ROIAlign"):
        run.run({**FEEDS, "rois": boxes * [16, 1, 1, 1, 1]})
    none = run.run({**FEEDS, "rois": boxes * 0 - 1})[0]  # ROIAlign gives zeros for no image
    assert none.shape == (2, 3, 2, 2) and not none.any()
