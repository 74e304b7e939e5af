"""Small random networks of every shape that the quantization has to carry, and the facts that tests assert of them.

``python networks.py`` prints the facts of all networks as JSON: how a test sees another instruction set, which oneDNN
reads from the environment when the process starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any, Callable

import numpy as np

from qgraph import passes
from qgraph.analysis.difference import Difference
from qgraph.analysis.observed import observed_ports
from qgraph.calibration.collect import collect
from qgraph.commands.departure import kernel_departure
from qgraph.commands.line import bound, pipeline, split
from qgraph.data.open import open_data
from qgraph.formats.mxnet_writer import to_mxnet
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, PassManager
from qgraph.options import FreezeOptions
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.insert_fake_quantize import InsertFakeQuantize
from qgraph.quant.spec import QParams
from qgraph.quant.table import CalibrationTable, Entry
from qgraph.semantics.interpreter import run
from qgraph.targets.base import Model, Writing
from qgraph.targets.mxnet.runtime import Executor
from qgraph.targets.registry import get_target

Facts = dict[str, Any]


class Net:
    """Builds a graph of random layers on ``x``, an input of `channels` x `size` x `size`.

    Weights of neighbouring input channels have opposite signs, so that two products of codes never overflow int16: what
    CPUs without VNNI add them in.
    """

    def __init__(self, seed: int, channels: int = 3, size: int = 12) -> None:
        self.g, self.rng = Graph(), np.random.default_rng(seed)
        self.x = self.g.add("null", name="data")
        self.channels: dict[Node, int] = {self.x: channels}
        self.shape = (channels, size, size)

    def weight(self, *shape: int) -> np.ndarray:
        """axis 1 runs over input channels."""
        w = self.rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        w[:, 1::2] = -np.sign(w[:, : shape[1] // 2 * 2 : 2]) * np.abs(w[:, 1::2])
        return w.astype(np.float32)

    def param(self, name: str, *shape: int) -> Node:
        return self.g.add_param(name, (self.rng.normal(size=shape) * 0.1).astype(np.float32))

    def op(self, op: str, *inputs: Node, channels: int = 0, **attrs: object) -> Node:
        node = self.g.add(op, list(inputs), **attrs)
        self.channels[node] = channels or self.channels[inputs[0]]
        return node

    def act(self, x: Node, act: str) -> Node:
        if act == "relu6":
            return self.op("clip", x, a_min=0.0, a_max=6.0)
        return self.op("Activation", x, act_type=act) if act else x

    def conv(self, x: Node, out: int, kernel: int = 3, act: str = "relu", *, stride: int = 1, groups: int = 1,
             name: str = "", bias: bool = True, weight: Node | None = None) -> Node:
        name = name or f"conv{sum(n.op == 'Convolution' for n in self.g.dag)}"
        weight = weight or self.g.add_param(
            name + "_weight", self.weight(out, self.channels[x] // groups, kernel, kernel))
        inputs = [x, weight] + ([self.param(name + "_bias", out)] if bias else [])
        node = self.g.add("Convolution", inputs, name, kernel=(kernel, kernel), num_filter=out, num_group=groups,
                          pad=(kernel // 2, kernel // 2), stride=(stride, stride), no_bias=not bias)
        self.channels[node] = out
        return self.act(node, act)

    def deconv(self, x: Node, out: int, act: str = "relu") -> Node:
        weight = self.g.add_param("deconv_weight", self.weight(self.channels[x], out, 4, 4))
        node = self.g.add("Deconvolution", [x, weight], "deconv", kernel=(4, 4), stride=(2, 2), pad=(1, 1),
                          num_filter=out, no_bias=True)
        self.channels[node] = out
        return self.act(node, act)

    def dense(self, x: Node, inputs: int, out: int, act: str = "", name: str = "fc") -> Node:
        weight = self.g.add_param(name + "_weight", self.weight(out, inputs))
        node = self.g.add("FullyConnected", [x, weight, self.param(name + "_bias", out)], name, num_hidden=out)
        self.channels[node] = out
        return self.act(node, act)

    def pool(self, x: Node, kind: str = "max") -> Node:
        return self.op("Pooling", x, kernel=(2, 2), stride=(2, 2), pool_type=kind)

    def global_pool(self, x: Node) -> Node:
        return self.op("Pooling", x, kernel=(1, 1), global_pool=True, pool_type="avg")

    def concat(self, *inputs: Node) -> Node:
        return self.op("Concat", *inputs, channels=sum(self.channels[x] for x in inputs), dim=1, num_args=len(inputs))

    def head(self, x: Node, classes: int = 7) -> Node:
        return self.dense(self.op("Flatten", self.global_pool(x)), self.channels[x], classes)

    def done(self, *heads: Node) -> Graph:
        self.g.heads = [Port(h) for h in heads]
        self.g.prune()
        return self.g


# ---- the networks ---------------------------------------------------------------------------------------------------

def conv_pool_conv(n: Net) -> Graph:
    x = n.pool(n.conv(n.x, 8))
    return n.done(n.head(n.conv(n.pool(n.conv(x, 12, stride=2), "avg"), 8)))


def signed_all_through(n: Net) -> Graph:
    x = n.conv(n.conv(n.x, 8, act=""), 8, act="")
    return n.done(n.head(n.conv(n.pool(x), 8)))


def concats(n: Net) -> Graph:
    """SqueezeNet's fire modules: nested, one input read by another branch too."""
    x = n.conv(n.x, 8)
    a, b = n.conv(x, 6, 1), n.conv(x, 10)
    first = n.concat(a, b)
    second = n.concat(n.pool(first), n.pool(n.conv(first, 4, 1)))
    return n.done(n.head(n.conv(n.concat(second, n.pool(a)), 8)))


