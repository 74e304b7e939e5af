"""Quantization-aware training: the arithmetic, its gradients, the modes, and what may not change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mxnet")  # classes below are blocks of Gluon
from mxnet import autograd, gluon, nd  # noqa: E402
from mxnet.gluon import nn  # noqa: E402

import qgraph  # noqa: E402
from qgraph.engines import executor  # noqa: E402
from qgraph.errors import CalibrationError, OptionError, UnsupportedError  # noqa: E402
from qgraph.qat import (  # noqa: E402
    bypass_bn,
    chain,  # noqa: E402
    convert_model,
    convert_relu_to_relu6,
    gen_act_converter,
    gen_conv2d_converter,
    gen_dense_converter,
    merge_bn,
    qparams_init,
)
from qgraph.quant.spec import QSpec, fake_quantize, with_range  # noqa: E402
from qgraph.quant.weights import weight_params  # noqa: E402

pytestmark = pytest.mark.mxnet
CONV = gen_conv2d_converter


def small_net(seed: int = 0) -> Any:
    mx.random.seed(seed)
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Conv2D(8, 3, padding=1, use_bias=False, in_channels=3), nn.BatchNorm(in_channels=8),
                nn.Activation("relu"), nn.Conv2D(8, 3, padding=1, groups=8, in_channels=8), nn.BatchNorm(in_channels=8),
                nn.Activation("relu"), nn.Conv2D(16, 1, in_channels=8, activation="relu"), nn.MaxPool2D(),
                nn.Dense(5, in_units=16 * 16))
    net.initialize(mx.init.Xavier(magnitude=2.0))
    for name, p in net.collect_params().items():
        if name.endswith(("gamma", "running_var")):
            p.set_data(nd.random.uniform(0.5, 1.5, shape=p.shape))
        elif name.endswith(("beta", "running_mean")):
            p.set_data(nd.random.uniform(-0.5, 0.5, shape=p.shape))
    return net


def images(count: int = 8, seed: int = 0) -> Any:
    return nd.array(np.random.RandomState(seed).randn(count, 3, 8, 8))


def steps(net: Any, count: int, optimizer: str = "sgd", **kwargs: Any) -> list[float]:
    trainer = gluon.Trainer(net.collect_params(), optimizer, {"learning_rate": 0.01, "wd": 1e-3}, **kwargs)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    losses = []
    for i in range(count):
        y = nd.array(np.random.RandomState(100 + i).randint(0, 5, 8))
        with autograd.record():
            loss = loss_of(net(images(seed=i)), y)
        loss.backward()
        net.update_ema()
        trainer.step(8)
        losses.append(float(loss.mean().asscalar()))
    return losses


# ---- arithmetic -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
def test_the_chain_is_the_one_arithmetic(bits: int, signed: bool) -> None:
    """To the last bit, ties and values beyond the range included."""
    rng = np.random.RandomState(bits)
    spec = QSpec(bits, signed)
    for high in np.float32([0.013, 1.0, 3.3, 77.7, rng.rand() * 5]):
        qp = with_range(spec, -high if signed else 0.0, high)
        ties = (np.arange(-3, 2 ** bits + 3) + 0.5).astype(np.float32) * qp.scale
        x = np.concatenate([(rng.randn(20000) * high / 2).astype(np.float32), ties])
        got = chain.fake_quantize(nd, nd.array(x), nd.array(x), nd.array([high]), spec).asnumpy()
        assert np.array_equal(got, fake_quantize(x, qp, "mxnet"))
        assert chain.in_two_passes(gluon.Parameter("p"))
        data = nd.array(x)
        fast = chain.straight_through(nd, data, data, nd.array([high]), spec)[0].asnumpy()
        off = np.abs(fast - got) > 1e-6 * (np.abs(x) + high)
        assert off[:20000].sum() <= 1 and np.abs(fast - got).max() < 1.01 * qp.scale  # the others are ties
        assert len(np.unique(got)) > 2 ** bits * 0.9


@pytest.mark.parametrize(("granularity", "axis", "groups"), [
    ("tensor", 0, 1), ("group", 0, 4), ("channel", 0, 1), ("channel", 1, 1)])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (16, 64, 3, 3)])
def test_weights_get_the_params_that_freezing_gives_them(granularity: str, axis: int, groups: int,
                                                         shape: tuple[int, ...]) -> None:
    rng = np.random.RandomState(0)
    w = (rng.randn(*shape) * rng.rand(shape[0], 1, 1, 1)).astype(np.float32)
    w[0] = 0  # a dead channel
    for bits in (2, 4, 8):
        spec = QSpec(bits, True, narrow=True, granularity=granularity, axis=axis, groups=groups)
        got = chain.fake_quantize_weight(nd, nd.array(w), spec, shape).asnumpy()
        assert np.array_equal(got, fake_quantize(w, weight_params("w", w, spec), "mxnet"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (128, 1, 12, 12), (40, 500)])
def test_large_weights_are_rounded_in_two_passes_to_the_same_values(shape: tuple[int, ...], bits: int,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.RandomState(bits).uniform(-1, 1, shape).astype(np.float32)
    spec = QSpec(bits, True, narrow=True)
    want = fake_quantize(w, weight_params("w", w, spec), "mxnet")
    calls, two_passes = [], chain._two_passes
    monkeypatch.setattr(chain, "_two_passes", lambda *args: calls.append(1) or two_passes(*args))
    data = nd.array(w)
    data.attach_grad()
    with autograd.record():
        y = chain.fake_quantize_weight(nd, data, spec, shape, training=True, two_passes=True)
    y.backward(nd.array(w))
    assert calls == [1] and np.array_equal(data.grad.asnumpy(), w)
    assert np.abs(y.asnumpy() - want).max() < 1e-6 and len(np.unique(want)) == 2 ** bits - 1


def in_two_passes(F: Any, x: Any, fixed: Any, high: Any, spec: QSpec, training: bool) -> Any:
    return chain.straight_through(F, x, chain.cut(F, x, True), high, spec)[0]


def gradient(spec: QSpec, x: np.ndarray, high: float, fake_quantize: Any = chain.fake_quantize,
             **options: Any) -> tuple[np.ndarray, np.ndarray, float]:
    data, top, dy = nd.array(x), nd.array([high]), nd.array(np.random.RandomState(1).randn(*x.shape))
    data.attach_grad()
    top.attach_grad()
    with autograd.record():
        y = fake_quantize(nd, data, nd.BlockGrad(data), top, spec, training=True, **options)
    y.backward(dy)
    return dy.asnumpy(), data.grad.asnumpy(), float(top.grad.asscalar())


def test_gradients() -> None:
    """Straight through; nothing for what is clipped; of the range as PACT and LSQ have it."""
    x = np.random.RandomState(0).randn(4, 50).astype(np.float32) * 2
    high, spec = 1.5, QSpec(4, False)
    inside = (x >= 0) & (x <= high)
    dy, dx, dh = gradient(spec, x, high)
    assert np.array_equal(dx, dy) and dh == 0
    dy, dx, dh = gradient(spec, x, high, fake_quantize=in_two_passes)
    assert np.array_equal(dx, dy) and dh == 0
    dy, dx, dh = gradient(spec, x, high, clip_gradient=True)
    assert np.array_equal(dx, dy * inside) and dh == 0
    dy, dx, dh = gradient(spec, x, high, learn="pact")
    assert np.array_equal(dx, dy * inside) and np.isclose(dh, dy[x > high].sum(), rtol=1e-5)
    dy, dx, dh = gradient(spec, x, high, learn="lsq")
    step = high / spec.qmax
    slope = np.where(inside, np.rint(x / step) - x / step, np.where(x < 0, 0, spec.qmax))
    assert np.array_equal(dx, dy * inside)
    assert np.isclose(dh, (dy * slope).sum() * np.sqrt(spec.qmax / 50) / spec.qmax, rtol=1e-4)


# ---- training -------------------------------------------------------------------------------------------------------

def converted(hybrid: bool, **options: Any) -> Any:
    net = small_net()
    convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed="auto", **options)})
    qparams_init(net)
    if hybrid:
        net.hybridize(static_alloc=True, static_shape=True)
    return net


@contextmanager
def net_offline(net: Any) -> Iterator[None]:
    net.quantize_offline()
    yield
    net.quantize_online()


MODES = [{}, {"fake_bn": True}, {"quant_type": "group", "clip_gradient": True}, {"start_step": 2}, {"in_width": 4},
         {"quant_type": "channel", "fake_bn": True, "wt_width": 4}]


@pytest.mark.parametrize("options", MODES)
def test_hybridized_or_not_losses_are_identical(options: dict[str, Any]) -> None:
    losses = [steps(converted(hybrid, **options), 5) for hybrid in (False, True)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 5


@pytest.mark.parametrize("options", [{}, {"fake_bn": True}, {"wt_width": 4}])
def test_losses_are_identical_with_large_weights_and_evaluation_between_steps(options: dict[str, Any]) -> None:
    """Evaluation leaves weights in a layout of oneDNN's."""
    losses = []
    for hybrid in (False, True):
        mx.random.seed(2)
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(nn.Conv2D(64, 3, in_channels=3), nn.BatchNorm(in_channels=64), nn.Activation("relu"),
                    nn.Conv2D(64, 3, in_channels=64, use_bias=False), nn.BatchNorm(in_channels=64),
                    nn.Activation("relu"), nn.Dense(300, in_units=64 * 16), nn.Dense(5, in_units=300))
        net.initialize(mx.init.Xavier(magnitude=2.0))
        convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed="auto", **options)})
        qparams_init(net)
        if hybrid:
            net.hybridize(static_alloc=True, static_shape=True)
        seen = []
        for _ in range(3):
            seen += steps(net, 2)
            with net_offline(net):
                seen.append(float(net(images(seed=9)).sum().asscalar()))
        losses.append(seen)
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 9 and np.isfinite(losses[0]).all()


