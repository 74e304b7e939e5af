"""What a user wants of a quantized model, and whether measurements show it: bounds with their error bars.

Images are judged in blocks, by both models, so that each measurement is paired.  How far a model is beyond a bound is a
number t of all blocks; its standard error is that of the jackknife, of the t[i] without block i each:

    error = sqrt((n - 1) / n * sum over i of (t[i] - mean of all t[i])^2)

A bound is broken for sure where t > `Z` errors.  On all images a bound holds where t <= 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

import numpy as np

from qgraph.commands.judge import Judge
from qgraph.errors import DataError, OptionError, suggest
from qgraph.tasks.words import metric

LATENCY, SIZE = "latency", "size"
Z = 2.5  # errors: several looks at growing parts of the images share the doubt
LEAST_BLOCKS, MOST_BLOCKS = 4, 32  # fewer tell no error; more are put together
EXACT_DB = 200.0  # stands for outputs that are alike to the last bit


@dataclass(frozen=True)
class Goal:
    """max_drop: of the task's metric, by labels, in its unit.  min_agreement: percent, of the worst output.

    min_metrics: (name, bound) as of ``qgraph eval``, for all outputs.  max_size: bytes.  minimize: `LATENCY` or `SIZE`.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_metrics: tuple[tuple[str, float], ...] = ()
    max_size: int | None = None
    minimize: str = LATENCY

    def __post_init__(self) -> None:
        if self.minimize not in (LATENCY, SIZE):
            raise OptionError(f"--minimize: found {self.minimize!r}, want {LATENCY} or {SIZE}")
        if self.seeks_accuracy and self.max_size is None:
            raise OptionError("nothing says what may be lost: give --max-drop, --min-agreement, --min-metric or "
                              "--max-size")

    @property
    def seeks_accuracy(self) -> bool:
        """Whether as much accuracy is wanted as the size allows, and no bound."""
        return self.max_drop is None and self.min_agreement is None and not self.min_metrics

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """Those that accuracy must keep; without any one that nothing keeps, so that candidates are told apart."""
        if self.seeks_accuracy:
            return (Bound("sqnr_db", EXACT_DB, _worst),)
        drop = [Bound("drop", self.max_drop, _drop)] if self.max_drop is not None else []
        agreement = [Bound("agreement", self.min_agreement, _agreement)] if self.min_agreement is not None else []
        return (*drop, *agreement, *(Bound(name, bound, _worst) for name, bound in self.min_metrics))


@dataclass(frozen=True)
class Bound:
    """beyond: (the bound, the model's judge, the float model's) -> (value, how far it is beyond the bound)."""

    name: str
    bound: float
    beyond: Callable[[Bound, Judge, Judge], tuple[float, float]]

    def standing(self, found: Sequence[Judge], truth: Sequence[Judge]) -> Standing:
        """found, truth: a judge for each block, of the model and of the float model by labels alone."""
        value, beyond = self.beyond(self, Judge.sum(found), Judge.sum(truth))
        count = min(len(found), MOST_BLOCKS)
        found, truth = ([Judge.sum(judges[i::count]) for i in range(count)] for judges in (found, truth))
        if count < LEAST_BLOCKS:
            return Standing(value, beyond, math.inf)
        without = np.array([self.beyond(self, Judge.sum([*found[:i], *found[i + 1:]]),
                                        Judge.sum([*truth[:i], *truth[i + 1:]]))[1] for i in range(count)])
        spread = float(np.square(without - without.mean()).sum())
        return Standing(value, beyond, math.sqrt((count - 1) / count * spread))


@dataclass(frozen=True)
class Standing:
    """Of a model and a bound. value: measured.  beyond: the bound; below 0 where it is kept.  error: one sigma.
    """

    value: float
    beyond: float
    error: float

    @property
    def holds(self) -> bool:
        return self.beyond <= 0

    @property
    def hopeless(self) -> bool:
        """Whether the bound is broken beyond doubt."""
        return self.beyond > Z * self.error

    @property
    def compatible(self) -> bool:
        """Whether the bound may be kept, for all that this measurement tells."""
        return self.beyond <= Z * self.error


def standings(bounds: Sequence[Bound], found: Sequence[Judge], truth: Sequence[Judge]) -> dict[str, Standing]:
    """Of each bound, by name."""
    return {bound.name: bound.standing(found, truth) for bound in bounds}


def score_name(truth: Judge) -> str:
    """The metric that drops are of: the first by labels. Raises DataError where there is none."""
    name = next((name for name, value in truth.scores().items() if value is not None), "")
    if not name:
        raise DataError("--max-drop: the data have no labels for what the network gives; --min-agreement needs none")
    return name


def _drop(bound: Bound, found: Judge, truth: Judge) -> tuple[float, float]:
    name = score_name(truth)
    drop = (truth.scores()[name] or 0.0) - (found.scores()[name] or 0.0)
    drop = drop if metric(name).up else -drop
    return drop, drop - bound.bound


def _agreement(bound: Bound, found: Judge, truth: Judge) -> tuple[float, float]:
    value = found.agreement()["agreement"]
    if value is None:
        raise DataError("--min-agreement: no output has an agreement in percent; --min-metric sqnr_db=30 can be told "
                        "of any (--task says what outputs mean)")
    return value, bound.bound - value


def _worst(bound: Bound, found: Judge, truth: Judge) -> tuple[float, float]:
    values = dict[str, list[float]]()
    for name, value in _values(found):
        values.setdefault(name, []).append(value)
    if bound.name not in values:
        raise OptionError(f"--min-metric {bound.name}: is not known here, there are {', '.join(values)}"
                          + suggest(bound.name, values, " (did you mean {}?)"))
    up = metric(bound.name).up
    worst = min(values[bound.name]) if up else max(values[bound.name])
    return worst, bound.bound - worst if up else worst - bound.bound


def _values(judge: Judge) -> Iterator[tuple[str, float]]:
    """(metric, value) of every output, and by labels."""
    agreement = judge.agreement()
    for output in agreement["outputs"]:
        yield "sqnr_db", EXACT_DB if output["sqnr_db"] is None else output["sqnr_db"]
        yield "cosine", output["cosine"]
    rows: list[Mapping[str, float | None]] = [row["metrics"] for row in agreement["tasks"] if row["task"] != "values"]
    for row in (*rows, judge.scores()):
        yield from ((name, value) for name, value in row.items() if value is not None)
