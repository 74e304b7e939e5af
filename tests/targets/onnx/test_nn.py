"""Layers, normalizations, activations, windows and resizing as ONNX, against MXNet itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from helpers import run_mxnet

from qgraph.errors import UnsupportedError
from qgraph.ir import attributes
from qgraph.ir.graph import Graph, Port
from qgraph.targets.mxnet.runtime import Executor as Mxnet
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.model import OnnxModel


def run_onnx(model: OnnxModel, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


@dataclass
class Case:
    """One op on random data. x, more: shapes of the inputs without the batch.  params: shapes or arrays.
    positive: names of parameters that must be above zero.  blind: convert without knowing any shape."""

    op: str
    x: tuple[int, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    more: tuple[tuple[int, ...], ...] = ()
    note: str = ""
    blind: bool = False
    positive: tuple[str, ...] = ("moving_var",)
    tol: float = 1e-5

    def __str__(self) -> str:
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items()).replace(" ", "")
        return f"{self.op}{self.x}{'-' + attrs if attrs else ''}{'-blind' if self.blind else ''}" \
               f"{'-' + self.note if self.note else ''}".replace(" ", "")


def build(case: Case) -> Graph:
    g, rng = Graph(), np.random.default_rng(3)
    inputs = [g.add("null", name="data")] + [g.add("null", name=f"more{i}") for i in range(len(case.more))]
    for name, shape in case.params.items():
        value = rng.normal(size=shape).astype(np.float32) if isinstance(shape, tuple) else shape
        inputs.append(g.add_param(name, np.abs(value) + 0.1 if name in case.positive else value))
    if case.op.endswith("Output"):
        inputs.append(g.add("null", name="label"))
    node = g.add(case.op, inputs, "out", attrs=case.attrs)
    attributes.take(node)
    g.heads = [Port(node)]
    return g


def check(g: Graph, shapes: Mapping[str, Sequence[int]], tol: float, blind: bool = False) -> None:
    """One model, for batches of 1 and 3, gives MXNet's outputs, and these vary with the input."""
    known = None if blind else {name: (1, *shape) for name, shape in shapes.items()}
    model = to_onnx(g, known, check=not blind)  # the checker wants the rank of every input
    rng = np.random.default_rng(5)
    for batch in (1, 3):
        feeds = {name: rng.normal(size=(batch, *shape)).astype(np.float32) for name, shape in shapes.items()}
        for want, got in zip(run_mxnet(g, feeds), run_onnx(model, feeds)):
            assert want.shape == got.shape
            assert np.isfinite(want).all() and np.ptp(want) > 0
            assert np.abs(want - got).max() <= tol * np.abs(want).max()
            if batch > 1:
                assert np.abs(want - want[:1]).max() > 1e-3 * np.abs(want).max()


def run(case: Case) -> None:
    check(build(case), {"data": case.x, **{f"more{i}": s for i, s in enumerate(case.more)}}, case.tol, case.blind)


