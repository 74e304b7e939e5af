"""The help of every command, from click."""

from __future__ import annotations

import click

from qgraph.cli.main import COMMANDS, cli

WIDTH = 110


def commands() -> str:
    """A section for the program, and one for each command."""
    root = click.Context(cli, info_name="qgraph", terminal_width=WIDTH, max_content_width=WIDTH)
    parts = [_help("qgraph", cli, root)]
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root, terminal_width=WIDTH, max_content_width=WIDTH)
        parts.append(_help(f"qgraph {name}", command, context))
    return "\n\n".join(parts)


def _help(title: str, command: click.Command, context: click.Context) -> str:
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```"
