"""Passes cost the same per node however many nodes there are: no pass may scan the whole graph per node."""

from __future__ import annotations

import cProfile
import time
from typing import Callable

import numpy as np
import pytest
from scale import chain

from qgraph.calibration.collect import observed_ports
from qgraph.commands.line import bound, pipeline, split
from qgraph.formats.mxnet import load
from qgraph.formats.mxnet_writer import to_json
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.options import FreezeOptions
from qgraph.passes import PIPELINES
from qgraph.quant.table import CalibrationTable, Entry
from qgraph.targets.registry import TARGETS

pytestmark = pytest.mark.slow


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


def concatenation(nodes: int) -> Graph:
    """Layers that read the same data, whose outputs one Concat joins, for a last layer."""
    g, rng = Graph(), np.random.default_rng(0)

    def conv(x: Port, channels: int) -> Port:
        weight = g.add_param("weight", rng.normal(size=(4, channels, 1, 1)).astype(np.float32))
        return Port(g.add("Convolution", [x, weight], kernel=(1, 1), num_filter=4, no_bias=True))

    data = Port(g.add("null", name="data"))
    branches = []
    for _ in range(nodes // 4):
        relu = g.add("relu", [conv(data, 4)])
        branches.append(g.add("Pooling", [relu], kernel=(2, 2), pool_type="max"))
    joined = Port(g.add("Concat", branches, num_args=len(branches), dim=1))
    g.heads = [conv(joined, 4 * len(branches))]
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


@pytest.mark.parametrize("make", [long_network, hub])
def test_ten_times_the_nodes_cost_ten_times_the_work(make: Callable[[int], Graph]) -> None:
    cost(make, 100)  # imports, caches
    (few, quick), (many, slow) = cost(make, 400), cost(make, 4000)
    assert many <= 11 * few                # exact and the same on every machine
    assert slow <= 35 * max(quick, 0.02)   # loops without calls would cost 100 times; clocks are noisy


def quantizing_cost(make: Callable[[int], Graph], nodes: int, target: str) -> dict[str, int]:
    """Pass -> function calls, for the passes that quantize."""
    g = make(nodes)
    PassManager(PIPELINES["float"]).run(g)
    entry = Entry(0.0, 1.0, 0.0, 1.0, "naive")  # unsigned, so that passes against saturation look at it
    table = CalibrationTable("naive", 8, None, "", 1, entries={port.key: entry for port in observed_ports(g)})
    feeds = {"data": np.random.default_rng(0).uniform(0, 1, (1, 4, 8, 8)).astype(np.float32)}
    calls = {}
    for step in split(pipeline(FreezeOptions(target=target)))[1]:
        profile = cProfile.Profile()
        profile.enable()
        bound(step, table=table, feeds=feeds).run(g)
        profile.disable()
        calls[step.name] = sum(entry.callcount for entry in profile.getstats())
    return calls


@pytest.mark.parametrize(("target", "make"), [*((target, long_network) for target in TARGETS),
                                              ("onnx", concatenation), ("mxnet", concatenation)])
def test_ten_times_the_nodes_cost_ten_times_the_work_of_quantizing(target: str, make: Callable[[int], Graph]) -> None:
    quantizing_cost(make, 40, target)  # imports, caches
    few, many = (quantizing_cost(make, nodes, target) for nodes in (60, 600))
    # 12: how often a search sweeps depends on the numbers
    assert {name: (few[name], many[name]) for name in few if many[name] > 12 * few[name] + 1000} == {}
