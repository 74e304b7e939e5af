"""`qgraph passes`."""

from __future__ import annotations

import dataclasses
import inspect

import click

from qgraph.cli import console


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
    from qgraph.commands.line import PIPELINES, QUANTIZING
    from qgraph.ir.rewrite import REGISTRY, option_types, pass_class

    if name is None:
        quantizing = dict.fromkeys(n for names in QUANTIZING.values() for n in names)
        order = [*(p.name for p in PIPELINES["float"]), *quantizing]
        names = [*order, *sorted(REGISTRY.keys() - set(order))]
        rows = {n: _first_line(REGISTRY[n]) for n in names}
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


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n")[0]
