"""Choosing layers by name: every kind of pattern, what is ambiguous, what matches nothing."""

from __future__ import annotations

import re

import pytest
from helpers import calls

from qgraph import passes
from qgraph.errors import OptionError
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import PassManager
from qgraph.ir.select import names_of, select_nodes

# as Gluon names a network: a prefix of its own, `_fwd` behind every op
GLUON = """
%data = input
%n_conv0_weight = param float32 (8, 3, 3, 3)
%n_conv0_fwd = Convolution(%data, %n_conv0_weight) {kernel=(3, 3) no_bias=True num_filter=8}
%n_relu0_fwd = Activation(%n_conv0_fwd) {act_type=relu}
%n_conv1_weight = param float32 (8, 8, 1, 1)
%n_conv1_fwd = Convolution(%n_relu0_fwd, %n_conv1_weight) {kernel=(1, 1) no_bias=True num_filter=8}
%n_stage1_conv1_weight = param float32 (8, 1, 3, 3)
%n_stage1_conv1_fwd = Convolution(%n_conv1_fwd, %n_stage1_conv1_weight) {kernel=3 no_bias=1 num_filter=8 num_group=8}
%n_stage1_conv2_weight = param float32 (8, 8, 1, 1)
%n_stage1_conv2_fwd = Convolution(%n_stage1_conv1_fwd, %n_stage1_conv2_weight) {kernel=(1, 1) no_bias=True num_filter=8}
%n_pool0_fwd = Pooling(%n_stage1_conv2_fwd) {global_pool=True pool_type=avg}
%n_dense0_weight = param float32 (5, 8)
%n_dense0_fwd = FullyConnected(%n_pool0_fwd, %n_dense0_weight) {no_bias=True num_hidden=5}
return %n_dense0_fwd
"""


@pytest.fixture
def gluon() -> Graph:
    return Graph.parse(GLUON)


def chosen(g: Graph, *patterns: str) -> list[str]:
    return [node.name for node in select_nodes(g, patterns)]


@pytest.mark.parametrize(("pattern", "names"), [
    ("n_conv0_fwd", ["n_conv0_fwd"]),                      # the name itself
    ("n_conv0", ["n_conv0_fwd"]),                          # without Gluon's suffix
    ("conv0", ["n_conv0_fwd"]),                               # nor its prefix
    ("conv2", ["n_stage1_conv2_fwd"]),                        # nor a prefix of two parts
    ("stage1_conv1", ["n_stage1_conv1_fwd"]),
    ("dense0", ["n_dense0_fwd"]),
    ("n_stage1_*", ["n_stage1_conv1_fwd", "n_stage1_conv2_fwd"]),
    ("*conv[01]_fwd", ["n_conv0_fwd", "n_conv1_fwd", "n_stage1_conv1_fwd"]),
    ("*stage?_conv2*", ["n_stage1_conv2_fwd"]),
    ("op:FullyConnected", ["n_dense0_fwd"]),
    ("op:Convolution", ["n_conv0_fwd", "n_conv1_fwd", "n_stage1_conv1_fwd", "n_stage1_conv2_fwd"]),
    ("op:Convolution_v1", ["n_conv0_fwd", "n_conv1_fwd", "n_stage1_conv1_fwd", "n_stage1_conv2_fwd"]),
    ("first", ["n_conv0_fwd"]),
    ("last", ["n_dense0_fwd"]),
])
def test_patterns(gluon: Graph, pattern: str, names: list[str]) -> None:
    assert chosen(gluon, pattern) == names
    assert set(select_nodes(gluon, (pattern,)).values()) == {pattern}


def test_patterns_add_up_and_the_first_one_is_named(gluon: Graph) -> None:
    found = select_nodes(gluon, ("first", "conv0", "last", "op:FullyConnected"))
    assert {n.name: p for n, p in found.items()} == {"n_conv0_fwd": "first", "n_dense0_fwd": "last"}
    assert select_nodes(gluon, ()) == {}


