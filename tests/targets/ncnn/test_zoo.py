"""Networks of GluonCV in ncnn; all that are measured are in benchmarks/ncnn_float.py, which this runs on a few."""

from __future__ import annotations

import pytest

pytest.importorskip("gluoncv")
pytestmark = [pytest.mark.mxnet, pytest.mark.ncnn, pytest.mark.slow]


@pytest.mark.parametrize("name", ["mobilenetv3_small", "resnest14", "shufflenet_v1",
                                  "cifar_resnext29_32x4d", "center_net_resnet18_v1b_voc"])
def test_float(name: str) -> None:
    """Depthwise and grouped convolutions, gates, splits, reshapes of five axes, transposed ones, several heads."""
    import ncnn_float

    _, error = ncnn_float.check(name, *ncnn_float.zoo(name))
    assert error <= ncnn_float.LIMIT