def concat_mixed(n: Net) -> Graph:
    """One input unsigned, one signed, one the network's own."""
    x = n.conv(n.x, 8)
    y = n.concat(x, n.conv(x, 8, act=""), n.x)
    return n.done(n.head(n.conv(y, 8)))


def concat_signs(n: Net) -> Graph:
    """Codes of both kinds, which no integer concatenation joins."""
    x = n.conv(n.x, 8)
    return n.done(n.head(n.conv(n.concat(n.conv(x, 8), n.conv(x, 8, act="")), 8)))


def concat_clips(n: Net) -> Graph:
    """One part ends at its clip, the other beyond it: no one range is right for both."""
    x = n.conv(n.x, 8)
    ended = n.op("clip", n.conv(x, 8, act=""), a_min=0.0, a_max=0.5)
    return n.done(n.head(n.conv(n.concat(n.conv(x, 8), ended), 8)))


def concat_shared_readers(n: Net) -> Graph:
    """The parts of the concatenation are read by convolutions of their own (DenseNet)."""
    x = n.conv(n.x, 8)
    y = n.conv(x, 4)
    first = n.concat(x, y)
    z = n.conv(first, 4)
    return n.done(n.head(n.concat(first, z)), n.head(n.conv(y, 4)))


def residual_identity(n: Net) -> Graph:
    x = n.conv(n.x, 8)
    for _ in range(2):
        x = n.act(n.op("elemwise_add", n.conv(n.conv(x, 8), 8, act=""), x), "relu")
    return n.done(n.head(x))


def residual_downsample(n: Net) -> Graph:
    x = n.conv(n.x, 8)
    main = n.conv(n.conv(x, 12, stride=2), 12, act="")
    x = n.act(n.op("elemwise_add", main, n.conv(x, 12, 1, "", stride=2)), "relu")
    x = n.act(n.op("elemwise_add", n.conv(x, 12, act=""), x), "relu")
    return n.done(n.head(x))


