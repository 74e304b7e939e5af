"""`qgraph passes`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING

import click

from qgraph.cli import console

if TYPE_CHECKING:
    from qgraph.ir.rewrite import Pass


@click.command("passes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def command(name: str | None, as_json: bool) -> None:
    """List the graph passes in the order in which `qgraph freeze` runs them, or explain one.

    \b
    Examples:
      qgraph passes
      qgraph passes fold-bn
    """
    from qgraph.ir.rewrite import option_types, pass_class

    if name is None:
        rows = {n: _first_line(cls) for n, cls in listed().items()}
        if as_json:
            console.result(rows, True, ())
        else:
            width = max(map(len, rows))
            click.echo("\n".join(f"{n:<{width}}  {line}" for n, line in rows.items()))
        return
    cls = pass_class(name)
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    options = {key: defaults[key] for key in option_types(cls)}
    text = inspect.getdoc(cls) or ""
    module = inspect.getdoc(inspect.getmodule(cls)) or ""
    if as_json:
        console.result({"name": name, "help": text, "requires": list(cls.requires), "options": options,
                        "preserves_float": cls.preserves_float}, True, ())
        return
    click.echo(f"{name}\n")
    click.echo(text)
    if module and module != text:
        click.echo(f"\n{module}")
    click.echo("\nkeeps the outputs in float" if cls.preserves_float else "\nchanges the outputs")
    if cls.requires:
        click.echo(f"runs behind: {', '.join(cls.requires)}")
    if options:
        click.echo("options: " + name + "{" + " ".join(f"{key}={value}" for key, value in options.items()) + "}")


def listed() -> dict[str, type[Pass]]:
    """Name -> class of every pass, in the order in which `qgraph freeze` runs them."""
    from qgraph.ir.rewrite import registered
    from qgraph.passes import PIPELINES
    from qgraph.targets.registry import all_classes

    known = registered()
    quantizing = (name for cls in all_classes() for name in cls.passes)
    order = dict.fromkeys([*(step.name for line in ("float", "measured") for step in PIPELINES[line]), *quantizing])
    return {name: known[name] for name in [*order, *sorted(known.keys() - order)]}


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n")[0]
