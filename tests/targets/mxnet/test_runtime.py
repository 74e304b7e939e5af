"""The MXNet executor: letting MXNet fuse changes no watched number."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.passes import PIPELINES

pytestmark = pytest.mark.mxnet


def residual(act: str, between: str = "") -> Graph:
    """conv -> act -> conv [-> between] + shortcut -> relu, all of whose layers are watched."""
    rng = np.random.default_rng(0)
    g = Graph()
    x = g.add("null", name="data")

    def conv(value: object, name: str) -> object:
        weight = g.add_param(f"{name}_weight", rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32))
        return g.add("Convolution", [value, weight], name, kernel="(3, 3)", pad="(1, 1)", num_filter="8",
                     no_bias="True")

    first = conv(x, "conv0")
    first = (g.add("clip", [first], "clip0", a_min="0", a_max="1") if act == "clip" else
             g.add("Activation", [first], "act0", act_type=act))
    second = conv(first, "conv1")
    if between:
        second = g.add("LeakyReLU", [second], "leaky", act_type="leaky", slope="0.1")
    total = g.add("elemwise_add", [second, conv(x, "shortcut")], "sum")
    g.heads = [Port(g.add("Activation", [total], "out", act_type="relu"))]
    PassManager(PIPELINES["float"]).run(g)
    return g


@pytest.mark.parametrize(("act", "between", "backend"), [
    ("relu", "", "MKLDNN"), ("clip", "", "MKLDNN"), ("relu", "leaky", "default"), ("tanh", "", "default")])
def test_fused_execution_gives_the_same_bits(act: str, between: str, backend: str) -> None:
    from qgraph.analysis.observed import observed_ports
    from qgraph.targets.mxnet.runtime import Executor

    g = residual(act, between)
    before = g.text()
    ports = observed_ports(g)
    assert {p.node.name for p in ports} >= {"conv0", "conv1", "shortcut", "sum"}
    feeds = {"data": np.random.default_rng(1).normal(size=(2, 8, 12, 12)).astype(np.float32)}
    plain, fused = Executor(g, ports), Executor(g, ports, fused=True)
    assert fused._backend == backend
    for port, want, found in zip(ports, plain.run(feeds), fused.run(feeds)):
        assert np.array_equal(want, found), port
    assert g.text() == before


def test_a_stream_gives_each_batch_its_own_values_in_the_same_memory() -> None:
    from qgraph.data.open import Batch
    from qgraph.targets.mxnet.runtime import Executor

    g = residual("relu")
    images = np.random.default_rng(1).normal(size=(7, 8, 12, 12)).astype(np.float32)
    executor = Executor(g)
    want = [executor.run({"data": images[i:i + 2]})[0] for i in range(0, 7, 2)]
    batches = [Batch({"data": images[i:i + 2]}, None, [""] * len(images[i:i + 2])) for i in range(0, 7, 2)]
    found, places = [], []
    for batch, (values,) in executor.stream(batches):
        assert len(values) == len(batch)
        found.append(values.copy())
        places.append(values.ctypes.data)
    assert len({float(x.sum()) for x in want}) == 4 == len(found)
    assert all(np.array_equal(a, b) for a, b in zip(want, found))
    assert places[0] == places[1] == places[2] != places[3]  # the last batch is smaller
