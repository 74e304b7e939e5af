"""Time of a training step: float, quantization-aware without and with folded BatchNorms, and in eager style.

    python benchmarks/qat_step.py [--batch 32] [--rounds 9] [--models NAME:SIZE,...]

All but eager are hybridized with static memory.  Eager is how quantization-aware training was written for MXNet
before: not hybridized, one Python call and one wait for a number per layer and batch, an autograd.Function for the
straight-through estimator; folded, a hook that runs each convolution again for mean and variance, and weights scaled
by the running ones.  The Function is followed by a reshape, without which oneDNN builds of MXNet crash or train on
wrong gradients now and then.  In every round all run in a random order; ratios are medians of those within a round.
A step is forward, backward, `update_ema` and an SGD update.  Needs gluoncv.  About two minutes.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
from types import MethodType
from typing import Any, Callable

import numpy as np
from _common import table

VARIANTS = ("float", "qat", "qat, folded", "eager", "eager, folded")


def eager_style(net: Any, norms: dict[Any, Any]) -> Callable[[], None]:
    """The original's way: patches the layers of `net`; returns its update of the averages.

    norms: convolution -> its BatchNorm, to be folded.
    """
    import mxnet as mx
    from mxnet.gluon import nn

    class Rounded(mx.autograd.Function):
        def __init__(self, scale: Any, largest: Any = None) -> None:
            super().__init__()
            self.scale, self.largest = scale, largest

        def forward(self, x: Any) -> Any:
            x = x if self.largest is None else x.clip(0.0, self.largest)
            return (x / (self.scale + 1e-10)).round() * self.scale

        def backward(self, dy: Any) -> Any:
            return dy

    def rounded(x: Any, scale: Any, largest: Any = None) -> Any:
        # a Function reads a gradient in oneDNN's layout from memory that is gone; that of a reshape is in MXNet's
        return Rounded(scale, largest)(x).reshape(x.shape)

    layers: list[Any] = []

    def forward(self: Any, F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        axes = (0, 2, 3) if len(x.shape) == 4 else (1,)
        self.seen = F.max(F.abs(x), axis=axes).mean().asscalar()
        x = rounded(x, self.seen / 255, self.seen)
        if self in norms:
            gamma, beta, mean, var = (p.data() for p in norms[self].params.values())
            scale = gamma / F.sqrt(var + 1e-5)
            weight = (weight.reshape((len(weight), -1)) * scale.reshape((-1, 1))).reshape(weight.shape)
            bias = beta - mean * scale
            weight = rounded(weight, weight.abs().max() / 127)
            return F.Convolution(x, weight, bias, **{**self._kwargs, "no_bias": False})
        return self.plain(F, x, rounded(weight, weight.abs().max() / 127), bias)

    def statistics_of(block: Any, inputs: Any) -> None:
        y = mx.nd.Convolution(inputs[0], block.weight.data(), **block._kwargs)
        count = y.shape[0] * y.shape[2] * y.shape[3]
        block.mean = y.sum(axis=(2, 3)).sum(axis=0) / count
        block.var = ((y - block.mean.reshape((1, -1, 1, 1))) ** 2).sum(axis=(2, 3)).sum(axis=0) / count

    def patch(block: Any) -> None:
        if isinstance(block, (nn.Conv2D, nn.Dense)) and block is not first:
            block.plain, block.average = block.hybrid_forward, mx.nd.zeros(1)
            block.hybrid_forward = MethodType(forward, block)
            layers.append(block)
            if block in norms:
                block.register_forward_pre_hook(statistics_of)

    first = first_convolution(net)
    net.apply(patch)

    def update() -> None:
        for block in layers:
            block.average = 0.99 * block.average + 0.01 * block.seen
            if block in norms:
                running = norms[block].running_mean, norms[block].running_var
                for parameter, batch in zip(running, (block.mean, block.var)):
                    parameter.set_data(0.99 * parameter.data() + 0.01 * batch)

    return update


def first_convolution(net: Any) -> Any:
    from mxnet.gluon import nn

    found: list[Any] = []
    net.apply(lambda block: found.append(block) if isinstance(block, nn.Conv2D) else None)
    return found[0]


def folding(net: Any) -> dict[Any, Any]:
    """convolution -> BatchNorm behind it, which is bypassed; those of the first convolution stay."""
    from mxnet.gluon import nn

    from qgraph.qat import bypass_bn
    from qgraph.qat.network import examine

    network, blocks = examine(net), []  # type: ignore[var-annotated]
    net.apply(blocks.append)
    norms = {b.gamma.name: b for b in blocks if isinstance(b, nn.BatchNorm)}
    pairs = {b: norms[network.bn_behind(b)[0]] for b in blocks if isinstance(b, nn.Conv2D) and b.bias is None
             and b is not first_convolution(net)}
    for bn in pairs.values():
        bypass_bn(bn)
    return pairs


def take_statistics(net: Any, images: Any) -> None:
    """Running statistics of BatchNorms are those of the images. Else what is folded with them fades to denormals."""
    import mxnet as mx
    from mxnet.gluon import nn

    norms: list[Any] = []
    net.apply(lambda block: norms.append(block) if isinstance(block, nn.BatchNorm) else None)
    momentum = [bn._kwargs["momentum"] for bn in norms]
    for bn in norms:
        bn._kwargs["momentum"] = 0
    with mx.autograd.record():
        y = net(images)
    y.backward()
    for bn, m in zip(norms, momentum):
        bn._kwargs["momentum"] = m


def stepper(name: str, size: int, batch: int, variant: str) -> Callable[[], None]:
    import mxnet as mx
    from gluoncv.model_zoo import get_model
    from mxnet.gluon import nn

    from qgraph.qat import convert_model, gen_conv2d_converter, qparams_init

    mx.random.seed(0)
    net = get_model(name, pretrained=False)
    net.initialize(mx.init.Xavier(magnitude=2.0))
    images = mx.nd.random.normal(shape=(batch, 3, size, size))
    labels = mx.nd.array(np.arange(batch) % 10)
    take_statistics(net, images)
    update: Callable[[], None] = lambda: None  # noqa: E731
    if variant.startswith("qat"):
        convert_model(net, exclude=[first_convolution(net)],
                      convert_fn={nn.Conv2D: gen_conv2d_converter(fake_bn="folded" in variant)})
        qparams_init(net)
        update = net.update_ema
    if variant.startswith("eager"):
        norms = folding(net) if "folded" in variant else {}
        update = eager_style(net, norms)
    else:
        net.hybridize(static_alloc=True, static_shape=True)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.01, "momentum": 0.9})
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def step() -> None:
        with mx.autograd.record():
            loss = loss_of(net(images), labels)
        loss.backward()
        update()
        trainer.step(batch, ignore_stale_grad=True)
        mx.nd.waitall()
        if not np.isfinite(loss.asnumpy()).all():
            raise SystemExit(f"{name}, {variant}: the loss is {loss.mean().asscalar()}")

    return step


def measured(name: str, size: int, batch: int, rounds: int) -> list[str]:
    steps = {variant: stepper(name, size, batch, variant) for variant in VARIANTS}
    for step in steps.values():
        step(), step()
    order, times = list(VARIANTS), {variant: [] for variant in VARIANTS}  # type: ignore[var-annotated]
    for _ in range(rounds):
        random.shuffle(order)
        for variant in order:
            began = time.perf_counter()
            steps[variant]()
            times[variant].append(time.perf_counter() - began)

    def ratio(a: str, b: str) -> str:
        return f"{statistics.median(x / y for x, y in zip(times[a], times[b])):.2f}"

    return [f"{name}, {size} x {size}", *(f"{1000 * statistics.median(times[v]):.0f}" for v in VARIANTS),
            ratio("qat", "float"), ratio("qat, folded", "float"), ratio("eager", "qat"),
            ratio("eager, folded", "qat, folded")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--models", default="cifar_resnet20_v1:32,mobilenet0.5:64")
    args = parser.parse_args()
    logging.getLogger("qgraph").setLevel(logging.ERROR)
    random.seed(0)
    rows = [measured(name, int(size), args.batch, args.rounds)
            for name, size in (item.split(":") for item in args.models.split(","))]
    head = ["model", *(f"{v} ms" for v in VARIANTS), "qat/float", "folded/float", "eager/qat", "the same, folded"]
    print(table(f"Training step, batch {args.batch}, one thread", head, rows))


if __name__ == "__main__":
    main()
