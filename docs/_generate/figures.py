"""Tables of measured figures, from the files of docs/figures: each says what printed it, and whether it is old.

A file NAME.json has the keys

    title     of the table
    command   that prints the figures, or a list of such commands
    note      what the cells are, in a sentence or more
    older     why the figures are older than the code, "" if they are not
    head      of the columns
    rows      of cells, as texts
"""

from __future__ import annotations

import json
from typing import Any

from _generate.markdown import code, table
from _generate.root import ROOT

FIGURES = ROOT / "docs" / "figures"
KEYS = ("title", "command", "note", "older", "head", "rows")


def read(name: str) -> dict[str, Any]:
    """The file of that name. Raises ValueError where a key is missing or a row has another number of cells."""
    found = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    if sorted(found) != sorted(KEYS):
        raise ValueError(f"{name}.json has the keys {', '.join(found)}, want {', '.join(KEYS)}")
    for row in found["rows"]:
        if len(row) != len(found["head"]):
            raise ValueError(f"{name}.json: the row {row} has {len(row)} cells, want {len(found['head'])}")
    return found


def figure(name: str) -> str:
    """A section: title, age, note, table, command."""
    found = read(name)
    commands = found["command"] if isinstance(found["command"], list) else [found["command"]]
    parts = [f"## {found['title']}"]
    if found["older"]:
        parts.append(f'!!! warning "These figures are older than the code"\n    {found["older"]}')
    parts += [found["note"]] if found["note"] else []
    return "\n\n".join([*parts, table(found["head"], found["rows"]), "Printed by " + code(commands) + "."])
