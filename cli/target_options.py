"""``--target``, and a flag for each option that a target has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Callable

import click

from qgraph.cli.options import Command
from qgraph.errors import OptionError
from qgraph.targets.registry import all_classes, get_target, option_fields, with_options


class TargetType(click.ParamType):
    """The name of a target, with options or without: ``onnx``, ``onnx{isa=avx2}``."""

    name = "TARGET"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(get_target(value))
        except OptionError as error:
            self.fail(str(error), param, ctx)


def _help() -> str:
    return " ".join(f"{cls.name}: {cls.help.rstrip('.')}." for cls in all_classes())


def target_option(command: Command) -> Command:
    """``--target``, of a command that wants one."""
    return click.option("--target", type=TargetType(), default="mxnet", show_default=True, metavar="TARGET",
                        help=_help())(command)


def targets_options(command: Command) -> Command:
    """``--target``, again and again, and a flag for each option of a target."""
    for name, (option, owners) in reversed(option_fields().items()):
        command = _option_flag(name, option, owners)(command)
    return click.option("--target", "targets", type=TargetType(), multiple=True, default=["mxnet"], show_default=True,
                        metavar="TARGET", help=f"{_help()} NAME{{OPTION=VALUE}} sets options. Can be repeated: "
                        "calibrates once.")(command)


def _option_flag(name: str, option: dataclasses.Field[Any], owners: Sequence[str]) -> Callable[[Command], Command]:
    text = f"{', '.join(owners)}: {option.metadata.get('help', 'an option of this target.')}"
    flag = f"--{name.replace('_', '-')}"
    if isinstance(option.default, bool):
        flags = f"{flag}/--no-{flag[2:]}" if option.default else flag
        return click.option(flags, is_flag=True, default=None, help=text)
    choices = option.metadata.get("choices")
    return click.option(flag, type=click.Choice(choices) if choices else type(option.default), default=None,
                        help=f"{text}  [default: {option.default}]")


def _flag(name: str, value: object) -> str:
    """How the user wrote it."""
    return f"--{'no-' if value is False else ''}{name.replace('_', '-')}"


def chosen_targets(targets: Sequence[str], flags: dict[str, Any]) -> list[str]:
    """The targets with the options that flags give them, which are taken out of `flags`.

    Raises OptionError for a flag that none of the targets has.
    """
    given: dict[str, Any] = {}
    names = {get_target(text).name for text in targets}
    for name, (_, owners) in option_fields().items():
        value = flags.pop(name)
        if value is None:
            continue
        if names.isdisjoint(owners):
            raise OptionError(f"{_flag(name, value)}: target {get_target(targets[0]).name} has no choice; it is "
                              f"for --target {' or '.join(owners)}")
        given[name] = value
    return list(dict.fromkeys(with_options(text, **given) for text in targets))