class Residual(gluon.HybridBlock):
    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        with self.name_scope():
            self.body = nn.HybridSequential(prefix="")
            self.body.add(nn.Conv2D(channels, 3, padding=1, use_bias=False, in_channels=inputs),
                          nn.BatchNorm(in_channels=channels), nn.Activation("relu"),
                          nn.Conv2D(channels, 3, padding=1, use_bias=False, in_channels=channels),
                          nn.BatchNorm(in_channels=channels))
            self.side = nn.HybridSequential(prefix="")
            if channels != inputs:
                self.side.add(nn.Conv2D(channels, 1, use_bias=False, in_channels=inputs),
                              nn.BatchNorm(in_channels=channels))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.Activation(self.side(x) + self.body(x), act_type="relu")


def residual_net(hybrid: bool, **options: Any) -> Any:
    mx.random.seed(1)
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Conv2D(16, 3, padding=1, in_channels=3), nn.BatchNorm(in_channels=16), Residual(16, 16),
                Residual(32, 16), Residual(32, 32), nn.GlobalAvgPool2D(), nn.Dense(5, in_units=32))
    net.initialize(mx.init.Xavier(magnitude=2.0))
    convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed="auto", **options)})
    qparams_init(net)
    if hybrid:
        net.hybridize(static_alloc=True, static_shape=True)
    return net


