"""`qgraph info`."""

from __future__ import annotations

import click

from qgraph.cli import console


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def command(as_json: bool) -> None:
    """What to send with a report of a bug: versions, engines, the processor.

    \b
    Examples:
      qgraph info
      qgraph info --json
    """
    from qgraph.commands.info import info

    found = info()
    width = max(map(len, found))
    console.result(found, as_json, [f"{name:<{width}}  {fact}" for name, fact in found.items()])
