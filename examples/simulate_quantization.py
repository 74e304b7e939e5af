"""What a network of GluonCV's model zoo, or your own, would lose under one strategy of quantization.

    python examples/simulate_quantization.py --model mobilenet1.0 --data-dir ~/imagenet
    python examples/simulate_quantization.py --model cifar_resnet20_v1 --dataset cifar10 --quant-type channel \\
        --merge-bn --quantize-input-offline --calib-mode kl
    python examples/simulate_quantization.py --symbol net-symbol.json --params net-0000.params --data-dir val.rec
    python examples/simulate_quantization.py --model resnet18_v1 --no-pretrained --data-dir val.rec     # random weights

The command line of `simulate_quantization.py` of "Quantization on MXNet", with its defaults: inputs are quantized to
unsigned codes from zero up, weights to 8 bits per layer, the first convolution stays in float, and ranges come from the
batch that is being run, or with --quantize-input-offline from --num-sample images per class, chosen anew in each of
--calib-epoch epochs.  --calib-mode naive is a moving average.

--data-dir is a folder with train and val (or test) in it, .rec files or folders of images by class, or one such .rec or
folder, whose every tenth image then calibrates and the others judge.  `qgraph simulate` makes whole tables.
"""

from __future__ import annotations

import difflib
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import qgraph
from qgraph.cli import console
from qgraph.commands.open_model import open_model
from qgraph.semantics.inputs import inputs_of

DATASETS = {"imagenet": 224, "cifar10": 32}  # size of the input
GROUPS = {"imagenet": 32, "cifar10": 16}  # of GroupNorm, which divide the narrowest layer
CALIBRATES = "::10"  # of images that are not divided into those that calibrate and those that judge
INCEPTION_SIZE = 299


# ---- the model ------------------------------------------------------------------------------------------------------

def zoo() -> Any:
    try:
        from gluoncv import model_zoo
    except ImportError as error:
        sys.exit(f'{error}: pip install "qgraph[mxnet]" (Python 3.9 to 3.11, x86-64)')
    return model_zoo


def build(name: str, pretrained: bool, size: int, options: dict[str, Any]) -> Any:
    """The zoo's network, initialized."""
    import mxnet as mx

    names = zoo().get_model_list()
    if name.lower() not in names:
        close = difflib.get_close_matches(name, names, 5) or names[:5]
        sys.exit(f"gluoncv.model_zoo has no {name}; close names: {', '.join(close)} (--list-models shows all)")
    try:
        net = zoo().get_model(name, pretrained=pretrained, **options)
    except TypeError as error:  # of a constructor that knows none of the option
        sys.exit(f"{name}: cannot be built with {', '.join(options)}: {error}")
    except (OSError, RuntimeError, ValueError) as error:  # no network, a proxy, a wrong hash, no weights
        sys.exit(f"{name}: the pretrained weights could not be had ({type(error).__name__}: "
                 f"{str(error).splitlines()[0][:120]}). With --no-pretrained the weights are random.")
    if not pretrained:
        net.initialize(mx.init.Xavier(magnitude=2.0))
    net.hybridize()
    net(mx.nd.zeros((1, 3, size, size)))  # gives the weights their shapes
    return net


def variant(name: str, flags: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, keyword arguments) of the zoo's constructor for what the flags change."""
    options: dict[str, Any] = {key: True for key in ("batch_norm", "use_se", "last_gamma") if flags[key]}
    if "use_se" in options and name.startswith("resnet"):
        name = "se_" + name
        del options["use_se"]
    if flags["use_gn"]:
        from mxnet.gluon.nn import GroupNorm  # GluonCV's own does not run on MXNet 1.9

        options["norm_layer"] = partial(GroupNorm, num_groups=GROUPS[flags["dataset"]])
    return name, options


def kept_in_float(name: str, net: Any, exclude_first: bool) -> list[str]:
    """The layers that are not quantized, as in the original."""
    blocks = []
    if name.startswith("mobilenetv2_"):
        blocks.append(net.output[0])
    if name.startswith("cifar_resnet") and exclude_first:
        blocks.append(net.features[2][0].body[0])
    return [block.name for block in blocks]


# ---- the images -----------------------------------------------------------------------------------------------------

