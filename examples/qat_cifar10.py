"""Retrain a network on CIFAR-10 with simulated 4-bit quantization, and print what that recovers.

    python examples/qat_cifar10.py --data ../shared/cases/cifar10 --params cifar_resnet20_v1.gluon.params
    python examples/qat_cifar10.py --data ... --bits 8 --quant-type layer --no-fake-bn --epochs 2
    python examples/local_cluster.py --workers 2 -- examples/qat_cifar10.py --data ... --kvstore dist_sync

For each --quant-type: accuracy of the float network, of it quantized without training (ranges naive and KL, from 500
training images), and after retraining.  Inputs are quantized to unsigned codes of --bits bits with ranges that are
moving averages, weights to signed ones, BatchNorms are folded while training, the first convolution stays in float.

Without --params the float network is trained first.  Everything is kept in OUTPUT-*.params and OUTPUT-*.json after
every epoch: a run that was interrupted goes on from there.  OUTPUT-QUANT_TYPE-symbol.json and -0000.params is the
trained network for `qgraph freeze`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32).reshape(3, 1, 1)
STD = np.array([0.2023, 0.1994, 0.2010], np.float32).reshape(3, 1, 1)
CALIB_IMAGES = 500
PADDING = 4
console = Console(stderr=True)


def read_images(path: Path, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 32, 32) uint8 and labels of a .rec of CIFAR-10, kept decoded beside the output."""
    from qgraph import open_data

    batches = list(open_data(str(path), limit=limit, batch_size=500))
    data = np.concatenate([b.feeds["data"] for b in batches]).astype(np.uint8)
    return data, np.concatenate([b.labels for b in batches])


def ready(images: np.ndarray, zoom: int) -> np.ndarray:
    """What the network reads: normalized, each pixel `zoom` times as high and wide."""
    values = ((images / np.float32(255) - MEAN) / STD).astype(np.float32)
    return values.repeat(zoom, axis=2).repeat(zoom, axis=3)


