"""The fenced blocks of README.md and docs/, and whether what they show is what is printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from _generate.tolerances import COUNT, OTHER, UNITS, Tolerance
from helpers import ROOT, VNNI

DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}
_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
_NUMBER = re.compile(r"(?<![\w.-])([-+]?\d[\d.]*(?:e[-+]?\d+)?)(?: ?(%|dB|KB|MB|ms|s)(?![\w]))?")
_FILE = re.compile(r"# ([\w.]+\.(?:py|cfg|toml|yaml))\n")


class Block(NamedTuple):
    """kind: the word behind the fence."""

    kind: str
    text: str

    @property
    def file(self) -> str:
        """The name of the file that the block is, "" if it is none."""
        named = _FILE.match(self.text) if self.kind in ("python", "ini", "toml", "yaml") else None
        return named.group(1) if named else ""

    def commands(self) -> list[tuple[str, list[str]]]:
        """(command, lines that it prints), of a console block."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found


def blocks(text: str) -> list[Block]:
    return [Block(kind, body) for _, kind, body in _BLOCK.findall(text)]


def aligned(shown: list[str], printed: list[str], same: Callable[[str, str], bool]) -> list[str] | None:
    """The printed line of each shown one, line by line; ``...`` stands for any lines. None if they do not fit."""
    if not shown:
        return None if printed else []
    if shown[0] == "...":
        rests = (aligned(shown[1:], printed[start:], same) for start in range(len(printed) + 1))
        rest = next((rest for rest in rests if rest is not None), None)
        return None if rest is None else ["...", *rest]
    if not printed or not same(shown[0], printed[0]):
        return None
    rest = aligned(shown[1:], printed[1:], same)
    return None if rest is None else [printed[0], *rest]


def matches(shown: list[str], printed: list[str]) -> bool:
    return aligned(shown, printed, line_matches) is not None


def renewed(shown: list[str], printed: list[str]) -> list[str]:
    """What a page should show: its lines with the numbers that are printed, but for times."""
    found = aligned(shown, list(map(plain, printed)), lambda a, b: words(a) == words(b))
    assert found is not None, "\n".join(["the words differ:", *shown, "printed:", *printed])
    return [old if old.startswith(("...", "time ")) else new for old, new in zip(shown, found)]


def plain(line: str, vnni: bool = VNNI) -> str:
    """Without VNNI some codes differ from exact arithmetic, and the line about kernels ends with the worst layer."""
    return line if vnni else re.sub(r"^(kernels .* exact arithmetic), least in \S+$", r"\1", line)


def words(line: str) -> str:
    """The line without its numbers; spaces do not count."""
    return " ".join(_NUMBER.sub("#", line).split())


def line_matches(shown: str, printed: str, vnni: bool = VNNI) -> bool:
    """The words are equal, and the numbers within their tolerances. Spaces do not count."""
    shown, printed = plain(shown, vnni), plain(printed, vnni)
    if words(shown) != words(printed):
        return False
    if shown.startswith("time "):
        return True
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(printed))
    return all(unit == other and _tolerance(a, b, unit).holds(float(a), float(b)) for (a, unit), (b, other) in pairs)


def _tolerance(shown: str, printed: str, unit: str) -> Tolerance:
    return UNITS[unit] if unit else COUNT if shown.isdigit() and printed.isdigit() else OTHER