def residual_swapped(n: Net) -> Graph:
    """The identity comes first, the sum is an output too."""
    x = n.conv(n.x, 8)
    y = n.act(n.op("elemwise_add", x, n.conv(x, 8, act="")), "relu")
    z = n.act(n.op("elemwise_add", n.conv(y, 8, 1, ""), n.conv(y, 8, act="")), "relu")
    return n.done(n.head(z), y)


def residual_linear(n: Net) -> Graph:
    """MobileNetV2: no activation behind the sum, signed operands, relu6 and depthwise inside."""
    x = n.conv(n.conv(n.x, 8, act="relu6"), 6, 1, "")
    for _ in range(2):
        y = n.conv(n.conv(x, 12, 1, "relu6"), 12, 3, "relu6", groups=12)
        x = n.op("elemwise_add", n.conv(y, 6, 1, ""), x)
    return n.done(n.head(n.conv(x, 16, 1, "relu6")))


def residual_preactivation(n: Net) -> Graph:
    """ResNetV2: a relu of its own behind the sum, which the next sum reads before it."""
    x = n.conv(n.x, 8, act="")
    for _ in range(2):
        y = n.act(x, "relu")
        x = n.op("elemwise_add", n.conv(n.conv(y, 8), 8, act=""), x)
    return n.done(n.head(n.act(x, "relu")))


def residual_unsigned_operand_no_act(n: Net) -> Graph:
    x = n.conv(n.x, 8)
    y = n.op("elemwise_add", n.conv(x, 8, act=""), x)
    return n.done(n.head(n.conv(y, 8)))


def residual_other_readers(n: Net) -> Graph:
    """Both operands of the sum have other readers."""
    x = n.conv(n.x, 8)
    a, b = n.conv(x, 8, act=""), n.conv(x, 8, 1, "")
    y = n.act(n.op("elemwise_add", a, b), "relu")
    return n.done(n.head(n.op("elemwise_add", n.conv(y, 8), n.conv(b, 8))), n.head(n.conv(a, 8)))


def residual_signed_other_reader(n: Net) -> Graph:
    """The signed operand has another reader, so it cannot be moved to unsigned codes."""
    x = n.conv(n.x, 8)
    b = n.conv(x, 8, 1, "")
    y = n.act(n.op("elemwise_add", n.conv(x, 8, act=""), b), "relu")
    return n.done(n.head(n.concat(n.conv(y, 8), n.conv(b, 8))))


def residual_of_input(n: Net) -> Graph:
    """The operand is the network's input."""
    return n.done(n.head(n.conv(n.act(n.op("elemwise_add", n.conv(n.x, 3, act=""), n.x), "relu"), 8)))


def residual_three(n: Net) -> Graph:
    """A sum of sums; x + x."""
    x = n.conv(n.x, 8)
    y = n.op("elemwise_add", n.op("elemwise_add", n.conv(x, 8, act=""), n.conv(x, 8, 1, "")), n.conv(x, 8, 1))
    return n.done(n.head(n.op("elemwise_add", y, y)))


def residual_of_pools(n: Net) -> Graph:
    """No operand is a convolution."""
    x, y = n.conv(n.x, 8), n.conv(n.x, 8)
    z = n.op("elemwise_add", n.pool(x), n.pool(y))
    w = n.op("elemwise_add", n.pool(x), n.pool(n.conv(y, 8, act="")))
    return n.done(n.head(n.conv(z, 8)), n.head(n.conv(n.act(w, "relu"), 8)))


def heads(n: Net) -> Graph:
    """Outputs on maps, with and without activation; one is read further."""
    x = n.conv(n.x, 8)
    y = n.conv(n.pool(x), 8)
    return n.done(n.conv(x, 4, 1, ""), n.conv(y, 6, 1, "sigmoid"), y, n.conv(y, 2))


def float_between(n: Net) -> Graph:
    x = n.op("sigmoid", n.conv(n.x, 8, act=""))
    y = n.op("tanh", n.conv(x, 8, act=""))
    return n.done(n.head(n.conv(n.op("_mul_scalar", n.conv(y, 8), scalar=0.5), 8)))


