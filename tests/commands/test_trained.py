"""Networks that come with quantizers which have their numbers, frozen: the codes are those of training."""

from __future__ import annotations

import networks
import numpy as np
import pytest

import qgraph
from qgraph import FreezeOptions
from qgraph.semantics.interpreter import run

pytestmark = pytest.mark.mxnet

# a maximum, a Concat, a Flatten between quantized layers; sums of two convolutions that others read too
SHAPES = ("conv_pool_conv", "concats", "dense_behind_flatten", "residual_downsample", "residual_other_readers",
          "residual_signed_other_reader")


@pytest.mark.parametrize("name", SHAPES)
def test_integer_kernels_compute_what_was_trained(name: str) -> None:
    g, feeds = networks.trained(name)
    want = run(g, feeds)
    frozen = qgraph.freeze(g, FreezeOptions(target="mxnet"), calib_data=feeds)
    departure = frozen.report["departure"]
    assert departure["within_one"] == 100 and departure["output"] < 1e-4 and len(departure["layers"]) > 1
    for a, b in zip(want, run(frozen.graph, feeds)):
        assert np.abs(a - a[:1]).max() > 0.01 * np.abs(a).max() > 0
        # biases are rounded too, which turns a few codes
        assert np.abs(a - b).max() <= 0.01 * np.abs(a).max() and np.median(np.abs(a - b)) <= 1e-3 * np.abs(a).max()