def augmented(images: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Random crops of the padded images, half of them mirrored."""
    size = images.shape[-1]
    padded = np.pad(images, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    corners = rng.randint(0, 2 * PADDING + 1, (len(images), 2))
    flips = rng.randint(0, 2, len(images))
    return np.stack([image[:, y:y + size, x:x + size][:, :, ::1 - 2 * flip]
                     for image, (y, x), flip in zip(padded, corners, flips)])


def accuracy(net: Any, data: tuple[np.ndarray, np.ndarray], ctx: Any, zoom: int, batch_size: int = 100) -> float:
    """Percent."""
    import mxnet as mx

    images, labels = data
    right = 0
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        scores = net(mx.nd.array(ready(images[part], zoom), ctx=ctx)).asnumpy()
        right += int((scores.argmax(axis=1) == labels[part]).sum())
    return 100.0 * right / len(images)


def batches(data: tuple[np.ndarray, np.ndarray], size: int, zoom: int, rng: np.random.RandomState) -> Iterator[Any]:
    order = rng.permutation(len(data[1]))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start:start + size]
        yield ready(augmented(data[0][chosen], rng), zoom), data[1][chosen]


class Run:
    """One training that can be interrupted: weights, trainer and progress in PREFIX.params, .states, .json."""

    def __init__(self, prefix: str, net: Any, options: dict[str, Any]) -> None:
        self.prefix, self.net, self.options = prefix, net, options
        self.facts: dict[str, Any] = {"epochs": 0}
        found = Path(f"{prefix}.json")
        self.resumes = found.is_file()
        if self.resumes:
            self.facts = json.loads(found.read_text())

    def save(self, trainer: Any) -> None:
        self.net.save_parameters(f"{self.prefix}.params")
        if not trainer._update_on_kvstore:
            trainer.save_states(f"{self.prefix}.states")
        Path(f"{self.prefix}.json").write_text(json.dumps(self.facts))

    def train(self, data: tuple[np.ndarray, np.ndarray], epochs: int, peak: float, quantized: bool) -> None:
        import mxnet as mx

        options = self.options
        distributed = "dist" in options["kvstore"]
        trainer = mx.gluon.Trainer(self.net.collect_params(), "nag", {"momentum": 0.9, "wd": 2e-4},
                                   kvstore=options["kvstore"], update_on_kvstore=False if distributed else None)
        rank, workers = (trainer_rank(trainer) if distributed else (0, 1))
        mine = (data[0][rank::workers], data[1][rank::workers])
        steps = len(mine[1]) // options["batch_size"]
        if not steps:
            raise click.UsageError(f"found {len(mine[1])} images to train on, want at least a batch of "
                                   f"{options['batch_size']} per worker")
        loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        if self.resumes and self.facts["epochs"]:
            self.net.load_parameters(f"{self.prefix}.params")
            if Path(f"{self.prefix}.states").is_file() and not distributed:
                trainer.load_states(f"{self.prefix}.states")
            if quantized:
                self.net.qat_control.steps = self.facts["epochs"] * steps
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("training", total=epochs * steps, completed=self.facts["epochs"] * steps)
            for epoch in range(self.facts["epochs"], epochs):
                rng, total, began = np.random.RandomState(1000 * epoch + rank), 0.0, time.time()
                for step, (images, labels) in enumerate(batches(mine, options["batch_size"], options["zoom"], rng)):
                    rate = peak * (1 + np.cos(np.pi * (epoch + step / steps) / epochs)) / 2
                    trainer.set_learning_rate(rate)
                    with mx.autograd.record():
                        loss = loss_of(self.net(mx.nd.array(images, ctx=options["ctx"])),
                                       mx.nd.array(labels, ctx=options["ctx"]))
                    loss.backward()
                    if quantized:
                        self.net.update_ema(trainer=trainer)
                    trainer.step(options["batch_size"] * workers)
                    total += float(loss.mean().asscalar())
                    progress.update(bar, advance=1, description=f"epoch {epoch + 1}/{epochs} "
                                                                f"loss {total / (step + 1):.4f}")
                self.facts["epochs"] = epoch + 1
                if rank == 0:
                    console.log(f"{self.prefix}: epoch {epoch + 1}/{epochs}, loss {total / steps:.4f}, "
                                f"{time.time() - began:.0f} s")
                    self.save(trainer)


def trainer_rank(trainer: Any) -> tuple[int, int]:
    trainer._init_kvstore()
    return trainer._kvstore.rank, trainer._kvstore.num_workers


def build(model: str, params: str | None, ctx: Any) -> Any:
    import mxnet as mx
    from gluoncv.model_zoo import get_model

    mx.random.seed(0)
    try:
        net = get_model(model, pretrained=False, classes=10)
    except ValueError:
        raise click.BadParameter(f"gluoncv.model_zoo has no {model}", param_hint="--model") from None
    if params:
        try:
            net.load_parameters(params, ctx=ctx)
        except (AssertionError, KeyError, ValueError, mx.MXNetError) as error:
            raise click.BadParameter(f"{params} does not hold {model} with 10 classes: "
                                     f"{str(error).splitlines()[-1][:120]}", param_hint="--params") from None
    else:
        net.initialize(mx.init.Xavier(magnitude=2.0), ctx=ctx)
    net.hybridize(static_alloc=True, static_shape=True)
    net(mx.nd.zeros((1, 3, 32, 32), ctx=ctx))  # gives the weights their shapes
    return net


def first_convolution(net: Any) -> Any:
    from mxnet.gluon import nn

    found: list[Any] = []

    def look(block: Any) -> None:
        if not found and not block._children and isinstance(block, nn.Conv2D):
            found.append(block)

    net.apply(look)
    return found[0]


def quantized(net: Any, quant_type: str, bits: int, fake_bn: bool, freeze_bn_step: int | None,
              equalize: np.ndarray | None) -> Any:
    """The network, converted; the first convolution (and the BatchNorm behind it) stays as it is.

    equalize: calibration images, or None.
    """
    from mxnet.gluon import nn

    from qgraph.qat import convert_model, gen_conv2d_converter, gen_dense_converter

    width = {"in_width": bits, "wt_width": bits, "quant_type": quant_type}
    return convert_model(net, exclude=[first_convolution(net)], convert_fn={
        nn.Conv2D: gen_conv2d_converter(fake_bn=fake_bn, freeze_bn_step=freeze_bn_step, **width),
        nn.Dense: gen_dense_converter(**width)}, equalize=equalize)


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
              help="Holds cifar10_train.rec and cifar10_test.rec.")
@click.option("--model", default="cifar_resnet20_v1", show_default=True, help="A name of gluoncv.model_zoo.")
@click.option("--zoom", default=1, show_default=True, type=click.IntRange(1), help="Pixels become N x N: for models "
              "that are made for larger images, such as the MobileNets.", metavar="N")
@click.option("--params", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="Parameters of the float network, as Gluon saves them.")
@click.option("--quant-type", "quant_types", multiple=True, default=("channel", "layer"), show_default=True,
              type=click.Choice(["layer", "group", "channel"]))
@click.option("--bits", default=4, show_default=True, type=click.IntRange(2, 8), help="Of inputs and weights.")
@click.option("--fake-bn/--no-fake-bn", default=True, show_default=True, help="Fold BatchNorms while training.")
@click.option("--equalize/--no-equalize", default=False, show_default=True,
              help="Scale channels between layers first, so that few bits fit them.")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(0))
@click.option("--lr", default=0.02, show_default=True, help="At the start; falls to zero along a cosine.")
@click.option("--float-epochs", default=20, show_default=True, type=click.IntRange(1), help="Without --params.")
@click.option("--float-lr", default=0.1, show_default=True)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Per worker.")
@click.option("--train-images", type=click.IntRange(1), metavar="N", help="Only the first so many.")
@click.option("--test-images", type=click.IntRange(1), metavar="N", help="Only the first so many.")
@click.option("--kvstore", default="local", show_default=True, help="Of MXNet; dist_sync for several workers.")
@click.option("--gpu/--no-gpu", default=False)
@click.option("--output", default="qat-cifar10", show_default=True, metavar="PREFIX")
def main(data: Path, model: str, zoom: int, params: str | None, quant_types: tuple[str, ...], bits: int, fake_bn: bool,
         equalize: bool, epochs: int, lr: float, float_epochs: int, float_lr: float, batch_size: int,
         train_images: int | None, test_images: int | None, kvstore: str, gpu: bool, output: str) -> None:
    """Quantization-aware training on CIFAR-10, with the table of results."""
    import mxnet as mx

    from qgraph.qat import qparams_init

    ctx = mx.gpu() if gpu else mx.cpu()
    options = {"kvstore": kvstore, "batch_size": batch_size, "ctx": ctx, "zoom": zoom}
    train = read_images(data / "cifar10_train.rec", train_images)
    test = read_images(data / "cifar10_test.rec", test_images)
    if params is None:
        net = build(model, None, ctx)
        run = Run(f"{output}-float", net, options)
        run.train(train, float_epochs, float_lr, quantized=False)
        params = f"{output}-float.params"
    rows = [("float32", "", "", "", f"{accuracy(build(model, params, ctx), test, ctx, zoom):.2f}")]
    spread = np.arange(0, len(train[1]), max(len(train[1]) // CALIB_IMAGES, 1))[:CALIB_IMAGES]
    calib = ready(train[0][spread], zoom)
    for quant_type in quant_types:
        kind = (f"uint{bits}/int{bits}", quant_type, "yes" if fake_bn else "")
        steps = epochs * (len(train[1]) // batch_size)
        for method in ("kl", "naive"):  # the last one is what the training starts from
            net = quantized(build(model, params, ctx), quant_type, bits, fake_bn, max(steps * 3 // 4, 1),
                            calib if equalize else None)
            qparams_init(net, calib_data=calib, calib=method)
            net.quantize_offline()
            rows.append((*kind, method, f"{accuracy(net, test, ctx, zoom):.2f}"))
            console.log(" ".join(rows[-1]))
        run = Run(f"{output}-{quant_type}", net, options)
        run.train(train, epochs, lr, quantized=True)
        rows.append((*kind, f"retrained, {epochs} epochs", f"{accuracy(net, test, ctx, zoom):.2f}"))
        console.log(" ".join(rows[-1]))
        net.export(f"{output}-{quant_type}")
    print("| types | weights per | BatchNorm folded | ranges | top-1 % |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last epoch")
