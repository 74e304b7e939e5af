"""`qgraph explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from qgraph.cli import console
from qgraph.cli.options import (
    exclude_option,
    image_options,
    input_shape_option,
    model_options,
    output_options,
    outputs_option,
    runtime_option,
)
from qgraph.cli.target_options import target_option


@click.command("explain")
@click.argument("model", metavar="MODEL")
@click.argument("node", metavar="NODE")
@model_options
@click.option("--tensor", is_flag=True, help="NODE is a tensor that has a range (a name in the calibration table).")
@click.option("--data", metavar="PATH", help=".rec, folder of images, .npz or .npy.  [default: MODEL-calib.npz]")
@click.option("--num-calib", type=click.IntRange(1), metavar="N", help="Look at so many images.  [default: 32]")
@click.option("--calib", type=click.Choice(["naive", "ema", "kl", "percentile", "mse", "auto", "minmax", "entropy"]),
              default="auto", show_default=True, help="How ranges are chosen.")
@click.option("--calib-table", metavar="FILE", help="Ranges of an earlier run (PREFIX.calib.json).")
@target_option
@exclude_option
@outputs_option
@input_shape_option
@image_options
@runtime_option
@output_options
def command(model: str, node: str, tensor: bool, data: str | None, as_json: bool, quiet: bool, verbose: bool,
            **flags: Any) -> None:
    """What became of one layer: through which passes, its range and the image that set it, and what it costs.

    MODEL is the float model, NODE a name in it. The share of the outputs' error, and what another range, 16 bits or
    leaving it in float would give, are measured on 4 images, with weights rounded to the nearest codes.

    \b
    Examples:
      qgraph explain net conv3
      qgraph explain net conv3 --data val.rec --select ::10 --preprocess imagenet --target onnx
      qgraph explain net relu2_fwd --tensor --calib-table net-quantized.calib.json --json
    """
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other")
    console.set_up(not verbose, verbose)
    from qgraph.commands.explain import explain
    from qgraph.options import FreezeOptions

    with console.Bars() as bars:
        found = explain(model, node, data, tensor=tensor, options=FreezeOptions(**flags), progress=bars)
    console.result(found, as_json, _lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['name']} {found['op']}".strip() + f", for {found['target']}"
    yield from console.under("passes      ", [f"{row['pass']}: {row['what']}" for row in found["passes"]])
    yield from console.under("became      ", [f"{row['name']} ({row['op']}){', ' * bool(row['arithmetic'])}"
                                              f"{row['arithmetic']}" for row in found["became"]])
    if read := found["reads"]:
        scale = f", {read['dtype']} in steps of {read['scale']:.4g}" if read["scale"] else ""
        yield f"range       {read['tensor']}: {read['low']:.4g} .. {read['high']:.4g} by {read['method']}{scale}"
        image = f", set by {read['image']}" if read["image"] else ""
        yield f"            observed {read['observed'][0]:.4g} .. {read['observed'][1]:.4g}{image}"
        if read.get("shared_with"):
            yield f"            one scale with {', '.join(read['shared_with'])}"
        yield f"            read by {', '.join(read['readers']) or 'no layer in codes'}"
    if budget := found["budget"]:
        own = (f"{100 * budget['own']:.3g} % of the outputs' noise is its own" if budget["own"] > 0 else
               "none of the outputs' noise is its own: its error goes against that of others")
        shares = ", ".join(f"{100 * share:.3g} % of {name}" for name, share in budget["before"].items())
        yield f"error       {own}" + (f"; in front of it {shares}" if shares else "")
        yield (f"            its output has {_db(budget['at_output_db'])}, and {100 * budget['own_at_output']:.3g} % "
               "of that noise is its own")
    yield f"outputs     {_db(found['sqnr_db'])} on {found['images']} images as it is"
    yield from (f"            {_db(row['sqnr_db']):>9} with {row['change']}" for row in found["what_if"])
    for number, row in enumerate(found["ranges"]):
        methods = row["methods"][0 if number else 1:]
        if methods:
            same = "" if number else ", the same range"
            yield (f"            {_db(row['sqnr_db']):>9} with {', '.join(methods)}: {row['low']:.4g} .. "
                   f"{row['high']:.4g}{same}")


def _db(value: float | None) -> str:
    return "no error" if value is None else f"{value:.2f} dB"
