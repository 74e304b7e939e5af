"""`qgraph tune`: what may be lost -> the cheapest recipe that keeps it, and its frozen files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli import console
from qgraph.cli.judged import wanted_metrics
from qgraph.cli.options import (
    cluster_options,
    effort_option,
    exclude_option,
    float_check_option,
    image_options,
    input_shape_option,
    judge_options,
    model_options,
    output_options,
    outputs_option,
    runtime_option,
)
from qgraph.cli.target_options import target_option
from qgraph.errors import CheckFailed

if TYPE_CHECKING:
    from qgraph.commands.goal import Standing
    from qgraph.commands.tune import Tuned


@click.command("tune")
@click.argument("model", metavar="MODEL-symbol.json")
@click.option("--data", required=True, metavar="PATH", help="Images to tune on: .rec, folder, .npz. Half of them are "
              "put aside, and judge the result.")
@click.option("--judge-data", metavar="PATH", help="Images that judge the result; then all of --data are tuned on.")
@click.option("--max-drop", type=click.FloatRange(0), metavar="X",
              help="What may be lost of the task's metric, by labels, in its unit (points of top-1).")
@click.option("--min-agreement", type=click.FloatRange(0, 100), metavar="X",
              help="Least agreement with the float model, in percent, of the worst output.")
@click.option("--min-metric", "min_metrics", multiple=True, metavar="NAME=X", callback=wanted_metrics,
              help="Bound of any metric that eval knows, of all outputs (sqnr_db=30). Can be repeated.")
@click.option("--max-size", type=click.IntRange(1), metavar="BYTES",
              help="Bound of the weights' size; alone, the most accurate network of that size is looked for.")
@click.option("--minimize", type=click.Choice(["latency", "size"]), default="latency", show_default=True,
              help="Time on the target, from its measured operators, or bytes of the weights (of their codes for "
                   "mxnet-sim).")
@click.option("--weight-bits", type=click.IntRange(2, 16), multiple=True, metavar="N",
              help="Bits of weights to try besides 8. Can be repeated.  [default: 4 with --minimize size]")
@click.option("--budget", type=click.FloatRange(0, min_open=True), metavar="MINUTES",
              help="End with the best that was found by then.")
@model_options
@click.option("--output", metavar="PREFIX", help="Prefix of the files that are written.  [default: MODEL-tuned]")
@click.option("--restart", is_flag=True, help="Measure the candidates of PREFIX.tune.json again.")
@target_option
@outputs_option
@input_shape_option
@exclude_option
@click.option("--calib-data", metavar="PATH", help="[default: MODEL-calib.npz, else the images that --skip leaves out, "
              "else some of those that are tuned on]")
@click.option("--num-calib", type=click.IntRange(1), metavar="N", help="Calibrate on so many.  [default: 100]")
@judge_options
@image_options
@effort_option
@runtime_option
@float_check_option
@cluster_options
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Another number splits the images otherwise.")
@output_options
def command(model: str, data: str, judge_data: str | None, output: str | None, restart: bool,
            workers: int | None, scheduler: str | None, as_json: bool, quiet: bool, verbose: bool,
            **flags: Any) -> None:
    """The cheapest form of a network that keeps its accuracy: which layers, how many bits, which ranges.

    Candidates are measured on the target, beside the float model, on growing parts of the images: those that break a
    bound beyond their error bar are given up early. First all in integers by every method; if that is not enough, the
    layers that cost most are raised, as few as do, then taken back one by one.

    \b
    Writes the frozen model, PREFIX.recipe.yaml and what else freeze writes, PREFIX.tune.json (every candidate, after
    each; the same command goes on where it was stopped), PREFIX.tune.md and .html (tables, and the chart), and
    PREFIX.sensitivity.json.
    Exit code 3: nothing keeps the bounds, or the result breaks one on the images put aside.

    \b
    Examples:
      qgraph tune net-symbol.json --data val.rec --preprocess imagenet --target onnx --max-drop 0.5
      qgraph tune net-symbol.json --data val.rec --skip ::10 --target onnx --max-drop 1 --minimize size --weight-bits 4
      qgraph tune det-symbol.json --data crops.npz --target onnx --min-metric sqnr_db=30 --budget 20
      qgraph tune net-symbol.json --data val.rec --target mxnet-sim --minimize size --max-size 800000
    """
    console.set_up(quiet, verbose, passes=False)
    from qgraph.cluster import open_workers
    from qgraph.commands.goal import Goal
    from qgraph.commands.open_model import find_symbol
    from qgraph.commands.tune import ROWS, tune
    from qgraph.options import FreezeOptions

    goal = Goal(*(flags.pop(name) for name in ("max_drop", "min_agreement", "min_metrics", "max_size", "minimize")))
    prefix = output or find_symbol(model)[1] + "-tuned"
    weight_bits, budget = flags.pop("weight_bits"), flags.pop("budget")
    try:
        with open_workers(scheduler, workers) as group, console.Bars() as bars:
            found = tune(model, data, goal, FreezeOptions(**flags), prefix=prefix, judge_data=judge_data,
                         weight_bits=weight_bits, budget=budget, restart=restart, workers=group, progress=bars)
    except KeyboardInterrupt:
        kept = f"finished candidates are in {prefix}{ROWS}, and the same command goes on from there"
        raise KeyboardInterrupt(kept if os.path.isfile(prefix + ROWS) else "nothing was written") from None
    console.result(found.to_dict(), as_json, _lines(found))
    broken = [name for name, standing in found.judged.items() if not standing.compatible]
    if broken and not goal.seeks_accuracy:
        raise CheckFailed(f"on the {found.judged_images} images that tuning never saw, the result breaks "
                          f"{', '.join(broken)} beyond its error bar; more images, or a stricter bound, may do")


def _lines(found: Tuned) -> Iterator[str]:
    yield f"chosen      {found.row.what} ({found.row.quantized} layers quantized)"
    yield f"tuned on    {found.row.images} images: {_standings(found.row.standings)}"
    yield f"judged on   {found.judged_images} others: {_standings(found.judged)}"
    yield f"size        {console.size(found.size)}"
    for name, row in found.times.get("models", {}).items():
        yield f"ms          {name}: {row['ms_per_image']:.3f} +- {row['ms_spread']:.3f}"
    yield f"ended       {found.ended}: {len(found.rows.found)} candidates"
    yield from (f"wrote       {path}" for path in found.paths)


def _standings(found: Mapping[str, Standing]) -> str:
    return ", ".join(f"{name} {one.value:.2f} +- {one.error:.2f}" for name, one in found.items())
