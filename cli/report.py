"""`qgraph report`."""

from __future__ import annotations

import click

from qgraph.cli import console
from qgraph.errors import OptionError


@click.command("report")
@click.argument("files", metavar="PREFIX.report.json", nargs=-1, required=True)
@click.option("--output", metavar="FILE", help="Where the page goes.  [default: PREFIX.report.html]")
def command(files: tuple[str, ...], output: str | None) -> None:
    """Write the page of an earlier freeze: one HTML file that needs no network.

    `qgraph freeze` writes it beside the JSON; this makes it again, from the JSON alone.

    \b
    Examples:
      qgraph report net-quantized.report.json
      qgraph report net.onnx.report.json net.ncnn.report.json
      qgraph report net-quantized.report.json --output look.html
    """
    console.set_up(False, False)
    from qgraph.commands.reports import page_of
    from qgraph.files import check_output, write_files

    if output is not None and len(files) > 1:
        raise OptionError(f"--output {output}: is one file, but there are {len(files)} reports; leave it out")
    pages = dict(map(page_of, files))
    if output is not None:
        pages = {output: next(iter(pages.values()))}
    for path in pages:
        check_output(path, [path], files)
    write_files(dict(pages))
    click.echo("\n".join(f"wrote       {path}" for path in pages))
