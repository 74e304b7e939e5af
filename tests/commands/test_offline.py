"""What a frozen network computes in its engine, against the trained one in offline mode: `net.quantize_offline()`."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import VNNI

mx = pytest.importorskip("mxnet")  # the networks are blocks of Gluon
from mxnet.gluon import nn  # noqa: E402

import qgraph  # noqa: E402
from qgraph.commands.freeze import freeze_all  # noqa: E402
from qgraph.engines import executor  # noqa: E402
from qgraph.qat import (  # noqa: E402
    convert_model,
    gen_act_converter,
    gen_conv2d_converter,
    gen_dense_converter,
    qparams_init,
)

pytestmark = pytest.mark.mxnet
IMAGES = np.random.RandomState(0).normal(0, 1, (4, 3, 12, 12)).astype(np.float32)  # negative values among them
NCNN = pytest.param("ncnn", marks=pytest.mark.ncnn)
TARGETS = ("mxnet-sim", "mxnet", "mxnet{fast=true}", "onnx", NCNN, "tengine")


class Residual(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
    """The sum reads in float what two layers read quantized."""

    def __init__(self) -> None:
        super().__init__(prefix="net_")
        with self.name_scope():
            self.first, self.branch, self.last = (nn.Conv2D(n, 3, padding=1) for n in (8, 8, 4))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        y = self.first(x)
        return self.last(self.branch(y) + y)


class Fork(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
    """Two layers read one tensor."""

    def __init__(self) -> None:
        super().__init__(prefix="net_")
        with self.name_scope():
            self.first = nn.Conv2D(8, 3, padding=1, activation="relu", prefix="whole_")
            self.left, self.right = nn.Conv2D(4, 3, prefix="whole_left_"), nn.Conv2D(4, 3, prefix="right_")

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        y = self.first(x)
        return F.concat(self.left(y), self.right(y), dim=1)


def layers(*blocks: Any) -> Any:
    net = nn.HybridSequential(prefix="net_")
    net.add(*blocks)
    return net


def network(name: str) -> Any:
    with mx.name.Prefix("net_"):
        if name in ("residual", "fork"):
            return {"residual": Residual, "fork": Fork}[name]()
        first = nn.Conv2D(8, 3, padding=1, activation="relu", prefix="net_first_")
        middle = {"plain": lambda: (),
                  "grouped": lambda: (nn.Conv2D(8, 3, padding=1, groups=2, prefix="net_middle_"),),
                  "transposed": lambda: (nn.Conv2DTranspose(8, 2, strides=2, prefix="net_middle_"),),
                  "signed_dense": lambda: (nn.LeakyReLU(0.5), nn.Dense(8, prefix="net_middle_")),
                  "activations": lambda: (nn.Activation("tanh"), nn.AvgPool2D())}[name]()
        last = nn.Dense(4, prefix="net_last_") if name == "signed_dense" else nn.Conv2D(4, 3, prefix="net_last_")
        return layers(first, *middle, last)


@functools.cache
def trained(name: str, signed: Any, granularity: str, clip: float = 1.0) -> tuple[Any, np.ndarray]:
    """(the network in offline mode, what it computes). clip: factor on the ranges, as a learned one may be less."""
    mx.random.seed(1)
    net = network(name)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(mx.nd.array(IMAGES))
    options = {"quant_type": granularity, **({} if signed is None else {"in_signed": signed})}
    convolution = gen_conv2d_converter(**options)
    convert_model(net, convert_fn={
        nn.Conv2D: convolution, nn.Conv2DTranspose: convolution, nn.Dense: gen_dense_converter(**options),
        nn.Activation: gen_act_converter() if name == "activations" else None})
    qparams_init(net, calib_data=IMAGES)
    for parameter, value in net.collect_params().items():
        if parameter.endswith("input_max") and "whole" not in parameter:
            value.set_data(value.data() * clip)
    net.quantize_offline()
    return net, net(mx.nd.array(IMAGES)).asnumpy()


def frozen_sqnr(net: Any, want: np.ndarray, target: str) -> tuple[float, dict[str, Any]]:
    """(dB in the engine itself, the report); the report must say the same dB."""
    frozen = qgraph.freeze(net, qgraph.FreezeOptions(target=target), calib_data=IMAGES)
    if target.startswith("mxnet"):
        module = frozen.module(IMAGES.shape)
        module.forward(mx.io.DataBatch([mx.nd.array(IMAGES)]), is_train=False)
        found = module.get_outputs()[0].asnumpy()
    else:
        found = executor(frozen.model, "").run({"data": IMAGES})[0].reshape(want.shape)
    noise = float(((want - found) ** 2).sum())
    db = np.inf if noise == 0 else 10 * np.log10(float((want ** 2).sum()) / noise)
    agreement = frozen.report["agreement"]
    assert agreement["with"] == "the network as it trained"
    if db < 100:
        assert abs(agreement["sqnr_db"] - db) < 0.1
    return db, frozen.report


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("signed", [None, "auto", True])
@pytest.mark.parametrize("target", TARGETS)
def test_files_compute_what_was_trained(target: str, signed: Any, granularity: str) -> None:
    db, _ = frozen_sqnr(*trained("plain", signed, granularity), target)
    assert db == np.inf if target == "mxnet-sim" else db >= 30


@pytest.mark.parametrize("signed", [None, "auto", True])
@pytest.mark.parametrize("target", ["mxnet-sim", "mxnet", "onnx", NCNN, "tengine"])
def test_trained_clips_are_kept(target: str, signed: Any) -> None:
    """A range below what is seen clips, and is no less a part of the network than a weight."""
    db, _ = frozen_sqnr(*trained("plain", signed, "channel", 0.5), target)
    assert db == np.inf if target == "mxnet-sim" else db >= 30


@pytest.mark.parametrize(("name", "target"), [
    ("grouped", "mxnet"), ("transposed", "mxnet"), pytest.param("grouped", "ncnn", marks=pytest.mark.ncnn),
    pytest.param("transposed", "ncnn", marks=pytest.mark.ncnn)])
def test_layers_that_a_target_refuses_keep_their_clips(name: str, target: str) -> None:
    db, report = frozen_sqnr(*trained(name, "auto", "layer", 0.5), target)
    assert db >= 30
    assert "net_middle_fwd" in {layer["name"] for layer in report["float"]}
    if target == "mxnet":
        reason = {layer["name"]: layer["reason"] for layer in report["float"]}["net_middle_fwd"]
        assert reason == {"grouped": "MXNet's int8 kernel computes grouped convolutions with wrong scales",
                          "transposed": "MXNet has no int8 Deconvolution"}[name]


@pytest.mark.parametrize(("name", "target"), [
    ("signed_dense", "mxnet"), ("residual", "tengine"), ("residual", "mxnet"), ("activations", "mxnet"),
    ("activations", "tengine"), pytest.param("activations", "ncnn", marks=pytest.mark.ncnn)])
def test_quantizers_that_a_target_has_not_leave_their_clips(name: str, target: str) -> None:
    """In front of a layer in float, of a sum, of a pooling."""
    db, _ = frozen_sqnr(*trained(name, "auto", "layer", 0.5), target)
    assert db >= 30


def test_files_that_are_far_from_what_was_trained_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """A quarter of the range is left to a layer whose input a sum reads whole."""
    caplog.set_level(logging.WARNING)
    db, _ = frozen_sqnr(*trained("residual", None, "layer", 0.5), "tengine")
    assert db >= 30 and "as it trained" not in caplog.text
    db, report = frozen_sqnr(*trained("residual", None, "layer", 0.25), "tengine")
    agreement = report["agreement"]
    assert db < 30 and agreement["sqnr_db"] == pytest.approx(db, abs=0.1)
    assert (f"WARNING: {agreement['worst']}: {agreement['sqnr_db']:.1f} dB of the network as it trained, want 30; "
            "tengine has 127 codes for 3 tensors that have 255 in training; tengine rounds weights") in caplog.text


def test_overflow_at_a_trained_range_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The range stays; the layer is left in float, or with `fast` overflows where a processor has no VNNI."""
    net, want = trained("plain", "auto", "channel", 0.25)
    end = float(next(p for n, p in net.collect_params().items() if n == "net_last_input_max").data().asscalar())
    caplog.set_level(logging.WARNING)
    for target, why in (("mxnet", "was trained, and is kept: it stays in float"),
                        ("mxnet{fast=true}", "was trained, and is kept")):
        db, report = frozen_sqnr(net, want, target)
        found, = report["saturation"]
        assert found["layer"] == "net_last_fwd" and found["why"].endswith(why) and found["chosen"] == 1
        assert any(abs(tensor["high"] - end) < 1e-5 * end for tensor in report["tensors"].values())
        assert (db >= 30) == ("fast" not in target or VNNI)


@pytest.mark.parametrize("target", ["mxnet", "onnx", NCNN, "tengine"])
def test_two_layers_clip_one_tensor_each_in_its_own_way(target: str) -> None:
    """The wider range of the two is wrong for the other."""
    db, _ = frozen_sqnr(*trained("fork", True, "layer", 0.25), target)
    assert db >= 30


def test_targets_frozen_together_observe_what_one_of_them_needs(tmp_path: Path) -> None:
    """The table of the first holds trained ranges alone."""
    net, _ = trained("residual", "auto", "layer", 0.5)
    prefix = str(tmp_path / "net")
    net.export(prefix)
    np.savez(f"{prefix}-calib.npz", data=IMAGES)
    frozen, _ = freeze_all(prefix, [qgraph.FreezeOptions(target=name) for name in ("onnx", "tengine")], f"{prefix}-q")
    assert all(found.report["agreement"]["sqnr_db"] >= 30 for found in frozen)
