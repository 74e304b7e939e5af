"""`qgraph convert`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli import console
from qgraph.cli.options import (
    float_check_option,
    input_shape_option,
    model_options,
    output_options,
    outputs_option,
    runtime_option,
)
from qgraph.targets.registry import formats, get_target


@click.command("convert")
@click.argument("model", metavar="MODEL-symbol.json")
@click.option("--to", type=click.Choice(formats()), required=True,
              help="onnx: PREFIX.onnx. ncnn: PREFIX.param and PREFIX.bin. tengine: PREFIX.tmfile. "
                   "mxnet: PREFIX-symbol.json and PREFIX-0000.params as MXNet 1.9 writes them.")
@model_options
@click.option("--output", metavar="PREFIX",
              help="Prefix of the files that are written.  [default: MODEL, for mxnet MODEL-converted]")
@outputs_option
@input_shape_option
@runtime_option
@float_check_option
@output_options
def command(model: str, to: str, output: str | None, as_json: bool, quiet: bool, verbose: bool, **flags: Any) -> None:
    """Convert a float model of any MXNet since 0.8 to ONNX, for ncnn or Tengine, or to the files of MXNet 1.9.

    An ONNX model is run by onnxruntime on random batches, one for ncnn by the package ncnn if it is installed, and
    compared with the original, which MXNet runs if it is installed, else a slow NumPy interpreter.

    \b
    Examples:
      qgraph convert net-symbol.json --to onnx --input-shape data:1,3,224,224
      qgraph convert net-symbol.json --to ncnn --input-shape data:1,3,224,224
      qgraph convert net-symbol.json --to onnx --outputs pool5 --outputs fc1_output --output features
      qgraph convert old-symbol.json --epoch 9 --to mxnet --output new
    """
    console.set_up(quiet, verbose, passes=False)
    from qgraph.commands.convert import convert, destination

    prefix = destination(model, to, output)
    found = convert(model, to, **flags)
    paths = found.save(prefix)
    console.result({**found.report, "files": paths}, as_json,
                   [*_summary(found.report), *(f"wrote       {path}" for path in paths)])


def _summary(report: dict[str, Any]) -> list[str]:
    inputs = ", ".join(f"{name} {_shape(shape)}".strip() for name, shape in report["inputs"].items())
    before, after = (sum(report["ops"][when].values()) for when in ("before", "after"))
    lines = [f"inputs      {inputs}", f"outputs     {', '.join(report['outputs'])}", f"ops         {before} -> {after}"]
    if report["compared_with"]:
        lines.append(f"difference  {report['difference']:.1e} of the largest output (with {report['compared_with']})")
    elif get_target(report["to"]).rewrites:
        lines.append("difference  not compared")
    size = report["size"]
    return [*lines, f"size        {console.size(size['before'])} -> {console.size(size['after'])}"]


def _shape(shape: list[int] | None) -> str:
    """0 is a dimension that may vary."""
    return "x".join(str(d or "N") for d in shape or ())
