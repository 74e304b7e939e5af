"""Near ties: outputs behind a choice between values that are equal but for rounding, in `convert` and in passes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from qgraph import engines
from qgraph.commands import convert as conversion
from qgraph.commands.floatcheck import TOLERANCE, run_checked
from qgraph.commands.ties import behind_equal_values, fed_in_front_of_jumps
from qgraph.errors import PassError, QGraphError, UnsupportedError
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import Pass
from qgraph.targets.base import Executor
from qgraph.targets.onnx.convert import CONVERTERS, Context

pytest.importorskip("onnxruntime")
PIXELS = 1024
SHAPE = ["data:1,1,32,32"]


def chooser(choice: str) -> Graph:
    """A score per pixel, from 1 to 2, no two alike, and what a choice makes of them."""
    g = Graph.parse(f"""
%data = input
%weight = param float32 (8, 1, 3, 3)
%mix = Convolution(%data, %weight) {{kernel=(3, 3) no_bias=True num_filter=8 pad=(1, 1)}}
%scores = mean(%mix) {{axis=(1)}}
%flat = Reshape(%scores) {{shape=(0, -1)}}
%offset = param float32 (1, {PIXELS})
%near = broadcast_add(%flat, %offset)
{choice}
return %near %out
""")
    rng = np.random.default_rng(0)
    g.params["weight"] = rng.normal(0, 1e-3, (8, 1, 3, 3)).astype(np.float32)
    g.params["offset"] = rng.uniform(1, 2, (1, PIXELS)).astype(np.float32)
    return g


TOPK = "%out = topk(%near) {axis=1 k=512 ret_typ=indices}"
FEEDS = {"data": np.random.default_rng(1).normal(size=(2, 1, 32, 32)).astype(np.float32)}


class Nudge(Pass):
    """Moves the scores by some 1e-5, less than they may differ by."""

    name = "nudge"
    preserves_float = True

    def run(self, g: Graph) -> int:
        g.params["offset"] = g.params["offset"] + np.linspace(-6e-5, 6e-5, PIXELS, dtype=np.float32)
        return 1


class OtherEnd(Nudge):
    """A wrong rewrite of a choice."""

    name = "other-end"

    def run(self, g: Graph) -> int:
        super().run(g)
        g.find("out").attrs["is_ascend"] = "True"
        return 1


def executor() -> engines.Engine:
    return engines.runtime("testing", "onnxruntime")


def test_a_choice_between_near_ties_may_change(caplog: pytest.LogCaptureFixture) -> None:
    changed = run_checked((Nudge(),), chooser(TOPK), FEEDS, executor())
    assert changed > 0.1 > TOLERANCE and "rounding alone" in caplog.text


def test_a_wrong_choice_is_found_among_near_ties() -> None:
    with pytest.raises(PassError, match="pass other-end changed the outputs .*, first at out:topk"):
        run_checked((OtherEnd(),), chooser(TOPK), FEEDS, executor())


def test_an_engine_may_refuse_a_network_that_is_cut_up() -> None:
    """The outputs are then compared as they are."""
    engine = executor()

    def picky(g: Graph, watch: Sequence[Port] | None = None) -> Executor:
        if any(node.name == "near_fed" for node in g.dag):
            raise UnsupportedError("near_fed: cannot be fed")
        return engine(g, watch)

    with pytest.raises(PassError, match="other-end changed the outputs"):
        run_checked((OtherEnd(),), chooser(TOPK.replace("k=512", "k=1")), FEEDS, picky)


def nudged(monkeypatch: pytest.MonkeyPatch, wrong: str = "") -> None:
    """Let conversions move the scores by some 1e-5, and be wrong about the op `wrong`."""
    def plus(c: Context, x: str, offset: str) -> str:
        return str(c.op("Add", c.op("Add", x, c.const(np.linspace(-6e-5, 6e-5, PIXELS, dtype=np.float32))), offset))

    monkeypatch.setitem(CONVERTERS, "broadcast_add", plus)
    if wrong:
        right = CONVERTERS[wrong]
        monkeypatch.setitem(CONVERTERS, wrong, lambda c, x: c.op("Sub", c.const(np.float32(PIXELS)), right(c, x)))


def test_a_conversion_may_choose_otherwise(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    nudged(monkeypatch)
    caplog.set_level(logging.WARNING, "qgraph")
    found = conversion.convert(chooser("%more = _mul_scalar(%near) {scalar=1000}\n%out = floor(%more)"),
                               input_shape=SHAPE, runtime="onnxruntime")
    assert found.report["difference"] > TOLERANCE and "rounding alone" in caplog.text


def test_a_wrong_conversion_of_a_choice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    nudged(monkeypatch, wrong="floor")
    with pytest.raises(QGraphError, match="the onnx model is wrong: out differs by .*, first at out:floor"):
        conversion.convert(chooser("%out = floor(%near)"), input_shape=SHAPE, runtime="onnxruntime")


def test_what_is_fed_is_in_front_of_the_choice() -> None:
    g = chooser(TOPK)
    twin, fed = fed_in_front_of_jumps(g, lambda node: node.name != "near")
    ((name, source),) = fed.items()
    assert source.name == "flat" and [head.key for head in twin.heads] == ["near", "out", "flat"]
    assert [port.node.name for port in twin.inputs(twin.find("near"))] == [name, "offset"]
    assert not fed_in_front_of_jumps(g, lambda node: False)[1]


def test_integers_are_not_fed() -> None:
    g = chooser("%ids = topk(%near) {axis=1 k=8 ret_typ=indices dtype=int64}\n%out = broadcast_mod(%ids, %ids)")
    assert [source.name for source in fed_in_front_of_jumps(g, lambda node: True)[1].values()] == ["near"]


@pytest.mark.parametrize(("values", "k", "found"), [
    ([4, 3, 2, 1, 1], 3, False), ([4, 3, 2, 2, 1], 3, True), ([4, 4, 2, 1, 0], 3, True), ([4, 3, 2, 1, 1], 0, True)])
def test_equal_values_that_are_chosen_are_found(values: list[float], k: int, found: bool) -> None:
    g = chooser(f"%top = topk(%near) {{axis=1 k={k} ret_typ=indices}}\n%out = sin(%top)")
    twin, _ = fed_in_front_of_jumps(g, lambda node: True)
    nodes, first = behind_equal_values(twin, {"near_fed": np.array([values], np.float32)})
    assert {node.name for node in nodes} == ({"top", "out"} if found else set())
    assert first == ("top:topk" if found else "")


@pytest.mark.mxnet
def test_the_order_of_equal_values_is_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mxnet")
    choice = "%few = round(%near)\n%out = topk(%few) {axis=1 k=512 ret_typ=indices}"
    assert conversion.convert(chooser(choice), input_shape=SHAPE).report["difference"] > TOLERANCE
    assert "not compared: out; out:topk orders values that are exactly equal" in caplog.text
