"""What the error of a channel counts in what reads it, against the outputs of the layers."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph import Graph
from qgraph.analysis.importance import channel_importance
from qgraph.ir.graph import Port
from qgraph.semantics.infer import infer
from qgraph.semantics.interpreter import run

NETWORKS = {
    "conv": """
%data = input
%w = param float32 (6, 4, 3, 3)
%out = Convolution(%data, %w) {kernel=(3, 3) num_filter=6 no_bias=True}
return %out
""",
    "grouped": """
%data = input
%w = param float32 (6, 2, 1, 3)
%out = Convolution(%data, %w) {kernel=(1, 3) num_filter=6 num_group=2 no_bias=True}
return %out
""",
    "deconvolution": """
%data = input
%w = param float32 (4, 5, 2, 2)
%out = Deconvolution(%data, %w) {kernel=(2, 2) stride=(2, 2) num_filter=5 no_bias=True}
return %out
""",
    "dense": """
%data = input
%flat = Flatten(%data)
%w = param float32 (5, 144)
%out = FullyConnected(%flat, %w) {num_hidden=5 no_bias=True}
return %out
""",
    "depthwise": """
%data = input
%v = param float32 (4, 1, 1, 1)
%deep = Convolution(%data, %v) {kernel=(1, 1) num_filter=4 num_group=4 no_bias=True}
%w = param float32 (6, 4, 1, 1)
%out = Convolution(%deep, %w) {kernel=(1, 1) num_filter=6 no_bias=True}
return %out
""",
}


def filled(text: str) -> Graph:
    rng = np.random.default_rng(4)
    g = Graph.parse(text)
    for name, array in g.params.items():
        g.params[name] = rng.normal(size=array.shape).astype(np.float32)
    return g


def importance(g: Graph, size: int = 6) -> dict[str, np.ndarray]:
    shapes = infer(g, {"data": (1, 4, size, size)})
    return {port.key: value for port, value in channel_importance(g, shapes).items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_energy_that_noise_in_a_channel_gives(name: str) -> None:
    g = filled(NETWORKS[name])
    rng = np.random.default_rng(5)
    energy = []
    for channel in range(4):
        noise = np.zeros((400, 4, 6, 6), np.float32)
        noise[:, channel] = rng.normal(size=(400, 6, 6))
        energy.append(np.square(run(g, {"data": noise})[0][..., 1:-1, 1:-1] if name != "dense" else
                                run(g, {"data": noise})[0]).mean())
    np.testing.assert_allclose(importance(g)["data"], np.array(energy) / max(energy), rtol=0.15)


def test_it_passes_activations_and_concatenations() -> None:
    g = filled("""
%data = input
%v = param float32 (3, 4, 1, 1)
%a = Convolution(%data, %v) {kernel=(1, 1) num_filter=3 no_bias=True}
%b = Activation(%a) {act_type=relu}
%c = Pooling(%b) {kernel=(2, 2) stride=(2, 2) pool_type=max}
%d = Pooling(%data) {kernel=(2, 2) stride=(2, 2) pool_type=avg}
%all = Concat(%d, %c) {dim=1 num_args=2}
%w = param float32 (6, 7, 1, 1)
%out = Convolution(%all, %w) {kernel=(1, 1) num_filter=6 no_bias=True}
return %out
""")
    found = importance(g)
    squares = np.square(g.params["w"]).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(found["all"], squares / squares.max(), rtol=1e-6)
    for name in "abc":
        np.testing.assert_allclose(found[name], squares[4:] / squares[4:].max(), rtol=1e-6)


def test_what_nothing_is_known_of_counts_alike() -> None:
    g = filled("""
%data = input
%v = param float32 (3, 4, 1, 1)
%a = Convolution(%data, %v) {kernel=(1, 1) num_filter=3 no_bias=True}
%out = softmax(%a) {axis=1}
return %out
""")
    assert (importance(g)["a"] == 1).all() and (importance(g)["out"] == 1).all()


def test_readers_are_added_up() -> None:
    g = filled("""
%data = input
%v = param float32 (3, 4, 1, 1)
%a = Convolution(%data, %v) {kernel=(1, 1) num_filter=3 no_bias=True}
%w = param float32 (5, 4, 1, 1)
%b = Convolution(%data, %w) {kernel=(1, 1) num_filter=5 no_bias=True}
return %a, %b
""")
    parts = [np.square(g.params[name]).sum(axis=(0, 2, 3)) for name in "vw"]
    both = sum(part / part.mean() for part in parts)
    np.testing.assert_allclose(importance(g)["data"], both / both.max(), rtol=1e-6)
    assert Port(g.find("v")) not in channel_importance(g, infer(g, {"data": (1, 4, 6, 6)}))
