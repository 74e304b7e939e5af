"""`qgraph compare`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli import console, judged
from qgraph.cli.options import gate_options, image_options, judge_options, model_runtime_option, output_options


@click.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--data", required=True, metavar="PATH", help=".rec, folder of images, .npz or .npy")
@click.option("--html", metavar="FILE", help="Write the result as a page, too.")
@gate_options
@judge_options
@image_options
@model_runtime_option
@output_options
def command(a: str, b: str, data: str, html: str | None, min_agreement: float | None, min_sqnr: float | None,
            min_metrics: tuple[tuple[str, float], ...], runtime: str, as_json: bool, quiet: bool, verbose: bool,
            **flags: Any) -> None:
    """Where model B (frozen) departs from model A (float): signal to noise, cosine, largest error of every
    layer and every output.

    A and B are -symbol.json files or their prefixes, or .onnx, .param or .tmfile files. "added" is noise / signal that
    the layer adds to what it reads; it is known where A is an MXNet model.

    \b
    Examples:
      qgraph compare net net-quantized --data val.rec --select ::10 --preprocess imagenet
      qgraph compare net net-quantized.onnx --data val.rec --select ::10 --preprocess imagenet
      qgraph compare net net-quantized --data test.npz --html look.html
      qgraph compare net net-quantized --data test.npz --min-agreement 98 --json
    """
    console.set_up(quiet, verbose)
    from qgraph.commands.compare import compare
    from qgraph.files import check_output, write_files
    from qgraph.options import JudgeOptions

    if html is not None:
        check_output(html, [html], [a, b, data])
    with console.Bars() as bars:
        found = compare(a, b, data, options=JudgeOptions(**flags), progress=bars, runtime=runtime)
    agreement = found["judged"]
    if not as_json:
        rows = [(x["name"], x["op"], _db(x["sqnr_db"]), f"{x['cosine']:.6f}", f"{x['max_error']:.4g}",
                 None if x["added_noise"] is None else f"{x['added_noise']:.2g}") for x in found["layers"]]
        rows += [(x["name"], f"output ({x['task']})", _db(x["sqnr_db"]), f"{x['cosine']:.6f}", f"{x['max_error']:.4g}",
                  "") for x in agreement["outputs"]]
        console.table("", ("layer", "op", "SQNR dB", "cosine", "max error", "added"), rows, to_stdout=True)
    lines = [f"images      {found['images']}"]
    lines += console.under("agreement   ", judged.agreement_lines(agreement, every=True))
    if found["worst"]:
        lines += [f"worst       {', '.join(found['worst'])}", f"try         qgraph freeze ... {found['exclude']}"]
    if found["no_advice"]:
        lines.append(f"no advice   {found['no_advice']}")
    if html is not None:
        from qgraph.pages.compare import compare_page

        write_files({html: compare_page(found, a, b)})
        lines.append(f"wrote       {html}")
    console.result(found, as_json, lines)
    judged.check(agreement, {}, min_agreement, min_sqnr, min_metrics)


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.2f}"
