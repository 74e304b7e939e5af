"""Networks of GluonCV in ncnn; all that are measured are in benchmarks/ncnn_float.py, which this runs on a few."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mxnet")
pytest.importorskip("gluoncv")
pytest.importorskip("ncnn")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["mobilenetv3_small", "resnest14", "shufflenet_v1", "se_resnet18_v1",
                                  "cifar_resnext29_32x4d", "center_net_resnet18_v1b_voc"])
def test_float(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Depthwise and grouped convolutions, gates, splits, reshapes of five axes, transposed ones, several heads."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ncnn_float

    _, error = ncnn_float.check(name, *ncnn_float.zoo(name))
    assert error <= ncnn_float.LIMIT
