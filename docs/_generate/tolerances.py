"""How far a printed number may be from the one that a page shows, by its unit: for readers and for the tests."""

from __future__ import annotations

from typing import NamedTuple

from _generate.markdown import table


class Tolerance(NamedTuple):
    """A number n may differ by `absolute + relative * n`."""

    name: str
    absolute: float = 0.0
    relative: float = 0.0

    def holds(self, shown: float, printed: float) -> bool:
        return abs(shown - printed) <= self.absolute + self.relative * abs(shown) + 1e-12

    @property
    def words(self) -> str:
        parts = [f"{self.absolute:g}"] * bool(self.absolute) + [f"{self.relative:.0%} of it"] * bool(self.relative)
        return " and ".join(parts) or "0"


COUNT = Tolerance("a whole number without a unit: layers, images, operators")
OTHER = Tolerance("any other number", relative=0.05)
TIME = Tolerance("a time, and all of the line `time`", absolute=float("inf"))
UNITS = {"%": Tolerance("%", absolute=1.0), "dB": Tolerance("dB", absolute=2.0), "KB": Tolerance("KB", relative=0.02),
         "MB": Tolerance("MB", relative=0.02), "s": TIME, "ms": TIME}


def tolerances() -> str:
    """The table of the page."""
    rows = dict.fromkeys([*UNITS.values(), COUNT, OTHER])
    return table(("number", "may differ by"), [(row.name, "any" if row is TIME else row.words) for row in rows])
