"""Attention in ONNX against the reference, which is tested against MXNet."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.interpreter import run
from qgraph.targets.onnx.emit import to_onnx


@pytest.mark.parametrize("kind", ["selfatt", "encdec"])
def test_attention_equals_the_reference_for_any_batch(kind: str) -> None:
    """Images first outside, time first inside, as Gluon's blocks do it."""
    g, rng = Graph(), np.random.default_rng(0)
    shapes = {"both": (1, 5, 24)} if kind == "selfatt" else {"query": (1, 4, 8), "both": (1, 5, 16)}
    inputs = [g.add("SwapAxis", [g.add("null", name=name)], dim1=0, dim2=1) for name in shapes]

    def op(name: str, *inputs: Node, **attrs: object) -> Node:
        return g.add(name, list(inputs), attrs=attrs)

    scores = op(f"_contrib_interleaved_matmul_{kind}_qk", *inputs, heads=2)
    values = op(f"_contrib_interleaved_matmul_{kind}_valatt", inputs[-1], op("softmax", scores), heads=2)
    g.heads = [Port(op("_contrib_div_sqrt_dim", op("SwapAxis", values, dim1=0, dim2=1)))]
    model = to_onnx(g, shapes)
    for images in (1, 3):
        feeds = {name: rng.normal(size=(images, *shape[1:])).astype(np.float32) for name, shape in shapes.items()}
        (want,), (found,) = run(g, feeds), model.executor().run(feeds)
        assert want.shape == found.shape and want.std() > 0
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
