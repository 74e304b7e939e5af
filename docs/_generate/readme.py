"""The tables of README, which people read without a build: `python -m _generate.readme` in docs/ writes them anew.

A table stands between the lines ``<!-- from: NAME -->`` and ``<!-- end -->``: the targets, or a file of docs/figures.
"""

from __future__ import annotations

import re

from _generate import figures, targets
from _generate.markdown import table
from _generate.root import ROOT

README = ROOT / "README.md"
_TABLE = re.compile(r"(<!-- from: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def renewed(text: str) -> str:
    """The text with its tables as they are today."""
    return _TABLE.sub(lambda match: f"{match[1]}{_made(match[2])}\n{match[3]}", text)


def _made(name: str) -> str:
    if name == "targets":
        return targets.overview()
    found = figures.read(name)
    return table(found["head"], found["rows"])


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
