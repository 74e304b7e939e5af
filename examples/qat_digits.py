"""Quantization-aware training in a minute: the digits network of this folder, in 4 bits.

    python examples/qat_digits.py
    python examples/local_cluster.py --workers 2 -- examples/qat_digits.py --kvstore dist_sync

Prints the accuracy of the float network, of the quantized one before and after retraining, and checks that what
`qgraph freeze` writes for `mxnet-sim` computes the same logits, bit for bit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from train_digits import DEFAULT_OUTPUT, DigitsSplit, build_network, load_digits_split, require, shifted

BATCH_SIZE = 32


def trained_network(prefix: Path) -> Any:
    """The float network with the weights of the checkpoint."""
    import mxnet as mx

    net = build_network()
    net.collect_params().load(f"{prefix}-0000.params", ctx=mx.cpu(), cast_dtype=True)
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def quantized_network(prefix: Path, split: DigitsSplit, bits: int, quant_type: str, fake_bn: bool) -> Any:
    """The same, quantized with ranges from the 100 calibration images; the first convolution stays in float."""
    from mxnet.gluon import nn

    from qgraph.qat import convert_model, gen_conv2d_converter, gen_dense_converter, qparams_init

    net = trained_network(prefix)
    convert_model(net, exclude=["conv0"], convert_fn={
        nn.Conv2D: gen_conv2d_converter(in_width=bits, wt_width=bits, quant_type=quant_type, fake_bn=fake_bn),
        nn.Dense: gen_dense_converter(in_width=bits, wt_width=bits, quant_type=quant_type)})
    qparams_init(net, calib_data=split.calib_data)
    net.quantize_offline()
    return net


def logits(net: Any, images: np.ndarray) -> np.ndarray:
    import mxnet as mx

    return net(mx.nd.array(images)).asnumpy()


def accuracy(scores: np.ndarray, label: np.ndarray) -> float:
    return float((scores.argmax(axis=1) == label).mean())


def retrain(net: Any, split: DigitsSplit, epochs: int, rate: float, kvstore: str) -> None:
    """SGD with momentum, the learning rate falling to zero; each worker of a distributed kvstore has its own images."""
    import mxnet as mx

    distributed = "dist" in kvstore
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"momentum": 0.9, "wd": 1e-4}, kvstore=kvstore,
                               update_on_kvstore=False if distributed else None)
    trainer._init_kvstore()
    rank, workers = (trainer._kvstore.rank, trainer._kvstore.num_workers) if distributed else (0, 1)
    images, labels = split.train_data[rank::workers], split.train_label[rank::workers]
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    rng = np.random.RandomState(rank)
    steps = len(split.train_label) // workers // BATCH_SIZE
    for epoch in range(epochs):
        order, total = rng.permutation(len(images)), 0.0
        for step in range(steps):
            trainer.set_learning_rate(rate * (1 + np.cos(np.pi * (epoch + step / steps) / epochs)) / 2)
            batch = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            with mx.autograd.record():
                loss = loss_of(net(mx.nd.array(shifted(images[batch], rng))), mx.nd.array(labels[batch]))
            loss.backward()
            net.update_ema(trainer=trainer)
            trainer.step(BATCH_SIZE * workers)
            total += float(loss.mean().asscalar())
        if rank == 0:
            click.echo(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}", err=True)


@click.command()
@click.option("--bits", default=4, show_default=True, type=click.IntRange(2, 8), help="Of inputs and weights.")
@click.option("--quant-type", default="layer", show_default=True, type=click.Choice(["layer", "group", "channel"]))
@click.option("--fake-bn/--no-fake-bn", default=True, show_default=True, help="Fold BatchNorms while training.")
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(1))
@click.option("--lr", default=0.01, show_default=True)
@click.option("--kvstore", default="local", show_default=True)
@click.option("--output", metavar="PREFIX", type=click.Path(path_type=Path), help="Write the trained network there.")
def main(bits: int, quant_type: str, fake_bn: bool, epochs: int, lr: float, kvstore: str, output: Path | None) -> None:
    """Retrain the digits network quantized, freeze it, compare."""
    require("mxnet", '"qgraph[mxnet]"')
    require("sklearn", "scikit-learn")
    import mxnet as mx

    import qgraph

    mx.random.seed(0)
    split = load_digits_split()
    images, label = split.test_data, split.test_label
    before = accuracy(logits(trained_network(DEFAULT_OUTPUT), images), label)
    net = quantized_network(DEFAULT_OUTPUT, split, bits, quant_type, fake_bn)
    unretrained = accuracy(logits(net, images), label)
    retrain(net, split, epochs, lr, kvstore)
    scores = logits(net, images)
    click.echo(f"float       {before:.2%}")
    click.echo(f"quantized   {unretrained:.2%}  uint{bits}/int{bits} per {quant_type}")
    click.echo(f"retrained   {accuracy(scores, label):.2%}")
    frozen = qgraph.freeze(net, qgraph.FreezeOptions(target="mxnet-sim"))
    module = frozen.module(images.shape)
    module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    same = np.array_equal(module.get_outputs()[0].asnumpy(), scores)
    click.echo(f"frozen      {'equal to it, bit for bit' if same else 'DIFFERS'}")
    if output is not None:
        net.export(str(output))
        click.echo(f"wrote       {output}-symbol.json")
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
