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

    shapes: of one sample of each input; the batch comes in front.  low, high, step: of the inputs' values.
    """

    op: str
    shapes: list[tuple[int, ...]]
    attrs: dict[str, object] = {}
    params: list[np.ndarray] = []
    low: float = -2.0
    high: float = 2.0
    step: float = 0
    n_out: int = 1
    batches: tuple[int, int] = (1, 3)

    def __str__(self) -> str:
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        return f"{self.op}-{'-'.join('x'.join(map(str, s)) for s in self.shapes)}-{attrs}".replace(" ", "")


IMAGE = (4, 6, 5)
ARITHMETIC = ["plus", "minus", "mul", "div", "maximum", "minimum", "mod", "hypot"]
TRUTHS = ["equal", "not_equal", "greater", "greater_equal", "lesser", "lesser_equal", "logical_and", "logical_or",
          "logical_xor"]

BOXES = np.random.default_rng(0).uniform(1, 5, (1, 6, 4)).astype(np.float32)
MATRIX = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
CUBE = np.random.default_rng(2).normal(size=(3, 2, 4)).astype(np.float32)

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
    *(Case(f"_{word}_scalar", [IMAGE], {"scalar": scalar}, step=1) for word in TRUTHS
      for scalar in (0, 1, -1) if (word, bool(scalar)) not in (("logical_or", True), ("logical_and", False))),
    *(Case(f"broadcast_{word}", [IMAGE, (1, 6, 1)]) for word in ("add", "sub", "mul", "div")),
    *(Case(f"broadcast_{word}", [IMAGE, (1, 6, 1)], step=step)
      for word in ("maximum", "minimum", "mod", "hypot") for step in (0, 1)),
    *(Case(f"{prefix}{word}", [IMAGE, IMAGE], step=1) for word in TRUTHS for prefix in ("broadcast_", "_")),
    *(Case(op, [IMAGE, IMAGE]) for op in ("elemwise_sub", "elemwise_mul", "elemwise_div", "_maximum", "_minimum",
                                          "_mod", "_hypot")),
    Case("broadcast_power", [IMAGE, (1, 6, 1)], low=0.1), Case("_power", [IMAGE, IMAGE], low=0.1),
    Case("add_n", [IMAGE, IMAGE, IMAGE]),
    # element by element
    *(Case(op, [IMAGE]) for op in ("exp", "abs", "sign", "floor", "ceil", "negative", "reciprocal", "erf", "sin", "cos",
                                   "arctan", "sinh", "cosh", "arcsinh", "square", "cbrt", "rcbrt", "expm1", "rint",
                                   "round", "trunc", "fix")),
    *(Case(op, [IMAGE], low=0.1) for op in ("log", "sqrt", "rsqrt", "log2", "log10", "log1p")),
    *(Case(op, [IMAGE], low=-0.9, high=0.9) for op in ("tan", "arcsin", "arccos", "arctanh")),
    Case("arccosh", [IMAGE], low=1.1), Case("logical_not", [IMAGE], step=1),
    *(Case(op, [IMAGE], low=-5, high=5, step=0.5) for op in ("rint", "round", "trunc", "fix", "floor", "ceil")),
    Case("round", [(1,)], low=0.49999997, high=3.0), Case("smooth_l1", [IMAGE], {"scalar": 1.0}),
    Case("smooth_l1", [IMAGE], {"scalar": 2.0}), Case("smooth_l1", [IMAGE], {"scalar": 0.8}),
    *(Case("Cast", [IMAGE], {"dtype": dtype}) for dtype in ("float16", "float32", "float64", "int8", "int32", "int64")),
    Case("Cast", [IMAGE], {"dtype": "uint8"}, low=0, high=200),
    # reshapes and slices
    Case("reshape_like", [IMAGE, (6, 4, 5)]), Case("reshape_like", [IMAGE, (120,)]),
    Case("reshape_like", [IMAGE, (3, 2, 4)], {"lhs_begin": 2, "lhs_end": 3, "rhs_begin": 1, "rhs_end": 3}),
    Case("reshape_like", [IMAGE, (6, 5)], {"lhs_begin": -2, "lhs_end": "None", "rhs_begin": 1, "rhs_end": "None"}),
    Case("depth_to_space", [(8, 3, 2)], {"block_size": 2}),
    Case("space_to_depth", [(3, 4, 6)], {"block_size": 2}),
    *(Case("slice", [IMAGE], {"begin": begin, "end": end, "step": step}) for begin, end, step in (
        ((None, 1), (None, 3), ()), ((0, 0, 5), (1, 4, 1), (1, 2, -2)), ((0, -3), (1, -1), ()),
        ((None, None), (None, None), (None, -1)))),
    Case("slice_like", [IMAGE, (2, 3, 4)]), Case("slice_like", [IMAGE, (2, 3, 9)], {"axes": (1, -2)}),
    Case("slice_like", [IMAGE, (2, 3)], {"axes": (0, 1)}),
    Case("reverse", [IMAGE], {"axis": 1}), Case("reverse", [IMAGE], {"axis": (0, 3)}),
    Case("SliceChannel", [IMAGE], {"num_outputs": 2}, n_out=2),
    Case("SliceChannel", [IMAGE], {"num_outputs": 6, "axis": 2, "squeeze_axis": True}, n_out=6),
    Case("SliceChannel", [IMAGE], {"num_outputs": 1, "axis": -1}),
    Case("_split_v2", [IMAGE], {"sections": 3, "axis": 2, "indices": ()}, n_out=3),
    Case("_split_v2", [IMAGE], {"indices": (0, 1, 3), "axis": 1}, n_out=3),
    Case("_split_v2", [IMAGE], {"indices": (), "sections": 4, "axis": 1, "squeeze_axis": True}, n_out=4),
    # copies
    Case("stack", [IMAGE, IMAGE]), Case("stack", [IMAGE, IMAGE], {"axis": -1}),
    Case("stack", [IMAGE, IMAGE, IMAGE], {"axis": 2}),
    *(Case("tile", [(3, 2)], {"reps": reps}) for reps in ((2,), (1, 2, 3), (2, 1, 1, 2))),
    *(Case("repeat", [(3, 2)], {"repeats": 3, "axis": axis}) for axis in ("None", 0, 1, -1)),
    Case("broadcast_axis", [(1, 5, 1)], {"axis": 1, "size": 3}),
    Case("broadcast_axis", [(1, 5, 1)], {"axis": (1, 3), "size": (2, 4)}),
    Case("broadcast_to", [(1, 5, 1)], {"shape": (0, 3, 0, 2)}), Case("broadcast_like", [(1, 5, 1), (3, 5, 2)]),
    Case("broadcast_like", [(1, 5, 1), (3, 2)], {"lhs_axes": (1, -1), "rhs_axes": (2, -2)}),
    Case("where", [IMAGE, IMAGE, IMAGE], step=1), Case("where", [(), IMAGE, IMAGE], low=0, step=1),
    # indices
    *(Case("take", [IMAGE], {"axis": axis, "mode": mode}, [np.array([[0, 2, 9], [1, 3, -2]], np.float32)])
      for axis in (1, 2, -1) for mode in ("clip", "wrap")),
    Case("take", [IMAGE], {}, [np.array([0, 7, -3], np.float32)]),
    Case("take", [IMAGE], {"axis": 1, "mode": "raise"}, [np.array([0, 3, 1], np.float32)]),
    Case("Embedding", [(4,)], {"input_dim": 5, "output_dim": 3}, [np.arange(15, dtype=np.float32).reshape(5, 3)],
         low=-2, high=8, step=1),
    *(Case("pick", [(4, 6), (4,)], {"keepdims": keep, "mode": mode}, low=-3, high=9, step=1)
      for keep in (False, True) for mode in ("clip", "wrap")),
    Case("pick", [(4, 6), (6,)], {"axis": 1}, low=-3, high=9, step=1),
    Case("gather_nd", [(4, 6)], {}, [np.array([[0, 0, 0], [3, 0, 1]], np.float32)]),
    Case("gather_nd", [(4, 6)], {}, [np.array([[[0, 0]], [[3, 1]], [[5, 2]]], np.float32)]),
    Case("one_hot", [(5,)], {"depth": 4}, low=-2, high=6, step=1),
    Case("one_hot", [(5,)], {"depth": 4, "on_value": 3.0, "off_value": -1.0}, low=-2, high=6, step=1),
    *(Case("topk", [(4, 7)], {"k": 3, "ret_typ": kind, **attrs}, n_out=2 if kind == "both" else 1)
      for kind in ("indices", "value", "both") for attrs in ({}, {"axis": 1, "is_ascend": True}, {"axis": "None"})),
    Case("topk", [(4, 7)], {"k": 0, "ret_typ": "value"}),
    *(Case(op, [(4, 7)], attrs) for op in ("sort", "argsort") for attrs in (
        {}, {"axis": 1, "is_ascend": False}, {"axis": "None"})),
    Case("sort", [(4, 7)], {"axis": 0}, batches=(2, 3)),
    *(Case(op, [(4, 7)], attrs) for op in ("argmax", "argmin") for attrs in (
        {}, {"axis": 1}, {"axis": -1, "keepdims": True}, {"keepdims": True})),
    *(Case("_contrib_box_decode", [(6, 4)], {"format": kind, "clip": clip, "std0": 0.1, "std1": 0.2, "std2": 0.3,
                                             "std3": 0.4}, [BOXES]) for kind in ("center", "corner")
      for clip in (-1.0, 0.3)),
    Case("_contrib_box_decode", [(6, 4)], {}, [BOXES]),
    # products and norms
    *(Case("norm", [IMAGE], attrs) for attrs in ({}, {"axis": 1}, {"axis": (2, 3), "keepdims": True}, {"ord": 1},
                                                 {"keepdims": True}, {"axis": (-1, 1), "ord": 1})),
    Case("batch_dot", [(2, 3), (3, 4)]), Case("batch_dot", [(3, 2), (3, 4)], {"transpose_a": True}),
    Case("batch_dot", [(2, 3), (4, 3)], {"transpose_b": True}),
    Case("batch_dot", [(3, 2), (4, 3)], {"transpose_a": True, "transpose_b": True}),
    Case("dot", [(3,)], {}, [MATRIX]), Case("dot", [(2, 3)], {}, [MATRIX]),
    Case("dot", [(5,)], {"transpose_b": True}, [MATRIX]),
    Case("dot", [(5,), (4,)], {"transpose_a": True}), Case("dot", [(2, 4)], {"transpose_b": True}, [CUBE]),
    Case("dot", [(2, 3)], {}, [CUBE]),
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
    return {name: np.rint(value / case.step) * case.step for name, value in feeds.items()} if case.step else feeds


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
