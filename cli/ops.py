"""`qgraph ops`."""

from __future__ import annotations

import click

from qgraph.cli import console


@click.command("ops")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def command(name: str | None, as_json: bool) -> None:
    """List the ops that qgraph knows and where each is carried, or explain one.

    \b
    Examples:
      qgraph ops
      qgraph ops Convolution
      qgraph ops --json
    """
    from qgraph.commands.ops import columns, describe_op, ops_table

    if name is None:
        rows, names = ops_table(), columns()
        if as_json:
            console.result(rows, True, ())
            return
        console.table("", ("op", "kind", *names), [(op, *row.values()) for op, row in rows.items()], to_stdout=True)
        counts = ", ".join(f"{column} {sum(bool(row[column]) for row in rows.values())}" for column in names)
        click.echo(f"\n{len(rows)} ops: {counts}")
        return
    found = describe_op(name)
    console.result(found, as_json, (
        found["name"],
        "",
        f"inputs      {' '.join(found['inputs']) or 'none'}",
        f"attributes  {' '.join(f'{key}={value}' for key, value in found['attributes'].items()) or 'none'}",
        f"aliases     {' '.join(found['aliases']) or 'none'}",
        f"kind        {found['kind']}",
        *(f"            {fact}" for fact in found["facts"]),
        *(f"{column:<11} {how or 'no'}" for column, how in found["carried"].items())))
