"""`qgraph freeze`: argv -> FreezeOptions -> files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli import console, judged
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
    recipe_option,
    runtime_option,
    threads_option,
)
from qgraph.cli.summary import summary
from qgraph.cli.target_options import chosen_targets, targets_options
from qgraph.errors import CheckFailed

if TYPE_CHECKING:
    from qgraph.commands.frozen import Frozen


@click.command("freeze")
@click.argument("model", metavar="MODEL-symbol.json")
@model_options
@click.option("--output", metavar="PREFIX", help="Prefix of the files that are written.  [default: MODEL-quantized]")
@targets_options
@outputs_option
@input_shape_option
@exclude_option
@click.option("--granularity", type=click.Choice(["layer", "group", "channel", "tensor"]), default="channel",
              show_default=True, help="One scale of the weights per layer, convolution group or output channel.")
@click.option("--weight-bits", type=int, default=8, show_default=True, metavar="N",
              help="2 to 8, or what the target has; mxnet-sim: 2 to 16.")
@click.option("--act-bits", type=int, default=8, show_default=True, metavar="N", help="The same.")
@click.option("--act-signed", type=click.Choice(["auto", "signed", "unsigned"]), default="auto", show_default=True,
              help="Codes of activations. auto: as their signs need it, with a zero point where the target has one; "
              "the others have none (mxnet-sim).")
@click.option("--calib", type=click.Choice(["naive", "ema", "kl", "percentile", "mse", "auto", "minmax", "entropy",
                                             "online"]), default="auto", show_default=True,
              help="How ranges are chosen (minmax is naive, entropy is kl; online: from each batch as it runs, "
              "mxnet-sim).")
@click.option("--merge-bn/--no-merge-bn", default=True, show_default=True,
              help="Fold BatchNorms before weights are quantized (mxnet-sim can do without).")
@click.option("--winograd", type=click.Choice(["none", "F23", "F43", "F63"]), default="none", show_default=True,
              help="Quantize the weights of 3 x 3 convolutions of stride 1 in this domain (mxnet-sim).")
@click.option("--calib-data", metavar="PATH", help=".rec, folder of images, .npz or .npy of ready N,C,H,W floats.  "
              "[default: MODEL-calib.npz, else images distilled from the BatchNorms]")
@click.option("--num-calib", type=click.IntRange(1), metavar="N", help="Use so many images.  [default: at most 512]")
@click.option("--calib-table", metavar="FILE", help="Ranges of an earlier run (PREFIX.calib.json).")
@recipe_option
@click.option("--judge-data", metavar="PATH", help="Images to judge the result on.  [default: those of the calibration "
              "data that calibration does not take, where there are any]")
@click.option("--report-images", type=click.IntRange(0, 48), default=0, show_default=True, metavar="N",
              help="Show N small images of the judged data, whose answers changed most, in the report.")
@judge_options
@image_options
@effort_option
@runtime_option
@threads_option
@float_check_option
@cluster_options
@click.option("--strict", is_flag=True, help="Exit with 3 if int8 has ruined an output.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N")
@click.option("--passes", metavar="SPEC", help="A whole pipeline of your own: \"fold-bn,insert-fake-quantize,...\"")
@click.option("--pass", "user_passes", multiple=True, metavar="MODULE:CLASS@AFTER",
              help="A pass of your own, behind the pass AFTER.")
@click.option("--dump-passes", metavar="DIR", help="Write the graph as text after every pass.")
@output_options
def command(model: str, targets: tuple[str, ...], threads: int | None, strict: bool, workers: int | None,
            scheduler: str | None, as_json: bool, quiet: bool, verbose: bool, **flags: Any) -> None:
    """Quantize a model and write the frozen checkpoint.

    \b
    Writes PREFIX-symbol.json, PREFIX-0000.params (mx.mod.Module loads them), or PREFIX.onnx, or PREFIX.param, .bin,
    .table and .ncnn.md (how to run it), or PREFIX.tmfile, .scale and .tengine.md, and PREFIX.calib.json (the ranges,
    for --calib-table), PREFIX.recipe.yaml (what was chosen, for --recipe), PREFIX.report.json and PREFIX.report.html,
    a page to look at (with several targets PREFIX.TARGET.report.json and .html). -v prints layers, ranges and ops as
    tables.

    \b
    Examples:
      qgraph freeze net-symbol.json --exclude conv0 --calib kl
      qgraph freeze net-symbol.json --calib-data val.rec --select ::10 --preprocess imagenet
      qgraph freeze net-symbol.json --target onnx --calib kl --calib-data images/ --preprocess imagenet
      qgraph freeze net-symbol.json --target onnx --target ncnn --calib kl --calib-data val.rec --preprocess imagenet
      qgraph freeze net-symbol.json --target mxnet-sim --weight-bits 4 --granularity layer
      qgraph freeze ssd-symbol.json --target ncnn --outputs cls_pred --outputs loc_pred
      qgraph freeze net-symbol.json --calib-table net-quantized.calib.json --exclude last --output net-b
    """
    console.set_up(quiet, verbose, passes=False)
    from qgraph.cluster import open_workers
    from qgraph.commands.freeze import freeze_all
    from qgraph.commands.frozen import report_text
    from qgraph.commands.open_model import default_prefix, find_symbol
    from qgraph.engines import set_thread_count
    from qgraph.files import check_output
    from qgraph.options import FreezeOptions
    from qgraph.targets.registry import get_target

    if threads is not None:
        set_thread_count(threads)
    chosen = chosen_targets(targets, flags)
    wanted = [FreezeOptions(target=target, **flags) for target in chosen]
    prefix = wanted[0].output or default_prefix(model)
    suffixes = dict.fromkeys(get_target(target).suffix for target in chosen)
    for suffix in suffixes:
        prefix = prefix.removesuffix(suffix)
    check_output(prefix, [prefix + suffix for suffix in (*suffixes, "-0000.params")],
                 [find_symbol(model)[0], *([wanted[0].params] if wanted[0].params else [])])
    with open_workers(scheduler, workers) as group, console.Bars() as bars:
        frozen, paths = freeze_all(model, wanted, prefix, progress=bars, workers=group)
    for found in frozen:
        if verbose:
            _tables(found.report)
    if as_json:
        reports = {found.report["target"]: found.report for found in frozen}
        click.echo(report_text(frozen[0].report if len(frozen) == 1 else reports), nl=False)
        _tell_of_ruin(frozen, strict)
        return
    click.echo("\n".join(summary(frozen, paths)))
    _tell_of_ruin(frozen, strict)


def _tell_of_ruin(frozen: Sequence[Frozen], strict: bool) -> None:
    """A loud end where an output is of no use. Raises CheckFailed with --strict."""
    ruined = [found.report for found in frozen if found.report["ruin"]]
    for report in ruined:
        lines = [*(f"for {report['target']}:" for _ in frozen[1:2]), *judged.ruin_lines(report["ruin"])]
        logging.getLogger("qgraph").warning("%s", "\n".join(console.under("RUINED      ", lines)))
    if ruined and strict:
        names = [name for report in ruined for row in report["ruin"]["outputs"] for name in row["names"]]
        raise CheckFailed(f"--strict: int8 has ruined {', '.join(dict.fromkeys(names))}")


def _tables(report: dict[str, Any]) -> None:
    rows = []
    for layer in report["quantized"]:
        rows.append((layer["name"], layer["op"], f"{layer['data']} x {layer['weight']} per {layer['granularity']}", ""))
    for layer in report["float"]:
        rows.append((layer["name"], layer["op"], "float", layer["reason"]))
    console.table("layers", ("name", "op", "arithmetic", "why"), rows)
    tensors = [(name, t["dtype"], f"{t['low']:.4g}", f"{t['high']:.4g}", _scale(t["scale"]), " + ".join(t["source"]))
               for name, t in report["tensors"].items()]
    console.table("ranges", ("tensor", "type", "low", "high", "scale", "from"), tensors)
    before, after = report["ops"]["before"], report["ops"]["after"]
    console.table("ops", ("op", "before", "after"),
                  [(op, before.get(op), after.get(op)) for op in sorted({*before, *after})])


def _scale(scale: Any) -> str:
    return f"{scale[0]:.3g} .. {scale[1]:.3g}" if isinstance(scale, list) else f"{scale:.4g}"
