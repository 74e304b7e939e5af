"""Train the small convolutional network of the demo on scikit-learn's handwritten digits, and export it for MXNet.

    python examples/train_digits.py                      # about a minute on one core
    python examples/train_digits.py --epochs 8 --output /tmp/digits

writes, for the default prefix ``examples/digits/digits``:

    digits-symbol.json, digits-0000.params    the float32 network, as ``mx.model.load_checkpoint`` reads it
    digits-calib.npz                          ``data``: 100 images to calibrate on
    digits-test.npz                           ``data``, ``label``: 600 held-out images

The preprocessing, all of it: a digit is 8 x 8 pixels with values 0..16; each pixel is divided by 16, so the network is
fed 0..1, and repeated 3 x 3 times (nearest neighbour). The .npz files hold images that are ready to be fed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

DEFAULT_OUTPUT = Path(__file__).resolve().parent / "digits" / "digits"
UPSCALE = 3
PIXEL_MAX = 16.0
CALIB_PER_CLASS = 10
TEST_PER_CLASS = 60
SPLIT_SEED = 0  # not --seed: whatever a network was trained with, it is tested on images that it has not seen
BATCH_SIZE = 32
LEARNING_RATE = 0.004


class DigitsSplit(NamedTuple):
    """Three disjoint, class-balanced parts. Images: (n, 1, 24, 24) float32 in 0..1; labels: (n,) int32 in 0..9."""

    train_data: np.ndarray
    train_label: np.ndarray
    calib_data: np.ndarray
    calib_label: np.ndarray
    test_data: np.ndarray
    test_label: np.ndarray


def load_digits_split() -> DigitsSplit:
    """The 1,797 digits as 1,097 to train on, 100 to calibrate on, 600 held out; always the same ones.

    Needs scikit-learn, which carries the images (nothing is downloaded), but not MXNet.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = images.reshape(-1, 1, 8, 8).astype(np.float32) / np.float32(PIXEL_MAX)
    data = pixels.repeat(UPSCALE, axis=2).repeat(UPSCALE, axis=3)
    label = labels.astype(np.int32)

    rng = np.random.RandomState(SPLIT_SEED)  # unlike default_rng, its stream is the same in every NumPy
    order = rng.permutation(len(label))
    rank = np.empty(len(label), dtype=np.int64)  # rank of each image within its class, in the shuffled order
    for digit in range(10):
        members = order[label[order] == digit]
        rank[members] = np.arange(len(members))
    calib = order[rank[order] < CALIB_PER_CLASS]
    train = order[rank[order] >= CALIB_PER_CLASS + TEST_PER_CLASS]
    test = order[(rank[order] >= CALIB_PER_CLASS) & (rank[order] < CALIB_PER_CLASS + TEST_PER_CLASS)]
    return DigitsSplit(data[train], label[train], data[calib], label[calib], data[test], label[test])


