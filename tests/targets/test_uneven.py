"""Uneven padding in the files of engines that have it: the kernel of the user's network, and the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from networks import Net

from qgraph.analysis.windows import whole
from qgraph.commands.departure import kernel_departure
from qgraph.engines import executor
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import PassManager
from qgraph.passes import PIPELINES
from qgraph.targets.base import Model, Writing
from qgraph.targets.onnx.model import OnnxModel
from qgraph.targets.registry import get_target
from qgraph.targets.tengine.model import TengineModel, check_read_back, load

SHAPES = {"data": (2, 4, 13, 12)}
PADS = [(0, 0, 1, 1), (1, 0, 2, 1), (2, 0, 0, 2)]  # top, left, bottom, right, of the file
TARGETS = ["onnx", pytest.param("ncnn", marks=pytest.mark.ncnn), "tengine"]


def network(channels: int = 4) -> tuple[Graph, dict[str, np.ndarray]]:
    """Dense, depthwise and dilated convolutions behind uneven Pads, all of them outputs; after the float passes."""
    n = Net(20, channels)

    def layer(x: Node, widths: tuple[int, ...], name: str, groups: int = 1, **attrs: Any) -> Node:
        top, left, bottom, right = widths
        pad = n.op("Pad", x, mode="constant", pad_width=(0, 0, 0, 0, top, bottom, left, right))
        node = n.conv(pad, 8, 3, "", groups=groups, name=name)
        node.attrs.update({"pad": "(0, 0)", **{key: str(value) for key, value in attrs.items()}})
        return n.act(node, "relu")

    a = layer(n.x, PADS[0], "dense", stride=(2, 2))
    b = layer(a, PADS[1], "depthwise", 8, stride=(2, 2))
    c = layer(b, PADS[2], "dilated", dilate=(2, 1))
    n.g.heads = [Port(a), Port(b), Port(c)]
    PassManager(PIPELINES["float"]).run(n.g)
    return n.g, {"data": n.rng.normal(size=(2, channels, 13, 12)).astype(np.float32)}


def whole_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writers write kernels with their zero taps."""
    for module in ("onnx.windows", "ncnn.nn", "tengine.nn"):
        monkeypatch.setattr(f"qgraph.targets.{module}.window", lambda g, conv: whole(conv))


def windows(model: Model) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(kernel, pads) of each convolution as its file says it, pads as in `PADS`."""
    if isinstance(model, OnnxModel):
        convs = [{a.name: tuple(a.ints) for a in n.attribute} for n in model.proto.graph.node if n.op_type == "Conv"]
        return [(a["kernel_shape"], a["pads"]) for a in convs]
    if isinstance(model, TengineModel):
        params = [layer.params or () for layer in model.tm.layers if layer.op == "Convolution"]
        return [(tuple(p[:2]), tuple(p[10:14])) for p in params]  # type: ignore[misc]
    layers: Any = model
    found = []
    for layer in layers.layers:
        if layer.type.startswith("Convolution"):
            left, top = layer.number(4), layer.number(14, layer.number(4))
            pads = (top, left, layer.number(16, top), layer.number(15, left))
            found.append(((layer.number(11), layer.number(1)), pads))
    return found


def values(q: Graph, model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, and the codes where the engine shows them."""
    ports = [*dict.fromkeys(model.codes.values()), *model.heads]
    return executor(model, "this test", watch=ports).run(feeds)


@pytest.mark.parametrize("target", TARGETS)
def test_small_kernels_give_the_same_bits(target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    g, feeds = network()
    assert [ops.attr(n, "kernel") for n in g.toposort() if n.op == "Convolution"] == [(4, 4), (4, 4), (4, 5)]
    q = networks.quantize(g, networks.table_of(g, feeds), target)
    writing = Writing(shapes=SHAPES)
    small = get_target(target).write(q, writing)
    assert windows(small) == [((3, 3), pads) for pads in PADS]
    if isinstance(small, TengineModel):
        check_read_back(q, small, feeds)
        path = tmp_path / "m.tmfile"
        path.write_bytes(small.data)
        assert windows(load(str(path))) == windows(small)
    else:
        found = kernel_departure(q, small, feeds, get_target(target).spec.rounding,
                                 lambda m, watch: executor(m, "this test", watch=watch))
        assert found["within_one"] == 100
    found_values = values(q, small, feeds)
    whole_kernels(monkeypatch)
    large = get_target(target).write(q, writing)
    assert windows(large) == [((4, 4), (1, 1, 1, 1)), ((4, 4), (2, 1, 2, 1)), ((4, 5), (2, 2, 2, 2))]
    want = values(q, large, feeds)
    assert len(want) == len(found_values) >= 3
    for a, b in zip(want, found_values):
        assert np.ptp(a) > 0
        np.testing.assert_array_equal(b, a)


def test_onnxruntime_adds_pairs_across_taps_where_channels_are_odd() -> None:
    g, feeds = network(channels=3)
    shapes = {"data": feeds["data"].shape}
    q = networks.quantize(g, networks.table_of(g, feeds), "onnx")
    first, *others = windows(get_target("onnx").write(q, Writing(shapes=shapes)))
    assert first == ((4, 4), (1, 1, 1, 1)) and others == [((3, 3), pads) for pads in PADS[1:]]
    assert windows(get_target("onnx").convert(g, shapes))[0] == ((3, 3), PADS[0])


@pytest.mark.parametrize("target", TARGETS)
def test_in_float(target: str) -> None:
    g, feeds = network()
    model = get_target(target).convert(g, SHAPES)
    assert windows(model) == [((3, 3), pads) for pads in PADS]
    want = networks.run(g, feeds, g.heads)
    for a, b in zip(want, executor(model, "this test").run(feeds)):
        np.testing.assert_allclose(b, a, atol=2e-3 if target == "ncnn" else 1e-5)  # ncnn computes in half precision
