"""Groups of options that several commands share."""

from __future__ import annotations

from typing import Any, Callable

import click

from qgraph.cli.judged import wanted_metrics

Command = Callable[..., Any]


def _group(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command
    return add


model_options = _group(
    click.option("--params", metavar="FILE", help="Parameters.  [default: MODEL-NNNN.params, the highest]"),
    click.option("--epoch", type=click.IntRange(0), metavar="N", help="Take MODEL-<N, four digits>.params."),
)

image_options = _group(
    click.option("--labels", metavar="PATH", help="Labels in place of those of the data: COCO's .json, a folder of "
                 "VOC's .xml or of .png masks, .npz or .npy by number, or .csv lines `name,label`."),
    click.option("--select", metavar="START:STOP:STEP", help="Keep these images, by index."),
    click.option("--skip", metavar="START:STOP:STEP", help="Drop these images, by index."),
    click.option("--preprocess", metavar="PRESET",
                 help="none, imagenet, cifar10, tf, inception or caffe; the flags below change parts of it."),
    click.option("--resize", type=int, metavar="N", help="Short side, in pixels."),
    click.option("--crop", type=int, metavar="N", help="Centre square, in pixels."),
    click.option("--bgr/--rgb", default=None, help="Order of the channels.  [default: the preset's, RGB]"),
    click.option("--mean", metavar="A,B,C", help="Subtracted, in the order of the channels as they are fed."),
    click.option("--std", metavar="A,B,C", help="Divided by."),
    click.option("--scale", type=float, metavar="X", help="Pixels 0..255 are multiplied by it first."),
    click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, metavar="N"),
    click.option("--decoders", type=click.IntRange(1), metavar="N", help="Threads that decode images."),
)

cluster_options = _group(
    click.option("--workers", type=click.IntRange(1), metavar="N",
                 help="Run on N processes of this machine, of one thread each. Results do not depend on N."),
    click.option("--scheduler", metavar="tcp://HOST:PORT",
                 help="Run on the workers of this Dask scheduler, one thread each: dask worker --nthreads 1."),
)

judge_options = _group(
    click.option("--task", multiple=True, metavar="NAME[:OUTPUT]",
                 help="What the outputs mean: classification, embedding, detection, segmentation, keypoints, text or "
                      "values; of all outputs, or of one (several are joined by +). Can be repeated.  [default: told "
                      "by ops and shapes]"),
    click.option("--decode", metavar="MODULE:FUNCTION", help="Makes boxes of a raw detector's outputs, to judge them "
                 "too: boxes(outputs, feeds) -> N,M,6 of class, score, x0, y0, x1, y1."),
)

gate_options = _group(
    click.option("--min-agreement", type=click.FloatRange(0, 100), metavar="X",
                 help="Exit with 3 if an output's agreement (top-1, AP, mIoU, ...) is below X percent."),
    click.option("--min-sqnr", type=float, metavar="X", help="Exit with 3 if the SQNR of an output is below X dB."),
    click.option("--min-metric", "min_metrics", multiple=True, metavar="NAME=X", callback=wanted_metrics,
                 help="Exit with 3 if this metric is worse than X, in any output. Can be repeated."),
)

output_options = _group(
    click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="Warnings and errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Say more, also why patterns did not match."),
)

runtime_option = click.option(
    "--runtime", type=click.Choice(["auto", "mxnet", "onnxruntime"]), default="auto", show_default=True,
    help="What runs the model; auto is MXNet where it is installed.")
model_runtime_option = click.option(
    "--runtime", type=click.Choice(["auto", "mxnet", "onnxruntime", "openvino"]), default="auto", show_default=True,
    help="What runs the models; auto is MXNet where it is installed, and onnxruntime for .onnx files. openvino runs "
         ".onnx files; networks in MXNet's files then run as with auto.")
threads_option = click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads that compute; results do not depend on them.  "
    "[default: one per core]")
float_check_option = click.option(
    "--float-check/--no-float-check", default=True, show_default=True,
    help="Compare the float outputs before and behind what must not change them; without, a wrong model is not "
         "noticed.")
effort_option = click.option(
    "--effort", type=click.Choice(["fast", "standard", "best"]), default="standard", show_default=True,
    help="fast: nothing is measured, and weights are rounded to the nearest codes; standard: channels are equalized, "
         "and weights rounded to codes that keep the layers' outputs, on 16 calibration images; best: on 64.")
recipe_option = click.option(
    "--recipe", metavar="FILE",
    help="What is quantized, and how, layer by layer: PREFIX.recipe.yaml of an earlier run, or one written by hand.")
exclude_option = click.option(
    "--exclude", multiple=True, metavar="PATTERN",
    help="Layers left in float: a name, a glob, op:TYPE, first or last. Can be repeated.")
outputs_option = click.option(
    "--outputs", multiple=True, metavar="NAME",
    help="End the network at this node: NAME, NAME:INDEX or NAME_output. Can be repeated.")
input_shape_option = click.option(
    "--input-shape", multiple=True, metavar="NAME:N,C,H,W", help="Where the data do not say it: data:1,3,224,224.")
