"""Some GluonCV architectures through files and the float pipeline; benchmarks/zoo_fold_bn.py runs forty."""

from __future__ import annotations

import pytest

pytest.importorskip("gluoncv")
pytestmark = [pytest.mark.mxnet, pytest.mark.slow]


@pytest.fixture(autouse=True)
def without_fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXNET_SUBGRAPH_BACKEND", "NONE")


@pytest.mark.parametrize(("name", "folded", "affine"), [
    ("mobilenet0.25", 27, 0),      # depthwise
    ("mobilenetv3_small", 34, 0),  # squeeze and excite, hard swish
    ("cifar_resnet20_v2", 9, 11),  # BatchNorm in front, also of the data
])
def test_folded_network_is_the_same_network(name: str, folded: int, affine: int) -> None:
    from zoo_fold_bn import LIMIT, check

    result = check(name)
    assert result.varies > 0.05
    assert result.error <= LIMIT
    assert (result.left, result.changes["fold-bn"], result.changes["bn-to-affine"]) == (0, folded, affine)
    assert result.norms == folded + affine