@pytest.mark.parametrize("options", [{}, {"fake_bn": True}, {"quant_type": "channel", "clip_gradient": True}])
def test_losses_are_identical_where_paths_are_added(options: dict[str, Any]) -> None:
    losses = [steps(residual_net(hybrid, **options), 6) for hybrid in (False, True)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("hybrid", [False, True])
def test_only_what_is_not_hybridized_has_its_sums_written_anew(hybrid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from qgraph.qat import sums

    made, summand = [], sums._summand
    monkeypatch.setattr(sums, "_summand", lambda array: made.append(True) or summand(array))
    net = residual_net(hybrid)
    net(images())
    assert not made
    steps(net, 2)
    assert bool(made) != hybrid


def test_addition_of_arrays_is_left_alone() -> None:
    """NDArray is not touched, not even while a converted network runs, and other arrays stay what they are."""
    class Foreign(gluon.HybridBlock):
        def hybrid_forward(self, F: Any, x: Any) -> Any:
            if F is nd:
                y = F.relu(x)
                seen.append((nd.NDArray.__add__, nd.NDArray.__radd__, type(y), type(y + F.sigmoid(x))))
            return x

    class Calls(gluon.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            foreign(x)
            return self.net(x)

    want, seen, foreign = (nd.NDArray.__add__, nd.NDArray.__radd__, nd.NDArray, nd.NDArray), [], Foreign()
    foreign(images())
    net = convert_model(Calls())
    qparams_init(net)
    foreign(images())
    x = images()
    with autograd.record():
        y = net(x)
    foreign(x)
    assert seen == [want] * 4
    assert [type(a) for a in (x, y, net.net[0].weight.data())] == [nd.NDArray] * 3


def test_a_batchnorm_with_two_readers_is_folded_and_frozen() -> None:
    """The first BatchNorm goes to the next convolution and around it."""
    net = residual_net(True, fake_bn=True)
    steps(net, 4)
    assert net[0].qat.bn is not None and net[0].name not in net.qat_control.reasons
    net.quantize_offline()
    data = images(seed=50)
    want = net(data).asnumpy()
    g = qgraph.from_gluon(net, {"data": data.shape})
    assert {v.op for v in g.readers(g.find(f"{net[0].name}_fwd"))} == {"fake_quantize", "elemwise_add"}
    model = qgraph.freeze(net, qgraph.FreezeOptions(target="mxnet-sim")).model
    assert np.array_equal(executor(model, "").run({"data": data.asnumpy()})[0], want)
    assert np.abs(want - want[:1]).max() > 1e-3


def test_ranges_are_moving_averages_of_the_batches_and_nobody_else_touches_them() -> None:
    net = converted(True)
    first = net[0].input_max
    want = None
    for _ in range(3):
        steps(net, 1, "adam")
        batch = np.abs(images(seed=0).asnumpy()).reshape(8, -1).max(axis=1).mean()
        want = batch if want is None else 0.99 * want + 0.01 * batch
        assert np.isclose(float(first.data().asscalar()), want, rtol=1e-6)
    assert first.grad_req == "null"


def test_several_contexts_share_one_average(tmp_path: Any) -> None:
    contexts = [mx.cpu(0), mx.cpu(1)]
    net = small_net()
    net.collect_params().reset_ctx(contexts)
    convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed=True)})
    qparams_init(net)
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.01}, kvstore="device")
    parts = [images(4, seed=i).as_in_context(c) for i, c in enumerate(contexts)]
    with autograd.record():
        losses = [net(x).sum() for x in parts]
    autograd.backward(losses)
    net.update_ema()
    trainer.step(8)
    found = [float(a.asscalar()) for a in net[0].input_max.list_data()]
    want = np.mean([np.abs(x.asnumpy()).reshape(4, -1).max(axis=1).mean() for x in parts])
    assert found[0] == found[1] and np.isclose(found[0], want, rtol=1e-6)
    net.save_parameters(str(tmp_path / "net.params"))
    again = converted(False)
    again.load_parameters(str(tmp_path / "net.params"))
    assert float(again[0].input_max.data().asscalar()) == found[0]


def test_modes() -> None:
    net = converted(True)
    x = images(seed=9)
    with pytest.raises(CalibrationError, match="no range for the input of net_conv0"):
        net.quantize_offline()
    steps(net, 2)
    outputs = {"online": net(x).asnumpy()}
    net.quantize_offline()
    outputs["offline"] = net(x).asnumpy()
    net.quantize_input(enable=False)
    outputs["weights"] = net(x).asnumpy()
    net.disable_quantize()
    outputs["float"] = net(x).asnumpy()
    assert len({o.tobytes() for o in outputs.values()}) == 4
    net.enable_quantize()
    net.quantize_input(enable=True, online=False)
    assert np.array_equal(net(x).asnumpy(), outputs["offline"])
    with autograd.record():  # the graph of training is another one, and goes away again
        trained = net(x)
    assert not np.array_equal(trained.asnumpy(), outputs["offline"])  # its BatchNorms take the batch's statistics
    assert np.array_equal(net(x).asnumpy(), outputs["offline"])
    assert [b.name for b in net.collect_quantized_blocks()] == ["net_conv0", "net_conv1", "net_conv2", "net_dense0"]
    net.fix_params()
    before = net(x).asnumpy(), float(net[0].input_max.data().asscalar())
    steps(net, 1)
    assert float(net[0].input_max.data().asscalar()) == before[1]
    assert not np.array_equal(net(x).asnumpy(), before[0])


