"""Networks of GluonCV with random weights in Tengine's format, in float and in int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import run_mxnet
from tmfile import check_structure

pytest.importorskip("gluoncv")
pytestmark = [pytest.mark.mxnet, pytest.mark.slow]

NETWORKS = {"cifar_resnet20_v2": 32, "small resnext": 32, "small se_resnet": 64, "mobilenet0.25": 64,
            "mobilenetv2_0.25": 64}


def network(name: str) -> Any:
    """That of the model zoo, or its blocks in a few narrow layers (int8 weights of a wide one take half a minute)."""
    from gluoncv import model_zoo
    from gluoncv.model_zoo.cifarresnext import CIFARResNext
    from gluoncv.model_zoo.resnet import BasicBlockV1, ResNetV1

    if name == "small resnext":
        return CIFARResNext([1, 1], cardinality=4, bottleneck_width=4)
    if name == "small se_resnet":
        return ResNetV1(BasicBlockV1, [1, 1], [32, 32, 64], classes=10, use_se=True)
    return model_zoo.get_model(name, pretrained=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_read_back(name: str) -> None:
    import mxnet as mx

    import qgraph
    from qgraph import FreezeOptions
    from qgraph.semantics.interpreter import Executor
    from qgraph.targets.tengine.files import from_bytes
    from qgraph.targets.tengine.model import TengineModel

    size = NETWORKS[name]
    mx.random.seed(3)
    np.random.seed(3)
    net = network(name)
    net.initialize(mx.init.Xavier(magnitude=2.5))
    x = np.random.default_rng(1).normal(size=(4, 3, size, size)).astype(np.float32)
    net(mx.nd.array(x))
    net.hybridize()
    net(mx.nd.array(x))
    g = qgraph.from_gluon(net, {"data": x.shape})

    converted = qgraph.convert(g, "tengine", input_shape=f"data:1,3,{size},{size}")
    assert converted.report["difference"] is not None and converted.report["difference"] < 1e-5
    (want,), model = run_mxnet(g, {"data": x[:2]}), converted.model
    assert isinstance(model, TengineModel) and np.abs(want[0] - want[1]).max() > 1e-3 * np.abs(want).max()
    check_structure(from_bytes(model.data, "f"))

    frozen = qgraph.freeze(g, FreezeOptions(target="tengine"), calib_data=x)
    assert isinstance(frozen.model, TengineModel)
    back = TengineModel(from_bytes(frozen.model.data, "m"))
    check_structure(back.tm)
    (a,) = Executor(frozen.graph, rounding="half-away").run_tensors({"data": x[:2]})
    (b,) = back.executor().run_tensors({"data": x[:2]})
    assert np.unique(a.codes).size > 10
    np.testing.assert_array_equal(a.codes, b.codes)