def squeeze_excite(n: Net) -> Graph:
    x = n.conv(n.x, 8)
    y = n.conv(x, 8, act="")
    scale = n.conv(n.conv(n.global_pool(y), 4, 1), 8, 1, "sigmoid")
    return n.done(n.head(n.act(n.op("elemwise_add", n.op("broadcast_mul", y, scale), x), "relu")))


def dense_behind_flatten(n: Net) -> Graph:
    x = n.pool(n.conv(n.x, 8))
    y = n.dense(n.op("Flatten", x), 8 * 36, 16, "relu", "fc0")
    return n.done(n.dense(n.dense(y, 16, 8, "", "fc1"), 8, 5, "", "fc2"))


def dense_only(n: Net) -> Graph:
    return n.done(n.dense(n.dense(n.x, 3 * 144, 32, "relu", "fc0"), 32, 5, "", "fc1"))


def one_by_one_head(n: Net) -> Graph:
    """A 1x1 convolution of a 1x1 map, flattened (SqueezeNet's and MobileNet's other way of a classifier)."""
    x = n.conv(n.conv(n.x, 8), 8)
    return n.done(n.op("softmax", n.op("Flatten", n.conv(n.global_pool(x), 7, 1, ""))))


def deconvolution(n: Net) -> Graph:
    x = n.conv(n.x, 8, stride=2)
    return n.done(n.conv(n.deconv(x, 8), 4, act=""))


def grouped(n: Net) -> Graph:
    x = n.conv(n.x, 8)
    y = n.conv(x, 8, groups=2)
    return n.done(n.head(n.conv(n.conv(y, 8, groups=8), 12, 1)))


def shared_weight(n: Net) -> Graph:
    """RetinaNet's heads: one weight and bias on two maps."""
    x = n.conv(n.x, 8)
    w = n.g.add_param("w", n.weight(8, 8, 3, 3))
    a, b = n.conv(x, 8, weight=w, name="a"), n.conv(n.pool(x), 8, weight=w, name="b")
    return n.done(n.head(a), n.dense(n.op("Flatten", n.global_pool(b)), 8, 3, name="fc2"))


def shared_weight_both_signs(n: Net) -> Graph:
    """The readers of one weight read unsigned and signed codes."""
    x = n.conv(n.x, 8, act="")
    w = n.g.add_param("w", n.weight(8, 8, 3, 3))
    a, b = n.conv(n.act(x, "relu"), 8, weight=w, name="a"), n.conv(x, 8, weight=w, name="b")
    return n.done(n.head(n.concat(a, b)))


def fused_clip(n: Net) -> Graph:
    x = n.conv(n.x, 8, act="relu6")
    n.g.params["conv0_weight"] *= np.float32(5)  # beyond 6
    y = n.conv(n.conv(x, 8, act="relu6", groups=8), 12, 1, "relu6")
    z = n.op("clip", n.op("elemwise_add", n.conv(y, 12, act=""), y), a_min=0.0, a_max=6.0)
    return n.done(n.head(z))


def clip_two_sided(n: Net) -> Graph:
    x = n.op("clip", n.conv(n.x, 8, act=""), a_min=-0.5, a_max=0.5)
    return n.done(n.head(n.conv(x, 8)))


def leaky(n: Net) -> Graph:
    x = n.op("LeakyReLU", n.conv(n.x, 8, act=""), act_type="leaky", slope=0.1)
    return n.done(n.head(n.conv(x, 8)))


def upsampling(n: Net) -> Graph:
    """FPN: nearest neighbours doubled and added."""
    x = n.conv(n.x, 8)
    y = n.conv(n.pool(x), 8)
    up = n.op("UpSampling", y, scale=2, sample_type="nearest", num_args=1)
    z = n.op("elemwise_add", n.conv(x, 8, 1), up)
    return n.done(n.conv(z, 4, act=""), n.conv(n.concat(x, up), 4, act=""))


