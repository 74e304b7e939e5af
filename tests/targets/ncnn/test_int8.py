"""int8 layers of ncnn: their bytes, the rules of ncnn2int8, Winograd's limit, and the engine against exact integers."""

from __future__ import annotations

import struct
from typing import Any

import networks
import numpy as np
import pytest

import qgraph
from qgraph import FreezeOptions, Graph, Node, Port
from qgraph.analysis.codes import nonnegative
from qgraph.commands.departure import kernel_departure
from qgraph.errors import OptionError, UnsupportedError
from qgraph.ir import attributes
from qgraph.quant.spec import QParams, QSpec, quantize
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets.ncnn.emit import to_ncnn
from qgraph.targets.ncnn.files import Layer, Weight
from qgraph.targets.ncnn.int8 import (
    MASK,
    NO_WINOGRAD,
    WINOGRAD_LIMIT,
    fuse_requantize,
    is_int8,
    largest_sum,
    scale_table,
)
from qgraph.targets.ncnn.model import NcnnModel
from qgraph.targets.ncnn.runtime import Executor, is_installed
from qgraph.targets.registry import get_target

ROUNDING = "half-away"


def act(step: float) -> QParams:
    return QParams(bits=8, signed=True, narrow=True, scale=np.float32(step))


def quantized(op: str, x: Node, weight: np.ndarray, step: float, g: Graph, name: str, bias: bool = True,
              granularity: str = "channel", **attrs: Any) -> Any:
    """A layer on quantized data with weights on the grid."""
    rows = np.abs(weight.reshape(len(weight), -1)).max(1) if granularity == "channel" else np.abs(weight).max()
    own = QParams(bits=8, signed=True, narrow=True, granularity=granularity,
                  scale=np.where(rows == 0, 1, rows / 127).astype(np.float32))
    baked = quantize(weight, own, ROUNDING) * np.broadcast_to(
        own.scale.reshape(-1, *[1] * (weight.ndim - 1)) if granularity == "channel" else own.scale, weight.shape)
    data = x if x.op == "fake_quantize" else g.add("fake_quantize", [x], x.name + "_q", quant=act(step))
    w = g.add("fake_quantize", [g.add_param(name + "_weight", baked.astype(np.float32))], name + "_weight_q", quant=own)
    inputs = [data, w]
    if bias:
        inputs.append(g.add_param(name + "_bias", np.linspace(-1, 1, len(weight)).astype(np.float32)))
    if op == "FullyConnected":
        attrs = {"num_hidden": len(weight), **attrs}
    else:
        attrs = {"num_filter": len(weight), "kernel": weight.shape[2:], **attrs}
    return g.add(op, inputs, name, no_bias=not bias, **attrs)


# ---- one layer ------------------------------------------------------------------------------------------------------

SHAPES = {"1x1": ((8, 6, 1, 1), {}), "3x3": ((8, 6, 3, 3), {"pad": (1, 1)}), "5x5": ((4, 6, 5, 5), {"stride": (2, 2)}),
          "3x3 dilated": ((8, 6, 3, 3), {"dilate": (2, 2)}), "wide": ((64, 6, 3, 3), {"pad": (1, 1)}),
          "depthwise": ((6, 1, 3, 3), {"num_group": 6, "pad": (1, 1)}),
          "depthwise 5x5": ((6, 1, 5, 5), {"num_group": 6, "stride": (2, 2)}),
          "one filter": ((1, 6, 3, 3), {}), "no bias": ((8, 6, 3, 3), {"no_bias": True}),
          "relu": ((8, 6, 3, 3), {"act_type": "relu"}), "clip": ((8, 6, 3, 3), {"act_type": "clip", "a_max": 3.0})}


