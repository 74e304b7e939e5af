"""A fused activation: a field of its node, attributes of its text form alone."""

from __future__ import annotations

import pytest

from qgraph.errors import FormatError, GraphError
from qgraph.formats.mxnet_writer import lower_float
from qgraph.ir import ops
from qgraph.ir.graph import Fused, Graph

TEXT = """\
%data = input
%w = param float32 (2, 3, 1, 1)
%conv = Convolution(%data, %w) {{{}kernel=(1, 1) no_bias=True num_filter=2}}
return %conv
"""
KINDS = [("act_type=relu ", Fused("relu")), ("a_max=6 a_min=0 act_type=clip ", Fused("clip", 0, 6)),
         ("a_max=6.0 a_min=0.0 act_type=clip ", Fused("clip", 0, 6)),
         ("a_max=1.5 a_min=-0.25 act_type=clip ", Fused("clip", -0.25, 1.5)), ("", None)]


@pytest.mark.parametrize(("text", "fused"), KINDS)
def test_text_says_what_is_fused(text: str, fused: Fused | None) -> None:
    g = Graph.parse(TEXT.format(text))
    conv = g.find("conv")
    assert conv.fused == fused and set(conv.attrs) == {"kernel", "no_bias", "num_filter"}
    assert g.text() == TEXT.format(text)


def test_a_copy_has_it_and_a_digest_sees_it() -> None:
    g = Graph.parse(TEXT.format("act_type=relu "))
    twin = g.copy()
    assert twin.find("conv").fused == Fused("relu") and twin.digest() == g.digest()
    twin.find("conv").fused = Fused("clip", 0, 6)
    assert g.find("conv").fused == Fused("relu") and twin.digest() != g.digest()


@pytest.mark.parametrize(("text", "node"), [
    ("act_type=relu ", "Activation(%conv) {act_type=relu}"), ("a_max=6 a_min=0 act_type=clip ",
                                                              "clip(%conv) {a_max=6 a_min=0}"),
    ("a_max=6.0 a_min=0.0 act_type=clip ", "clip(%conv) {a_max=6.0 a_min=0.0}")])
def test_files_have_the_node_that_the_user_wrote(text: str, node: str) -> None:
    assert f"%conv_act = {node}\n" in lower_float(Graph.parse(TEXT.format(text))).text()


def test_activations_keep_their_attributes() -> None:
    g = Graph.parse("%x = input\n%a = Activation(%x) {act_type=relu}\n%c = clip(%a) {a_max=6 a_min=0}\nreturn %c\n")
    assert ops.attr(g.find("a"), "act_type") == "relu" and ops.attr(g.find("c"), "a_max") == 6
    assert g.find("a").fused is None and g.find("c").fused is None


def test_an_end_that_is_no_number() -> None:
    with pytest.raises(FormatError, match="conv:Convolution: found .*'six'.*, want a_min and a_max to be numbers"):
        Graph.parse(TEXT.format("a_max=six a_min=0 act_type=clip "))


def test_an_attribute_that_nobody_would_read_is_refused() -> None:
    g = Graph.parse(TEXT.format(""))
    g.find("conv").attrs["act_type"] = "relu"
    with pytest.raises(GraphError, match=r"conv:Convolution: found the attribute act_type, want Node.fused"):
        g.verify()