def dead_channels(n: Net) -> Graph:
    """All-zero filters with and without bias, a whole layer of zeros, huge and tiny biases."""
    x = n.conv(n.x, 8, name="c0")
    y = n.conv(x, 8, name="c1")
    z = n.conv(x, 8, 1, "", name="c2")
    n.g.params["c0_weight"][[1, 5]] = 0
    n.g.params["c0_bias"][1] = 0
    n.g.params["c1_weight"][2] *= np.float32(1e-12)
    n.g.params["c1_bias"][:] = [1e-30, -1e-30, 1e-9, 0, 3, -3, 1, -1]
    n.g.params["c2_weight"][:] = 0
    n.g.params["c2_bias"][:4] = 0
    return n.done(n.head(n.act(n.op("elemwise_add", y, z), "relu")))


def constant_activation(n: Net) -> Graph:
    """A tensor that is always zero goes into convolutions, a sum and a concatenation."""
    x = n.conv(n.x, 8, name="c0")
    dead = n.conv(x, 8, name="dead")
    n.g.params["dead_bias"][:] = -100
    y = n.act(n.op("elemwise_add", n.conv(dead, 8, act=""), n.conv(x, 8, 1, "")), "relu")
    return n.done(n.head(n.concat(y, dead)))


NETWORKS: dict[str, Callable[[Net], Graph]] = {f.__name__: f for f in (
    conv_pool_conv, signed_all_through, concats, concat_mixed, concat_signs, concat_clips, concat_shared_readers,
    residual_identity, residual_downsample, residual_swapped, residual_linear, residual_preactivation,
    residual_unsigned_operand_no_act, residual_other_readers, residual_signed_other_reader, residual_of_input,
    residual_three, residual_of_pools, heads, float_between, squeeze_excite, dense_behind_flatten, dense_only,
    one_by_one_head, deconvolution, grouped, shared_weight, shared_weight_both_signs, fused_clip, clip_two_sided,
    leaky, upsampling, dead_channels, constant_activation)}


def in_turns(choices: Iterable[Any]) -> list[tuple[str, Any]]:
    """(network, choice): every network with the first choice, and with two of the others, in turns."""
    first, *others = choices
    return [(name, choice) for number, name in enumerate(NETWORKS)
            for choice in (first, others[2 * number % len(others)], others[(2 * number + 1) % len(others)])]


IMAGES = 4