@pytest.mark.ncnn
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_layer_is_exact(kind: str, granularity: str) -> None:
    """float32 out of exact sums: the engine differs by the rounding of one product."""
    shape, attrs = SHAPES[kind]
    attrs = dict(attrs)
    g, rng = Graph(), np.random.default_rng(0)
    x = g.add("null", name="data")
    layer = quantized("Convolution", x, rng.normal(size=shape), 0.02, g, "conv", not attrs.pop("no_bias", False),
                      granularity, **attrs)
    attributes.take(layer)
    g.heads = [Port(layer)]
    feeds = {"data": rng.normal(size=(2, 6, 9, 8)).astype(np.float32)}
    model = to_ncnn(g, {"data": (1, 6, 9, 8)})
    assert [is_int8(n) for n in model.layers] == [False, True]
    want = Reference(g, rounding=ROUNDING).run(feeds)[0]
    got = Executor(model, packing=False).run(feeds)[0]
    assert np.abs(want - want[:1]).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=3e-7 * np.abs(want).max())


@pytest.mark.ncnn
def test_a_dense_layer_is_exact() -> None:
    g, rng = Graph(), np.random.default_rng(0)
    x = g.add("Flatten", [g.add("null", name="data")], "flat")
    g.heads = [Port(quantized("FullyConnected", x, rng.normal(size=(7, 60)), 0.02, g, "fc"))]
    feeds = {"data": rng.normal(size=(2, 5, 4, 3)).astype(np.float32)}
    want = Reference(g, rounding=ROUNDING).run(feeds)[0]
    np.testing.assert_allclose(Executor(to_ncnn(g, {"data": (1, 5, 4, 3)})).run(feeds)[0], want, rtol=1e-6, atol=1e-6)


@pytest.mark.ncnn
@pytest.mark.parametrize("step", [1.0, 0.5, 1.5])
def test_halves_are_rounded_away_from_zero(step: float) -> None:
    g = Graph()
    x = g.add("null", name="data")
    g.heads = [Port(quantized("Convolution", x, np.full((1, 1, 1, 1), 127.0), step, g, "conv", False))]
    values = (np.arange(-8, 8, 0.5) * step).astype(np.float32).reshape(1, 1, 4, 8)
    want = Reference(g, rounding=ROUNDING).run({"data": values})[0]
    for packing in (False, True):
        np.testing.assert_array_equal(Executor(to_ncnn(g), packing=packing).run({"data": values})[0], want)
    even = Reference(g, rounding="half-even").run({"data": values})[0]
    assert (even != want).any()


def test_the_bytes_of_an_int8_layer() -> None:
    """tag, codes padded to 4 bytes, bias, scales of the weights, of the input: the order of ncnn's loader."""
    g, rng = Graph(), np.random.default_rng(0)
    x = g.add("null", name="data")
    weight = rng.normal(size=(3, 1, 1, 3))
    g.heads = [Port(quantized("Convolution", x, weight, 0.25, g, "conv"))]
    (_, layer) = to_ncnn(g, {"data": (1, 1, 4, 4)}).layers
    assert (layer.type, layer.name, layer.params[8], layer.params[6]) == ("Convolution", "conv", 2, 9)
    data = b"".join(part.to_bytes() for part in layer.weights)
    codes = layer.weights[0].array
    assert data[:4] == struct.pack("<I", 0x000D4B38) and data[4:13] == codes.tobytes() and data[13:16] == bytes(3)
    floats = np.frombuffer(data[16:], "<f4")
    steps = np.float32(np.abs(weight).max((1, 2, 3)) / 127)
    np.testing.assert_array_equal(floats, np.concatenate([[-1, 0, 1], np.float32(1) / steps, [4.0]]).astype(np.float32))


def test_a_dead_channel_has_finite_scales() -> None:
    g = Graph()
    x = g.add("null", name="data")
    weight = np.random.default_rng(0).normal(size=(3, 1, 3, 3))
    weight[1] = 0
    g.heads = [Port(quantized("Convolution", x, weight, 0.1, g, "conv", num_group=3))]
    model = to_ncnn(g, {"data": (1, 3, 5, 5)})
    scales = model.layers[1].weights[2].array
    assert np.isfinite(scales).all() and scales[1] == 1.0
    assert "inf" not in scale_table(model.layers)
    if is_installed():
        feeds = {"data": np.ones((1, 3, 5, 5), np.float32)}
        for packing in (False, True):
            assert np.isfinite(Executor(model, packing=packing).run(feeds)[0]).all()


