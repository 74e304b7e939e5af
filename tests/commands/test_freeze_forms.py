"""`qgraph.freeze` of networks that are no plain chains of 2-D layers: each keeps its outputs, on every target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import run_mxnet

import qgraph
from qgraph import FreezeOptions, Graph, Port
from qgraph.analysis.difference import Difference
from qgraph.commands.frozen import Frozen
from qgraph.errors import UnsupportedError
from qgraph.formats.mxnet import load
from qgraph.ir.graph import Node
from qgraph.semantics.inputs import known_channels


class Chain:
    """A graph of random layers, one behind the other."""

    def __init__(self, *shape: int) -> None:
        self.g, self.rng, self.shape = Graph(), np.random.default_rng(5), shape
        self.last: Node = self.g.add("null", name="data")

    def param(self, name: str, *shape: int) -> Node:
        spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return self.g.add_param(name, (self.rng.normal(size=shape) * spread).astype(np.float32))

    def op(self, op: str, *params: Node, **attrs: Any) -> Chain:
        self.last = self.g.add(op, [self.last, *params], attrs=attrs)
        return self

    def conv(self, channels: int, filters: int, *kernel: int, relu: bool = True, **attrs: Any) -> Chain:
        name, pad = f"w{len(self.g.params)}", tuple(k // 2 for k in kernel)
        self.op("Convolution", self.param(name, filters, channels, *kernel), kernel=kernel, pad=pad, num_filter=filters,
                no_bias=True, **attrs)
        if relu:
            statistics = [self.g.add_param(f"{name}_{key}", self.rng.uniform(0.5, 1.5, filters).astype(np.float32))
                          for key in ("gamma", "beta", "mean", "var")]
            self.op("BatchNorm", *statistics, fix_gamma=False).op("Activation", act_type="relu")
        return self

    def done(self) -> Graph:
        self.g.heads = [Port(self.last)]
        return self.g

    def feeds(self, images: int, seed: int) -> dict[str, np.ndarray]:
        return {"data": np.random.default_rng(seed).normal(size=(images, *self.shape)).astype(np.float32)}


def freeze_and_judge(chain: Chain, target: str, **options: Any) -> tuple[Frozen, float]:
    """The frozen model, and its SQNR on images that were not calibrated on, against plain float."""
    g = chain.done()
    frozen = qgraph.freeze(g, FreezeOptions(target=target, **options), calib_data=chain.feeds(8, 1))
    feeds, total = chain.feeds(4, 2), Difference()
    total.update(run_mxnet(g, feeds)[0], frozen.model.executor().run(feeds)[0])
    return frozen, total.to_dict()["sqnr_db"]


def in_one_dimension() -> Chain:
    chain = Chain(4, 32).conv(4, 8, 5).op("Pooling", kernel=(2,), stride=(2,), pool_type="max").conv(8, 8, 3)
    return chain.conv(8, 4, 3, relu=False)


def in_three_dimensions() -> Chain:
    """As R(2+1)D: over the image, then over time."""
    chain = Chain(3, 6, 8, 8).conv(3, 8, 1, 3, 3).conv(8, 8, 3, 1, 1, stride=(2, 1, 1))
    return chain.op("Pooling", kernel=(1, 2, 2), stride=(1, 2, 2), pool_type="avg").conv(8, 4, 3, 3, 3, relu=False)


@pytest.mark.mxnet
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("network", [in_one_dimension, in_three_dimensions])
@pytest.mark.parametrize("target, layers", [("mxnet-sim", 3), ("onnx", 3), ("mxnet", 0)])
def test_convolutions_of_other_ranks(target: str, layers: int, network: Any, given: bool) -> None:
    """With and without the shape of the input, of which the weights tell the rank."""
    chain = network()
    shape = "data:1," + ",".join(map(str, chain.shape))
    frozen, sqnr = freeze_and_judge(chain, target, **({"input_shape": (shape,)} if given else {}))
    assert len(frozen.report["quantized"]) == layers
    assert sqnr > 25


@pytest.mark.mxnet
@pytest.mark.parametrize("mode", ["size", "like"])
@pytest.mark.parametrize("target", ["onnx", "mxnet-sim", "mxnet"])
def test_a_resize_between_quantized_layers(target: str, mode: str) -> None:
    chain = Chain(3, 8, 8).conv(3, 6, 3, 3, stride=(2, 2))
    like = [chain.g.find("data")] if mode == "like" else []
    chain.op("_contrib_BilinearResize2D", *like, height=9, width=7, mode=mode).conv(6, 4, 3, 3, relu=False)
    frozen, sqnr = freeze_and_judge(chain, target)
    assert len(frozen.report["quantized"]) == 2
    assert sqnr > 25


def test_weights_tell_the_rank_of_the_input() -> None:
    assert known_channels(in_one_dimension().done()) == {"data": (0, 4, 0)}
    assert known_channels(in_three_dimensions().done()) == {"data": (0, 3, 0, 0, 0)}


@pytest.mark.parametrize("work", [qgraph.freeze, qgraph.convert])
def test_channels_last_are_refused_before_any_data_are_read(work: Any) -> None:
    chain = Chain(8, 8, 3)
    chain.op("Convolution", chain.param("w", 4, 3, 3, 3), kernel=(3, 3), num_filter=4, no_bias=True, layout="NHWC")
    with pytest.raises(UnsupportedError, match=":Convolution: found layout NHWC, want channels"):
        work(chain.done(), **({"to": "onnx"} if work is qgraph.convert else {"options": FreezeOptions(target="onnx")}))


def unrolled(cell: str, steps: int, size: int, hidden: int) -> Graph:
    """A recurrent cell step by step; its first state is zeros of a batch that the file does not tell."""
    import mxnet as mx

    unrolled = getattr(mx.rnn, cell)(hidden, prefix="cell_").unroll(steps, mx.sym.var("data"), merge_outputs=True)[0]
    symbol = mx.sym.FullyConnected(unrolled, num_hidden=5, name="fc")
    shapes, rng = symbol.infer_shape(data=(1, steps, size))[0], np.random.default_rng(0)
    return load(symbol, {name: rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
                         for name, shape in zip(symbol.list_arguments(), shapes) if name != "data"})


@pytest.mark.mxnet
@pytest.mark.parametrize("target", ["mxnet", "onnx", pytest.param("ncnn", marks=pytest.mark.ncnn)])
@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell"])
def test_states_that_begin_with_zeros(cell: str, target: str) -> None:
    g, rng = unrolled(cell, 3, 6, 8), np.random.default_rng(1)
    calib, feeds = ({"data": rng.normal(size=(images, 3, 6)).astype(np.float32)} for images in (128, 4))
    frozen = qgraph.freeze(g, FreezeOptions(target=target), calib_data=calib)
    assert len(frozen.report["quantized"]) == (1 if target == "mxnet" else 7)  # signed data: float on mxnet
    total = Difference()
    total.update(run_mxnet(g, feeds)[0], frozen.model.executor().run(feeds)[0])
    assert total.sqnr is not None and total.sqnr > 25