def find_images(data_dir: str | None, dataset: str) -> tuple[str, str | None]:
    """(images that judge, images that calibrate, None for some of the same)"""
    folder = Path(data_dir or Path(os.environ.get("MXNET_HOME", "~/.mxnet")).expanduser() / "datasets" / dataset)
    if not folder.exists():
        sys.exit(f"{folder}: there is no such file or folder; --data-dir says where the images of {dataset} are")
    if not folder.is_dir():
        return str(folder), None

    def first(*words: str) -> str | None:
        found = sorted(p for p in folder.iterdir() if any(word in p.stem.lower() for word in words)
                       and (p.is_dir() or p.suffix == ".rec"))
        return str(found[0]) if found else None

    judging, calibrating = first("val", "test"), first("train")
    return (judging, calibrating) if judging else (str(folder), None)


def sampled(classes: np.ndarray, count: int, epochs: int, seed: int) -> list[int]:
    """Numbers of `count` images of every class, others in each epoch."""
    rng = np.random.RandomState(seed)
    members = [np.flatnonzero(classes == label) for label in np.unique(classes)]
    chosen: list[int] = []
    for _ in range(epochs):
        epoch = [rng.choice(rows, min(count, len(rows)), replace=False) for rows in members]
        chosen += rng.permutation(np.concatenate(epoch)).tolist()
    return chosen


class Images:
    """The images that judge, and those that calibrate."""

    def __init__(self, flags: dict[str, Any], options: qgraph.FreezeOptions) -> None:
        self.judging, self.calibrating = find_images(flags["data_dir"], flags["dataset"])
        self.skip = CALIBRATES if self.calibrating is None else None
        self.flags, self.options = flags, options

    def calibration(self, input_name: str, epochs: int) -> Any:
        count, seed = self.flags["num_sample"], self.flags["fixed_random_seed"]
        source, preprocess = self.calibrating or self.judging, self.options.preprocessing()
        known = qgraph.open_data(source, preprocess, select=self.skip, input_names=[input_name])
        labels = known.labels()
        if labels is None:
            sys.exit(f"{source}: has no labels, and --num-sample images of every class calibrate; --data-dir with "
                     "sub-folders or a .rec has them")
        rows = sampled(labels, count, epochs, seed)
        if self.skip is not None:
            step = int(self.skip.rpartition(":")[2])
            rows = [step * row for row in rows]
        return qgraph.open_data(source, preprocess, select=rows, batch_size=self.options.batch_size,
                                decoders=self.options.decoders, input_names=[input_name])


# ---- the command line -----------------------------------------------------------------------------------------------

@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model", default="resnet50_v1", show_default=True, metavar="NAME", help="Of gluoncv.model_zoo.")
@click.option("--symbol", metavar="FILE", help="Your own network instead: its -symbol.json.")
@click.option("--params", metavar="FILE", help="Its parameters.  [default: the .params beside it]")
@click.option("--pretrained/--no-pretrained", default=True, show_default=True, help="Download weights, or random ones.")
@click.option("--print-model", is_flag=True, help="Print the network.")
@click.option("--list-models", is_flag=True, help="Print the names of the zoo, and end.")
@click.option("--use-gpu", is_flag=True)
@click.option("--dataset", type=click.Choice(list(DATASETS)), default="imagenet", show_default=True)
@click.option("--data-dir", metavar="PATH", help="Images.  [default: ~/.mxnet/datasets/DATASET]")
@click.option("--preprocess", metavar="PRESET", help="As of qgraph freeze.  [default: the dataset's]")
@click.option("--size", type=click.IntRange(8), metavar="N", help="Of the input.  [default: the dataset's]")
@click.option("--use-gn", is_flag=True, help="GroupNorm instead of BatchNorm.")
@click.option("--batch-norm", is_flag=True, help="BatchNorm in VGG.")
@click.option("--use-se", is_flag=True, help="Squeeze and excitation in ResNet.")
@click.option("--last-gamma", is_flag=True, help="Initialize the last gamma of a block with zero in ResNet.")
@click.option("--merge-bn", "--fake-bn", is_flag=True, help="Fold BatchNorms before weights are quantized.")
@click.option("--weight-bits-width", type=click.IntRange(2, 16), default=8, show_default=True, metavar="N")
@click.option("--input-signed", type=click.Choice(["true", "false"]), default="false", show_default=True)
@click.option("--input-bits-width", type=click.IntRange(2, 16), default=8, show_default=True, metavar="N")
@click.option("--quant-type", type=click.Choice(["layer", "group", "channel"]), default="layer", show_default=True)
@click.option("-j", "--num-data-workers", type=click.IntRange(1), default=4, show_default=True, metavar="N")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, metavar="N")
@click.option("--num-sample", type=click.IntRange(1), default=5, show_default=True, metavar="N",
              help="Images of every class that calibrate, in one epoch.")