def build_network() -> Any:
    """80,330 parameters; (n, 1, 24, 24) -> (n, 10) logits. The first convolution is ``conv0``.

    conv0 -> depthwise + pointwise -> residual block, projected by a 1x1 convolution -> residual block, identity
    -> global average pooling -> dense. BatchNorm after every convolution, no Dropout.
    """
    from mxnet.gluon import nn

    def conv_bn(name: str, channels: int, kernel: int, relu: bool = True, **options: Any) -> list[Any]:
        """Convolution without bias (its BatchNorm has one), BatchNorm and, unless told, ReLU."""
        conv = nn.Conv2D(channels, kernel, padding=kernel // 2, use_bias=False, prefix=f"{name}_", **options)
        return [conv, nn.BatchNorm(prefix=f"{name}_bn_")] + ([nn.Activation("relu", prefix=f"{name}_relu_")] * relu)

    class Residual(nn.HybridBlock):
        """relu(body(x) + shortcut(x)); the shortcut is the identity unless the block halves the picture."""

        def __init__(self, channels: int, downsample: bool, prefix: str) -> None:
            super().__init__(prefix=prefix)
            stride = 2 if downsample else 1
            with self.name_scope():
                self.body = nn.HybridSequential(prefix="")
                self.body.add(*conv_bn("conv1", channels, 3, strides=stride))
                self.body.add(*conv_bn("conv2", channels, 3, relu=False))
                self.shortcut = nn.HybridSequential(prefix="") if downsample else None
                if self.shortcut is not None:
                    self.shortcut.add(*conv_bn("downsample", channels, 1, relu=False, strides=stride))

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            shortcut = x if self.shortcut is None else self.shortcut(x)
            return F.Activation(self.body(x) + shortcut, act_type="relu", name="relu")

    net = nn.HybridSequential(prefix="digits_")
    with net.name_scope():
        net.add(*conv_bn("conv0", 32, 3))
        net.add(*conv_bn("depthwise", 32, 3, groups=32))
        net.add(*conv_bn("pointwise", 32, 1))
        net.add(Residual(48, downsample=True, prefix="res1_"))
        net.add(Residual(48, downsample=False, prefix="res2_"))
        net.add(nn.GlobalAvgPool2D(prefix="pool_"), nn.Dense(10, prefix="dense_"))
    return net


def shifted(images: np.ndarray, rng: np.random.RandomState, limit: int = UPSCALE) -> np.ndarray:
    """Each image moved by -limit..limit pixels along both axes, zeros moving in. (n, 1, h, w) -> the same shape."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (limit, limit), (limit, limit)))
    corners = rng.randint(0, 2 * limit + 1, size=(len(images), 2))
    return np.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners)])


def train(split: DigitsSplit, epochs: int, seed: int) -> Any:
    """The trained network, hybridized: Adam, learning rate falling to zero along a cosine, shifted images."""
    import mxnet as mx
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    mx.random.seed(seed)
    rng = np.random.RandomState(seed)
    net = build_network()
    net.initialize(mx.init.Xavier(magnitude=2.0))
    net.hybridize(static_alloc=True)
    steps = len(split.train_data) // BATCH_SIZE  # the odd images at the end of an epoch are other ones each time
    trainer = mx.gluon.Trainer(net.collect_params(), "adam", {"learning_rate": LEARNING_RATE, "wd": 1e-4})
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=epochs * steps)
        for epoch in range(epochs):
            order = rng.permutation(len(split.train_data))
            for step in range(steps):
                trainer.set_learning_rate(LEARNING_RATE * (1 + np.cos(np.pi * (epoch + step / steps) / epochs)) / 2)
                batch = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
                data = mx.nd.array(shifted(split.train_data[batch], rng))
                with mx.autograd.record():
                    loss = loss_of(net(data), mx.nd.array(split.train_label[batch]))
                loss.backward()  # this, not the forward pass, is what moves BatchNorm's running statistics
                trainer.step(BATCH_SIZE)
                mean_loss = loss.mean().asscalar()
                progress.update(bar, advance=1, description=f"epoch {epoch + 1}/{epochs} loss {mean_loss:.4f}")
    return net


def save(net: Any, split: DigitsSplit, prefix: Path) -> None:
    """Write the checkpoint and, beside it, the calibration and the held-out images."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    net.export(str(prefix), epoch=0)
    np.savez_compressed(f"{prefix}-calib.npz", data=split.calib_data)
    np.savez_compressed(f"{prefix}-test.npz", data=split.test_data, label=split.test_label)


def exported_accuracy(prefix: Path, data: np.ndarray, label: np.ndarray) -> float:
    """Fraction (0..1) of ``data`` that the checkpoint at ``prefix`` classifies right, run by ``mx.mod.Module``."""
    import mxnet as mx

    module = mx.mod.Module.load(str(prefix), 0, label_names=None)
    batches = mx.io.NDArrayIter(data, batch_size=50)
    module.bind(batches.provide_data, for_training=False)
    logits = module.predict(batches).asnumpy()
    return float((logits.argmax(axis=1) == label).mean())


def require(package: str, install: str) -> None:
    """Leave with one line, not with a traceback, where ``package`` does not import."""
    try:
        __import__(package)
    # MXNet beside a NumPy >= 1.24 raises AttributeError, without its shared libraries OSError.
    except (ImportError, AttributeError, OSError) as error:
        sys.exit(f"train_digits needs {package} ({error}): pip install {install}")


@click.command()
@click.option("--epochs", default=12, show_default=True, type=click.IntRange(min=1), help="Passes over the images.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Weights, order, shifts.")
@click.option(
    "--output",
    default=DEFAULT_OUTPUT,
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="PREFIX",
    help="Writes PREFIX-symbol.json, PREFIX-0000.params, PREFIX-calib.npz and PREFIX-test.npz.",
)
def main(epochs: int, seed: int, output: Path) -> None:
    """Train the demo's network on handwritten digits, export it for MXNet, print its held-out accuracy."""
    require("mxnet", '"qgraph[mxnet]"')
    require("sklearn", "scikit-learn")
    split = load_digits_split()
    save(train(split, epochs, seed), split, output)
    accuracy = exported_accuracy(output, split.test_data, split.test_label)
    click.echo(f"{output}-symbol.json: {accuracy:.2%} of {len(split.test_label)} held-out digits")


if __name__ == "__main__":
    main()
