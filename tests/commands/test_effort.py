"""--effort chooses the line of passes."""

from __future__ import annotations

import numpy as np
import pytest
from networks import Net, conv_pool_conv

import qgraph
from qgraph import FreezeOptions
from qgraph.commands.line import pipeline
from qgraph.errors import OptionError
from qgraph.targets.registry import TARGETS

MEASURED = {"equalize", "round-weights", "pair-channels"}


@pytest.mark.parametrize("target", TARGETS)
def test_more_effort_is_more_passes(target: str) -> None:
    lines = {effort: [step.name for step in pipeline(FreezeOptions(target=target, effort=effort))]
             for effort in ("fast", "standard", "best")}
    assert not MEASURED & set(lines["fast"]) and {"equalize", "round-weights"} <= set(lines["standard"])
    assert lines["best"] == lines["standard"]
    assert [name for name in lines["standard"] if name in lines["fast"]] == lines["fast"]


def test_fast_rounds_to_the_nearest_codes() -> None:
    g = conv_pool_conv(Net(1))
    images = np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32)
    off = {}
    for effort in ("fast", "standard"):
        options = FreezeOptions(target="mxnet-sim", weight_bits=4, effort=effort, runtime="onnxruntime")
        layer = qgraph.freeze(g, options, calib_data={"data": images}).graph
        fq = layer.inputs(layer.find("conv1"))[1].node
        steps = np.reshape(fq.quant.scale, (-1, 1, 1, 1))  # type: ignore[union-attr]
        off[effort] = np.abs(g.params["conv1_weight"] - layer.param(layer.inputs(fq)[0])) / steps
    assert off["fast"].max() <= 0.5 + 1e-4 < off["standard"].max()


def test_a_wrong_effort_is_told() -> None:
    with pytest.raises(OptionError, match="found .bset., want one of fast, standard, best .did you mean best"):
        qgraph.freeze(conv_pool_conv(Net(1)), FreezeOptions(effort="bset"))
