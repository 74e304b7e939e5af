"""Which values are legal in inputs that are indices, boxes or lengths."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.legal import legal_values


def graph(*inputs: str) -> tuple[Graph, list[Node]]:
    g = Graph()
    return g, [g.add("null", name=name) for name in inputs]


def drawn(g: Graph, shapes: dict[str, tuple[int, ...]], name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    return legal_values(g, shapes)[name].draw(rng.standard_normal(shapes[name]).astype(np.float32), rng)


def test_an_index_is_found_through_casts_reshapes_and_slices() -> None:
    g, (data,) = graph("data")
    weight = g.add_param("weight", np.zeros((40, 8), np.float32))
    cut = g.add("slice_axis", [data], axis="1", begin="0", end="3")
    cast = g.add("Cast", [g.add("Reshape", [cut], shape="(-1,)")], dtype="int32")
    g.heads = [Port(g.add("Embedding", [cast, weight], "emb", input_dim="40", output_dim="8"))]
    values = drawn(g, {"data": (64, 5)}, "data")
    assert np.array_equal(values, np.rint(values)) and values.min() == 0 and values.max() == 39


def test_arithmetic_is_undone() -> None:
    g, (data,) = graph("data")
    weight = g.add_param("weight", np.zeros((10, 8), np.float32))
    g.heads = [Port(g.add("take", [weight, g.add("_minus_scalar", [data], scalar="1")], "taken"))]
    values = drawn(g, {"data": (200,)}, "data")
    assert values.min() == 1 and values.max() == 10


@pytest.mark.parametrize(("op", "attrs", "end"), [
    ("pick", {"axis": "1"}, 6), ("gather_nd", {}, 3), ("batch_take", {}, 6)])
def test_indices_end_where_the_axis_ends(op: str, attrs: dict[str, str], end: int) -> None:
    g, (data, index) = graph("data", "index")
    g.heads = [Port(g.add(op, [data, index], "found", **attrs))]
    found = legal_values(g, {"data": (4, 7), "index": (2, 4) if op == "gather_nd" else (4,)})["index"]
    assert (found.low, found.high) == ((0,), (end,))


@pytest.mark.parametrize("op", ["ROIPooling", "_contrib_ROIAlign"])
def test_boxes_lie_in_the_image_and_count_its_batch(op: str) -> None:
    g, (data, number, box) = graph("data", "number", "box")
    rois = g.add("Concat", [number, g.add("BlockGrad", [box])], dim="1", num_args="2")
    conv = g.add("Pooling", [data], kernel="(2, 2)", stride="(2, 2)", pool_type="max")
    g.heads = [Port(g.add(op, [conv, rois], "roi", pooled_size="(3, 3)", spatial_scale="0.5"))]
    shapes = {"data": (3, 8, 32, 16), "number": (50, 1), "box": (50, 4)}
    numbers, boxes = drawn(g, shapes, "number"), drawn(g, shapes, "box")
    assert set(numbers.ravel()) == {0, 1, 2}
    left, top, right, bottom = boxes.T
    assert (left <= right).all() and (top <= bottom).all() and boxes.min() >= 0
    assert right.max() <= 15 and bottom.max() <= 31 and bottom.max() > 15
    crash = legal_values(g, shapes, crash=True)
    assert crash["number"].high == (2,) and not np.isfinite(crash["box"].high).any()  # a box may leave the image
    assert crash["number"].outside(np.array([[2.0], [3.0], [np.nan]]))[0] == 3


def test_lengths_are_whole_and_within_the_axis() -> None:
    g, (data, length) = graph("data", "length")
    g.heads = [Port(g.add("SequenceMask", [data, length], "masked", use_sequence_length="True", axis="1"))]
    assert set(drawn(g, {"data": (64, 4, 2), "length": (64,)}, "length")) == {1, 2, 3, 4}


def test_an_input_that_is_an_image_is_free() -> None:
    g, (data,) = graph("data")
    g.heads = [Port(g.add("softmax", [g.add("Flatten", [data])]))]
    assert legal_values(g, {"data": (2, 3)}) == {}
