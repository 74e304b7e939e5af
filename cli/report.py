"""`qgraph report`."""

from __future__ import annotations

import click

from qgraph.cli import console
from qgraph.errors import OptionError

SHOWN = 5  # layers of a budget


@click.command("report")
@click.argument("files", metavar="PREFIX.report.json", nargs=-1, required=True)
@click.option("--output", metavar="FILE", help="Where the page goes.  [default: PREFIX.report.html]")
@click.option("--budget", "model", metavar="MODEL-symbol.json", help="The network that was frozen: measure which part "
              "of the outputs' error each layer makes, and put that into the JSON and the page.")
@click.option("--params", metavar="FILE", help="Its parameters.  [default: MODEL-0000.params, or the latest]")
@click.option("--data", metavar="PATH", help="Images to measure on.  [default: those of the calibration]")
def command(files: tuple[str, ...], output: str | None, model: str | None, params: str | None,
            data: str | None) -> None:
    """Write the page of an earlier freeze: one HTML file that needs no network.

    `qgraph freeze` writes it beside the JSON; this makes it again, from the JSON alone.

    \b
    Examples:
      qgraph report net-quantized.report.json
      qgraph report net.onnx.report.json net.ncnn.report.json
      qgraph report net-quantized.report.json --output look.html
      qgraph report net-quantized.report.json --budget net-symbol.json
    """
    console.set_up(False, False)
    from qgraph.commands.reports import page_of
    from qgraph.files import check_output, write_files

    if output is not None and len(files) > 1:
        raise OptionError(f"--output {output}: is one file, but there are {len(files)} reports; leave it out")
    if model is not None:
        _budget(files, model, params, data)
    elif params is not None or data is not None:
        raise OptionError("--params, --data: are of --budget MODEL-symbol.json; give that too")
    pages = dict(map(page_of, files))
    if output is not None:
        pages = {output: next(iter(pages.values()))}
    for path in pages:
        check_output(path, [path], files)
    write_files(dict(pages))
    click.echo("\n".join(f"wrote       {path}" for path in pages))


def _budget(files: tuple[str, ...], model: str, params: str | None, data: str | None) -> None:
    """Put the budget into the report, and print the layers that cost most."""
    from qgraph.commands.budgets import with_budget
    from qgraph.commands.frozen import report_text
    from qgraph.files import write_files
    from qgraph.tasks.words import with_unit

    if len(files) > 1:
        raise OptionError(f"--budget {model}: is of one report, but there are {len(files)}; give them one by one")
    with console.Bars() as bars:
        report = with_budget(files[0], model, data, params, bars)
    write_files({files[0]: report_text(report)})
    budget = report["budget"]
    measured, predicted = (with_unit("sqnr_db", budget[key]) for key in ("measured_db", "predicted_db"))
    click.echo(f"budget      the outputs have {measured} on {budget['images']} images with plain rounding; by the sum "
               f"of the layers {predicted}")
    for layer, share in sorted(budget["shares"].items(), key=lambda row: -row[1])[:SHOWN]:
        click.echo(f"            {100 * share:5.1f} % of {layer}")
    click.echo(f"wrote       {files[0]}")
