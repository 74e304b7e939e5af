"""`qgraph simulate`: strategies of quantization compared by what they cost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli import console
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
)

if TYPE_CHECKING:
    from qgraph.commands.strategies import Simulation

_YES = {"yes": (True,), "no": (False,), "both": (False, True)}


class _Several(click.ParamType):
    """A comma-separated list of choices, or of whole numbers."""

    def __init__(self, *choices: str, **aliases: str) -> None:
        self.choices = choices
        self.meant = {**{choice.lower(): choice for choice in choices}, **aliases}
        self.name = "LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        parts = [part.strip() for part in value.split(",")]
        for part in parts:
            if part.lower() not in self.meant:
                self.fail(f"found {part!r}, want a comma-separated list of {', '.join(self.choices)}", param, ctx)
        return tuple(self.meant[part.lower()] for part in parts)


_BITS = _Several(*map(str, range(2, 17)))


@click.command("simulate")
@click.argument("model", metavar="MODEL-symbol.json")
@click.option("--data", required=True, metavar="PATH", help="Images that judge: .rec, folder (labels are its "
              "sub-folders), .npz.")
@click.option("--grid", "preset", type=click.Choice(["original"]),
              help="A ready table instead of the lists below. original: the 19 rows of Quantization on MXNet.")
@click.option("--granularity", type=_Several("layer", "group", "channel"), default="channel", show_default=True)
@click.option("--act-signed", type=_Several("auto", "signed", "unsigned", true="signed", false="unsigned"),
              default="auto", show_default=True, help="Codes of activations. auto: as their signs need it, with a zero "
              "point; the others have none.")
@click.option("--calib", type=_Several("naive", "ema", "kl", "percentile", "mse", "auto", "online", minmax="naive",
              entropy="kl"), default="auto", show_default=True, help="online: ranges of the batch that is being run.")
@click.option("--weight-bits", type=_BITS, default="8", show_default=True)
@click.option("--act-bits", type=_BITS, default="8", show_default=True)
@click.option("--merge-bn", type=click.Choice(list(_YES)), default="yes", show_default=True,
              help="Fold BatchNorms into the weights before these are quantized.")
@click.option("--exclude-first", type=click.Choice(list(_YES)), default="no", show_default=True,
              help="Leave the first convolution in float.")
@click.option("--winograd", type=_Several("none", "F23", "F43", "F63"), default="none", show_default=True,
              help="Quantize the weights of 3 x 3 convolutions in the domain of F(2,3), F(4,3) or F(6,3).")
@model_options
@click.option("--output", metavar="PREFIX", help="Prefix of the files that are written.  [default: MODEL-simulated]")
@click.option("--restart", is_flag=True, help="Compute finished rows of PREFIX.json again.")
@click.option("--plot", is_flag=True, help="Also write PREFIX.png: accuracy against bits.")
@outputs_option
@input_shape_option
@exclude_option
@recipe_option
@click.option("--calib-data", metavar="PATH", help="[default: the images that --skip leaves out, else as for freeze]")
@click.option("--calib-select", metavar="START:STOP:STEP", help="Calibrate on these of them.")
@click.option("--num-calib", type=click.IntRange(1), metavar="N", help="Use so many images.  [default: at most 512]")
@judge_options
@image_options
@effort_option
@runtime_option
@float_check_option
@cluster_options
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N")
@output_options
def command(model: str, data: str, output: str | None, restart: bool, plot: bool, calib_select: str | None,
            workers: int | None, scheduler: str | None, as_json: bool, quiet: bool, verbose: bool,
            **flags: Any) -> None:
    """What a network would lose under one strategy of quantization, or under each of many.

    Options that take a LIST make a grid: every combination is a row. Each row is what freeze --target mxnet-sim makes
    with the same flags.

    \b
    Writes PREFIX.md, .csv and .json after every row. The same command goes on where it was stopped, and adds the rows
    that are not in PREFIX.json yet. --recipe gives what the lists do not, and the choices for single layers.

    \b
    Examples:
      qgraph simulate net --data val.rec --skip ::10 --preprocess imagenet --act-signed unsigned --granularity layer
      qgraph simulate net --data val.rec --skip ::10 --preprocess imagenet --weight-bits 8,6,4 --merge-bn both --plot
      qgraph simulate net --data val.rec --skip ::10 --preprocess imagenet --grid original
    """
    console.set_up(quiet, verbose, passes=False)
    from qgraph.cluster import open_workers
    from qgraph.commands.open_model import find_symbol
    from qgraph.commands.plot import draw, need_matplotlib
    from qgraph.commands.simulate import PRESETS, grid, simulate
    from qgraph.files import Content, check_output, write_files
    from qgraph.options import FreezeOptions

    preset = flags.pop("preset")
    axes = {name: flags.pop(name) for name in ("granularity", "act_signed", "calib", "winograd", "weight_bits",
                                               "act_bits", "merge_bn", "exclude_first")}
    if preset:
        _refuse_lists(axes)
        strategies = PRESETS[preset]()
    else:
        axes.update({name: tuple(map(int, axes[name])) for name in ("weight_bits", "act_bits")})
        axes.update({name: _YES[axes[name]] for name in ("merge_bn", "exclude_first")})
        strategies = grid(**{**axes, **_of_recipe(flags["recipe"], axes)})
    prefix = output or find_symbol(model)[1] + "-simulated"
    check_output(prefix, [f"{prefix}.json"], [find_symbol(model)[0]])
    kept = None if restart else _finished(f"{prefix}.json")
    if plot:
        need_matplotlib()

    def write(found: Simulation) -> None:
        files: dict[str, Content] = {f"{prefix}.json": found.to_json(), f"{prefix}.md": found.to_markdown(),
                                     f"{prefix}.csv": found.to_csv()}
        write_files(files)

    try:
        with open_workers(scheduler, workers) as group, console.Bars() as bars:
            found = simulate(model, data, strategies, FreezeOptions(**flags), calib_select=calib_select, kept=kept,
                             each=write, progress=bars, workers=group)
    except KeyboardInterrupt:
        kept_rows = f"finished rows are in {prefix}.json, and the same command goes on from there"
        raise KeyboardInterrupt(kept_rows if os.path.isfile(f"{prefix}.json") else "nothing was written") from None
    write(found)
    if plot:
        write_files({f"{prefix}.png": draw(found)})
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    click.echo(found.to_markdown(), nl=False)
    click.echo("\n".join(f"wrote       {prefix}.{kind}" for kind in ("json", "md", "csv", *(["png"] if plot else []))))


def _of_recipe(path: str | None, axes: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What a recipe says of all layers, where the command line does not say it."""
    if path is None:
        return {}
    from qgraph.quant.recipe import Recipe

    said, source = Recipe.load(path), click.get_current_context().get_parameter_source
    return {name: (getattr(said, name),) for name in axes if getattr(said, name, None) is not None
            and source(name) is not click.core.ParameterSource.COMMANDLINE}


def _finished(path: str) -> Simulation | None:
    """The rows of an earlier run."""
    if not os.path.isfile(path):
        return None
    from qgraph.commands.strategies import Simulation

    with open(path, encoding="utf-8", errors="replace") as file:
        return Simulation.from_json(file.read(), path)


def _refuse_lists(axes: dict[str, Any]) -> None:
    """With --grid the rows are given."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in axes if source(name) is click.core.ParameterSource.COMMANDLINE]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise click.UsageError(f"--grid is a ready table and {flag} makes another one; leave one of them out")
