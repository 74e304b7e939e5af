"""What a network costs on its target: bytes from the target's table, seconds from measured operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qgraph.commands.goal import SIZE
from qgraph.commands.ladder import Costs
from qgraph.commands.timing import Timing
from qgraph.commands.tune_bench import Bench
from qgraph.errors import GraphError, OptionError, UnsupportedError
from qgraph.ir.graph import Graph, Port
from qgraph.quant.recipe import Recipe
from qgraph.semantics.infer import infer
from qgraph.targets.base import Executor, Feeds, Model

RUNS = 15  # of one image
BYTES = 4  # of a number in float


def measured_costs(bench: Bench, minimize: str) -> Costs:
    """Raises OptionError where time is wanted and the engine does not run here."""
    total = sum(array.size for array in bench.folded.params.values())
    costs = Costs(bench.layers, BYTES * (total - sum(bench.layers.values())))
    if minimize == SIZE:
        return costs
    g, integer = bench.build(Recipe(effort="fast"))
    if (why := integer.absent()) or integer.float_engine and integer.float_engine != bench.engine.name:
        raise OptionError(f"--minimize {minimize}: {bench.target.name} is not timed here "
                          f"({why or f'it runs on {integer.float_engine}'}); --minimize {SIZE} needs no engine")
    feeds = one_image(bench)
    real = float_model(bench, feeds)
    seconds = (integer.operator_seconds(feeds, RUNS), {} if real is None else real.operator_seconds(feeds, RUNS))
    if all(seconds):
        costs.seconds = {layer: (seconds[0].get(layer, 0.0), seconds[1].get(layer, 0.0)) for layer in bench.layers}
        costs.other = sum(value for node, value in seconds[0].items() if node not in bench.layers)
    else:
        runs = {"integer": bench.runs(g, integer), "float": float_run(bench, feeds)}
        costs.seconds = _by_products(bench, feeds, runs)
    return costs


def one_image(bench: Bench) -> Feeds:
    return {name: np.ascontiguousarray(x[:1]) for name, x in bench.images(bench.options).first.feeds.items()}


def float_model(bench: Bench, feeds: Feeds) -> Model | None:
    """The network in float on the target's engine; None where it has no float models."""
    try:
        return bench.target.convert(bench.folded.copy(), {name: x.shape for name, x in feeds.items()})
    except UnsupportedError:
        return None


def float_run(bench: Bench, feeds: Feeds) -> Executor:
    """What runs the network in float: on the target's engine where that can be."""
    model = float_model(bench, feeds)
    if model is None or model.is_float_graph or model.absent():
        return bench.engine(bench.folded, fused=True)
    return model.executor()


def side_by_side(executors: Mapping[str, Executor], feeds: Feeds) -> dict[str, Any]:
    """What `Timing.to_dict` says of some models, in alternation."""
    timing = Timing(executors, warm_up=2)
    while timing.rounds < RUNS:
        timing.run(feeds)
    return timing.to_dict()


def _by_products(bench: Bench, feeds: Feeds, executors: Mapping[str, Executor]) -> dict[str, tuple[float, float]]:
    """Layer -> (in integers, in float): the whole network's time, shared out by how many products a layer adds up."""
    timed = side_by_side(executors, feeds)["models"]
    whole = [timed[name]["ms_per_image"] / 1000 for name in ("integer", "float")]
    products = _products(bench.folded, feeds, bench.layers)
    total = sum(products.values()) or 1
    return {layer: (whole[0] * count / total, whole[1] * count / total) for layer, count in products.items()}


def _products(g: Graph, feeds: Feeds, weights: Mapping[str, int]) -> dict[str, int]:
    """Of an image. Where a shape is not known, a layer has one position."""
    try:
        shapes = infer(g, {name: x.shape for name, x in feeds.items()})
    except GraphError:
        shapes = {}
    nodes = {node.name: node for node in g.toposort() if node.name in weights}
    return {name: count * math.prod(shapes.get(Port(nodes[name]), ())[2:]) for name, count in weights.items()}
