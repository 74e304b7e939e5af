"""To be written."""

from __future__ import annotations

from collections.abc import Sequence

from qgraph.tasks.base import Claim, Head, Metric, Outputs, Ratios, Tally, Task


class Segmentation(Task):
    name, help = "segmentation", "to be written"
    metrics = {"x": Metric("%", "to be written")}
    main, ruined = "x", 80.0

    @classmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        return []

    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        return Ratios({})
