"""What a check of a model says: how bad it is, where, what was found, why it matters, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

NOTE, WARNING, ERROR = "note", "warning", "error"
SEVERITIES = (ERROR, WARNING, NOTE)  # the worst first


@dataclass(frozen=True)
class Finding:
    """One finding. check: a word for it.  where: names of the user's, the worst first."""

    check: str
    severity: str
    where: tuple[str, ...]
    found: str
    why: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "where": list(self.where)}


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, else in the order of the checks."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def listed(names: Sequence[str], count: int = 4) -> str:
    """Some names of many, for a sentence."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