def build(name: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """(float graph after the float passes, a batch for it)"""
    net = Net(sum(map(ord, name)))
    g = NETWORKS[name](net)
    feeds = {"data": net.rng.normal(size=(IMAGES, *net.shape)).astype(np.float32)}
    PassManager(passes.PIPELINES["float"]).run(g)
    return g, feeds


def calibrated(g: Graph, feeds: dict[str, np.ndarray]) -> CalibrationTable:
    return collect(g, open_data(feeds, input_names=tuple(feeds)))


def table(**ranges: tuple[float, float]) -> CalibrationTable:
    entries = {name: Entry(low, high, low, high, "naive") for name, (low, high) in ranges.items()}
    return CalibrationTable("naive", 8, None, "", 1, entries=entries)


def table_of(g: Graph, feeds: dict[str, np.ndarray]) -> CalibrationTable:
    """Minimum and maximum of every tensor, from the NumPy reference."""
    ports = observed_ports(g)
    values = run(g, feeds, ports)
    return table(**{p.key: (float(v.min()), float(v.max())) for p, v in zip(ports, values)})


def steps(target: str, calibration: CalibrationTable | None, feeds: dict[str, np.ndarray] | None = None,
          original: Graph | None = None, **options: Any) -> list[Pass]:
    """All quantizing passes of a target, with the calibration, some images and the float network."""
    return [bound(s, table=calibration, feeds=feeds, original=original)
            for s in split(pipeline(FreezeOptions(target=target, **options)))[1]]


def quantize(g: Graph, table: CalibrationTable | None, target: str = "mxnet", **options: Any) -> Graph:
    """A quantized copy of a float graph, by the standard pipeline."""
    q = g.copy()
    steps = split(pipeline(FreezeOptions(target=target, **options)))[1]
    PassManager(tuple(dataclasses.replace(s, table=table) if s.name == "calibrate" else s for s in steps)).run(q)
    return q


def trained(name: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """(network with quantizers that have their numbers, as `qgraph.qat` leaves one, a batch for it)"""
    g, feeds = build(name)
    table = calibrated(g, feeds)
    PassManager((InsertFakeQuantize(target="mxnet-sim"),)).run(g)
    for fq in g.nodes("fake_quantize"):
        fq.quant = dataclasses.replace(fq.quant, symmetric=True)  # what is trained has no zero point
    Calibrate(table=table).run(g)
    return g, feeds


def written(q: Graph, target: str = "mxnet") -> Model:
    """A quantized graph in the target's ops."""
    return get_target(target).write(q, Writing())


def lower(q: Graph, target: str = "mxnet") -> Graph:
    """The same of a target that writes MXNet's ops, as a graph."""
    g = written(q, target).ir
    assert g is not None
    return g


def run_module(g: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """As a user runs it: `mx.mod.Module` under MXNet's default bind."""
    import mxnet as mx

    symbol, arg, aux = to_mxnet(g)
    module = mx.mod.Module(symbol, data_names=list(feeds), label_names=None)
    module.bind(data_shapes=[(n, a.shape) for n, a in feeds.items()], for_training=False)
    module.set_params(arg, aux)
    module.forward(mx.io.DataBatch([mx.nd.array(a) for a in feeds.values()]), is_train=False)
    return [out.asnumpy() for out in module.get_outputs()]


def run_block(g: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """As a Gluon user runs it: `SymbolBlock`, hybridized."""
    import mxnet as mx

    symbol, arg, aux = to_mxnet(g)
    block = mx.gluon.SymbolBlock(symbol, [mx.sym.var(n) for n in feeds])
    block.collect_params().initialize(mx.init.Zero())
    known = block.collect_params()
    for name, array in {**arg, **aux}.items():
        known[name]._load_init(array, mx.cpu())
    block.hybridize(static_alloc=True, static_shape=True)
    out = block(*[mx.nd.array(a) for a in feeds.values()])
    return [o.asnumpy() for o in (out if isinstance(out, (list, tuple)) else [out])]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


def exclusions(g: Graph) -> list[tuple[str, ...]]:
    """Every other layer left in float: integers and floats meet everywhere."""
    layers = [n.name for n in g.nodes() if ops.kind(n) == ops.COMPUTE]
    return [tuple(layers[::2]), tuple(layers[1::2])]


def examine(name: str, target: str = "mxnet", **options: Any) -> Facts:
    """Facts of a frozen network, in plain JSON."""
    g, feeds = build(name)
    return examine_graph(g, feeds, calibrated(g, feeds), target, **options)


def examine_graph(g: Graph, feeds: dict[str, np.ndarray], table: CalibrationTable, target: str,
                  **options: Any) -> Facts:
    want = Executor(g).run(feeds)
    q = quantize(g, table, target, **options)
    model = written(q, target)
    lowered = model.ir
    assert lowered is not None
    got = Executor(lowered).run(feeds)
    differences = []
    for a, b in zip(want, got):
        difference = Difference()
        difference.update(a, b)
        differences.append(difference.sqnr)
    departure = kernel_departure(q, model, feeds, "mxnet", lambda m, watch: m.executor(watch))
    fqs = [n for n in q.nodes("fake_quantize") if q.param(q.inputs(n)[0]) is None]
    module = run_module(lowered, feeds)
    return {
        "module": same(got, module), "block": same(got, run_block(lowered, feeds)),
        "module_error": max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(got, module)),
        "again": same(got, Executor(lowered).run(feeds)),
        "shapes": [a.shape for a in want] == [b.shape for b in got], "finite": all(np.isfinite(b).all() for b in got),
        "varies": all(bool(np.abs(b - b[:1]).max() > 0.01 * np.abs(b).max() > 0) for b in got),
        "sqnr": [None if d is None else float(d) for d in differences],
        "layers": departure["layers"], "output": departure["output"],
        "unjudged": [n.name for n in fqs if q.inputs(n)[0].key not in departure["layers"]],
        "ops": dict(Counter(n.op for n in lowered.nodes())),
    }


# ---- the codes of weights that a kernel works with -----------------------------------------------------------------

STEPS = [float(np.float32(m * 10.0 ** e)) for m, e in
         zip(np.random.default_rng(5).uniform(1, 10, 24), [-8, -6, -5, *[-4, -3, -2, -1] * 5, 2])]


def weight_codes(low: int, high: int) -> np.ndarray:
    """(32, 16): random rows that reach `low`, `high` or both, rows of one sign, with one live weight, and dead."""
    rng = np.random.default_rng(high)
    codes = rng.integers(low, high + 1, (32, 16))
    codes[:, 0] = rng.choice([low, high], 32)
    codes[0] = -np.abs(codes[0])
    codes[0, 0] = low
    codes[1] = np.minimum(np.abs(codes[1]), high)
    codes[1, 0] = high
    codes[2] = 0
    codes[3], codes[3, 7] = 0, high
    codes[4], codes[4, 7] = 0, low
    codes[5], codes[6] = low, high
    codes[7], codes[7, 3] = np.clip(codes[7], low + 1, high), high
    codes[8], codes[8, 3] = np.clip(codes[8], low, high - 1), low
    return codes


def kernel_codes(codes: np.ndarray, step: float, signed: bool, dense: bool = False) -> np.ndarray:
    """The weight codes that MXNet's kernel finds in what we write for `codes`: it multiplies each by one."""
    count = codes.shape[1]
    g = Graph()
    data = g.add("fake_quantize", [g.add("null", name="data")], quant=QParams(8, signed, scale=np.float32(1)))
    shape = codes.shape if dense else (*codes.shape, 1, 1)
    weight = g.add_param("w", (codes * np.float32(step)).astype(np.float32).reshape(shape))
    qp = QParams(8, True, granularity="channel", limit=64 if signed else 0, scale=np.full(len(codes), step))
    inputs = [data, g.add("fake_quantize", [weight], quant=qp)]
    ones = np.eye(count, dtype=np.float32)
    if dense:
        g.heads = [Port(g.add("FullyConnected", inputs, num_hidden=len(codes), no_bias=True))]
        return np.rint(Executor(lower(g)).run({"data": ones})[0].T / step)
    conv = g.add("Convolution", inputs, kernel=(1, 1), num_filter=len(codes), no_bias=True)
    g.heads = [Port(g.add("fake_quantize", [conv], quant=QParams(8, True, scale=np.float32(step))))]
    return np.rint(Executor(lower(g)).run({"data": ones[None, :, None]})[0][0, :, 0] / step)


def wrong_codes(signed: bool, dense: bool) -> int:
    """Of 24 x 512."""
    codes = weight_codes(-64, 64) if signed else weight_codes(-128, 127)
    return sum(int((kernel_codes(codes, step, signed, dense) != codes).sum()) for step in STEPS)


def main() -> None:
    # what oneDNN or MXNet print goes elsewhere: the last line is ours
    facts: dict[str, Any] = {name: examine(name) for name in NETWORKS}
    facts["wrong_codes"] = {f"{signed} {dense}": wrong_codes(signed, dense)
                            for signed, dense in ((False, True), (False, False), (True, False))}
    print(json.dumps(facts))


if __name__ == "__main__":
    os.environ.pop("MXNET_SUBGRAPH_BACKEND", None)
    main()
