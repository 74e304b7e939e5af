"""Some GluonCV architectures in onnxruntime; benchmarks/zoo_coverage.py runs all of them."""

from __future__ import annotations

import pytest

pytest.importorskip("gluoncv")
pytestmark = [pytest.mark.mxnet, pytest.mark.slow]


@pytest.mark.parametrize(("name", "cut", "outputs"), [
    ("cifar_resnet20_v2", "", "1 of 1"),                                  # gammas under fix_gamma
    ("cifar_residualattentionnet56", "", "1 of 1"),                       # resizing
    ("mobile_pose_mobilenetv3_small", "", "1 of 1"),                      # transposed convolutions, hard swish
    ("ssd_300_mobilenet0.25_voc", "_contrib_box_nms", "1 of 1"),          # boxes of every class, before suppression
    ("center_net_mobilenetv3_small_duc_voc", "broadcast_equal", "5 of 7"),
])
def test_onnxruntime_gives_what_mxnet_gives(name: str, cut: str, outputs: str) -> None:
    from zoo_coverage import LIMIT, check

    result = check(name)
    assert (result["stage"], result["reason"], result["cut"], result["outputs"]) == ("passed", "", cut, outputs)
    assert result["error"] <= LIMIT
