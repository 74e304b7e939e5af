"""`qgraph compare`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli import console
from qgraph.cli.options import image_options, output_options, runtime_option
from qgraph.errors import CheckFailed, DataError


@click.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--data", required=True, metavar="PATH", help=".rec, folder of images, .npz or .npy")
@click.option("--min-agreement", type=click.FloatRange(0, 100), metavar="X",
              help="Exit with 3 if the top-1 agreement is below X percent.")
@click.option("--min-sqnr", type=float, metavar="X", help="Exit with 3 if the output's SQNR is below X dB.")
@image_options
@runtime_option
@output_options
def command(a: str, b: str, data: str, min_agreement: float | None, min_sqnr: float | None, runtime: str, as_json: bool,
            quiet: bool, verbose: bool, **flags: Any) -> None:
    """Where model B (frozen) departs from model A (float): signal to noise, cosine, largest error of every layer.

    A and B are -symbol.json files or their prefixes, or .onnx, .param or .tmfile files. "added" is noise / signal that
    the layer adds to what it reads; it is known where A is an MXNet model.

    \b
    Examples:
      qgraph compare net net-quantized --data val.rec --select ::10 --preprocess imagenet
      qgraph compare net net-quantized.onnx --data val.rec --select ::10 --preprocess imagenet
      qgraph compare net net-quantized --data test.npz --min-agreement 98 --json
    """
    console.set_up(quiet, verbose)
    from qgraph.commands.compare import compare
    from qgraph.options import DataOptions

    with console.Bars() as bars:
        found = compare(a, b, data, options=DataOptions(**flags), progress=bars, runtime=runtime)
    output = found["output"]
    if not as_json:
        rows = [(x["name"], x["op"], _db(x["sqnr_db"]), f"{x['cosine']:.6f}", f"{x['max_error']:.4g}",
                 None if x["added_noise"] is None else f"{x['added_noise']:.2g}") for x in found["layers"]]
        rows.append(("output", "", _db(output["sqnr_db"]), f"{output['cosine']:.6f}", f"{output['max_error']:.4g}", ""))
        console.table("", ("layer", "op", "SQNR dB", "cosine", "max error", "added"), rows, to_stdout=True)
    lines = [f"images      {found['images']}"]
    if found["agreement"] is not None:
        lines.append(f"agreement   {found['agreement']:.2f} % top-1")
    if found["worst"]:
        lines += [f"worst       {', '.join(found['worst'])}", f"try         qgraph freeze ... {found['exclude']}"]
    if found["no_advice"]:
        lines.append(f"no advice   {found['no_advice']}")
    console.result(found, as_json, lines)
    if min_agreement is not None and found["agreement"] is None:
        raise DataError(f"{a}: is no classifier, so --min-agreement cannot be checked (--min-sqnr can)")
    if min_agreement is not None and found["agreement"] < min_agreement:
        raise CheckFailed(f"top-1 agreement is {found['agreement']:.2f} %, want at least {min_agreement:g} %")
    if min_sqnr is not None and output["sqnr_db"] is not None and output["sqnr_db"] < min_sqnr:
        raise CheckFailed(f"the output's SQNR is {output['sqnr_db']:.2f} dB, want at least {min_sqnr:g} dB")


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.2f}"