def test_start_step_delays_the_inputs() -> None:
    net = converted(True, start_step=2)
    net.quantize_online()
    assert net[0].qat.waiting and not net[8].qat.waiting
    steps(net, 1)
    assert net[0].qat.waiting
    steps(net, 1)
    assert not net[0].qat.waiting


KINDS = {
    "conv1d": (lambda: nn.Conv1D(6, 3, in_channels=4, groups=2), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2D(6, 3, in_channels=4, groups=2, use_bias=False), (2, 4, 9, 9)),
    "conv3d": (lambda: nn.Conv3D(6, 3, in_channels=4), (2, 4, 5, 5, 5)),
    "deconv1d": (lambda: nn.Conv1DTranspose(6, 3, in_channels=4, strides=2), (2, 4, 9)),
    "deconv2d": (lambda: nn.Conv2DTranspose(6, 3, in_channels=4, groups=2, strides=2, activation="relu"), (2, 4, 9, 9)),
    "dense": (lambda: nn.Dense(6, in_units=12, activation="relu"), (3, 4, 3)),
}


@pytest.mark.parametrize("quant_type", ["layer", "group", "channel"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_trains(kind: str, quant_type: str) -> None:
    """Hybridized: the gradient is that of the layer on its quantized values."""
    make, shape = KINDS[kind]
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(make())
    net.initialize(mx.init.Xavier())
    convert = gen_dense_converter if kind == "dense" else CONV
    convert_model(net, convert_fn={type(net[0]): convert(in_signed=True, quant_type=quant_type)})
    qparams_init(net)
    net.hybridize(static_alloc=True, static_shape=True)
    x = nd.array(np.random.RandomState(0).randn(*shape))
    with autograd.record():
        y = net(x)
        loss = (y * y).sum()
    loss.backward()
    net.update_ema()
    found = net[0].weight.grad().asnumpy()
    block, w = net[0], net[0].weight.data()
    spec = block.qat.weight
    xq = chain.fake_quantize(nd, x, x, block.input_max.data(), block.qat.spec)
    wq = chain.fake_quantize_weight(nd, w, spec, w.shape)
    wq.attach_grad()
    bias = [] if block.bias is None else [block.bias.data()]
    with autograd.record():
        if kind == "dense":
            z = nd.FullyConnected(xq, wq, *bias, num_hidden=6)
        else:
            z = getattr(nd, block._op_name)(xq, wq, *bias, **block._kwargs)
        z = nd.relu(z) if block.act is not None else z
        loss = (z * z).sum()
    loss.backward()
    assert np.allclose(y.asnumpy(), z.asnumpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(found).max() > 0 and np.allclose(found, wq.grad.asnumpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ["lsq", "pact"])
def test_learned_ranges_learn(rule: str) -> None:
    net = small_net()
    weight = "lsq" if rule == "lsq" else "minmax"
    convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed="auto", input_range=rule, weight_range=weight, in_width=4),
                                   nn.Dense: gen_dense_converter(input_range=rule)})
    with pytest.raises(CalibrationError, match="a learned range needs a start"):
        qparams_init(net)
    qparams_init(net, calib_data=images(16).asnumpy())
    net.hybridize(static_alloc=True, static_shape=True)
    before = [float(b.input_max.data().asscalar()) for b in net.collect_quantized_blocks()]
    assert min(before) > 0
    steps(net, 3)
    after = [float(b.input_max.data().asscalar()) for b in net.collect_quantized_blocks()]
    assert sum(a != b for a, b in zip(before, after)) >= 3
    if rule == "lsq":
        assert net[0].weight_max.grad().asnumpy().any()


def test_calibrated_start_and_signs() -> None:
    data = images(16).asnumpy()
    net = small_net()
    convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed="auto")})
    assert [b.qat.spec.signed for b in net.collect_quantized_blocks()] == [True, False, False, False]
    qparams_init(net, calib_data=data)
    assert np.isclose(float(net[0].input_max.data().asscalar()), np.abs(data).max())
    net.disable_quantize()
    hidden = net[2](net[1](net[0](nd.array(data)))).asnumpy()
    assert np.isclose(float(net[3].input_max.data().asscalar()), hidden.max(), rtol=1e-5)


# ---- fake BN --------------------------------------------------------------------------------------------------------

def conv_bn(**options: Any) -> Any:
    mx.random.seed(3)
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Conv2D(6, 3, in_channels=4, groups=2), nn.BatchNorm(in_channels=6, epsilon=1e-3))
    net.initialize(mx.init.Xavier())
    net[1].gamma.set_data(nd.array([1.5, -0.7, 0.2, 2, 1, 0.5]))
    net[1].beta.set_data(nd.random.normal(shape=(6,)))
    convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed=True, fake_bn=True, **options)})
    return qparams_init(net)


