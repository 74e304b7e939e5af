"""`qgraph diff`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from qgraph.cli import console
from qgraph.errors import CheckFailed

SHOWN = 20  # rows of a table


@click.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--beyond", type=click.FloatRange(0), default=1.0, show_default=True, metavar="PERCENT",
              help="Tell of scales that differ by more than this.")
@click.option("--fail-on", type=click.Choice(["worse"]),
              help="Exit with 3 if a metric fell by more than 0.1 (percent, dB), or an output is ruined in B alone.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="All rows of every table.")
def command(a: str, b: str, beyond: float, fail_on: str | None, as_json: bool, verbose: bool) -> None:
    """What changed between two frozen results: layers whose arithmetic, scale or codes changed, metrics and size.

    A and B are frozen models (their files or prefixes, with the report beside them), .report.json or .calib.json files.

    \b
    Examples:
      qgraph diff net-a net-b
      qgraph diff net-quantized.onnx new/net-quantized.onnx --fail-on worse
      qgraph diff main.calib.json branch.calib.json --beyond 5 --json
    """
    console.set_up(not verbose, verbose)
    from qgraph.commands.diff import check_not_worse, diff

    found = diff(a, b, beyond)
    if as_json:
        console.result(found, True, ())
    else:
        _tell(found, verbose)
    if fail_on and (worse := check_not_worse(found)):
        raise CheckFailed(f"--fail-on worse: {worse}")


def _tell(found: Mapping[str, Any], verbose: bool) -> None:
    if not found["same_network"]:
        click.echo("network     another one: its float graph or its weights changed")
    for row in found["about"]:
        click.echo(f"{row['name']}: {row['a'] or 'nothing'} -> {row['b'] or 'nothing'}")
    shown = None if verbose else SHOWN
    for title, head, rows in (
            ("layers", ("layer", "A", "B"), [(x["name"], x["a"], x["b"]) for x in found["layers"]]),
            ("ranges", ("tensor", "A", "B", "%"), [(x["name"], x["a"], x["b"], x["percent"]) for x in found["ranges"]]),
            ("codes", ("parameter", "changed", "of"), [(x["name"], x["changed"], x["of"])
                                                       for x in found["codes"] or ()])):
        if rows:
            console.table(title, head, rows[:shown], to_stdout=True)
            if len(rows) > len(rows[:shown]):
                click.echo(f"... and {len(rows) - len(rows[:shown])} more (-v shows all)")
    click.echo("\n".join(_summary(found)))


def _summary(found: Mapping[str, Any]) -> Iterator[str]:
    codes = "codes not compared" if found["codes"] is None else f"codes of {len(found['codes'])} parameters"
    yield f"changed     {len(found['layers'])} layers, {len(found['ranges'])} ranges, {codes}"
    for row in found["metrics"]:
        mark = "  WORSE" if row["worse"] else ""
        yield (f"metric      {row['output']}: {row['metric']} {_value(row['a'])} -> {_value(row['b'])} "
               f"{row['unit']}".rstrip() + mark)
    if not found["metrics"]:
        yield "metric      none in common (judged on other images, or not at all)"
    a, b = found["size"]["a"], found["size"]["b"]
    if a is not None and b is not None:
        yield f"size        {console.size(a)} -> {console.size(b)}"


def _value(value: float | None) -> str:
    return "exact" if value is None else f"{value:g}"
