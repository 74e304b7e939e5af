"""Tengine converters, one op at a time: what is read back computes what MXNet's op does; the rest is named."""

from __future__ import annotations

from typing import Any, NamedTuple

import networks
import numpy as np
import pytest
from helpers import run_mxnet
from tmfile import check_structure

from qgraph.errors import UnsupportedError
from qgraph.ir import attributes
from qgraph.ir.graph import Graph, Port
from qgraph.quant.spec import QParams, quantize
from qgraph.semantics.interpreter import Executor
from qgraph.targets.base import Writing
from qgraph.targets.registry import get_target
from qgraph.targets.tengine.convert import CONVERTERS, FLOAT_ONLY
from qgraph.targets.tengine.emit import to_tengine
from qgraph.targets.tengine.export import REWRITES, TAKEN, export
from qgraph.targets.tengine.files import CONST, INT32, Model, from_bytes
from qgraph.targets.tengine.graph import MAKERS, real_of
from qgraph.targets.tengine.model import TengineModel

Shape = tuple[int, ...]


class Case(NamedTuple):
    """An op on inputs x0, x1..., of these shapes behind the batch, and then parameters of these shapes."""

    op: str
    shapes: list[Shape]
    attrs: dict[str, Any] = {}
    params: list[Shape] = []
    types: tuple[str, ...] = ()
    exported: bool = True

    def __str__(self) -> str:
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        return f"{self.op}-{'-'.join('x'.join(map(str, s)) for s in self.shapes)}-{attrs}".replace(" ", "")


IMAGE = (4, 6, 5)
K3 = {"kernel": (3, 3), "num_filter": 8}
POOL = {"kernel": (3, 3), "stride": (2, 2)}
CASES = [
    Case("Convolution", [IMAGE], K3, [(8, 4, 3, 3), (8,)], ("Convolution",)),
    Case("Convolution", [IMAGE], {**K3, "no_bias": True, "pad": (1, 2), "stride": (2, 1), "dilate": (1, 2)},
         [(8, 4, 3, 3)]),
    Case("Convolution", [IMAGE], {"kernel": (1, 3), "num_filter": 8, "num_group": 2, "pad": (0, 1)},
         [(8, 2, 1, 3), (8,)]),
    Case("Convolution", [IMAGE], {**K3, "num_filter": 4, "num_group": 4, "act_type": "relu"}, [(4, 1, 3, 3), (4,)],
         ("Convolution",)),
    Case("Convolution", [IMAGE], {**K3, "act_type": "clip", "a_min": 0.0, "a_max": 6.0}, [(8, 4, 3, 3), (8,)],
         ("Convolution",)),
    Case("Convolution", [IMAGE], {**K3, "act_type": "clip", "a_min": 0.0, "a_max": 2.5}, [(8, 4, 3, 3), (8,)],
         ("Convolution", "Clip"), exported=False),
    Case("FullyConnected", [IMAGE], {"num_hidden": 7}, [(7, 120), (7,)], ("Flatten", "FullyConnected")),
    Case("FullyConnected", [(9,)], {"num_hidden": 7, "no_bias": True, "act_type": "relu"}, [(7, 9)],
         ("FullyConnected", "ReLU")),
    *(Case("Pooling", [(4, 9, 8)], {**POOL, "pool_type": kind, "pooling_convention": convention, "pad": pad},
           exported=kind == "max" or pad == (0, 0))
      for kind in ("max", "avg") for convention in ("valid", "full") for pad in ((0, 0), (1, 1))),
    Case("Pooling", [(4, 9, 8)], {**POOL, "pool_type": "avg", "pad": (1, 1), "count_include_pad": False}),
    *(Case("Pooling", [IMAGE], {"kernel": (1, 1), "global_pool": True, "pool_type": kind}) for kind in ("max", "avg")),
    Case("mean", [IMAGE], {"axis": (2, 3)}, types=("Pooling", "Flatten")),
    Case("mean", [IMAGE], {"axis": (-1, 2), "keepdims": True}, types=("Pooling",)),
    Case("_contrib_AdaptiveAvgPooling2D", [IMAGE], {"output_size": 1}),
    *(Case("Activation", [IMAGE], {"act_type": kind}) for kind in ("relu", "sigmoid", "tanh")),
    *(Case(kind, [IMAGE]) for kind in ("relu", "sigmoid", "tanh")),
    Case("LeakyReLU", [IMAGE], {"act_type": "leaky"}, types=("ReLU",)),
    Case("LeakyReLU", [IMAGE], {"act_type": "leaky", "slope": 0.1}),
    Case("LeakyReLU", [IMAGE], {"act_type": "elu", "slope": 0.5}),
    Case("LeakyReLU", [IMAGE], {"act_type": "prelu"}, [(4,)], ("PReLU",)),
    Case("clip", [IMAGE], {"a_min": 0.0, "a_max": 6.0}, types=("ReLU6",)),
    Case("clip", [IMAGE], {"a_min": -1.0, "a_max": 0.5}, types=("Clip",), exported=False),
    Case("elemwise_add", [IMAGE, IMAGE], types=("Eltwise",)),
    Case("elemwise_add", [IMAGE, IMAGE], {"act_type": "relu"}, types=("Eltwise", "ReLU")),
    Case("broadcast_add", [IMAGE, IMAGE]), Case("add_n", [IMAGE, IMAGE], {"num_args": 2}),
    Case("elemwise_mul", [IMAGE, IMAGE]), Case("broadcast_mul", [IMAGE, (4, 1, 1)], types=("Eltwise",)),
    Case("broadcast_mul", [(4, 1, 1), IMAGE]),
    Case("softmax", [(9,)]), Case("softmax", [IMAGE], {"axis": 1}), Case("softmax", [IMAGE], exported=False),
    Case("SoftmaxActivation", [(9,)]),
    Case("BatchNorm", [(4,)], {"fix_gamma": False}, [(4,)] * 4, ("BatchNormalization",)),
    Case("BatchNorm", [(4,)], {}, [(4,)] * 4),
    Case("Flatten", [IMAGE], types=("Flatten",)), Case("Flatten", [(9,)], types=()),
    Case("Reshape", [IMAGE], {"shape": (0, 2, -1)}, types=("Reshape",)),
    Case("Reshape", [IMAGE], {"shape": (0, -3, 5)}),
    Case("squeeze", [(4, 1, 1)], {"axis": (2, 3)}, exported=False),
    Case("expand_dims", [(9,)], {"axis": 2}, exported=False),
    Case("Concat", [IMAGE, (2, 6, 5)], {"dim": 1, "num_args": 2}),
    Case("Concat", [IMAGE, IMAGE], {"dim": -1, "num_args": 2}),
]
FLOAT_CASES = {"BatchNorm", "prelu", "elu"}