def test_fake_bn_is_the_paper_s() -> None:
    """Value and gradients against the two convolutions written down, with autograd through the statistics."""
    net = conv_bn(wt_width=4)
    x = nd.array(np.random.RandomState(0).randn(16, 4, 7, 7))
    conv, bn = net[0], net[1]
    with autograd.record():
        y = net(x)
        loss = (y * nd.sin(7 * y)).sum()
    loss.backward()
    found = [p.grad().asnumpy().copy() for p in (conv.weight, bn.gamma, bn.beta)]

    w, gamma, beta = (p.data().copy() for p in (conv.weight, bn.gamma, bn.beta))
    for array in (w, gamma, beta):
        array.attach_grad()
    b, high = conv.bias.data(), nd.array([np.abs(x.asnumpy()).reshape(16, -1).max(axis=1).mean()])
    xq = chain.fake_quantize(nd, x, x, high, conv.qat.spec)
    with autograd.record():
        y0 = nd.Convolution(xq, w, b, **conv._kwargs)
        mean = y0.mean(axis=(0, 2, 3))
        var = ((y0 - mean.reshape((1, -1, 1, 1))) ** 2).mean(axis=(0, 2, 3))
        scale = gamma / nd.sqrt(var + 1e-3)
        folded = w * scale.reshape((-1, 1, 1, 1))
        wq = chain.fake_quantize_weight(nd, folded, conv.qat.weight, w.shape, training=True)
        z = nd.Convolution(xq, wq, beta + (b - mean) * scale, **conv._kwargs)
        loss = (z * nd.sin(7 * z)).sum()
    loss.backward()
    assert np.allclose(y.asnumpy(), z.asnumpy(), atol=1e-4)
    for a, want in zip(found, (w.grad, gamma.grad, beta.grad)):
        assert np.abs(a).max() > 1 and np.allclose(a, want.asnumpy(), atol=2e-3 * np.abs(a).max())
    assert np.allclose(bn.running_mean.data().asnumpy(), 0.1 * mean.asnumpy(), atol=1e-5)
    assert np.allclose(bn.running_var.data().asnumpy(), 0.9 + 0.1 * var.asnumpy(), atol=1e-4)


def test_fake_bn_statistics_freeze() -> None:
    net = conv_bn(freeze_bn_step=2)
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1e-4})
    seen = []
    for i in range(4):
        with autograd.record():
            loss = (net(nd.array(np.random.RandomState(i).randn(4, 4, 7, 7))) ** 2).sum()
        loss.backward()
        net.update_ema()
        trainer.step(4)
        seen.append(net[1].running_mean.data().asnumpy())
    assert not np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[1], seen[2]) and np.array_equal(seen[2], seen[3])


class Block(gluon.HybridBlock):
    """A convolution inside a HybridSequential of a custom block, with names that say nothing."""

    def __init__(self, mode: str) -> None:
        super().__init__(prefix="odd_")
        self.mode = mode
        with self.name_scope():
            self.body = nn.HybridSequential(prefix="")
            self.body.add(nn.Conv2D(4, 3, padding=1, in_channels=4, prefix="first_"))
            self.after = nn.BatchNorm(in_channels=4, prefix="second_")

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        y = self.body(x)
        if self.mode == "shared":
            return self.after(self.body(self.after(y)))
        if self.mode == "two readers":
            return self.after(y) + y
        return self.after(y)


@pytest.mark.parametrize(("mode", "why"), [
    ("custom", ""), ("shared", "the network calls it 2 times"), ("two readers", "its output is read by ")])
def test_pairs_are_found_by_graph(mode: str, why: str) -> None:
    net = Block(mode)
    net.initialize(mx.init.Xavier())
    convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed=True, fake_bn=True), nn.BatchNorm: bypass_bn})
    qparams_init(net)
    conv = net.body[0]
    reason = net.qat_control.reasons.get(conv.name, "")
    assert (conv.qat.bn is not None) == (not why) and why in reason and bool(reason) == bool(why)
    x = nd.random.normal(shape=(2, 4, 5, 5))
    with autograd.record():
        loss = (net(x) ** 2).sum()
    loss.backward()
    net.update_ema()
    assert conv.weight.grad().asnumpy().any()
    if mode == "shared":
        assert conv.qat.calls == 2
        one = np.abs(x.asnumpy()).reshape(2, -1).max(axis=1).mean()
        assert 0.3 * one < float(conv.input_max.data().asscalar()) < 3 * one  # a mean, not a sum


def test_merge_bn() -> None:
    net, x = small_net(), images()
    want = net(x).asnumpy()
    reasons = merge_bn(net)
    assert list(reasons) == ["net_conv2"] and "Activation, which is no BatchNorm" in reasons["net_conv2"]
    assert np.allclose(net(x).asnumpy(), want, atol=1e-4)
    assert net[0].bias.data().asnumpy().any()


# ---- converting -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("exclude", "left"), [
    (lambda net: [net[0], net[8]], ["conv1", "conv2"]), (lambda net: ["conv0"], ["conv1", "conv2", "dense0"]),
    (lambda net: ["net_conv*"], ["dense0"]), (lambda net: ["*conv[01]", "dense0"], ["conv2"])])
def test_exclude(exclude: Any, left: list[str]) -> None:
    net = small_net()
    convert_model(net, exclude=exclude(net))
    assert [b.name for b in net.collect_quantized_blocks()] == ["net_" + name for name in left]


