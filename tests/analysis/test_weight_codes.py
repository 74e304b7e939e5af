"""Codes of weights, channel by channel, against arrays that are known."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph import Graph
from qgraph.analysis.outline import outline
from qgraph.analysis.weight_codes import SHOWN_CHANNELS, weight_codes
from qgraph.ir.graph import Node, Port
from qgraph.quant.spec import QSpec
from qgraph.quant.weights import weight_params


def layer(weight: np.ndarray, op: str = "Convolution", granularity: str = "channel") -> tuple[Graph, Node]:
    """A layer with a quantizer behind its weight."""
    g = Graph()
    data = g.add("null", name="data")
    spec = QSpec(bits=8, signed=True, narrow=True, granularity=granularity, axis=int(op == "Deconvolution"))
    fq = g.add("fake_quantize", [g.add_param("w", weight)], "w_q", quant=weight_params("w", weight, spec))
    channels = weight.shape[1] if op == "Deconvolution" else len(weight)
    node = g.add(op, [data, fq], "c", kernel=weight.shape[2:], num_filter=channels, no_bias=True)
    g.heads = [Port(node)]
    return g, node


@pytest.mark.parametrize("op", ["Convolution", "Deconvolution"])
def test_channels(op: str) -> None:
    weight = np.random.default_rng(2).normal(size=(6, 4, 3, 3)).astype(np.float32)
    weight[1], weight[2] = 0, weight[2] * 40  # dead, dominating
    found = weight_codes(*layer(weight.swapaxes(0, 1) if op == "Deconvolution" else weight, op))
    assert found is not None
    largest = np.abs(weight).reshape(6, -1).max(axis=1)
    np.testing.assert_allclose(found["largest"], largest, rtol=1e-3)
    np.testing.assert_allclose(np.delete(found["scales"], 1), np.delete(largest, 1) / 127, rtol=1e-3)
    assert (found["channels"], found["per"], found["dead"], found["dominating"]) == (6, 1, 1, 1)
    assert found["of"] == 255 and 60 < found["codes"] < 216


def test_one_scale_and_many_channels() -> None:
    weight = np.arange(1, 601, dtype=np.float32).reshape(600, 1, 1, 1)
    found = weight_codes(*layer(weight, granularity="tensor"))
    assert found is not None and found["channels"] == 600 and found["per"] == 3
    assert found["largest"] == [float(last) for last in range(3, 601, 3)] and len(found["largest"]) <= SHOWN_CHANNELS
    assert found["scales"] == [pytest.approx(600 / 127, rel=1e-3)] and found["codes"] == 128


def test_a_weight_without_codes() -> None:
    g, node = layer(np.ones((2, 1, 1, 1), np.float32))
    g.set_input(node, 1, g.add_param("plain", np.ones((2, 1, 1, 1), np.float32)))
    assert weight_codes(g, node) is None


def test_an_outline_has_no_parameters_and_no_quantizers() -> None:
    g, node = layer(np.ones((2, 1, 1, 1), np.float32))
    both = g.add("elemwise_add", [node, node], "sum")
    anchors = g.add("_mul_scalar", [g.add_param("p", np.ones(2, np.float32))], "anchors", scalar=2)
    g.heads = [Port(both), Port(anchors)]
    assert outline(g) == [{"name": "data", "op": "null", "reads": []},
                          {"name": "c", "op": "Convolution", "reads": [0]},
                          {"name": "sum", "op": "elemwise_add", "reads": [1]}]
