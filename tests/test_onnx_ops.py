"""ONNX converters, one op at a time: onnxruntime and MXNet agree, and shapes are those that MXNet gives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from helpers import run_mxnet

from qgraph.ir import Graph, Port
from qgraph.shapes import infer

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
from qgraph.formats.onnx import to_onnx  # noqa: E402

TOLERANCE = 1e-5


class Case(NamedTuple):
    """An op on inputs x0, x1... and then params.

    shapes: of one sample of each input; the batch comes in front.  low, high: range of the inputs.  whole: round them.
    """

    op: str
    shapes: list[tuple[int, ...]]
    attrs: dict[str, object] = {}
    params: list[np.ndarray] = []
    low: float = -2.0
    high: float = 2.0
    whole: bool = False
    n_out: int = 1
    batches: tuple[int, int] = (1, 3)

    def __str__(self) -> str:
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        return f"{self.op}-{'-'.join('x'.join(map(str, s)) for s in self.shapes)}-{attrs}".replace(" ", "")


IMAGE = (4, 6, 5)
ARITHMETIC = ["plus", "minus", "mul", "div", "maximum", "minimum", "mod", "hypot"]
TRUTHS = ["equal", "not_equal", "greater", "greater_equal", "lesser", "lesser_equal", "logical_and", "logical_or",
          "logical_xor"]

CASES = [
    Case("Flatten", [IMAGE]), Case("Flatten", [(7,)]), Case("Flatten", [()]),
    *(Case("Reshape", [IMAGE], {"shape": shape}) for shape in (
        (0, -1), (-1, 30), (0, 2, 2, -1, 5), (-2,), (0, -2), (0, -3, 0), (-3, 0, 0), (0, -4, 2, 2, -2),
        (0, -4, -1, 2, -3), (0, 0, -1), (0, -3, -1, 1))),
    Case("Reshape", [IMAGE], {"shape": (0, -4, 2, -1, 0, 0)}),
    Case("Reshape", [IMAGE], {"shape": (-1, 0), "reverse": True}),
    Case("transpose", [IMAGE]), Case("transpose", [IMAGE], {"axes": (0, 2, 3, 1)}),
    Case("SwapAxis", [IMAGE], {"dim1": 1, "dim2": 2}), Case("SwapAxis", [IMAGE], {"dim1": 0, "dim2": 3}),
    Case("expand_dims", [IMAGE], {"axis": 1}), Case("expand_dims", [IMAGE], {"axis": -1}),
    Case("expand_dims", [IMAGE], {"axis": 0}),
    Case("squeeze", [(1, 5, 1)], batches=(2, 3)),  # of one sample MXNet would squeeze the batch too
    Case("squeeze", [(1, 5, 1)], {"axis": 1}), Case("squeeze", [(1, 5, 1)], {"axis": (-1, 1)}),
    Case("slice_axis", [IMAGE], {"axis": 1, "begin": 1, "end": "None"}),
    Case("slice_axis", [IMAGE], {"axis": -1, "begin": 1, "end": 4}),
    Case("slice_axis", [IMAGE], {"axis": 2, "begin": -4, "end": -1}),
    Case("slice_axis", [IMAGE], {"axis": 0, "begin": 0, "end": 1}),
    Case("Concat", [IMAGE, (2, 6, 5)]), Case("Concat", [IMAGE, (4, 6, 2)], {"dim": -1}),
    Case("Concat", [IMAGE, IMAGE], {"dim": 0}),
    Case("elemwise_add", [IMAGE, IMAGE]), Case("elemwise_add", [IMAGE, IMAGE], {"act_type": "relu"}),
    *(Case(op, [(2, 3, 2)], attrs, low=0.5) for op in ("sum", "mean", "max", "min", "prod") for attrs in (
        {}, {"axis": ()}, {"axis": 1}, {"axis": (2, 3), "keepdims": True}, {"axis": (0, 1), "exclude": True},
        {"axis": -1}, {"keepdims": True}, {"axis": (0, 1, 2, 3)}, {"axis": 0})),
    *(Case(f"_{word}_scalar", [IMAGE], {"scalar": scalar}) for word in ARITHMETIC for scalar in (1.25, -1.5)),
    *(Case(f"_r{word}_scalar", [IMAGE], {"scalar": scalar}) for word in ("minus", "div", "mod")
      for scalar in (1.25, -1.5)),
    Case("_power_scalar", [IMAGE], {"scalar": 3}), Case("_rpower_scalar", [IMAGE], {"scalar": 2.5}),
    *(Case(f"_{word}_scalar", [IMAGE], {"scalar": scalar}, whole=True) for word in TRUTHS
      for scalar in (0, 1, -1) if (word, bool(scalar)) not in (("logical_or", True), ("logical_and", False))),
    *(Case(f"broadcast_{word}", [IMAGE, (1, 6, 1)]) for word in ("add", "sub", "mul", "div")),
    *(Case(f"broadcast_{word}", [IMAGE, (1, 6, 1)], whole=whole)
      for word in ("maximum", "minimum", "mod", "hypot") for whole in (False, True)),
    *(Case(f"{prefix}{word}", [IMAGE, IMAGE], whole=True) for word in TRUTHS for prefix in ("broadcast_", "_")),
    *(Case(op, [IMAGE, IMAGE]) for op in ("elemwise_sub", "elemwise_mul", "elemwise_div", "_maximum", "_minimum",
                                          "_mod", "_hypot")),
    Case("broadcast_power", [IMAGE, (1, 6, 1)], low=0.1), Case("_power", [IMAGE, IMAGE], low=0.1),
    Case("add_n", [IMAGE, IMAGE, IMAGE]),
]


def build(case: Case, batch: int = 0) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    g = Graph()
    inputs = [g.add("null", name=f"x{i}") for i in range(len(case.shapes))]
    params = [g.add_param(f"p{i}", array) for i, array in enumerate(case.params)]
    counted = {"num_args": len(inputs)} if case.op in ("Concat", "stack", "add_n") else {}
    node = g.add(case.op, [*inputs, *params], "node", n_out=case.n_out, attrs={**case.attrs, **counted})
    g.heads = [Port(node, i) for i in range(case.n_out)]
    return g, {x.name: (batch, *shape) for x, shape in zip(inputs, case.shapes)}


def feeds_of(case: Case, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {name: rng.uniform(case.low, case.high, shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: np.rint(value) for name, value in feeds.items()} if case.whole else feeds


def plain(g: Graph) -> Graph:
    """The graph for MXNet itself, which has no fused activations."""
    node = g.find("node")
    if node.attrs.pop("act_type", ""):
        g.insert_after(node, "Activation", act_type="relu")
    return g


@pytest.mark.parametrize("case", CASES, ids=str)
def test_op(case: Case) -> None:
    import onnxruntime

    g, shapes = build(case, 2)
    session = onnxruntime.InferenceSession(to_onnx(g, shapes).to_bytes(), providers=["CPUExecutionProvider"])
    for batch in case.batches:
        g, shapes = build(case, batch)
        feeds = feeds_of(case, shapes, batch)
        want = run_mxnet(plain(g.copy()), feeds)
        other = run_mxnet(plain(g.copy()), feeds_of(case, shapes, 10 + batch))
        assert all((a != b).any() for a, b in zip(want, other)), "outputs must vary with the input"
        names = {i.name for i in session.get_inputs()}
        got = session.run(None, {name: value for name, value in feeds.items() if name in names})
        inferred = infer(g, shapes)
        for index, (a, b) in enumerate(zip(want, got)):
            assert b.dtype == np.float32
            assert inferred[g.heads[index]] == a.shape == b.shape
            assert np.isfinite(a).all()
            assert np.abs(a - b).max() <= TOLERANCE * np.abs(a).max()