def test_other_codes_are_refused_by_name() -> None:
    for spec, words in ((QSpec(signed=False), "conv: ncnn quantizes activations to -127..127"),
                        (QSpec(signed=True), "conv: ncnn quantizes activations"),
                        (QSpec(bits=4, signed=True, narrow=True), "conv: ncnn quantizes activations")):
        g = Graph()
        x = g.add("null", name="data")
        fq = g.add("fake_quantize", [x], "q", quant=QParams(bits=spec.bits, signed=spec.signed, narrow=spec.narrow,
                                                            scale=np.float32(1)))
        g.heads = [Port(quantized("Convolution", fq, np.ones((1, 1, 1, 1)), 1.0, g, "conv"))]
        with pytest.raises(UnsupportedError, match=words):
            to_ncnn(g)
    g = Graph()
    g.heads = [Port(g.add("relu", [g.add("fake_quantize", [g.add("null", name="data")], "q", quant=act(1))], "act"))]
    with pytest.raises(UnsupportedError, match="q: is read by act:relu"):
        to_ncnn(g)


# ---- requantization: the rules of ncnn2int8 -------------------------------------------------------------------------

def int8_layer(name: str, kind: str = "Convolution", reads: str = "", scale: float = 1.0, int8: bool = True) -> Layer:
    term = {"ConvolutionDepthWise": 1}.get(kind, 2)
    codes = np.ones((2, 1, 1, 1), np.int8 if int8 else np.float32)
    parts = [Weight(codes, True)]
    if int8:
        parts += [Weight(np.ones(2, np.float32)), Weight(np.full(1, scale, np.float32))]
    return Layer(kind, name, [reads or "data"], [name], {0: 2, 8: term} if int8 else {0: 2}, parts)


def plain(kind: str, name: str, *reads: str, outputs: tuple[str, ...] = ()) -> Layer:
    return Layer(kind, name, list(reads), list(outputs or (name,)))


