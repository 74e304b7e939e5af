"""ONNX converters, one op at a time: onnxruntime and MXNet agree, and shapes are those that MXNet gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import run_mxnet

from qgraph.errors import UnsupportedError
from qgraph.ir import attributes
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.infer import infer
from qgraph.targets.onnx.emit import to_onnx  # noqa: E402

TOLERANCE = 1e-5
Feeds = dict[str, np.ndarray]


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
    Case("smooth_l1", [IMAGE], {"scalar": 1.0}),
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
    *(Case("topk", [(4, 7)], {"k": 3, "ret_typ": "mask", **attrs}, batches=(2, 3)) for attrs in (
        {}, {"axis": 1}, {"is_ascend": True}, {"axis": None})),
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
    attributes.take(node)
    g.heads = [Port(node, i) for i in range(case.n_out)]
    return g, {x.name: (batch, *shape) for x, shape in zip(inputs, case.shapes)}


def feeds_of(case: Case, shapes: dict[str, tuple[int, ...]], seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    feeds = {name: rng.uniform(case.low, case.high, shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: np.rint(value / case.step) * case.step for name, value in feeds.items()} if case.step else feeds


def plain(g: Graph) -> Graph:
    """The graph for MXNet itself, which has no fused activations."""
    node = g.find("node")
    if node.fused is not None:
        node.fused = None
        g.insert_after(node, "Activation", act_type="relu")
    return g


def compare(g: Graph, session: Any, shapes: dict[str, tuple[int, ...]], feeds: Feeds, other: Feeds) -> None:
    """onnxruntime gives what MXNet gives, in the shapes that are inferred; `other` feeds give something else."""
    want = run_mxnet(plain(g.copy()), feeds)
    assert all((a != b).any() for a, b in zip(want, run_mxnet(plain(g.copy()), other))), "must vary with the input"
    got = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    inferred = infer(g, shapes)
    for head, a, b in zip(g.heads, want, got):
        assert b.dtype == np.float32
        assert inferred[head] == a.shape == b.shape
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(a).max()


def open_session(g: Graph, shapes: dict[str, tuple[int, ...]] | None = None) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(to_onnx(g, shapes).to_bytes(), providers=["CPUExecutionProvider"])


@pytest.mark.mxnet
@pytest.mark.parametrize("case", CASES, ids=str)
def test_op(case: Case) -> None:
    session = open_session(*build(case, 2))
    for batch in case.batches:
        g, shapes = build(case, batch)
        compare(g, session, shapes, feeds_of(case, shapes, batch), feeds_of(case, shapes, 10 + batch))


# ---- ops whose own value does not vary, or that need others around them ---------------------------------------------

def integers(g: Graph, x: Node) -> Node:
    """Row and column of a whole number, as a decoder of peaks computes them: in integers."""
    index = g.add("Cast", [g.add("_mul_scalar", [x], scalar=40)], dtype="int64")
    width = g.add("slice_axis", [g.add("shape_array", [x])], axis=0, begin=3, end=None)
    row, column = g.add("broadcast_div", [index, width]), g.add("broadcast_mod", [index, width])
    halves = g.add("_div_scalar", [g.add("_plus_scalar", [row], scalar=1.75)], scalar=2)
    root = g.add("sqrt", [g.add("abs", [g.add("mean", [index], axis=1, keepdims=True)])])
    return g.add("broadcast_add", [g.add("Cast", [g.add("broadcast_add", [halves, root])], dtype="float32"),
                                   g.add("Cast", [column], dtype="float32")])


def indices_of_both(g: Graph, x: Node) -> Node:
    """The types of topk: values as the data, indices as its dtype says."""
    top = g.add("topk", [x], n_out=2, k=2, ret_typ="both", dtype="int32")
    values, indices = (g.add("_div_scalar", [Port(top, i)], scalar=2) for i in range(2))
    return g.add("elemwise_add", [values, g.add("Cast", [indices], dtype="float32")])


def numbers_of_rows(g: Graph, x: Node) -> Node:
    """batch_take wants indices of an integer type."""
    rows = g.add("Reshape", [x], shape=(-1, 5))
    index = g.add("Cast", [g.add("argmax", [rows], axis=1)], dtype="int32")
    return g.add("Reshape", [g.add("batch_take", [rows, index])], shape=(-1, 4, 6))


def batch_indices(g: Graph, x: Node) -> Node:
    """(sample, position) of every peak: a constant cut to the batch size."""
    sample = g.add("slice_like", [g.add("_arange", start=256), x], axes=(0,))
    sample = g.add("tile", [g.add("expand_dims", [sample], axis=-1)], reps=(1, 2))
    flat = g.add("Reshape", [x], shape=(0, -1))
    top = g.add("topk", [flat], k=2)
    where = g.add("Reshape", [g.add("Concat", [sample, top], dim=0, num_args=2)], shape=(2, -1))
    return g.add("Reshape", [g.add("gather_nd", [flat, where])], shape=(-1, 2))


def constants(g: Graph, x: Node) -> Node:
    made = [g.add("ones_like", [x]), g.add("zeros_like", [x])]
    columns = [g.add("_arange", start=1, stop=6, step=1), g.add("_arange", start=5), g.add("_ones", shape=(1, 5)),
               g.add("_arange", start=0.5, stop=1.5, step=0.25, repeat=2, dtype="float32"), g.add("_zeros", shape=(5,)),
               g.add("_full", shape=(6, 1), value=2.5), g.add("_contrib_arange_like", [x], axis=3, start=2, step=3)]
    columns[3] = g.add("slice_axis", [columns[3]], axis=0, begin=0, end=5)
    total = g.add("add_n", [x, *made], num_args=3)
    for number, column in enumerate(columns):
        total = g.add("broadcast_add", [total, g.add("_mul_scalar", [column], scalar=number + 1)])
    return total


def sizes(g: Graph, x: Node) -> Node:
    """Boxes are clipped to the size of the image; the number of elements."""
    window = g.add("expand_dims", [g.add("slice_axis", [g.add("shape_array", [x])], axis=0, begin=2, end=None)], axis=0)
    window = g.add("tile", [g.add("reverse", [window], axis=1)], reps=(2,))
    ends = g.add("Cast", [g.add("Reshape", [window], shape=(0, -4, 1, -1))], dtype="float32")
    boxes = g.add("Reshape", [g.add("_mul_scalar", [x], scalar=8)], shape=(0, -1, 4))
    count = g.add("Cast", [g.add("size_array", [x])], dtype="float32")
    return g.add("broadcast_div", [g.add("broadcast_minimum", [boxes, ends]), count])


def just_below_half(g: Graph, x: Node) -> Node:
    """Adding 0.5 would round the numbers up before anybody takes their floor."""
    numbers = g.add_param("numbers", np.array([0.49999997, -0.49999997, 0.5, 2.5, 1.5], np.float32))
    return g.add("broadcast_add", [x, g.add("round", [numbers])])


def network(make: Callable[[Graph, Node], Node], batch: int) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    g = Graph()
    g.heads = [Port(make(g, g.add("null", name="x")))]
    g.rename(g.heads[0].node, "node")
    return g, {"x": (batch, *IMAGE[:2], 5)}


@pytest.mark.mxnet
@pytest.mark.parametrize("make", [integers, indices_of_both, numbers_of_rows, batch_indices, constants, sizes,
                                  just_below_half])
def test_chain(make: Callable[[Graph, Node], Node]) -> None:
    session = open_session(*network(make, 2))
    for batch in (1, 3):
        g, shapes = network(make, batch)
        feeds, other = ({"x": np.random.default_rng(seed).uniform(-2, 2, shapes["x"]).astype(np.float32)}
                        for seed in (batch, 10 + batch))
        compare(g, session, shapes, feeds, other)


WITHOUT_SHAPES = [Case("Flatten", [IMAGE]), Case("Reshape", [IMAGE], {"shape": (0, -1, 5)}),
                  Case("transpose", [IMAGE], {"axes": (0, 2, 3, 1)}), Case("squeeze", [(1, 5, 1)], {"axis": 1}),
                  Case("slice_like", [IMAGE, (2, 3, 4)], {"axes": (1, -1)}), Case("mean", [IMAGE], {"axis": (2, -1)}),
                  Case("sum", [IMAGE], {}), Case("SliceChannel", [IMAGE], {"num_outputs": 2}, n_out=2),
                  Case("batch_dot", [(4, 2, 3), (4, 3, 5)]), Case("broadcast_like", [(1, 1, 5), IMAGE])]


@pytest.mark.mxnet
@pytest.mark.parametrize("case", WITHOUT_SHAPES, ids=str)
def test_without_shapes(case: Case) -> None:
    """Images of any size behind a convolution: what needs no shape is converted all the same."""
    g, shapes = build(case, 3)
    for x in g.data_inputs():
        channels = shapes[x.name][1]
        weight = g.add_param(f"{x.name}_weight", np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1))
        conv = g.add("Convolution", [x, weight], kernel=(1, 1), num_filter=channels, no_bias=True)
        g.replace_uses(x, conv, keep=[conv])
    compare(g, open_session(g), shapes, feeds_of(case, shapes, 1), feeds_of(case, shapes, 2))


@pytest.mark.parametrize(("case", "known", "words"), [
    (Case("Reshape", [IMAGE], {"shape": (0, -4, 2, 2, -2)}), False, "--input-shape"),
    (Case("SwapAxis", [IMAGE], {"dim1": 1, "dim2": 2}), False, "--input-shape"),
    (Case("topk", [(5,)], {"ret_typ": "masks"}), True, "ret_typ masks"),
    (Case("Cast", [(5,)], {"dtype": "bfloat16"}), True, "dtype bfloat16"),
    (Case("_contrib_arange_like", [(5,)], {"axis": 0}), True, "batch size"),
    (Case("_split_v2", [(5,)], {"axis": 0, "indices": (0, 1)}, n_out=2), True, "batch size"),
    (Case("_zeros", [], {"shape": (0, 3)}), True, "shape"),
    (Case("_contrib_bipartite_matching", [(5, 6)]), True, "no ONNX converter"),
])
def test_refused(case: Case, known: bool, words: str) -> None:
    g, shapes = build(case, 2)
    with pytest.raises(UnsupportedError, match=words) as error:
        to_onnx(g, shapes if known else None)
    assert str(error.value).startswith(f"node:{case.op}: ")


def test_lengths_that_only_a_reader_knows() -> None:
    g = Graph()
    x = g.add("null", name="x")
    g.heads = [Port(g.add("elemwise_add", [x, g.add("_zeros", shape=(0, 3), name="made")])),
               Port(g.add("_arange", start=0, infer_range=True, name="numbers"))]
    known = infer(g, {"x": (2, 3)})
    assert all(Port(g.find(name)) not in known for name in ("made", "numbers"))