def test_mistakes_are_named() -> None:
    net = small_net()
    with pytest.raises(OptionError, match="no block is called so; close names: conv"):
        convert_model(net, exclude=["conv7"])
    with pytest.raises(OptionError, match="no layer to quantize among its 1 blocks"):
        convert_model(nn.Activation("relu"))
    with pytest.raises(OptionError, match="is no block of this network"):
        convert_model(net, exclude=[nn.Dense(3)])
    with pytest.raises(OptionError, match="quant_type: found 'tensor', want one of layer, group, channel"):
        CONV(quant_type="tensor")
    with pytest.raises(UnsupportedError, match="layout is NHWC"):
        CONV()(nn.Conv2D(4, 3, layout="NHWC", in_channels=4))
    convert_model(net)
    with pytest.raises(OptionError, match="is converted already"):
        convert_model(net)
    net.cast("float16")
    with pytest.raises(UnsupportedError, match="do not cast the network"):
        net(images().astype("float16"))


def test_per_layer_widths_and_activations() -> None:
    net = small_net()
    convert_model(net, convert_fn={nn.Activation: gen_act_converter(width=4)},
                  custom_fn={"conv1": CONV(in_width=3, wt_width=2), "dense0": None})
    convert_relu_to_relu6(nn.Activation("relu"))
    qparams_init(net)
    net.hybridize(static_alloc=True, static_shape=True)
    steps(net, 1)
    widths = {b.name[4:]: (b.qat.spec.bits, b.qat.weight.bits if b.qat.weight else None)
              for b in net.collect_quantized_blocks()}
    assert widths["conv0"] == (8, 8) and widths["conv1"] == (3, 2) and widths["relu0"] == (4, None)
    assert "dense0" not in widths
    assert len(np.unique(net[2](net[1](net[0](images()))).asnumpy())) <= 16
    assert float(net[2].input_max.data().asscalar()) > 0


def test_the_gradient_of_a_global_average_is_the_same() -> None:
    """It goes by another layout in training, and what is exported knows nothing of it."""
    import qgraph

    x = mx.nd.random.normal(shape=(4, 3, 8, 8))
    grads = []
    for converted in (False, True):
        mx.random.seed(3)
        net = nn.HybridSequential(prefix="n_")
        with net.name_scope():
            net.add(nn.Conv2D(16, 3, use_bias=False, in_channels=3), nn.BatchNorm(in_channels=16),
                    nn.Activation("relu"), nn.GlobalAvgPool2D(), nn.Dense(5, in_units=16))
        net.initialize(mx.init.Xavier())
        if converted:
            convert_model(net)
            qparams_init(net, calib_data=x.asnumpy())
            net.disable_quantize()
        net.hybridize()
        with mx.autograd.record():
            loss = (net(x) ** 2).sum()
        loss.backward()
        grads.append([p.grad().asnumpy() for p in net.collect_params().values() if p.grad_req != "null"])
    assert len(grads[0]) == len(grads[1]) == 5
    for plain, ours in zip(*grads):
        assert np.allclose(plain, ours, rtol=1e-5, atol=1e-6) and np.abs(plain).max() > 1e-3
    net.enable_quantize()
    assert not qgraph.from_gluon(net).nodes("_mul_scalar")


# ---- mistakes and odd uses ------------------------------------------------------------------------------------------

def ranges(net: Any) -> list[float]:
    return [float(b.qat.high.data().asscalar()) for b in net.collect_quantized_blocks()]


def step_of(net: Any, loss_of: Any) -> None:
    with autograd.record():
        loss = loss_of()
    loss.backward()
    net.update_ema()


def test_what_is_no_observation_moves_no_range() -> None:
    """No zeros while quantization is off, no infinity; ranges that were reset take the next batch's."""
    net = converted(False)  # hybridized, MXNet sends no gradients at all once parameters were reset
    qparams_init(net, calib_data=images().asnumpy())
    before = ranges(net)
    net.disable_quantize()
    steps(net, 5)
    assert ranges(net) == before
    net.enable_quantize()
    broken = images()
    broken[0, 0, 0, 0] = np.inf
    step_of(net, lambda: (net(broken) ** 2).mean())
    assert np.isfinite(ranges(net)).all()
    net.initialize(force_reinit=True)
    step_of(net, lambda: (net(images()) ** 2).mean())
    once = ranges(net)
    step_of(net, lambda: (net(images()) ** 2).mean())
    assert np.allclose(once, ranges(net), rtol=0.05) and min(once) > 0


@pytest.mark.parametrize("hybrid", [False, True])
def test_several_passes_of_one_step_are_averaged(hybrid: bool) -> None:
    one, two, apart = (converted(hybrid) for _ in range(3))
    with autograd.train_mode():  # is not recorded, and does not count
        one(images())
    step_of(one, lambda: (one(images()) ** 2).mean())
    step_of(two, lambda: (two(images()) ** 2).mean() + (two(images()) ** 2).mean())
    for _ in range(2):  # each with its own backward pass
        with autograd.record():
            loss = (apart(images()) ** 2).mean()
        loss.backward()
    apart.update_ema()
    assert np.allclose(ranges(one), ranges(two), rtol=1e-6) and ranges(one) == ranges(apart) and min(ranges(one)) > 0


class Outer(gluon.HybridBlock):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def hybrid_forward(self, F: Any, x: Any, mask: Any = None) -> Any:
        return F.mean(self.net(x) ** 2)


def test_a_part_of_a_hybridized_network_is_refused() -> None:
    outer = Outer(converted(False))
    step_of(outer.net, lambda: outer(images()))
    assert min(ranges(outer.net)) > 0
    outer.hybridize()
    with pytest.raises(UnsupportedError, match="convert the outer block"), autograd.record():
        outer(images())
    late = Outer(converted(False))
    late.hybridize()
    late(images())  # the graph of inference
    with pytest.raises(OptionError, match="larger hybridized network"):
        step_of(late.net, lambda: late(images()))


