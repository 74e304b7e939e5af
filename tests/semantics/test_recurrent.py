"""The fused RNN op: in MXNet, in the reference and in ONNX."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import run_mxnet

from qgraph.errors import UnsupportedError
from qgraph.formats.mxnet import load
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.interpreter import run
from qgraph.semantics.recurrent import GATES
from qgraph.targets.onnx.emit import to_onnx


def network(mode: str, layers: int, sides: int, begin: bool, n_out: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """Of 3 units on (images, 6, 4): time is second outside, first inside. begin: of states that are given."""
    g, rng, rows = Graph(), np.random.default_rng(2), GATES[mode] * 3
    size = sum(sides * rows * (width + 3 + 2) for width in [4] + [3 * sides] * (layers - 1))
    flat = rng.normal(size=size).astype(np.float32)
    parts = [g.add_param(f"part{i}", part) for i, part in enumerate(np.array_split(flat, 3))]
    first = g.add("SwapAxis", [g.add("null", name="data")], dim1=0, dim2=1)
    shape, feeds = (layers * sides, 2, 3), {"data": rng.normal(size=(2, 6, 4)).astype(np.float32)}
    states: list[Node] = []
    for number in range(2 if mode == "lstm" else 1):
        if begin:
            states.append(g.add_param(f"begin{number}", rng.normal(size=shape).astype(np.float32)))
        else:
            states.append(g.add("_zeros", shape=(shape[0], 0, 3)))
    rnn = g.add("RNN", [first, g.add("_rnn_param_concat", parts, dim=0, num_args=3), *states], "rnn", n_out=n_out,
                mode=mode, state_size=3, num_layers=layers, bidirectional=sides == 2, state_outputs=n_out > 1)
    g.heads = [Port(g.add("SwapAxis", [rnn], dim1=0, dim2=1)), *(Port(rnn, index) for index in range(1, n_out))]
    return g, feeds


@pytest.mark.mxnet
@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("layers, sides", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("mode", GATES)
def test_recurrent_layers_equal_mxnet(mode: str, layers: int, sides: int, begin: bool) -> None:
    for n_out in (1, 3 if mode == "lstm" else 2):
        g, feeds = network(mode, layers, sides, begin, n_out)
        want = run_mxnet(g, feeds)
        assert all(np.abs(array).std() > 0.05 for array in want)
        for found in (run(g, feeds), to_onnx(g, {"data": (1, 6, 4)}).executor().run(feeds)):
            assert [array.shape for array in found] == [array.shape for array in want]
            for a, b in zip(found, want):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.mxnet
@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN"])
def test_layers_of_gluon(mode: str) -> None:
    import mxnet as mx

    mx.random.seed(0)
    block = getattr(mx.gluon.rnn, mode)(5, num_layers=2, bidirectional=True, layout="NTC", input_size=4)
    block.initialize(mx.init.Normal(0.5))
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    want = block(mx.nd.array(x)).asnumpy()
    g = load(block(mx.sym.var("data")), {name: value.data() for name, value in block.collect_params().items()})
    for found in (run(g, {"data": x}), to_onnx(g, {"data": (1, 6, 4)}).executor().run({"data": x})):
        np.testing.assert_allclose(found[0], want, rtol=1e-4, atol=1e-5)


def test_other_forms_are_refused_by_name() -> None:
    g, _ = network("lstm", 1, 1, False, 1)
    g.find("rnn").attrs["projection_size"] = "2"
    with pytest.raises(UnsupportedError, match="^rnn:RNN: found projection_size=2"):
        to_onnx(g, {"data": (1, 6, 4)})