C, D = "Convolution", "ConvolutionDepthWise"
CHAINS: dict[str, tuple[list[Layer], set[str]]] = {
    "conv - conv": ([int8_layer("a"), int8_layer("b", C, "a", 3.0)], {"a"}),
    "conv - depthwise - conv": ([int8_layer("a"), int8_layer("b", D, "a"), int8_layer("c", C, "b")], {"a", "b"}),
    "conv - float conv": ([int8_layer("a"), int8_layer("b", C, "a", int8=False)], set()),
    "float conv - conv": ([int8_layer("a", int8=False), int8_layer("b", C, "a")], set()),
    "conv - dense": ([int8_layer("a"), int8_layer("b", "InnerProduct", "a")], set()),
    "dense - dense": ([int8_layer("a", "InnerProduct"), int8_layer("b", "InnerProduct", "a")], set()),
    "conv - relu - conv": ([int8_layer("a"), plain("ReLU", "r", "a"), int8_layer("b", C, "r")], set()),
    "conv - pool - conv": ([int8_layer("a"), plain("Pooling", "p", "a"), int8_layer("b", C, "p")], set()),
    "conv - split - convs": ([int8_layer("a"), plain("Split", "s", "a", outputs=("s0", "s1")),
                              int8_layer("b", C, "s0"), int8_layer("c", D, "s1")], {"a"}),
    "conv - split - conv and sum": ([int8_layer("a"), plain("Split", "s", "a", outputs=("s0", "s1")),
                                     int8_layer("b", C, "s0"), plain("BinaryOp", "t", "s1", "b")], set()),
    "conv - split - conv and output": ([int8_layer("a"), plain("Split", "s", "a", outputs=("s0", "s1")),
                                        int8_layer("b", C, "s0")], set()),
    "conv - split - conv and float conv": ([int8_layer("a"), plain("Split", "s", "a", outputs=("s0", "s1")),
                                            int8_layer("b", C, "s0"), int8_layer("c", C, "s1", int8=False)], set()),
    "conv is the output": ([int8_layer("a")], set()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_requantization_follows_ncnn2int8(name: str) -> None:
    layers, fused = CHAINS[name]
    before = {layer.name: layer.number(8) for layer in layers}
    fuse_requantize(layers)
    assert {layer.name for layer in layers if layer.number(8) > 100} == fused
    for layer in layers:
        if layer.name in fused:
            assert layer.number(8) == before[layer.name] + 100
            reader = next(n for n in layers if is_int8(n) and n.inputs[0] in (layer.name, "s0"))
            assert layer.weights[-1].array == reader.weights[-2 if reader.number(8) > 100 else -1].array


# ---- Winograd -------------------------------------------------------------------------------------------------------

def wide_layer(fill: float, channels: int, relu: bool) -> tuple[Graph, dict[str, np.ndarray]]:
    """A 3x3 layer of `fill` as its mean code, on data that drive its sums as far as they go."""
    g, rng = Graph(), np.random.default_rng(0)
    x = g.add("null", name="data")
    y = g.add("relu", [x]) if relu else x
    weight = rng.choice([fill - 1, fill + 1], size=(16, channels, 3, 3))
    weight[:, 0, 0, 0] = 127
    g.heads = [Port(quantized("Convolution", y, weight / 127, 1 / 127, g, "conv", pad=(1, 1)))]
    return g, {"data": rng.uniform(0.998, 1.0, (1, channels, 9, 9)).astype(np.float32)}


def test_the_bound_on_a_sum() -> None:
    codes = np.zeros((2, 3, 3, 3), np.int8)
    codes[0, 0, 0, :2] = 100, -60
    codes[1, 1, 1, 1] = -90
    assert largest_sum(codes, nonnegative_input=False) == 160 * 127
    assert largest_sum(codes, nonnegative_input=True) == 100 * 127
    assert WINOGRAD_LIMIT * 576 < 1 << 31 <= (WINOGRAD_LIMIT + 1) * 576


@pytest.mark.ncnn
@pytest.mark.parametrize(("fill", "channels", "relu", "masked"), [
    (90, 36, True, False), (90, 37, True, True), (90, 256, True, True), (40, 64, False, False), (60, 64, False, True)])
def test_winograd_is_off_where_it_overflows(fill: float, channels: int, relu: bool, masked: bool) -> None:
    """Beyond the bound ncnn's own kernel is wrong, and with the mask right; below it is right without."""
    g, feeds = wide_layer(fill, channels, relu)
    model = to_ncnn(g, {"data": feeds["data"].shape})
    assert model.masked == (["conv"] if masked else [])
    assert [layer.params.get(MASK, 0) for layer in model.layers if is_int8(layer)] == [NO_WINOGRAD if masked else 0]
    want = Reference(g, rounding=ROUNDING).run(feeds)[0]
    np.testing.assert_allclose(Executor(model).run(feeds)[0], want, rtol=1e-6, atol=1e-5)
    if masked:
        for layer in model.layers:
            layer.params.pop(MASK, None)
        open_model = NcnnModel(model.layers, model.outputs)
        assert np.abs(Executor(open_model).run(feeds)[0] - want).max() > 0.1 * np.abs(want).max()


def test_other_windows_have_no_mask() -> None:
    for attrs in ({"stride": (2, 2)}, {"dilate": (2, 2)}):
        g, rng = Graph(), np.random.default_rng(0)
        x = g.add("null", name="data")
        g.heads = [Port(quantized("Convolution", x, rng.normal(size=(4, 512, 3, 3)), 0.1, g, "conv", **attrs))]
        assert to_ncnn(g).masked == []


def test_what_is_never_negative() -> None:
    n = networks.Net(0)
    signed, unsigned = n.conv(n.x, 4, act="", name="signed"), n.conv(n.x, 4, name="unsigned")
    mixed, both = n.concat(signed, unsigned), n.concat(n.pool(unsigned), n.pool(n.act(signed, "relu6")))
    pooled, leaky = n.pool(signed), n.op("LeakyReLU", unsigned, act_type="leaky")
    g = n.done(mixed, both, pooled, leaky)
    found = {port.node for port in nonnegative(g)}
    assert both in found and unsigned in found
    assert not {mixed, signed, pooled, leaky, n.x} & found


# ---- whole networks -------------------------------------------------------------------------------------------------

def frozen_network(name: str, **options: Any) -> Any:
    g, feeds = networks.build(name)
    return qgraph.freeze(g, FreezeOptions(target="ncnn", **options), calib_data=feeds), feeds["data"]


@pytest.mark.ncnn
@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_networks_are_exact_layer_by_layer(name: str) -> None:
    frozen, data = frozen_network(name)
    model = frozen.model
    assert len(model.int8_layers) == len(frozen.report["quantized"]) > 0

    def run(found: Any, watch: Any = None) -> Executor:
        return Executor(found, watch, packing=False)

    found = kernel_departure(frozen.graph, model, {"data": data[:4]}, ROUNDING, run)
    assert len(found["layers"]) == len({fq.name for fq in model.codes})
    assert found["within_one"] >= 99.9
    assert min(layer["equal"] for layer in found["layers"].values()) >= 99.9
    assert found["output"] < 1e-5
    assert frozen.report["departure"]["within_one"] >= 99.0


def test_choices_that_ncnn_has_not() -> None:
    for options, words in (({"act_bits": 7}, "target ncnn cannot carry --act-bits 7 exactly; mxnet-sim"),
                           ({"act_signed": "unsigned"}, "cannot carry --act-signed unsigned exactly; mxnet-sim")):
        with pytest.raises(UnsupportedError, match=words):
            frozen_network("conv_pool_conv", **options)
    with pytest.raises(OptionError, match="ncnn: found 'int4=true', want OPTION=VALUE with one of none"):
        get_target("ncnn{int4=true}")


def test_choices_that_ncnn_has_in_another_form_are_said() -> None:
    frozen, _ = frozen_network("conv_pool_conv", weight_bits=4, granularity="layer")
    said = " ".join(frozen.report["ncnn"]["equivalents"])
    assert "4 bits are stored in 8" in said and "per layer is repeated" in said and "no unsigned" in said
    for layer in frozen.model.int8_layers:
        assert np.abs(layer.weights[0].array).max() <= 7
        assert len(set(layer.weights[2].array.tolist())) == 1


def test_grouped_convolutions_stay_in_float() -> None:
    n = networks.Net(0)
    x = n.conv(n.x, 8, name="first")
    x = n.conv(n.conv(x, 8, groups=2, name="grouped"), 8, groups=8, name="depthwise")
    g = n.done(n.head(n.deconv(x, 4)))
    data = np.random.default_rng(1).normal(size=(8, *n.shape)).astype(np.float32)
    frozen = qgraph.freeze(g, FreezeOptions(target="ncnn", exclude=("last",)), calib_data={"data": data})
    left = {layer["name"]: layer["reason"] for layer in frozen.report["float"]}
    assert set(left) == {"grouped", "deconv", "fc"}
    assert "wrongly" in left["grouped"] and "transposed" in left["deconv"] and "excluded" in left["fc"]
    table = scale_table(frozen.model.layers)
    assert {line.split()[0] for line in table.splitlines()} == {"first", "first_param_0", "depthwise",
                                                                "depthwise_param_0"}


def test_the_table_reads_back_exactly() -> None:
    """Weights first, no empty line, and with enough digits that every float32 comes back."""
    model = frozen_network("clip_two_sided")[0].model
    text = scale_table(model.layers)
    assert text.endswith("\n") and "\n\n" not in text
    read = {line.split()[0]: np.array(line.split()[1:], np.float32) for line in text.splitlines()}
    for layer in model.int8_layers:
        parts = [weight.array for weight in layer.weights[: -1 if layer.number(8) > 100 else None]]
        np.testing.assert_array_equal(read[f"{layer.name}_param_0"], parts[-2])
        np.testing.assert_array_equal(read[layer.name], parts[-1])
    names = [line.split()[0] for line in text.splitlines()]
    assert names == sorted(names, key=lambda name: "_param_" not in name)
