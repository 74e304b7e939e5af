"""`qgraph targets`."""

from __future__ import annotations

import click

from qgraph.cli import console


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
def command(as_json: bool) -> None:
    """The targets, and what they make of the bits that a layer may have.

    A row is a combination of bits of weights and activations that a recipe may give a layer. What computes in integers
    is faster; where the rest is float and a weight is stored in fewer than 32 bits, the files alone are smaller.
    """
    from qgraph.commands.targets import target_rows

    rows = target_rows()
    if as_json:
        console.result(rows, as_json, [])
        return
    console.table("", ("target", "weights", "activations", "computes in", "stored bits", "granularity"),
                  [(row["target"], row["weights"], row["activations"], row["computes"], row["stored"],
                    ", ".join(row["granularity"])) for row in rows], to_stdout=True)
