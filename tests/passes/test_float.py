"""The float-preserving passes: golden graphs, the same outputs in MXNet, idempotence, refusals, provenance.

A golden file is the graph before, a line ``# ---``, the graph after; ``# feed %data (2, 3, 6, 6)`` asks for a run of
both in MXNet too.  A new case is a new file.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import GOLDEN, assert_same_outputs, run_mxnet
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph import passes  # noqa: F401  (registers)
from qgraph.errors import FormatError
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import REGISTRY, PassManager
from qgraph.passes import PIPELINES
from qgraph.passes.canonicalize import Canonicalize
from qgraph.passes.fold_bn import FoldBN
from qgraph.passes.fold_bn_forward import FoldBNForward
from qgraph.passes.fold_pad import FoldPad
from qgraph.passes.fuse_relu import FuseRelu

FILES = sorted(path for path in GOLDEN.glob("*/*.txt") if path.parent.name != "frozen")  # see frozen_digits.py
FLOAT = sorted({type(step) for step in PIPELINES["float"]}, key=lambda cls: cls.name)


def case_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def read_case(path: Path) -> tuple[str, Graph, Graph]:
    text = path.read_text()
    before, _, after = text.partition("# ---\n")
    return text, Graph.parse(before), Graph.parse(after)


# ---- golden files ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", FILES, ids=case_id)
def test_golden(path: Path) -> None:
    _, before, after = read_case(path)
    same = before.text() == after.text()
    run = PassManager((REGISTRY[path.parent.name](),))
    changed = run.run(before)
    assert before.text() == after.text()
    assert (changed == 0) == same


@pytest.mark.mxnet
@pytest.mark.parametrize("path", [p for p in FILES if "# feed" in p.read_text()], ids=case_id)
def test_golden_gives_the_same_outputs(path: Path) -> None:
    text, before, _ = read_case(path)
    rng = np.random.default_rng(7)
    feeds = {name: rng.normal(size=tuple(map(int, shape.split(",")))).astype(np.float32)
             for name, shape in re.findall(r"^# feed %(\w+) \(([\d, ]+)\)", text, re.M)}
    after = before.copy()
    assert REGISTRY[path.parent.name]().run(after) > 0
    assert_same_outputs(before, after, feeds, rtol=1e-5)


def test_every_float_pass_has_a_change_and_a_no_change_case() -> None:
    for cls in FLOAT:
        kinds = {before.text() == after.text() for _, before, after in map(read_case, GOLDEN.glob(f"{cls.name}/*.txt"))}
        assert kinds == {True, False}, cls.name


@pytest.mark.parametrize("cls", FLOAT, ids=lambda c: c.name)
def test_second_run_changes_nothing(cls: type) -> None:
    for path in FILES:
        _, g, _ = read_case(path)
        cls().run(g)
        text = g.text()
        assert cls().run(g) == 0, path
        assert g.text() == text


@pytest.mark.parametrize("path", FILES, ids=case_id)
def test_second_float_pipeline_changes_nothing(path: Path) -> None:
    _, g, _ = read_case(path)
    PassManager(PIPELINES["float"]).run(g)
    assert PassManager(PIPELINES["float"]).run(g) == 0


# ---- numbers --------------------------------------------------------------------------------------------------------

def statistics(rng: np.random.Generator, channels: int) -> list[np.ndarray]:
    """gamma (also zero and negative), beta, mean, var (also near zero)."""
    gamma, beta, mean = rng.normal(size=(3, channels))
    var = rng.uniform(0.1, 2, channels)
    var[-1] = 1e-12
    if channels > 1:  # else the output were constant
        gamma[0] = 0
    return [a.astype(np.float32) for a in (gamma, beta, mean, var)]


def add_bn(g: Graph, x: Node, rng: np.random.Generator, channels: int, **attrs: object) -> Node:
    params = [g.add_param(f"bn_{n}", a) for n, a in zip(("gamma", "beta", "mean", "var"), statistics(rng, channels))]
    return g.add("BatchNorm", [x, *params], "bn", **attrs)


def add_weighted(g: Graph, x: Node, rng: np.random.Generator, shape: tuple[int, ...], op: str, out: int,
                 no_bias: bool, **attrs: object) -> Node:
    inputs = [x, g.add_param("w", rng.normal(size=shape).astype(np.float32))]
    if not no_bias:
        inputs.append(g.add_param("b", rng.normal(size=out).astype(np.float32)))
    size = {"num_hidden": out} if op == "FullyConnected" else {"num_filter": out}
    return g.add(op, inputs, "conv", no_bias=no_bias, **size, **attrs)


def batch(rng: np.random.Generator, *shape: int) -> dict[str, np.ndarray]:
    return {"data": rng.normal(size=shape).astype(np.float32)}


BN_ATTRS = st.fixed_dictionaries({}, optional={"fix_gamma": st.booleans(), "use_global_stats": st.booleans(),
                                               "eps": st.sampled_from([1e-5, 2e-5, 0.01])})


@pytest.mark.mxnet
@settings(max_examples=40)
@given(op=st.sampled_from(["Convolution", "Deconvolution"]), groups=st.sampled_from([1, 2, 4]),
       multiple=st.integers(1, 3), per_group=st.integers(1, 2), kernel=st.integers(1, 3), stride=st.integers(1, 2),
       dilate=st.integers(1, 2), pad=st.integers(0, 1), no_bias=st.booleans(), attrs=BN_ATTRS, seed=st.integers(0, 99))
def test_fold_bn_of_convolutions(op: str, groups: int, multiple: int, per_group: int, kernel: int, stride: int,
                                 dilate: int, pad: int, no_bias: bool, attrs: dict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, out = groups * per_group, groups * multiple
    if op == "Deconvolution":
        dilate, pad = 1, min(pad, kernel - 1)
    shape = (inputs, multiple) if op == "Deconvolution" else (out, per_group)
    g = Graph()
    conv = add_weighted(g, g.add("null", name="data"), rng, (*shape, kernel, kernel), op, out, no_bias,
                        kernel=(kernel, kernel), stride=(stride, stride), dilate=(dilate, dilate), pad=(pad, pad),
                        num_group=groups)
    g.heads = [Port(add_bn(g, conv, rng, out, **attrs))]
    check_fold_bn(g, batch(rng, 2, inputs, 7, 7))


@pytest.mark.mxnet
@settings(max_examples=15)
@given(flatten=st.booleans(), no_bias=st.booleans(), attrs=BN_ATTRS, seed=st.integers(0, 99))
def test_fold_bn_of_dense(flatten: bool, no_bias: bool, attrs: dict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = Graph()
    conv = add_weighted(g, g.add("null", name="data"), rng, (5, 12 if flatten else 4), "FullyConnected", 5, no_bias,
                        flatten=flatten)
    axis = {} if flatten else {"axis": -1}
    g.heads = [Port(add_bn(g, conv, rng, 5, **axis, **attrs))]
    check_fold_bn(g, batch(rng, 2, 3, 4))


def check_fold_bn(g: Graph, feeds: dict[str, np.ndarray]) -> None:
    folded = g.copy()
    assert PassManager((FoldBN(),)).run(folded) == 1
    assert [n.op for n in folded.nodes()].count("BatchNorm") == 0
    assert_same_outputs(g, folded, feeds, rtol=1e-5)


@pytest.mark.mxnet
@settings(max_examples=25)
@given(groups=st.sampled_from([1, 2, 4]), multiple=st.integers(1, 2), zero_shift=st.booleans(), no_bias=st.booleans(),
       stride=st.integers(1, 2), dense=st.booleans(), attrs=BN_ATTRS, seed=st.integers(0, 99))
def test_fold_bn_forward(groups: int, multiple: int, zero_shift: bool, no_bias: bool, stride: int, dense: bool,
                         attrs: dict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = Graph()
    bn = add_bn(g, g.add("null", name="data"), rng, 4, **attrs)
    if zero_shift:
        for name in ("bn_mean", "bn_beta"):
            g.params[name] = np.zeros_like(g.params[name])
    if dense:
        last = add_weighted(g, bn, rng, (5, 4 * 6 * 6), "FullyConnected", 5, no_bias)
    else:
        pad = 1 if zero_shift else 0
        last = add_weighted(g, bn, rng, (groups * multiple, 4 // groups, 3, 3), "Convolution", groups * multiple,
                            no_bias, kernel=(3, 3), num_group=groups, pad=(pad, pad), stride=(stride, stride))
    g.heads = [Port(last)]
    folded = g.copy()
    assert PassManager((FoldBNForward(),)).run(folded) == 1
    assert len(folded.inputs(folded.find("conv"))) == (2 if zero_shift and no_bias else 3)
    assert_same_outputs(g, folded, batch(rng, 2, 4, 6, 6), rtol=1e-5)


@pytest.mark.mxnet
@settings(max_examples=40)
@given(top=st.integers(0, 3), bottom=st.integers(0, 3), left=st.integers(0, 3), right=st.integers(0, 3),
       size=st.tuples(st.integers(7, 10), st.integers(7, 10)), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
       stride=st.integers(1, 3), dilate=st.integers(1, 2), own=st.integers(0, 2), groups=st.sampled_from([1, 2]))
def test_fold_pad_for_every_size_and_stride(top: int, bottom: int, left: int, right: int, size: tuple[int, int],
                                            kernel: tuple[int, int], stride: int, dilate: int, own: int,
                                            groups: int) -> None:
    rng = np.random.default_rng(top + 4 * bottom)
    g = Graph()
    pad = g.add("Pad", [g.add("null", name="data")], mode="constant", pad_width=(0, 0, 0, 0, top, bottom, left, right))
    conv = add_weighted(g, pad, rng, (4, 2 // groups, *kernel), "Convolution", 4, False, kernel=kernel, pad=(own, own),
                        stride=(stride, stride), dilate=(dilate, dilate), num_group=groups)
    g.heads = [Port(conv)]
    folded = g.copy()
    whole = (bottom - top) % dilate == 0 and (right - left) % dilate == 0
    assert PassManager((FoldPad(),)).run(folded) == whole
    if whole:
        assert not [n for n in folded.nodes() if n.op == "Pad"]
        assert_same_outputs(g, folded, batch(rng, 2, 2, *size), rtol=1e-5)


def test_fold_pad_leaves_uneven_sides_when_told() -> None:
    _, g, _ = read_case(GOLDEN / "fold-pad" / "asymmetric.txt")
    assert FoldPad(asymmetric=False).run(g) == 0
    _, g, _ = read_case(GOLDEN / "fold-pad" / "symmetric.txt")
    assert FoldPad(asymmetric=False).run(g) == 1


@pytest.mark.mxnet
def test_helper_sees_a_wrong_graph_and_a_constant_one() -> None:
    _, g, _ = read_case(GOLDEN / "fold-bn" / "conv.txt")
    wrong = g.copy()
    wrong.params["c_weight"] = wrong.params["c_weight"] * np.float32(1.001)
    feeds = batch(np.random.default_rng(0), 2, 3, 6, 6)
    with pytest.raises(AssertionError, match="differs by"):
        assert_same_outputs(g, wrong, feeds)
    with pytest.raises(AssertionError, match="does not vary"):
        assert_same_outputs(g, g, {"data": np.ones((2, 3, 6, 6), np.float32)})


# ---- refusals and provenance ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("case", "reason"), [
    ("shared-weight", "c:Convolution: its parameter w has other readers"),
    ("second-reader", "c:Convolution: has other readers"),
    ("head", "c:Convolution: is a head"),
    ("axis", "bn:BatchNorm: normalizes axis 3"),
    ("activation", "c:Convolution: has a fused relu"),
    ("further-output", "bn:BatchNorm: its mean or variance output is read"),
])
def test_fold_bn_says_why_not(case: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    _, g, _ = read_case(GOLDEN / "fold-bn" / f"refused-{case}.txt")
    with caplog.at_level(logging.DEBUG, "qgraph"):
        assert FoldBN().run(g) == 0
    assert f"fold-bn: {reason}" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("v", -1.0), ("g", np.inf), ("m", np.nan), ("w", 3e38)])
def test_fold_bn_refuses_what_is_not_finite(name: str, value: float, caplog: pytest.LogCaptureFixture) -> None:
    g = Graph.parse("""
        %data = input
        %w = param float32 (4, 4, 1, 1)
        %c = Convolution(%data, %w) {kernel=(1, 1) no_bias=True num_filter=4}
        %g = param float32 (4)
        %b = param float32 (4)
        %m = param float32 (4)
        %v = param float32 (4)
        %bn = BatchNorm(%c, %g, %b, %m, %v) {fix_gamma=False}
        return %bn""")
    g.params[name] = np.full_like(g.params[name], value)
    if name == "w":
        g.params["g"] = np.full(4, 10, np.float32)
    digest = g.digest()
    with caplog.at_level(logging.DEBUG, "qgraph"):
        assert PassManager((FoldBN(),)).run(g) == 0
    assert "not finite" in caplog.text
    assert g.digest() == digest


def test_folding_leaves_the_arrays_of_a_copy_alone() -> None:
    for path in FILES:
        _, g, _ = read_case(path)
        digest, twin = g.digest(), g.copy()
        PassManager(PIPELINES["float"]).run(twin)
        assert g.digest() == digest, path


def test_names_of_what_was_folded_are_kept_in_order() -> None:
    g = Graph.parse("""
        %data = input
        %p = Pad(%data) {mode=constant pad_width=(0, 0, 0, 0, 1, 1, 1, 1)}
        %w = param float32 (4, 3, 3, 3)
        %c = Convolution(%p, %w) {kernel=(3, 3) no_bias=True num_filter=4}
        %g = param float32 (4)
        %b = param float32 (4)
        %m = param float32 (4)
        %v = param float32 (4)
        %bn = BatchNorm(%c, %g, %b, %m, %v)
        %r = LeakyReLU(%bn) {act_type=leaky slope=0}
        %d = Dropout(%r)
        return %d""")
    PassManager(PIPELINES["float"]).run(g)
    assert [n.name for n in g.nodes() if n.op != "null"] == ["c"]
    assert g.find("c").origin == ("c", "bn", "p", "r")  # the last is the activation's name


@pytest.mark.mxnet
def test_a_fused_output_is_the_same_output() -> None:
    _, g, _ = read_case(GOLDEN / "fuse-relu" / "ops.txt")
    feeds = batch(np.random.default_rng(0), 2, 3, 6, 6)
    want = run_mxnet(g, feeds)
    FuseRelu().run(g)
    assert [h.node.name for h in g.heads] == ["f"]
    assert np.array_equal(run_mxnet(g, feeds)[0], want[0])


def test_labels_and_dead_parameters_go() -> None:
    _, g, _ = read_case(GOLDEN / "canonicalize" / "inference-form.txt")
    g.add_param("dead", np.zeros(3, np.float32))
    PassManager((Canonicalize(),)).run(g)
    assert [n.name for n in g.data_inputs()] == ["data"]
    assert "dead" not in g.params
    g.add_param("dead", np.zeros(3, np.float32))
    assert PassManager((Canonicalize(),)).run(g) == 1


def test_sync_batch_norm_is_a_batch_norm() -> None:
    text = (GOLDEN / "fold-bn" / "conv.txt").read_text().partition("# ---")[0]
    g = Graph.parse(text.replace("BatchNorm(", "_contrib_SyncBatchNorm(").replace("{eps", "{key=a ndev=8 eps"))
    assert Canonicalize().run(g) == 1
    assert g.text() == Graph.parse(text).text()


@pytest.mark.parametrize("line", [
    "%b = fake_quantize(%a) {}", "%b = fake_quantize(%a) {u8}", "%b = fake_quantize(%a) {zz tensor}",
    "%b = fake_quantize(%a) {u8 tensor scale=abc}", "%b = param float99 (1)", "%b = param float32 (99999, 99999)",
    '%"b\\q" = input', "%b = Foo(%a, banana)", "%b = Foo(%a) {k=1 junk}", "%b = Foo(%a) {k=1 !!}", "%b = Foo(%c)",
    "%b = Foo(%a) -> 99999999999999999999", "%b = Foo(%a) -> 0", "return %a, banana", "what is this"])
def test_text_that_is_no_graph_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(FormatError, match="^line 2: "):
        Graph.parse(f"%a = input\n{line}\nreturn %a")


def test_text_of_parameters_reads_back() -> None:
    text = "%a = param bool (2)\n%b = param float32 ()\n%c = param int8 (2, 3)\nreturn %a, %b, %c\n"
    assert Graph.parse(text).text() == text