def normal(g: Graph, name: str, rng: np.random.Generator, *shape: int) -> Any:
    return g.add_param(name, rng.normal(size=shape).astype(np.float32))


def build(case: Case) -> tuple[Graph, dict[str, np.ndarray]]:
    g, rng = Graph(), np.random.default_rng(5)
    ports = [g.add("null", name=f"x{i}") for i in range(len(case.shapes))]
    for index, shape in enumerate(case.params):
        low, high = (0.5, 1.5) if case.op == "BatchNorm" else (-1.0, 1.0)
        ports.append(g.add_param(f"p{index}", rng.uniform(low, high, shape).astype(np.float32)))
    node = g.add(case.op, ports, "op", attrs=case.attrs)
    attributes.take(node)
    g.heads = [Port(node)]
    return g, {f"x{i}": rng.uniform(-4, 8, (2, *shape)).astype(np.float32) for i, shape in enumerate(case.shapes)}


def read_back(model: TengineModel) -> TengineModel:
    return TengineModel(from_bytes(model.data, "op.tmfile"))


def types(tm: Model) -> tuple[str, ...]:
    return tuple(layer.op for layer in tm.layers if layer.op not in ("Const", "InputOp"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float(case: Case) -> None:
    g, feeds = build(case)
    model = read_back(to_tengine(g, {name: x.shape for name, x in feeds.items()}))
    (want,), (found,) = Executor(g).run(feeds), model.executor().run(feeds)
    assert np.abs(want - want[:1]).max() > 0
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    if case.types:
        assert types(model.tm) == case.types
    check_structure(model.tm)


@pytest.mark.mxnet
@pytest.mark.parametrize("case", [c for c in CASES if c.exported], ids=str)
def test_the_export_is_the_same_network_in_mxnet(case: Case) -> None:
    g, feeds = build(case)
    twin = export(g, {name: x.shape for name, x in feeds.items()})
    assert {n.op for n in twin.nodes() if n.op != "null"} <= TAKEN
    named = dict(zip(("data", "x", "y"), feeds.values()))
    assert [n.name for n in twin.data_inputs()] == list(named)
    for want, found in zip(run_mxnet(g, feeds), run_mxnet(twin, named)):
        assert want.shape == found.shape
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if not c.exported], ids=str)
def test_what_convert_tool_gets_wrong_is_not_exported(case: Case) -> None:
    g, feeds = build(case)
    with pytest.raises(UnsupportedError, match=r"^op.*convert_tool"):
        export(g, {name: x.shape for name, x in feeds.items()})


