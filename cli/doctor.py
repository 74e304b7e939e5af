"""`qgraph doctor`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

from qgraph.cli import console
from qgraph.cli.options import (
    image_options,
    input_shape_option,
    model_options,
    output_options,
    outputs_option,
    runtime_option,
)
from qgraph.cli.target_options import TargetType
from qgraph.errors import CheckFailed

WIDTH = 108  # of the sentences


@click.command("doctor")
@click.argument("model", metavar="MODEL")
@model_options
@click.option("--data", metavar="PATH", help=".rec, folder of images, .npz or .npy: as for calibration.")
@click.option("--num-calib", type=click.IntRange(1), metavar="N", help="Look at so many images.  [default: 32]")
@click.option("--target", "targets", type=TargetType(), multiple=True, metavar="TARGET",
              help="Ask about this target alone, and make its refusal an error. Can be repeated.  [default: all]")
@outputs_option
@input_shape_option
@image_options
@runtime_option
@click.option("--strict", is_flag=True, help="Exit with 3 if anything is found that is more than a note.")
@output_options
def command(model: str, data: str | None, targets: tuple[str, ...], strict: bool, as_json: bool, quiet: bool,
            verbose: bool, **flags: Any) -> None:
    """Find what makes quantization go wrong, before it does.

    Looks at the parameters and the ops of a float MODEL (a -symbol.json or its prefix), and with --data at what its
    tensors hold: wrong preprocessing, channels and images that take the whole range, sums that overflow. Each finding
    says why it matters and what to do; a table says what the model needs of each target.

    \b
    Examples:
      qgraph doctor net
      qgraph doctor net --data val.rec --select ::10 --preprocess imagenet
      qgraph doctor net --data val.rec --preprocess imagenet --target ncnn --strict --json
    """
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other")
    console.set_up(not verbose, verbose)  # what freezing would say on the way is not the answer
    from qgraph.commands.doctor import doctor
    from qgraph.options import FreezeOptions

    with console.Bars() as bars:
        found = doctor(model, data, targets=targets, options=FreezeOptions(**flags), progress=bars)
    if as_json:
        console.result(found, True, ())
    else:
        click.echo("\n".join(_lines(found, quiet)))
        if found["ops"] and not quiet:
            columns = list(next(iter(found["ops"].values())))
            console.table("", ("op", *columns), [(op, *(row[name] for name in columns)) for op, row in
                                                 found["ops"].items()], to_stdout=True)
    counts = found["counts"]
    if strict and (counts["error"] or counts["warning"]):
        raise CheckFailed(f"--strict: {_counted(counts)}")


def _lines(found: Mapping[str, Any], quiet: bool) -> Iterator[str]:
    for row in found["findings"]:
        if quiet and row["severity"] == "note":
            continue
        title = f"{row['severity']:<8} {row['check']}: "
        yield from textwrap.wrap(title + row["found"], WIDTH, subsequent_indent=" " * 9, break_on_hyphens=False)
        for word, text in (("why", row["why"]), ("try", row["remedy"])):
            yield from textwrap.wrap(f"         {word}  {text}", WIDTH, subsequent_indent=" " * 14,
                                     break_on_hyphens=False)
    yield from (f"skipped  {line}" for line in found["skipped"])
    images = f" on {found['images']} images" if found["images"] else ""
    yield f"found    {_counted(found['counts'])}{images}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())
