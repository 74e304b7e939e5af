"""What qgraph knows of MXNet's ops, and where each is carried: the tables, side by side."""

from __future__ import annotations

from typing import Any

from qgraph.errors import OptionError, suggest
from qgraph.ir import ops
from qgraph.semantics.infer import RULES
from qgraph.semantics.kernels import KERNELS
from qgraph.targets.registry import get_target, names

_OWN = ("null", "fake_quantize")  # a variable, and the graph's own op, which targets lower each in its way


def ops_table() -> dict[str, dict[str, str]]:
    """Op -> {"kind", and for "shape rule", "kernel" and each target how it is carried there, "" if it is not}.

    kind: what it means to quantization, several if that depends on attributes.
    """
    carried = {name: table for name in names() if (table := get_target(name).ops())}
    tables = {"shape rule": dict.fromkeys(RULES, "yes"), "kernel": dict.fromkeys(KERNELS, "yes"), **carried}
    return {op: {"kind": _kind(row), **{name: table.get(op, "") for name, table in tables.items()}}
            for op, row in sorted(ops.OPS.items(), key=lambda item: item[0].lower()) if op not in _OWN}


def columns() -> list[str]:
    """What `ops_table` tells of an op besides its kind."""
    return [name for name in ops_table()["Convolution"] if name != "kind"]


def describe_op(name: str) -> dict[str, Any]:
    """One op, by its name or another spelling: its row, and where it is carried.

    {"name", "aliases", "inputs", "attributes": {name: default}, "kind", "facts": [sentence], "carried": {column: how}}.
    Raises OptionError for an unknown name, with the close ones.
    """
    table = ops_table()
    op = ops.ALIASES.get(name, name)
    if op not in table:
        guess = suggest(name, [*table, *ops.ALIASES], "; did you mean {}?", count=3)
        raise OptionError(f"no op is called {name!r}{guess} (`qgraph ops` lists all)")
    row, columns = ops.OPS[op], table[op]
    return {"name": op, "aliases": [alias for alias, meant in ops.ALIASES.items() if meant == op],
            "inputs": list(row.inputs), "attributes": dict(row.defaults), "kind": columns.pop("kind"),
            "facts": _facts(row), "carried": columns}


def _kind(row: ops.OpInfo) -> str:
    return ", ".join([*row.kinds, row.kind])


def _facts(row: ops.OpInfo) -> list[str]:
    """What the row says besides, in words."""
    said = {
        f"{', '.join(row.aux)} are auxiliary states": row.aux,
        "may carry the activation behind it (act_type, a_min, a_max)": row.fuses,
        "gives back its first input at inference": row.identity,
        f"combines all its inputs: {row.combines}": row.combines,
        "is never negative": row.sign == ops.NONNEGATIVE,
        "is never negative where its first input is not": row.sign == ops.KEPT_SIGN,
        "a head of the training": row.head,
    }
    return [words for words, holds in said.items() if holds]