def test_every_converter_has_a_case_and_a_way_back() -> None:
    tried = {case.op for case in CASES} | {"Dropout", "_copy", "identity", "BlockGrad"}
    assert set(CONVERTERS) == tried and set(CONVERTERS) > FLOAT_ONLY
    written = {op for case in CASES for op in types(to_tengine(build(case)[0], {
        name: x.shape for name, x in build(case)[1].items()}).tm)}
    assert written <= set(MAKERS)
    assert set(REWRITES) <= TAKEN | {"relu", "sigmoid", "tanh", "softmax", "broadcast_add", "mean",
                                     "_contrib_AdaptiveAvgPooling2D"}


@pytest.mark.parametrize(("case", "words"), [
    (Case("Deconvolution", [IMAGE], {"kernel": (2, 2), "num_filter": 3}, [(4, 3, 2, 2)]),
     "op:Deconvolution: there is no Tengine converter for this op; end the model before it"),
    (Case("Convolution", [(4, 9)], {"kernel": (3,), "num_filter": 6}, [(6, 4, 3), (6,)]), "convolution is 2-D, NCHW"),
    (Case("FullyConnected", [(3, 9)], {"num_hidden": 7, "flatten": False}, [(7, 9), (7,)]), "flatten=False"),
    (Case("Pooling", [IMAGE], {**POOL, "pool_type": "sum"}), "no sum pooling"),
    (Case("Pooling", [IMAGE], {"kernel": (6, 5), "pad": (1, 1), "pool_type": "avg"}), "as large as the image"),
    (Case("Pooling", [(4, 9, 8)], {**POOL, "pool_type": "avg", "pooling_convention": "full", "pad": (1, 1),
                                   "count_include_pad": False}), "counts its padding in Tengine"),
    (Case("add_n", [IMAGE] * 3, {"num_args": 3}), "takes two values, found 3"),
    (Case("broadcast_add", [IMAGE, (1, 6, 5)]), "a value per channel"),
    (Case("elemwise_add", [IMAGE], params=[(1, 4, 6, 5)]), "reads the parameter p0 as a value"),
    (Case("softmax", [(9,)], {"temperature": 2.0}), "no temperature"),
    (Case("Activation", [IMAGE], {"act_type": "softsign"}), "no activation softsign"),
    (Case("LeakyReLU", [IMAGE], {"act_type": "selu"}), "no selu"),
    (Case("mean", [IMAGE], {"axis": 1}), "height and width alone"),
    (Case("Reshape", [IMAGE], {"shape": (-1, 5)}), "keeps the axis of the batch"),
], ids=lambda v: str(v)[:40])
def test_what_tengine_cannot_carry_is_named(case: Case, words: str) -> None:
    g, feeds = build(case)
    with pytest.raises(UnsupportedError, match=rf"^op:{case.op}: .*{words}|{words}"):
        to_tengine(g, {name: x.shape for name, x in feeds.items()})


def test_a_shape_that_is_needed_is_asked_for() -> None:
    with pytest.raises(UnsupportedError, match="needs the shape of x0, which is not known; --input-shape"):
        to_tengine(build(Case("Reshape", [IMAGE], {"shape": (0, -1)}))[0])


# ---- int8 -----------------------------------------------------------------------------------------------------------


REFUSED = {"float_between": "_mul_scalar:_mul_scalar: there is no Tengine converter",
           "deconvolution": "deconv:Deconvolution: there is no Tengine converter",
           "upsampling": "upsampling:UpSampling: there is no Tengine converter"}


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["layer", "group", "channel"])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_int8_networks_read_back_exactly(name: str, granularity: str) -> None:
    """The integers of the frozen graph, every one of every output."""
    g, feeds = networks.build(name)
    table = networks.calibrated(g, feeds)
    if name in REFUSED:
        with pytest.raises(UnsupportedError, match=REFUSED[name]):
            networks.quantize(g, table, "tengine", granularity=granularity)
        return
    g = networks.quantize(g, table, "tengine", granularity=granularity)
    model = get_target("tengine").write(g, Writing({n: x.shape for n, x in feeds.items()}))
    assert isinstance(model, TengineModel)
    back = read_back(model)
    check_structure(back.tm)
    want, found = Executor(g, rounding="half-away").run_tensors(feeds), back.executor().run_tensors(feeds)
    assert len(want) == len(found) == len(back.outputs)
    for a, b in zip(want, found):
        assert np.unique(a.codes).size > (1 if name == "constant_activation" else 3)
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.real, b.real)