def test_update_ema_comes_behind_backward() -> None:
    net = converted(False)
    with autograd.record():
        net(images())
    with pytest.raises(OptionError, match="after loss.backward"):
        net.update_ema()


@pytest.mark.parametrize("hybrid", [False, True])
def test_an_input_that_is_none_and_one_that_is_a_list(hybrid: bool) -> None:
    outer = Outer(small_net())
    convert_model(outer)
    qparams_init(outer)
    if hybrid:
        outer.hybridize()
    step_of(outer, lambda: outer(images(), None))
    assert min(ranges(outer)) > 0


def test_a_copy_is_a_network_of_its_own() -> None:
    net = converted(False)  # Gluon cannot copy what is hybridized
    steps(net, 1)
    net.quantize_offline()
    want = net(images()).asnumpy()
    twin = copy.deepcopy(net)
    for parameter in net.collect_params(".*weight").values():
        parameter.set_data(parameter.data() * 0)
    assert np.array_equal(twin(images()).asnumpy(), want) and not np.array_equal(net(images()).asnumpy(), want)


def test_resuming_sets_what_is_delayed(tmp_path: Any) -> None:
    net = converted(False, start_step=3)
    steps(net, 4)
    net.save_parameters(str(tmp_path / "p"))
    again = converted(False, start_step=3)
    again.load_parameters(str(tmp_path / "p"))
    again.qat_control.steps = 4
    for one in (net, again):
        one.quantize_offline()
    assert np.array_equal(net(images()).asnumpy(), again(images()).asnumpy())


def test_a_conversion_that_fails_changes_nothing() -> None:
    net = small_net()
    net.add(nn.Conv2D(8, 3, in_channels=8, layout="NHWC"))
    with pytest.raises(UnsupportedError, match="exclude it"):
        convert_model(net)
    assert not any(hasattr(b, "qat") for b in net) and not any("input_max" in n for n in net.collect_params())
    convert_model(net, exclude=[net[-1]])
    assert len(net.collect_quantized_blocks()) == 4


def test_blocks_of_one_weight_round_it_in_one_way() -> None:
    net = nn.HybridSequential()
    first = nn.Conv2D(3, 3, padding=1, in_channels=3)
    net.add(first, nn.Conv2D(3, 3, padding=1, in_channels=3, params=first.params))
    with pytest.raises(OptionError, match="share their weight"):
        convert_model(net, custom_fn={net[1]: CONV(wt_width=4)})


def test_an_excluded_batchnorm_is_not_folded() -> None:
    net = small_net()
    convert_model(net, exclude=[net[1]], convert_fn={nn.Conv2D: CONV(fake_bn=True)})
    assert net[0].qat.bn is None and "is excluded" in net.qat_control.reasons[net[0].name]


def uneven_net(norm: bool) -> Any:
    """Channels of very different sizes behind its first layer, and weights that make up for them in the next one."""
    mx.random.seed(0)
    net = nn.HybridSequential(prefix="net_")
    sizes = np.geomspace(0.05, 1, 16).astype(np.float32)
    with net.name_scope():
        net.add(nn.Conv2D(16, 3, padding=1, in_channels=3, use_bias=not norm))
        if norm:
            net.add(nn.BatchNorm(in_channels=16))
        net.add(nn.Activation("relu"), nn.Conv2D(16, 3, padding=1, groups=16, in_channels=16), nn.LeakyReLU(0.1),
                nn.MaxPool2D(), nn.Dense(5, in_units=16 * 16))
    net.initialize(mx.init.Xavier(magnitude=2.0))
    if norm:
        net[1].gamma.set_data(nd.array(sizes))
        net[1].running_mean.set_data(nd.random.normal(scale=0.1, shape=16))
    else:
        net[0].weight.set_data(net[0].weight.data() * nd.array(sizes.reshape(-1, 1, 1, 1)))
    depthwise = net[3 if norm else 2].weight
    depthwise.set_data(depthwise.data() / nd.array(sizes.reshape(-1, 1, 1, 1)))
    return net


