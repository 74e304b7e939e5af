"""`qgraph eval`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli import console, judged
from qgraph.cli.options import (
    cluster_options,
    gate_options,
    image_options,
    judge_options,
    model_options,
    model_runtime_option,
    output_options,
    threads_option,
)
from qgraph.errors import CheckFailed, DataError

_LABELS = "labels come from --labels FILE, a .rec, the sub-folders of a folder, or the array `label` of an .npz"


@click.command("eval")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--data", required=True, metavar="PATH", help=".rec, folder of images (labels are its sub-folders), .npz")
@model_options
@click.option("--reference", metavar="MODEL", help="Also how near it is to this model, on every output.")
@click.option("--min-top1", type=click.FloatRange(0, 100), metavar="X",
              help="Exit with 3 if the top-1 accuracy is below X percent.")
@click.option("--pairs", metavar="FILE", help="Lines of two images and 1 where they show the same, 0 where not: what "
              "embeddings are judged by, instead of labels.")
@threads_option
@gate_options
@judge_options
@image_options
@model_runtime_option
@cluster_options
@output_options
def command(models: tuple[str, ...], data: str, params: str | None, epoch: int | None, reference: str | None,
            pairs: str | None, threads: int | None, min_top1: float | None, min_agreement: float | None,
            min_sqnr: float | None, min_metrics: tuple[tuple[str, float], ...], runtime: str, workers: int | None,
            scheduler: str | None, as_json: bool, quiet: bool, verbose: bool, **flags: Any) -> None:
    """How good a model is, float or frozen, by labels and by its nearness to another model, and how fast.

    MODEL is a -symbol.json or its prefix, or an .onnx, .tmfile (of Tengine) or .param (of ncnn) file. What is counted
    depends on the task of the outputs: top-1 and top-5, mAP, mIoU, verification accuracy, ... Several models, and the
    reference, run in alternation, so that their times can be compared; with --workers or --scheduler here, on the first
    batch alone.

    \b
    Examples:
      qgraph eval net-quantized --data val.rec --skip ::10 --preprocess imagenet --reference net
      qgraph eval net-quantized.onnx --data val.rec --preprocess imagenet --reference net
      qgraph eval net-quantized --data test.npz --min-top1 97.5 --json
      qgraph eval net net-quantized net.onnx --data test.npz --threads 1 --batch-size 1
      qgraph eval ssd-quantized --data val.rec --preprocess imagenet --reference ssd --min-metric ap50=95
    """
    console.set_up(quiet, verbose)
    from qgraph.cluster import open_workers
    from qgraph.commands.evaluate import evaluate_all
    from qgraph.commands.open_model import open_model
    from qgraph.engines import set_thread_count
    from qgraph.options import JudgeOptions

    if threads is not None:
        set_thread_count(threads)
    with open_workers(scheduler, workers) as group, console.Bars() as bars:
        every = evaluate_all({model: open_model(model, params, epoch) for model in models}, data, reference,
                             options=JudgeOptions(**flags), pairs=pairs, progress=bars, runtime=runtime,
                             workers=group)
    lines = []
    for name, found in every.items():
        if min_top1 is not None and found["top1"] is None:
            raise DataError(f"{data}: gives no top-1, so --min-top1 cannot be checked; {_LABELS}")
        lines += [*([f"model         {name}"] if len(every) > 1 else []), *_lines(found, data)]
    console.result(every if len(every) > 1 else found, as_json, [*lines, *judged.timing_lines(found["timing"])])
    for found in every.values():
        if min_top1 is not None and found["top1"] < min_top1:
            raise CheckFailed(f"top-1 is {found['top1']:.2f} %, want at least {min_top1:g} %")
        judged.check(found["judged"], found["scores"], min_agreement, min_sqnr, min_metrics)


def _lines(found: dict[str, Any], data: str) -> list[str]:
    lines = [f"images        {found['images']}", *judged.score_lines(found["scores"])]
    if not found["scores"]:
        lines.append(f"scores        not known: {data} has no labels for this; {_LABELS}")
    if found["judged"] is not None:
        lines += console.under("agreement     ", judged.agreement_lines(found["judged"], every=True))
    return lines