@pytest.mark.parametrize("case", [c for c in CASES if not FLOAT_CASES & {c.op, c.attrs.get("act_type")}], ids=str)
def test_int8_ops_read_back_exactly(case: Case) -> None:
    """The op between two convolutions, on both sides of integers."""
    g, rng = Graph(), np.random.default_rng(11)
    image = len(case.shapes[0]) == 3
    ports: list[Any] = []
    for index, shape in enumerate(case.shapes):
        x = g.add("null", name=f"x{index}")
        weight = normal(g, f"w{index}", rng, shape[0], shape[0], *((1, 1) if image else ()))
        attrs = {"kernel": (1, 1), "num_filter": shape[0], "no_bias": True} if image else {
            "num_hidden": shape[0], "no_bias": True}
        ports.append(g.add("Convolution" if image else "FullyConnected", [x, weight], f"in{index}", attrs=attrs))
    for index, shape in enumerate(case.params):
        ports.append(g.add_param(f"p{index}", rng.normal(size=shape).astype(np.float32)))
    node = g.add(case.op, ports, "op", attrs=case.attrs)
    attributes.take(node)
    g.heads = [Port(node)]
    feeds = {f"x{i}": rng.normal(size=(3, *shape)).astype(np.float32) for i, shape in enumerate(case.shapes)}
    g = networks.quantize(g, networks.calibrated(g, feeds), "tengine")
    back = read_back(to_tengine(g, {n: x.shape for n, x in feeds.items()}))
    check_structure(back.tm)
    (want,), (found,) = Executor(g, rounding="half-away").run_tensors(feeds), back.executor().run_tensors(feeds)
    assert np.unique(want.codes).size > 3
    np.testing.assert_array_equal(found.codes, want.codes)


@pytest.mark.parametrize(("exclude", "words"), [
    (("conv2",), "conv2:Convolution: stays in float .excluded.*freeze without --exclude.*convert --to tengine"),
])
def test_a_layer_left_in_float_is_refused(exclude: tuple[str, ...], words: str) -> None:
    g, feeds = networks.build("conv_pool_conv")
    names = [n.name for n in g.nodes("Convolution")]
    table = networks.calibrated(g, feeds)
    with pytest.raises(UnsupportedError, match=words.replace("conv2", names[-1])):
        networks.quantize(g, table, "tengine", exclude=(names[-1],))


@pytest.mark.parametrize("kind", ["Convolution", "FullyConnected"])
def test_one_output_channel_is_refused_in_int8_alone(kind: str) -> None:
    g, x = Graph(), np.random.default_rng(0).normal(size=(2, 4, 5, 5)).astype(np.float32)
    attrs = {"kernel": (1, 1), "num_filter": 1} if kind == "Convolution" else {"num_hidden": 1}
    weight = np.ones((1, 4, 1, 1) if kind == "Convolution" else (1, 100), np.float32)
    g.heads = [Port(g.add(kind, [g.add("null", name="data"), g.add_param("w", weight)], "one", no_bias=True,
                          attrs=attrs))]
    assert read_back(to_tengine(g, {"data": x.shape})).executor().run({"data": x})[0].shape[1] == 1
    table = networks.calibrated(g, {"data": x})
    with pytest.raises(UnsupportedError, match=f"one:{kind}: .*one output channel; give it a second one"):
        networks.quantize(g, table, "tengine")


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "BatchNorm"][:1])
def test_a_float_op_is_refused_in_int8(case: Case) -> None:
    g, rng = Graph(), np.random.default_rng(0)
    dense = g.add("FullyConnected", [g.add("null", name="data"), normal(g, "w", rng, 4, 4)],
                  "dense", num_hidden=4, no_bias=True)
    ports = [dense, *(g.add_param(f"p{i}", np.ones(4, np.float32)) for i in range(4))]
    g.heads = [Port(g.add("BatchNorm", ports, "bn"))]
    table = networks.calibrated(g, {"data": rng.normal(size=(3, 4)).astype(np.float32)})
    with pytest.raises(UnsupportedError, match="bn:BatchNorm: Tengine has no int8 form .*qgraph convert --to tengine"):
        networks.quantize(g, table, "tengine")


