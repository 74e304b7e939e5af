"""`qgraph inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from qgraph.cli import console
from qgraph.cli.options import exclude_option, input_shape_option, model_options, output_options, target_option


@click.command("inspect")
@click.argument("model", metavar="MODEL")
@model_options
@target_option
@exclude_option
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
    from qgraph.commands.inspect import inspect_model

    found = inspect_model(model, **flags)
    if as_json:
        console.result(found, True, ())
        return
    params = found["params"]
    click.echo(f"{'frozen model' if found['frozen'] else 'float model'}, {sum(found['ops'].values())} ops, "
               f"{params['numbers']:,} parameters in {params['arrays']} arrays, {console.size(params['bytes'])}")
    if "producer" in found:
        opset = ", ".join(f"{domain} {version}" for domain, version in found["opset"].items())
        click.echo(f"{'producer':<8} {found['producer'] or '?'}, opset {opset}")
    for what in ("inputs", "outputs"):
        click.echo(f"{what:<8} " + ", ".join(f"{name} {_shape(shape)}" for name, shape in found[what].items()))
    console.table("", ("op", "count"), found["ops"].items(), to_stdout=True)
    if found.get("engine") == "Tengine":
        click.echo("")
        console.table("", ("node", "op", "weight", "writes", "step", "shape"),
                      [(x["name"], x["op"], x["weight"] or "", x["writes"],
                        f"{x['step']:.4g}" if x["step"] else "", _shape(x["shape"])) for x in found["layers"]], True)
        return
    if "engine" in found:
        click.echo("")
        console.table("", ("layer", "op", "weight", "step of its input", "writes", "options off"),
                      [(x["name"], x["op"], x["weight"] or "not read", f"{x['step']:.4g}" if x.get("step") else "",
                        x["writes"], x["mask"] or "") for x in found["layers"]], True)
        if found["stopped"]:
            click.echo(f"from {found['stopped']} on the .bin was not read: qgraph does not know that type")
        return
    if "producer" in found:
        if found["layers"]:
            click.echo("")
            console.table("", ("tensor", "type", "scale", "zero point", "range"),
                          [(x["name"], x["dtype"], f"{x['scale']:.4g}", x["zero_point"], _range(x.get("range")))
                           for x in found["layers"]], True)
        return
    click.echo("")
    if found["frozen"]:
        console.table("", ("integer op", "name", "type", "range"),
                      [(x["op"], x["name"], x.get("dtype"), _range(x.get("range"))) for x in found["layers"]], True)
        return
    console.table("", ("layer", "op", "weight", "output", f"for {found['target']}"),
                  [(x["name"], x["op"], _shape(x["weight"]), _shape(x["output"]),
                    f"float: {x['float']}" if x["float"] else "quantized") for x in found["layers"]], True)


def _shape(shape: Sequence[int] | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape))


def _range(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.5g} .. {pair[1]:.5g}"
