"""`qgraph eval`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli import console
from qgraph.cli.options import image_options, model_options, output_options, runtime_option
from qgraph.errors import CheckFailed, DataError

_LABELS = "labels come from a .rec, the sub-folders of a folder, or the array `label` of an .npz"


@click.command("eval")
@click.argument("model", metavar="MODEL")
@click.option("--data", required=True, metavar="PATH", help=".rec, folder of images (labels are its sub-folders), .npz")
@model_options
@click.option("--reference", metavar="MODEL", help="Also the percentage of images on which the top class is the same.")
@click.option("--min-top1", type=click.FloatRange(0, 100), metavar="X",
              help="Exit with 3 if the top-1 accuracy is below X percent.")
@image_options
@runtime_option
@output_options
def command(model: str, data: str, params: str | None, epoch: int | None, reference: str | None,
            min_top1: float | None, runtime: str, as_json: bool, quiet: bool, verbose: bool, **flags: Any) -> None:
    """Accuracy of a model, float or frozen, and its agreement with another.

    MODEL is a -symbol.json or its prefix, or an .onnx, .tmfile (of Tengine) or .param (of ncnn) file.

    \b
    Examples:
      qgraph eval net-quantized --data val.rec --skip ::10 --preprocess imagenet --reference net
      qgraph eval net-quantized.onnx --data val.rec --preprocess imagenet --reference net
      qgraph eval net-quantized --data test.npz --min-top1 97.5 --json
    """
    console.set_up(quiet, verbose)
    from qgraph.commands.evaluate import evaluate
    from qgraph.commands.open_model import open_model
    from qgraph.options import DataOptions

    with console.Bars() as bars:
        found = evaluate(open_model(model, params, epoch), data, reference, options=DataOptions(**flags), progress=bars,
                         runtime=runtime)
    if min_top1 is not None and found["top1"] is None:
        raise DataError(f"{data}: has no labels, so --min-top1 cannot be checked; {_LABELS}")
    words = {"images": "{}", "top1": "{:.2f} %", "top5": "{:.2f} %", "agreement": "{:.2f} %", "ms_per_image": "{:.3f}"}
    lines = [f"{key:<13} {form.format(found[key])}" for key, form in words.items() if found[key] is not None]
    if found["top1"] is None:
        lines.insert(1, f"top1          not known: {data} has no labels; {_LABELS}")
    console.result(found, as_json, lines)
    if min_top1 is not None and found["top1"] < min_top1:
        raise CheckFailed(f"top-1 is {found['top1']:.2f} %, want at least {min_top1:g} %")