@click.option("--quantize-input-offline", is_flag=True, help="Ranges from calibration, not from the running batch.")
@click.option("--calib-mode", type=click.Choice(["naive", "kl"]), default="naive", show_default=True)
@click.option("--calib-epoch", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option("--disable-cudnn-autotune", is_flag=True)
@click.option("--eval-per-calib", is_flag=True, help="Judge after every epoch of calibration.")
@click.option("--exclude-first-conv", type=click.Choice(["true", "false"]), default="true", show_default=True)
@click.option("--fixed-random-seed", type=click.IntRange(0), default=7, show_default=True, metavar="N")
@click.option("--wino_quantize", "--wino-quantize", type=click.Choice(["none", "F23", "F43", "F63"]), default="none",
              show_default=True, help="Weights of 3 x 3 convolutions are quantized in this domain.")
def main(**flags: Any) -> None:
    """Simulate the quantization of one network."""
    if flags["list_models"]:
        click.echo("\n".join(zoo().get_model_list()))
        return
    if flags["disable_cudnn_autotune"]:
        os.environ["MXNET_CUDNN_AUTOTUNE_DEFAULT"] = "0"
    console.set_up(quiet=False, verbose=False, passes=False)
    try:
        with context(flags["use_gpu"]):
            run(flags)
    except qgraph.QGraphError as error:
        sys.exit(f"error: {error}")


def context(use_gpu: bool) -> Any:
    if not use_gpu:
        return nullcontext()
    import mxnet as mx

    if not mx.context.num_gpus():
        sys.exit("--use-gpu: this MXNet sees no GPU; leave it out to run on the CPU")
    return mx.gpu(0)


def run(flags: dict[str, Any]) -> None:
    size = flags["size"] or (INCEPTION_SIZE if "inception" in flags["model"].lower() else DATASETS[flags["dataset"]])
    options = qgraph.FreezeOptions(
        target="mxnet-sim", params=flags["params"], input_shape=() if flags["symbol"] else (f"data:1,3,{size},{size}",),
        preprocess=flags["preprocess"] or flags["dataset"], crop=flags["size"], batch_size=flags["batch_size"],
        decoders=flags["num_data_workers"], seed=flags["fixed_random_seed"])
    exclude_first = flags["exclude_first_conv"] == "true"
    images = Images(flags, options)
    if flags["symbol"]:
        model: Any = flags["symbol"]
        input_name = inputs_of(open_model(model, flags["params"]).as_graph("simulating"))[0]
    else:
        import mxnet as mx

        mx.random.seed(flags["fixed_random_seed"])
        name, variations = variant(flags["model"], flags)
        model, input_name = build(name, flags["pretrained"], size, variations), "data"
        options = replace(options, exclude=kept_in_float(flags["model"].lower(), model, exclude_first))
    if flags["print_model"]:
        click.echo(open_model(model, flags["params"]).as_graph("simulating").text() if flags["symbol"] else model)

    offline = flags["quantize_input_offline"]
    strategy = qgraph.Strategy(
        granularity=flags["quant_type"], act_signed="signed" if flags["input_signed"] == "true" else "unsigned",
        calib=("ema" if flags["calib_mode"] == "naive" else "kl") if offline else "online",
        weight_bits=flags["weight_bits_width"], act_bits=flags["input_bits_width"], merge_bn=flags["merge_bn"],
        exclude_first=exclude_first, winograd=flags["wino_quantize"])
    last = flags["calib_epoch"] if offline else 1
    kept = None
    for epochs in range(1 if flags["eval_per_calib"] else last, last + 1):
        with console.Bars() as bars:
            found = qgraph.simulate(model, images.judging, [strategy], replace(options, skip=images.skip),
                                    calib_data=images.calibration(input_name, epochs) if offline else None,
                                    kept=kept, progress=bars)
        if offline:
            click.echo(f"after {epochs} of {last} epochs of calibration:")
        click.echo(found.to_markdown(), nl=False)
        kept = found.only_float()


if __name__ == "__main__":
    main()
