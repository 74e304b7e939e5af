"""Shape rules against MXNet's own inference, against what the kernels return, and against hostile attributes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import CASES, MXNET, calls
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import TABLE, Case, conv, deconv, one

from qgraph.errors import GraphError, QGraphError
from qgraph.formats.mxnet import load
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.semantics.infer import RULES, infer
from qgraph.semantics.interpreter import Executor, run


def inferred(case: Case) -> list[tuple[int, ...]]:
    g, feeds = case.graph()
    table = infer(g, {name: array.shape for name, array in feeds.items()})
    return [table[head] for head in g.heads]


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_rule_equals_mxnet_and_the_kernel(case: Case) -> None:
    """Without MXNet the kernel alone."""
    found = inferred(case)
    assert found == [array.shape for array in run(*case.graph())]
    assert all(type(d) is int for shape in found for d in shape)
    if not MXNET:
        return
    import mxnet as mx

    symbol = mx.sym.load_json(case.symbol())
    _, want, _ = symbol.infer_shape(**{f"x{i}": shape for i, shape in enumerate(case.shapes)})
    assert found == want


def test_every_op_of_the_table_has_a_rule() -> None:
    assert set(RULES) == set(ops.OPS) - {"null"}


@pytest.mark.cases("squeezenet1.1", "mobilenetv1_0.75_192_bn")
@pytest.mark.parametrize("name,size,last", [("squeezenet1.1", 224, 1000), ("mobilenetv1_0.75_192_bn", 192, 1001)])
def test_real_network(name: str, size: int, last: int) -> None:
    g = load(f"{CASES / name / name}-symbol.json", f"{CASES / name / name}-0000.params")
    table = infer(g, {"data": (2, 3, size, size)})
    assert set(table) >= {Port(n) for n in g.nodes()}
    x = np.zeros((2, 3, size, size), np.float32)
    for node, _, outputs in Executor(g).walk({"data": x}):
        assert [table[Port(node, i)] for i in range(len(outputs))] == [t.real.shape for t in outputs]
    assert table[g.heads[0]][1] in (last, 1000)


def test_unknown_is_missing_and_known_branches_go_on() -> None:
    g = Graph.parse("""
        %data = input
        %w = param float32 (4, 3, 1, 1)
        %a = Convolution(%data, %w) {kernel=(1, 1) num_filter=4 no_bias=True}
        %odd = MyOp(%a)
        %after = elemwise_add(%odd, %a)
        %parts = SliceChannel(%a) -> 2 {num_outputs=2}
        %label = input
        %out = SoftmaxOutput(%parts:1, %label)
        return %after, %out
    """)
    found = {port.key: shape for port, shape in infer(g, {"data": (1, 3, 5, 6)}).items()}
    assert found == {"data": (1, 3, 5, 6), "w": (4, 3, 1, 1), "a": (1, 4, 5, 6), "parts": (1, 2, 5, 6),
                     "parts:1": (1, 2, 5, 6), "out": (1, 2, 5, 6)}
    assert {port.key for port in infer(g, {})} == {"w"}


@pytest.mark.parametrize("case,message", [
    (conv()._replace(shapes=[(2, 5, 7, 9), (4, 6, 3, 3), (4,)]),
     r"node:Convolution: found weight \(4, 6, 3, 3\), want \(4, 5, 3, 3\)"),
    (conv()._replace(shapes=[(2, 6, 7, 9), (4, 6, 3, 3), (5,)]), r"found bias \(5,\), want \(4,\)"),
    (conv(num_group=2)._replace(shapes=[(2, 5, 7, 9), (4, 3, 3, 3), (4,)]), "found num_group 2, want a divisor of 5"),
    (conv(data=(2, 6, 2, 9)), r"found shape \(2, 4, 0, 7\), want dimensions of at least 1"),
    (conv()._replace(shapes=[(2, 6, 7), (4, 6, 3, 3), (4,)]), "found data"),
    (conv(stride=(0, 1)), "found stride"), (conv(pad=(-1, 0)), "found pad"),
    (deconv(adj=(1, 1)), "found adj"), (deconv(target_shape=(99, 99)), "found target_shape"),
    (one("Pooling", kernel=(8, 8), pool_type="max"), "found kernel"),
    (one("Reshape", shape="(0, 5, -1)"), r"found shape \(0, 5, -1\), want 756 elements"),
    (one("Reshape", shape="(-1, -1)"), "found shape"), (one("Reshape", shape="(0, -4, 4, -1, -2)"), "found shape"),
    (one("Reshape", shape="(0, 3, 2, -2)"), "found shape"),
    (one("SliceChannel", num_outputs=4), "found num_outputs"), (one("squeeze", axis=(1,)), "found squeezed shape"),
    (one("transpose", axes=(0, 1, 1, 3)), "found axes"),
    (one("softmax", axis=1)._replace(op="expand_dims", attrs={"axis": 9}), "found axis"),
    (one("Pad", mode="constant", pad_width=(1, 1)), "found pad_width"), (one("UpSampling", scale=99999), "found shape"),
    (Case("elemwise_add", {}, [(2, 3), (2, 4)]), "found shapes"),
    (Case("broadcast_add", {}, [(2, 3), (2, 4)]), "found shapes"),
    (Case("Concat", {"dim": 1}, [(2, 3, 4), (2, 3, 5)]), "found shapes"),
    (Case("BatchNorm", {}, [(2, 3, 4)] + [(4,)] * 4), r"found gamma \(4,\), want \(3,\)"),
    (Case("FullyConnected", {"num_hidden": 3}, [(2, 4), (3, 5)]), r"found weight \(3, 5\), want \(3, 4\)"),
    (Case("Crop", {"num_args": 2, "offset": (4, 0)}, [(1, 1, 5, 5), (1, 1, 2, 2)]), "found crop"),
    (one("relu", (1 << 16, 1 << 16)), "at most 2"), (one("relu", (3, 0)), "want dimensions"),
], ids=lambda v: str(v) if isinstance(v, Case) else "")
def test_contradictions_name_the_node(case: Case, message: str) -> None:
    g = Graph()
    node = g.add(case.op, [g.add("null", name=f"x{i}") for i in range(len(case.shapes))], "node", **case.attrs)
    g.heads = [Port(node)]
    with pytest.raises(GraphError, match=message):
        infer(g, {f"x{i}": shape for i, shape in enumerate(case.shapes)})


HOSTILE = ["", "()", "(", "None", "-1", "0", "(1.5, 3)", "(1e999, 2)", "nan", "(None, None)", "99999999999999999999",
           "True", "(2147483647, 2147483647)", "(1000000, 1000000)", "(-3, -3, -3, -3)", "(-4, -1, -1)",
           "(0,0,0,0,0,0)", "x" * 50, "9" * 5000]


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in TABLE if c.attrs], ids=str)
def test_hostile_attributes_are_refused_or_mean_something(case: Case) -> None:
    """Every attribute replaced by every nasty value: a shape that the kernel confirms, or a QGraphError, soon."""
    def attempt(case: Case) -> None:
        g, feeds = case.graph()
        try:
            table = infer(g, {name: array.shape for name, array in feeds.items()})
            known = all(head in table for head in g.heads)  # not the shape that a reader decides
            if known and sum(int(np.prod(table[head])) for head in g.heads) < 1 << 20:
                assert [table[head] for head in g.heads] == [array.shape for array in run(g, feeds)]
        except QGraphError as error:
            assert "node:" in str(error) and len(str(error)) < 2100

    for key in case.attrs:
        for value in HOSTILE:
            hostile = case._replace(attrs={**case.attrs, key: value})
            assert calls(lambda hostile=hostile: attempt(hostile)) < 10_000, (key, value)


small = st.integers(1, 4)


@settings(max_examples=150)
@given(st.sampled_from(["Convolution", "Deconvolution", "max", "avg"]), st.tuples(small, small),
    st.tuples(small, small),
       st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(small, small), st.sampled_from(["valid", "full"]),
       st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_windows_of_any_geometry(op: str, kernel: tuple, stride: tuple, pad: tuple, dilate: tuple, convention: str,
                                 spatial: tuple) -> None:
    """Rule and kernel agree, or the rule refuses."""
    data = (1, 2, *spatial)
    if op in ("max", "avg"):
        case = Case("Pooling", {"kernel": kernel, "stride": stride, "pad": pad, "pool_type": op,
                                "pooling_convention": convention}, [data])
    else:
        make = conv if op == "Convolution" else deconv
        case = make(filters=3, kernel=kernel, stride=stride, pad=pad, dilate=dilate, data=data)
    try:
        found = inferred(case)
    except GraphError:
        return
    assert found == [array.shape for array in run(*case.graph())]


def test_cost_is_linear() -> None:
    def cost(count: int) -> int:
        g = Graph()
        node = g.add("null", name="data")
        for index in range(count):
            node = g.add("Activation", [node], f"a{index}", act_type="relu")
        g.heads = [Port(node)]
        found: dict[Port, tuple[int, ...]] = {}
        made = calls(lambda: found.update(infer(g, {"data": (1, 3, 8, 8)})))
        assert len(found) == count + 1
        return made

    assert cost(10_000) <= 11 * cost(1_000)