@pytest.mark.parametrize("norm", [False, True])
def test_channels_are_equalized_before_training(norm: bool) -> None:
    few = {nn.Conv2D: CONV(in_width=4, wt_width=4, fake_bn=norm), nn.Dense: gen_dense_converter(in_width=4, wt_width=4)}
    want = uneven_net(norm)(images()).asnumpy()
    errors = []
    for equalize in (None, images(64).asnumpy()):
        net = convert_model(uneven_net(norm), convert_fn=few, exclude=["conv0"], equalize=equalize)
        qparams_init(net, calib_data=images(64).asnumpy())
        net.quantize_offline()
        errors.append(np.square(net(images()).asnumpy() - want).mean())
        net.disable_quantize()
        np.testing.assert_allclose(net(images()).asnumpy(), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("place", [1, 2])
def test_channels_of_other_batchnorms_are_not_equalized(place: int) -> None:
    """place 1: without a gamma.  2: behind the relu, so that it is folded into the layer that reads it."""
    def build() -> Any:
        net = uneven_net(norm=True)
        norm = nn.BatchNorm(in_channels=16, scale=place == 2)
        norm.initialize()
        norm.running_mean.set_data(nd.random.normal(scale=0.1, shape=16))
        layers, sizes = list(net), np.geomspace(0.05, 1, 16)
        if place == 2:
            layers[0].weight.set_data(layers[0].weight.data() * nd.array(sizes.reshape(-1, 1, 1, 1)))
            layers[1:3] = [layers[2], norm]
            layers[3] = nn.Conv2D(16, 1, in_channels=16)
            layers[3].initialize()
            layers[3].weight.set_data(nd.array(np.random.RandomState(0).randn(16, 16, 1, 1)
                                               / sizes.reshape(1, -1, 1, 1)))
        else:
            norm.running_var.set_data(nd.array(np.geomspace(400, 1, 16)))
            layers[1] = norm
        other = nn.HybridSequential(prefix="other_")
        other.add(*layers)
        return other

    want = build()(images()).asnumpy()
    net = convert_model(build(), convert_fn={nn.Conv2D: CONV(in_width=4, wt_width=4)}, equalize=images(64).asnumpy())
    qparams_init(net)
    net.disable_quantize()
    np.testing.assert_allclose(net(images()).asnumpy(), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_two_inputs_are_calibrated_exported_and_frozen(tmp_path: Any) -> None:
    class Two(gluon.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.a, self.b = (nn.Conv2D(4, 3, in_channels=3) for _ in range(2))

        def hybrid_forward(self, F: Any, x: Any, y: Any) -> Any:
            return self.a(x) + self.b(y)

    net, feeds = Two(), {"data0": images().asnumpy(), "data1": images(seed=1).asnumpy()}
    net.initialize()
    convert_model(net)
    qparams_init(net, calib_data=feeds)
    net.quantize_offline()
    want = net(*map(nd.array, feeds.values())).asnumpy()
    net.export(str(tmp_path / "net"))
    for model in (net, str(tmp_path / "net-symbol.json")):
        frozen = qgraph.freeze(model, qgraph.FreezeOptions(target="mxnet-sim"))
        assert np.array_equal(executor(frozen.model, "").run(feeds)[0], want)


def test_a_layer_behind_a_comparison_is_judged() -> None:
    class Gate(gluon.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2D(4, 3, in_channels=3)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            y = self.conv(x)
            return y * (y > 0)

    net = Gate()
    net.initialize()
    convert_model(net, convert_fn={nn.Conv2D: CONV(in_signed=True)})
    qparams_init(net)
    step_of(net, lambda: (net(images()) ** 2).mean())
    net.quantize_offline()
    frozen = qgraph.freeze(net, qgraph.FreezeOptions(target="mxnet-sim"))
    assert frozen.report["departure"]["output"] == 0 and frozen.report["departure"]["within_one"] == 100
    assert np.array_equal(executor(frozen.model, "").run({"data": images().asnumpy()})[0], net(images()).asnumpy())


@pytest.mark.parametrize("target", ["mxnet", "onnx"])
def test_layers_that_read_floats_are_frozen_for_every_target(target: str) -> None:
    net = small_net()
    convert_model(net, convert_fn={nn.Conv2D: CONV(quantize_input=False)})
    qparams_init(net)
    steps(net, 1)
    net.quantize_offline()
    frozen = qgraph.freeze(net, qgraph.FreezeOptions(target="onnx{isa=vnni}" if target == "onnx" else target))
    got = executor(frozen.model, "").run({"data": images().asnumpy()})[0]
    want = net(images()).asnumpy()
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()  # folded BatchNorms round otherwise


@pytest.mark.parametrize(("mistake", "message"), [
    (lambda: convert_model(small_net(), convert_fn={nn.Conv2D: CONV}), "want a converter"),
    (lambda: convert_model(small_net(), convert_fn={"Conv2D": CONV()}), "want a type of block"),
    (lambda: convert_model(small_net(), convert_fn=[CONV()]), "want a dict"),
    (lambda: convert_model(len), "want a Gluon block"), (lambda: qparams_init(small_net()), "is not converted"),
    (lambda: CONV(in_width=4.0), "in_width"), (lambda: CONV(start_step=-1), "start_step"),
    (lambda: CONV(freeze_bn_step="1"), "freeze_bn_step"), (lambda: converted(False).update_ema("0.9"), "momentum"),
    (lambda: converted(False).update_ema(), "not called under autograd.record"),
    (lambda: convert_model(nn.Conv2D(8, 3, in_channels=3), equalize=images().asnumpy()), r"initialize\(\)"),
    (lambda: convert_model(small_net(), equalize=True), "equalize: found True, want calibration images")])
def test_more_mistakes_are_named(mistake: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        mistake()


@pytest.mark.parametrize("options", [{"input_range": "lsq"}, {"weight_range": "lsq"}, {"input_range": "pact"}])
def test_a_learned_range_needs_a_start(options: dict[str, Any]) -> None:
    net = small_net()
    convert_model(net, convert_fn={nn.Conv2D: CONV(**options)})
    net.initialize()
    with pytest.raises(CalibrationError, match="needs a start"):
        net(images())


@pytest.mark.parametrize("hybrid", [False, True])
def test_shapes_must_be_known(hybrid: bool) -> None:
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3), nn.Dense(5))
    net.initialize()
    convert_model(net)
    qparams_init(net)
    if hybrid:
        net.hybridize()
    with pytest.raises(OptionError, match="run one batch"):
        net(images())


def test_a_layer_that_is_not_used_is_named() -> None:
    net = Outer(small_net())
    net.spare = nn.Conv2D(4, 3, in_channels=3)
    net.initialize()
    convert_model(net)
    with pytest.raises(CalibrationError, match="does not use it: exclude it"):
        qparams_init(net, calib_data=images().asnumpy())
