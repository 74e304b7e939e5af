"""`qgraph inspect`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli import console
from qgraph.cli.options import exclude_option, input_shape_option, model_options, output_options, outputs_option
from qgraph.cli.target_options import target_option


@click.command("inspect")
@click.argument("model", metavar="MODEL")
@model_options
@target_option
@exclude_option
@outputs_option
@input_shape_option
@output_options
def command(model: str, as_json: bool, quiet: bool, verbose: bool, **flags: Any) -> None:
    """What a model is made of: ops, parameters, shapes, and what freezing would quantize and why not.

    MODEL is a -symbol.json or its prefix, or an .onnx, .tmfile (of Tengine) or .param (of ncnn) file, float or frozen.

    \b
    Examples:
      qgraph inspect net-symbol.json --input-shape data:1,3,224,224
      qgraph inspect net --target mxnet-sim --exclude first --json
      qgraph inspect net-quantized.onnx
      qgraph inspect net-quantized.param
    """
    console.set_up(quiet, verbose)
    from qgraph.commands.inspect import describe, shown_shape

    found = describe(model, **flags)
    body = found.body
    if as_json:
        console.result(body, True, ())
        return
    params = body["params"]
    click.echo(f"{'frozen model' if body['frozen'] else 'float model'}, {sum(body['ops'].values())} ops, "
               f"{params['numbers']:,} parameters in {params['arrays']} arrays, {console.size(params['bytes'])}")
    for line in found.notes:
        click.echo(line)
    for what in ("inputs", "outputs"):
        click.echo(f"{what:<8} " + ", ".join(f"{name} {shown_shape(shape)}" for name, shape in body[what].items()))
    console.table("", ("op", "count"), body["ops"].items(), to_stdout=True)
    if found.rows:
        click.echo("")
        console.table("", found.columns, found.rows, to_stdout=True)
    for line in found.remarks:
        click.echo(line)
