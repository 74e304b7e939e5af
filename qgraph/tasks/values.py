"""Outputs of which no more is known than their values."""

from __future__ import annotations

from collections.abc import Sequence

from qgraph.tasks.base import Claim, Head, Metric, Outputs, Ratios, Tally, Task


class Values(Task):
    """Anything: signal to noise, cosine, the largest error."""

    name, help = "values", "anything else: signal to noise, cosine, largest error"
    metrics = {
        "sqnr_db": Metric("dB", "signal to noise", title="SQNR"),
        "cosine": Metric("", "cosine of the two outputs"),
        "max_error": Metric("", "largest error", up=False),
    }
    main, ruined, best = "sqnr_db", 15.0, 50.0

    @classmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        return [Claim((number,), 0.1) for number in range(len(heads))]

    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        return Ratios({})  # these metrics are those of every output