def conv(x: tuple[int, ...], filters: int, kernel: tuple[int, ...], bias: bool = True, **attrs: Any) -> Case:
    params: dict[str, Any] = {"weight": (filters, x[0] // attrs.get("num_group", 1), *kernel)}
    return Case("Convolution", x, {"kernel": kernel, "num_filter": filters, "no_bias": not bias, **attrs},
                {**params, **({"bias": (filters,)} if bias else {})})


def deconv(x: tuple[int, ...], filters: int, kernel: tuple[int, ...], bias: bool = False, note: str = "",
           **attrs: Any) -> Case:
    params: dict[str, Any] = {"weight": (x[0], filters // attrs.get("num_group", 1), *kernel)}
    more = {"no_bias": False} if bias else {}  # MXNet's default is no bias here
    return Case("Deconvolution", x, {"kernel": kernel, "num_filter": filters, **more, **attrs},
                {**params, **({"bias": (filters,)} if bias else {})}, note=note)


WEIGHTED = [
    conv((4, 9, 8), 6, (3, 3)),
    conv((4, 9, 8), 6, (3, 2), bias=False, stride=(2, 1), pad=(1, 0)),
    conv((4, 9, 8), 8, (3, 3), num_group=2, dilate=(2, 2), pad=(2, 2)),
    conv((4, 9, 8), 4, (3, 3), num_group=4),
    conv((4, 11), 6, (3,), stride=(2,), pad=(1,)),
    conv((2, 5, 6, 7), 4, (2, 3, 3), pad=(1, 1, 1), stride=(1, 2, 2)),
    deconv((4, 5, 6), 6, (4, 4), stride=(2, 2), pad=(1, 1)),
    deconv((4, 5, 6), 6, (3, 3), bias=True, stride=(2, 2), pad=(1, 1), adj=(1, 0)),
    deconv((4, 5, 6), 6, (3, 3), num_group=2, stride=(2, 2)),
    deconv((4, 5, 6), 4, (4, 4), num_group=4, stride=(2, 2), pad=(1, 1)),
    deconv((4, 5, 6), 6, (4, 4), stride=(2, 2), target_shape=(10, 12), pad=(1, 1), note="mxnet-reads-pad-too"),
    deconv((4, 5, 6), 6, (4, 4), stride=(2, 2), target_shape=(9, 11), pad=(2, 2), adj=(1, 1), note="odd-surplus"),
    deconv((4, 5, 6), 6, (3, 3), dilate=(2, 2), stride=(1, 1)),
    deconv((4, 7), 6, (4,), stride=(2,), pad=(1,)),
    Case("FullyConnected", (4, 3, 2), {"num_hidden": 5}, {"weight": (5, 24), "bias": (5,)}),
    Case("FullyConnected", (4, 3, 2), {"num_hidden": 5}, {"weight": (5, 24), "bias": (5,)}, blind=True),
    Case("FullyConnected", (7,), {"num_hidden": 5, "no_bias": True}, {"weight": (5, 7)}),
    Case("FullyConnected", (4, 6), {"num_hidden": 5, "flatten": False}, {"weight": (5, 6), "bias": (5,)}),
    Case("FullyConnected", (3, 4, 6), {"num_hidden": 5, "flatten": False}, {"weight": (5, 6), "bias": (5,)},
         blind=True),
    Case("FullyConnected", (6,), {"num_hidden": 5, "flatten": False}, {"weight": (5, 6), "bias": (5,)}),
]


def pool(x: tuple[int, ...], kind: str, *kernel: int, blind: bool = False, note: str = "", **attrs: Any) -> Case:
    return Case("Pooling", x, {"kernel": kernel, "pool_type": kind, **attrs}, blind=blind, note=note)


POOLING = [
    *[pool((3, 9, 10), kind, 3, 3, stride=(2, 2), pad=(1, 1), pooling_convention=convention, **more)
      for convention in ("valid", "full")
      for kind, more in (("max", {}), ("avg", {}), ("avg", {"count_include_pad": False}), ("sum", {}),
                         ("lp", {"p_value": 2}))],
    *[pool((3, 8, 7), kind, 3, 2, stride=(2, 2), pooling_convention="full", blind=blind, **more)
      for blind in (False, True)
      for kind, more in (("max", {}), ("avg", {}), ("avg", {"count_include_pad": False}))],
    *[pool((3, 8, 8), kind, 3, 3, stride=(2, 2), pad=(1, 1), pooling_convention="full", blind=blind, **more)
      for blind in (False, True)
      for kind, more in (("max", {}), ("avg", {}), ("avg", {"count_include_pad": False}))],
    pool((3, 8, 8), "max", 2, 2, blind=True, note="stride-1-by-default"),
    pool((3, 12), "max", 3, stride=(2,), pad=(1,)),
    pool((3, 12), "avg", 3, stride=(2,), pad=(1,), pooling_convention="full"),
    pool((2, 5, 6, 7), "max", 2, 2, 2, stride=(2, 2, 2), pooling_convention="full"),
    pool((2, 5, 6, 7), "avg", 3, 3, 3, stride=(2, 2, 2), pad=(1, 1, 1)),
    *[pool((3, 6, 5), kind, 1, 1, global_pool=True, blind=kind != "sum", **more)
      for kind, more in (("max", {}), ("avg", {}), ("sum", {}), ("lp", {"p_value": 2}))],
    pool((3, 7), "avg", 2, global_pool=True),
    Case("Pooling", (3, 6, 5), {"global_pool": True, "pool_type": "avg", "pooling_convention": "full"}, blind=True),
]

_BN = {"gamma": (4,), "beta": (4,), "moving_mean": (4,), "moving_var": (4,)}
NORMALIZATIONS = [
    Case("BatchNorm", (4, 5, 6), {}, _BN, note="gamma-is-1-by-default"),
    Case("BatchNorm", (4, 5, 6), {"fix_gamma": False, "eps": 1e-5}, _BN, blind=True),
    Case("BatchNorm", (4,), {"fix_gamma": False, "use_global_stats": True}, _BN),
    Case("_contrib_BatchNormWithReLU", (4, 5, 6), {"fix_gamma": False, "eps": 1e-5}, _BN),
    Case("BatchNorm", (4, 5, 6, 2), {"fix_gamma": False}, _BN),
    Case("BatchNorm", (5, 4, 6), {"fix_gamma": False, "axis": 2}, _BN),
    Case("BatchNorm", (5, 6, 4), {"fix_gamma": False, "axis": -1}, _BN, blind=True),
    Case("BatchNorm", (5, 6, 4), {"axis": 3}, _BN),
]

ACTIVATIONS = [
    *[Case("Activation", (4, 5), {"act_type": kind}, blind=True)
      for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")],
    *[Case(op, (4, 5), blind=True) for op in ("relu", "sigmoid", "tanh", "softsign")],
    Case("clip", (4, 5), {"a_min": -0.5, "a_max": 0.7}),
]

OUTPUTS = [
    *[Case(op, (4, 5), attrs, blind=True) for op in ("softmax", "log_softmax", "softmin")
      for attrs in ({}, {"axis": 1}, {"temperature": 2.5})],
    *[Case(op, x, attrs, blind=blind, note=note) for blind in (False, True) for op, x, attrs, note in (
        ("SoftmaxActivation", (6,), {}, ""), ("SoftmaxActivation", (4, 3, 2), {}, "instance-is-the-last-axis"),
        ("SoftmaxActivation", (4, 3, 2), {"mode": "channel"}, ""),
        ("SoftmaxOutput", (6,), {}, ""), ("SoftmaxOutput", (4, 3), {}, ""),
        ("SoftmaxOutput", (4, 3, 2), {"multi_output": True}, ""),
        ("SoftmaxOutput", (4, 3, 2), {"preserve_shape": True}, ""))],
    Case("LogisticRegressionOutput", (6,)),
    *[Case(op, (6,)) for op in ("LinearRegressionOutput", "MAERegressionOutput", "SVMOutput")],
    *[Case(op, (4, 5), blind=True) for op in ("Dropout", "BlockGrad", "_copy", "identity", "make_loss", "MakeLoss")],
]


_AFFINE = {"gamma": (4,), "beta": (4,)}
MORE_NORMALIZATIONS = [
    Case("InstanceNorm", (4, 5, 6), {}, _AFFINE),
    Case("InstanceNorm", (4, 7), {"eps": 1e-5}, _AFFINE, blind=True),
    Case("LayerNorm", (5, 4), {}, _AFFINE, blind=True),
    Case("LayerNorm", (5, 4), {"axis": 2, "eps": 1e-3}, _AFFINE),
    Case("LayerNorm", (4, 5, 6), {"axis": 1}, _AFFINE),
    Case("LayerNorm", (5, 4, 6), {"axis": -2}, _AFFINE),
    Case("GroupNorm", (4, 5, 6), {"num_groups": 2}, {"gamma": (2,), "beta": (2,)}, note="gamma-by-group"),
    Case("GroupNorm", (4, 5), {}, {"gamma": (1,), "beta": (1,)}, blind=True),
    *[Case("L2Normalization", x, {"mode": mode}, blind=mode == "channel") for mode in ("instance", "channel", "spatial")
      for x in ((4, 5, 6), (4, 5))],
    Case("L2Normalization", (6,), {"eps": 0.1}),
    Case("LRN", (6, 4, 5), {"nsize": 3, "alpha": 0.3}),
    Case("LRN", (6, 4, 5), {"nsize": 5, "alpha": 0.1, "beta": 0.5, "knorm": 1.0}),
]

LEAKY = [
    *[Case("LeakyReLU", (4, 5), attrs, blind=True) for attrs in (
        {}, {"slope": 0.1}, {"act_type": "elu", "slope": 0.7}, {"act_type": "selu"}, {"act_type": "gelu"},
        {"act_type": "rrelu"}, {"act_type": "rrelu", "lower_bound": 0.2, "upper_bound": 0.5})],
    Case("LeakyReLU", (4, 5, 6), {"act_type": "prelu"}, {"gamma": (4,)}),
    Case("LeakyReLU", (4, 5, 6), {"act_type": "prelu"}, {"gamma": (1,)}, blind=True),
    Case("LeakyReLU", (4,), {"act_type": "prelu"}, {"gamma": (4,)}),
    Case("LeakyReLU", (4, 4), {"act_type": "prelu"}, {"gamma": (4,)}),
    Case("hard_sigmoid", (4, 5)), Case("hard_sigmoid", (4, 5), {"alpha": 0.3, "beta": 0.4}),
]

_ADAPTIVE, _RESIZE = "_contrib_AdaptiveAvgPooling2D", "_contrib_BilinearResize2D"
RESIZING = [
    *[Case(_ADAPTIVE, (3, 6, 8), {"output_size": size}) for size in (1, (1, 1), (3, 4), (2, 3), (5, 7), (9, 8), 4)],
    Case(_ADAPTIVE, (3, 6, 8), blind=True),
    *[Case(_RESIZE, (3, 6, 7), {"height": h, "width": w, **aligned}, blind=True) for h, w in ((12, 9), (3, 5), (1, 1))
      for aligned in ({}, {"align_corners": True}, {"align_corners": False})],
    Case(_RESIZE, (3, 6, 7), {"scale_height": 2.0, "scale_width": 1.5}),
    Case(_RESIZE, (3, 6, 7), {"scale_height": 0.5, "scale_width": 0.5, "align_corners": False}),
    Case(_RESIZE, (3, 6, 7), {"mode": "odd_scale", "scale_height": 2.0, "scale_width": 0.5}),
    Case(_RESIZE, (3, 6, 7), {"mode": "to_even_up"}),
    Case(_RESIZE, (3, 6, 7), {"mode": "like"}, more=((2, 9, 5),)),
    Case(_RESIZE, (3, 6, 7), {"mode": "like", "align_corners": False}, more=((2, 9, 5),), blind=True),
    *[Case("UpSampling", (3, 4, 5), {"scale": n, "sample_type": "nearest", "num_args": 1}, blind=True)
      for n in (1, 2, 3)],
    Case("UpSampling", (3, 4, 6), {"scale": 2, "sample_type": "nearest", "num_args": 2}, more=((2, 2, 3),)),
    *[Case("UpSampling", (3, 4, 5), {"scale": n, "sample_type": "bilinear", "num_filter": 3, "num_args": 2},
           {"weight": (3, 1, 2 * n - n % 2, 2 * n - n % 2)}, blind=True) for n in (2, 3, 4)],
    Case("Crop", (3, 8, 9), {"num_args": 2}, more=((2, 5, 6),)),
    Case("Crop", (3, 8, 9), {"num_args": 2, "offset": (2, 1)}, more=((2, 5, 6),)),
    Case("Crop", (3, 8, 9), {"num_args": 2, "center_crop": True}, more=((2, 5, 6),)),
    Case("Crop", (3, 8, 9), {"num_args": 1, "h_w": (5, 4), "offset": (1, 2)}),
    Case("Crop", (3, 8, 9), {"num_args": 1, "h_w": (5, 4), "center_crop": True}),
    *[Case("Pad", (3, 4, 5), {"mode": mode, "pad_width": (0, 0, 0, 0, 1, 2, 3, 0), **more}, blind=True)
      for mode, more in (("constant", {}), ("constant", {"constant_value": 1.5}), ("edge", {}), ("reflect", {}))],
]


@pytest.mark.mxnet
@pytest.mark.parametrize("case", [*WEIGHTED, *POOLING, *NORMALIZATIONS, *MORE_NORMALIZATIONS, *ACTIVATIONS, *LEAKY,
                                  *RESIZING, *OUTPUTS], ids=str)
def test_op_equals_mxnet(case: Case) -> None:
    run(case)


@pytest.mark.mxnet
@pytest.mark.parametrize("fused, after", [
    ({"act_type": "relu"}, ("Activation", {"act_type": "relu"})),
    ({"act_type": "clip", "a_min": -0.5, "a_max": 1.5}, ("clip", {"a_min": -0.5, "a_max": 1.5}))], ids=str)
@pytest.mark.parametrize("case", [WEIGHTED[0], deconv((4, 5, 6), 6, (3, 3)), Case(
    "FullyConnected", (4, 6), {"num_hidden": 5, "flatten": False}, {"weight": (5, 6), "bias": (5,)})], ids=str)
def test_a_fused_activation_is_the_one_behind_the_layer(case: Case, fused: dict[str, Any], after: Any) -> None:
    apart = build(case)
    apart.heads = [Port(apart.add(after[0], [apart.heads[0]], attrs=after[1]))]
    together = build(Case(case.op, case.x, {**case.attrs, **fused}, case.params))
    x = np.random.default_rng(4).normal(size=(2, *case.x)).astype(np.float32)
    (want,), (got,) = run_mxnet(apart, {"data": x}), run_onnx(to_onnx(together, {"data": x.shape}), {"data": x})
    assert np.abs(want - want[:1]).max() > 0.1
    assert np.abs(want - got).max() <= 1e-5 * np.abs(want).max()


def deformable(op: str, mask: bool, filters: int = 6, **attrs: Any) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    """A deformable convolution of `data`, whose offsets, and mask, are further inputs."""
    g, rng = Graph(), np.random.default_rng(1)
    groups = attrs.get("num_deformable_group", 1)
    inputs = [g.add("null", name="data"), g.add("null", name="offset")]
    shapes: dict[str, tuple[int, ...]] = {"data": (4, 7, 8), "offset": (18 * groups, 7, 8)}
    if mask:
        inputs.append(g.add("null", name="mask"))
        shapes["mask"] = (9 * groups, 7, 8)
    inputs.append(g.add_param("weight", rng.normal(
        size=(filters, 4 // attrs.get("num_group", 1), 3, 3)).astype(np.float32)))
    if not attrs.get("no_bias"):
        inputs.append(g.add_param("bias", rng.normal(size=filters).astype(np.float32)))
    g.heads = [Port(g.add(op, inputs, "out", attrs={"kernel": (3, 3), "pad": (1, 1), "num_filter": filters, **attrs}))]
    return g, shapes


@pytest.mark.mxnet
@pytest.mark.parametrize("op, mask", [("_contrib_DeformableConvolution", False),
                                      ("_contrib_ModulatedDeformableConvolution", True)])
@pytest.mark.parametrize("attrs", [{}, {"no_bias": True}, {"num_deformable_group": 2},
                                   {"num_group": 2, "dilate": (2, 2), "pad": (2, 2)}], ids=str)
def test_deformable_convolution_equals_mxnet(op: str, mask: bool, attrs: dict[str, Any]) -> None:
    g, shapes = deformable(op, mask, **attrs)
    check(g, shapes, 1e-5)


ROIS = [
    ("ROIPooling", {"pooled_size": (3, 3), "spatial_scale": 0.5}),
    ("ROIPooling", {"pooled_size": (2, 4), "spatial_scale": 0.25}),
    *[("_contrib_ROIAlign", {"pooled_size": (3, 2), "spatial_scale": 0.5, **more}) for more in (
        {}, {"sample_ratio": 2}, {"aligned": True}, {"sample_ratio": 2, "aligned": True})],
]


@pytest.mark.mxnet
@pytest.mark.parametrize("op, attrs", ROIS, ids=str)
def test_rois_equal_mxnet(op: str, attrs: dict[str, Any]) -> None:
    """Boxes of two images, some beyond the edge, one smaller than a cell of the map."""
    g = Graph()
    data, rois = (g.add("null", name=name) for name in ("data", "rois"))
    g.heads = [Port(g.add(op, [data, rois], "out", attrs=attrs))]
    model = to_onnx(g, {"data": (1, 3, 12, 14), "rois": (1, 5)})
    boxes = np.array([[0, 2, 3, 15, 18], [1, 5.5, 1.2, 20.3, 22.9], [0, -3, -2, 30, 27], [1, 9, 9, 9.5, 9.2]],
                     np.float32)
    if op == "_contrib_ROIAlign":  # of no image: zeros
        boxes = np.vstack([boxes, np.array([[-1, 2, 3, 15, 18], [-1] * 5], np.float32)])
    feeds = {"data": np.random.default_rng(2).normal(size=(2, 3, 12, 14)).astype(np.float32), "rois": boxes}
    (want,), (got,) = Mxnet(g).run(feeds), run_onnx(model, feeds)
    assert want.shape == got.shape == (len(boxes), 3, *attrs["pooled_size"])
    assert not want[4:].any()
    assert np.abs(want - want[:1]).max() > 0.1
    assert np.abs(want - got).max() <= 1e-5 * np.abs(want).max()


REFUSED = [
    (Case("Convolution", (8, 8, 3), {"kernel": (1, 1), "num_filter": 3, "no_bias": True, "layout": "NHWC"},
          {"weight": (3, 1, 1, 3)}, blind=True), "layout NHWC"),
    (pool((3, 11), "max", 3, pooling_convention="same", blind=True), "same"),
    (pool((3, 11), "lp", 3, p_value=3), "p_value 3"),
    (pool((3, 5, 5), "max", 2, 2, stride=(3, 3), pooling_convention="full", blind=True), "fixed heights"),
    (pool((3, 3, 3), "max", 2, 2, stride=(2, 2), pad=(1, 1), pooling_convention="full"), "wholly outside"),
    (Case("BatchNorm", (4, 5), {"output_mean_var": True}, _BN), "output_mean_var"),
    (Case("Activation", (4, 5), {"act_type": "swish"}), "act_type 'swish'"),
    (Case("LeakyReLU", (4, 5), {"act_type": "celu"}), "act_type 'celu'"),
    (Case("SoftmaxOutput", (4, 3, 2)), "four axes"),
    (Case(_RESIZE, (3, 6, 7), {"mode": "odd_scale"}, blind=True), "needs the shape"),
    (Case("_contrib_ROIAlign", (8, 9, 9), {"pooled_size": (2, 2), "position_sensitive": True}, more=((5,),),
          blind=True), "position_sensitive"),
]


@pytest.mark.parametrize("case, why", REFUSED, ids=str)
def test_what_onnx_cannot_say_is_refused(case: Case, why: str) -> None:
    with pytest.raises(UnsupportedError, match=f"^out:{case.op}: .*{why}"):
        to_onnx(build(case), None if case.blind else {"data": (1, *case.x)})


@pytest.mark.parametrize("kind, formula", [("log_sigmoid", lambda x: -np.log1p(np.exp(-x))),
                                           ("mish", lambda x: x * np.tanh(np.log1p(np.exp(x))))])
def test_activations_of_a_later_mxnet(kind: str, formula: Any) -> None:
    g = build(Case("Activation", (4, 5), {"act_type": kind}))
    x = np.linspace(-4, 4, 40, dtype=np.float32).reshape(2, 4, 5)
    (got,) = run_onnx(to_onnx(g, {"data": (1, 4, 5)}), {"data": x})
    assert np.abs(got - formula(x)).max() < 1e-6


def test_a_matrix_goes_to_gemm_without_flatten_even_if_no_shape_is_known() -> None:
    """What stands between a DequantizeLinear and its Gemm keeps onnxruntime from making one integer layer of both."""
    g, rng = Graph(), np.random.default_rng(0)
    flat = g.add("Activation", [g.add("Flatten", [g.add("null", name="data")])], act_type="relu")
    weight = g.add_param("weight", rng.normal(size=(5, 6)).astype(np.float32))
    g.heads = [Port(g.add("FullyConnected", [flat, weight], "fc", num_hidden=5, no_bias=True))]
    kinds = [n.op_type for n in to_onnx(g, check=False).proto.graph.node]
    assert kinds.count("Flatten") <= 1 and kinds[-2:] == ["Relu", "Gemm"]


@pytest.mark.mxnet
@pytest.mark.parametrize("like", [False, True])
def test_a_resize_is_read_with_and_without_the_tensor_that_gives_its_size(like: bool) -> None:
    import mxnet as mx

    from qgraph.formats.mxnet import load

    inputs = [mx.sym.var("data"), *([mx.sym.var("more")] if like else [])]
    how = {"mode": "like"} if like else {"height": 9, "width": 5}
    g = load(mx.sym.contrib.BilinearResize2D(*inputs, **how), {})
    check(g, {"data": (3, 6, 7), **({"more": (2, 9, 5)} if like else {})}, 1e-5)
