"""The float passes cost the same per node however many nodes there are."""

from __future__ import annotations

import cProfile
import time
from typing import Callable

import numpy as np
import pytest
from scale import chain  # noqa: E402

from qgraph.formats.mxnet import load, to_json
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.passes import PIPELINES


def long_network(nodes: int) -> Graph:
    return load(*chain(nodes))


def hub(nodes: int) -> Graph:
    """Everybody reads the same data and the same weight, and one node reads everybody."""
    g = Graph()
    data = g.add("null", name="data")
    weight = g.add_param("weight", np.ones((2, 2, 1, 1), np.float32))
    stats = [g.add_param(s, np.ones(2, np.float32)) for s in ("gamma", "beta", "mean", "var")]
    branches = []
    for _ in range(nodes // 4):
        conv = g.add("Convolution", [data, weight], kernel=(1, 1), num_filter=2, no_bias=True)
        relu = g.add("relu", [g.add("BatchNorm", [conv, *stats])])
        branches.append(g.add("Dropout", [relu]))
    g.heads = [Port(g.add("add_n", branches, num_args=len(branches)))]
    return g


def cost(make: Callable[[int], Graph], nodes: int) -> tuple[int, float]:
    """(function calls, CPU seconds) of the float passes and the writer, on separate runs."""
    g, profile = make(nodes), cProfile.Profile()
    profile.enable()
    PassManager(PIPELINES["float"]).run(g)
    to_json(g)
    profile.disable()
    g = make(nodes)
    started = time.process_time()
    PassManager(PIPELINES["float"]).run(g)
    return sum(entry.callcount for entry in profile.getstats()), time.process_time() - started


@pytest.mark.slow
@pytest.mark.parametrize("make", [long_network, hub])
def test_ten_times_the_nodes_cost_ten_times_the_work(make: Callable[[int], Graph]) -> None:
    cost(make, 200)  # imports, caches
    (few, quick), (many, slow) = cost(make, 800), cost(make, 8000)
    assert many <= 11 * few                # exact and the same on every machine
    assert slow <= 35 * max(quick, 0.02)   # loops without calls would cost 100 times; clocks are noisy
