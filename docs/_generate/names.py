"""Lists of passes, ops and public names, as the commands `qgraph passes` and `qgraph ops` tell them."""

from __future__ import annotations

import inspect

import qgraph
from _generate.markdown import code, table
from qgraph.cli.passes import listed
from qgraph.commands.ops import columns, ops_table
from qgraph.ir.rewrite import option_types, pass_class

QAT = ("convert_model", "qparams_init", "gen_conv2d_converter", "gen_dense_converter", "gen_act_converter", "bypass_bn",
       "convert_relu_to_relu6", "merge_bn")
_HOMES = {"convert_model": "convert", "qparams_init": "initialize", "merge_bn": "merge"}


def passes() -> str:
    """A section for each pass: its docstring, its options, what must have run before."""
    return "\n\n".join(map(_pass, listed()))


def _pass(name: str) -> str:
    cls = pass_class(name)
    defaults = {field: getattr(cls, field) for field in option_types(cls) if hasattr(cls, field)}
    parts = [f"## {name}", f"```text\n{inspect.getdoc(cls) or ''}\n```"]
    if defaults:
        parts.append("Options: " + code(f"{key}={value}" for key, value in defaults.items()) + ".")
    if cls.requires:
        parts.append("Runs behind " + code(cls.requires) + ".")
    if cls.preserves_float:
        parts.append("The outputs in float stay the same; `qgraph freeze` checks it.")
    return "\n\n".join(parts)


def ops() -> str:
    """The table of `qgraph ops`."""
    heads = columns()
    rows = [(f"`{op}`", row["kind"], *(row[column] for column in heads)) for op, row in ops_table().items()]
    return table(("op", "kind", *heads), rows)


def python() -> str:
    """Where mkdocstrings puts the signature and the docstring of each public name."""
    homes = {name: f"qgraph.{home}" for name, home in qgraph._HOME.items()}
    lines = [f"::: {home}.{name}" for name, home in homes.items()]
    qat = [f"::: qgraph.qat.{_HOMES.get(name, 'converters')}.{name}" for name in QAT]
    return "\n\n".join(["## qgraph", *lines, "## qgraph.qat", *qat])