# ---- scales ---------------------------------------------------------------------------------------------------------

def test_what_passes_values_on_has_the_scale_of_what_it_reads() -> None:
    """conv -> leaky -> relu -> maxpool -> flatten -> dense: behind conv all is one scale, without the negatives."""
    g, rng = Graph(), np.random.default_rng(3)
    x = rng.normal(size=(4, 3, 8, 8)).astype(np.float32)
    conv = g.add("Convolution", [g.add("null", name="data"), normal(g, "w", rng, 4, 3, 1, 1)],
                 "conv", kernel=(1, 1), num_filter=4, no_bias=True)
    leaky = g.add("LeakyReLU", [conv], "leaky", act_type="leaky", slope=0.9)
    relu = g.add("Activation", [leaky], "relu", act_type="relu")
    pool = g.add("Pooling", [relu], "pool", kernel=(2, 2), stride=(2, 2), pool_type="max")
    flat = g.add("Flatten", [pool], "flat")
    g.heads = [Port(g.add("FullyConnected", [flat, normal(g, "v", rng, 5, 64)], "dense",
                          num_hidden=5, no_bias=True))]
    table = networks.calibrated(g, {"data": x})
    g = networks.quantize(g, table, "tengine")
    tm = to_tengine(g, {"data": x.shape}).tm
    steps = {t.name: float(t.scales[0]) for t in tm.tensors if t.kind != CONST and t.scales is not None}
    assert len(steps) == 7
    assert steps["leaky"] == steps["relu"] == steps["pool"] == steps["flat"] != steps["conv"]
    assert steps["flat"] == pytest.approx(table.entries["flat"].high / 127, rel=1e-6)


def test_a_softmax_needs_no_calibration() -> None:
    g, rng = Graph(), np.random.default_rng(3)
    dense = g.add("FullyConnected", [g.add("null", name="data"), normal(g, "w", rng, 4, 4)],
                  "dense", num_hidden=4, no_bias=True)
    g.heads = [Port(g.add("softmax", [dense], "soft"))]
    g = networks.quantize(g, networks.calibrated(g, {"data": rng.normal(size=(3, 4)).astype(np.float32)}), "tengine")
    assert to_tengine(g, {"data": (1, 4)}).output_tensors[0].scales == pytest.approx([1 / 127], rel=1e-6)


def test_a_bias_too_large_for_its_weights_widens_their_scale() -> None:
    """Weights of 1e-12 beside a bias of 3: 3 / (s_x * s_w) would be far beyond int32."""
    g, rng = Graph(), np.random.default_rng(3)
    weight = rng.normal(size=(3, 2, 1, 1)).astype(np.float32)
    weight[1] *= np.float32(1e-12)
    x = rng.normal(size=(4, 2, 5, 5)).astype(np.float32)
    ports = [g.add("null", name="data"), g.add_param("w", weight), g.add_param("b", np.float32([1, -3, 0.5]))]
    g.heads = [Port(g.add("Convolution", ports, "conv", kernel=(1, 1), num_filter=3))]
    want = Executor(g).run({"data": x})[0]
    g = networks.quantize(g, networks.calibrated(g, {"data": x}), "tengine")
    back = read_back(to_tengine(g, {"data": x.shape}))
    found = back.executor().run({"data": x})[0]
    step = float(back.output_tensors[0].scales[0])  # type: ignore[index]
    assert np.abs(found[:, 1] + 3).max() <= step and np.abs(found - want).max() < 4 * step
    (bias,) = [t for t in back.tm.tensors if t.dtype == INT32]
    assert bias.array is not None and 2 ** 29 < abs(int(bias.array[1])) <= 2 ** 30


@pytest.mark.parametrize("seed", range(5))
def test_large_codes_have_a_float_of_their_own(seed: int) -> None:
    rng = np.random.default_rng(seed)
    qp = QParams(bits=32, signed=True, granularity="channel", scale=rng.uniform(1e-9, 1e-3, 2000).astype(np.float32))
    real = (rng.uniform(-1, 1, 2000) * 2.0 ** rng.integers(1, 31, 2000) * qp.scale).astype(np.float32)
    codes = quantize(real, qp, "half-away")
    np.testing.assert_array_equal(quantize(real_of(codes, qp), qp, "half-away"), codes)