@pytest.mark.parametrize(("pattern", "close"), [
    ("con0", "conv0"), ("n_conv0_fdw", "n_conv0"), ("stage1_conv3", "stage1_conv"), ("dens0", "dense0"),
    ("mobilenet0_conv0", "conv0"), ("Conv0", "conv0"), ("conv01", "conv0"),
])
def test_a_typing_mistake_names_what_is_close(gluon: Graph, pattern: str, close: str) -> None:
    with pytest.raises(OptionError, match=rf"^--exclude {pattern}: matches nothing; close names: .*{close}"):
        select_nodes(gluon, (pattern,))


@pytest.mark.parametrize("pattern", ["xyzzy", "*xyzzy*", "", "conv", "n", "_fwd", "data", "n_conv0_weight"])
def test_what_matches_nothing_is_an_error(gluon: Graph, pattern: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"--exclude {pattern}: matches nothing; close names: ") + r"\w"):
        select_nodes(gluon, (pattern,))


def test_an_ambiguous_short_name_lists_them(gluon: Graph) -> None:
    with pytest.raises(OptionError, match=r"conv1: ambiguous, could be n_conv1_fwd, n_stage1_conv1_fwd; "
                                          r"write the whole name, or a glob such as '\*conv1\*'"):
        select_nodes(gluon, ("conv1",))
    assert chosen(gluon, "n_conv1") == ["n_conv1_fwd"]


def test_a_whole_name_is_not_ambiguous() -> None:
    """`conv0` is a node's own name and also the end of another's."""
    g = Graph.parse(GLUON.replace("n_conv1_fwd", "conv0"))
    assert chosen(g, "conv0") == ["conv0"]


def test_an_unknown_op_lists_those_there_are(gluon: Graph) -> None:
    with pytest.raises(OptionError, match="--exclude op:Deconvolution: no such op here; the ops are Activation, "
                                          "Convolution, FullyConnected, Pooling"):
        select_nodes(gluon, ("op:Deconvolution",))


def test_names_of_what_was_folded_still_work() -> None:
    """The user knows the names before the passes: of the BatchNorm and of the activation, too."""
    g = Graph.parse("""
        %data = input
        %w = param float32 (4, 3, 3, 3)
        %n_conv0_fwd = Convolution(%data, %w) {kernel=(3, 3) no_bias=True num_filter=4}
        %g = param float32 (4)
        %b = param float32 (4)
        %m = param float32 (4)
        %v = param float32 (4)
        %n_batchnorm0_fwd = BatchNorm(%n_conv0_fwd, %g, %b, %m, %v)
        %n_relu0_fwd = Activation(%n_batchnorm0_fwd) {act_type=relu}
        return %n_relu0_fwd""")
    PassManager(passes.PIPELINES["float"]).run(g)
    conv = next(n for n in g.nodes() if n.op == "Convolution")
    for pattern in ("conv0", "batchnorm0", "relu0", "n_relu0_fwd", "*batchnorm*", "first", "last"):
        assert list(select_nodes(g, (pattern,))) == [conv], pattern
    assert set(names_of(conv)) >= {"n_conv0_fwd", "n_batchnorm0_fwd", "n_relu0_fwd"}


def test_first_and_last_without_convolutions() -> None:
    g = Graph()
    x: Node = g.add("null", name="data")
    for name in ("fc0", "fc1"):
        import numpy as np

        x = g.add("FullyConnected", [x, g.add_param(name + "_weight", np.ones((3, 3), np.float32))], name,
                  num_hidden=3, no_bias=True)
    g.heads = [Port(x)]
    assert chosen(g, "first") == ["fc0"] and chosen(g, "last") == ["fc1"]


def test_a_network_without_layers_has_no_first() -> None:
    g = Graph.parse("%data = input\n%r = relu(%data)\nreturn %r")
    for pattern in ("first", "last", "conv0"):
        with pytest.raises(OptionError, match="matches nothing"):
            select_nodes(g, (pattern,))


def test_choosing_is_linear() -> None:
    """Ten patterns: a scan per pattern, not per node."""
    def cost(count: int) -> int:
        g = Graph()
        x = g.add("null", name="data")
        for i in range(count):
            x = g.add("relu", [x], f"net_relu{i}_fwd")
        g.heads = [Port(x)]
        some = range(0, count, count // 10)
        found: list[str] = []
        made = calls(lambda: found.extend(chosen(g, *(f"relu{i}" for i in some))))
        assert found == [f"net_relu{i}_fwd" for i in some]
        return made

    assert cost(5_000) <= 11 * cost(500)
