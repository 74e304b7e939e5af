"""Layers, normalizations, activations, windows and resizing as ONNX, against MXNet itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from qgraph.formats.onnx import OnnxModel, to_onnx
from qgraph.ir import Graph, Port
from tests.helpers import run_mxnet


def run_onnx(model: OnnxModel, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
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
    g.heads = [Port(g.add(case.op, inputs, "out", attrs=case.attrs))]
    return g


def check(g: Graph, shapes: Mapping[str, Sequence[int]], tol: float, blind: bool = False) -> None:
    """One model, for batches of 1 and 3, gives MXNet's outputs, and these vary with the input."""
    model = to_onnx(g, None if blind else {name: (1, *shape) for name, shape in shapes.items()}, check=False)
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
    deconv((4, 5, 6), 6, (4, 4), stride=(2, 2), target_shape=(10, 12)),
    deconv((4, 5, 6), 6, (4, 4), stride=(2, 2), target_shape=(9, 11), note="odd-surplus"),
    deconv((4, 5, 6), 6, (4, 4), stride=(2, 2), target_shape=(9, 11), pad=(1, 1), adj=(1, 1),
           note="pad-and-adj-are-ignored"),
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
    pool((3, 11), "max", 3, stride=(2,), pooling_convention="same"),
    pool((3, 11), "avg", 3, stride=(2,), pooling_convention="same"),
    pool((3, 11), "avg", 2, stride=(3,), pooling_convention="same"),
    pool((2, 5, 6, 7), "max", 2, 2, 2, stride=(2, 2, 2), pooling_convention="full"),
    pool((2, 5, 6, 7), "avg", 3, 3, 3, stride=(2, 2, 2), pad=(1, 1, 1)),
    pool((2, 6, 6), "lp", 3, 3, p_value=1),
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
    *[Case(op, x, attrs, blind=blind) for blind in (False, True) for op, x, attrs in (
        ("SoftmaxActivation", (6,), {}), ("SoftmaxActivation", (4, 3, 2), {}),
        ("SoftmaxActivation", (4, 3, 2), {"mode": "channel"}),
        ("SoftmaxOutput", (6,), {}), ("SoftmaxOutput", (4, 3, 2), {}),
        ("SoftmaxOutput", (4, 3, 2), {"multi_output": True}), ("SoftmaxOutput", (4, 3, 2), {"preserve_shape": True}))],
]


@pytest.mark.parametrize("case", [*WEIGHTED, *POOLING, *NORMALIZATIONS, *ACTIVATIONS, *OUTPUTS], ids=str)
def test_op_equals_mxnet(case: Case) -> None:
    run(case)
