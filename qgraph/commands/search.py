"""The search of `qgraph tune`: greedy, with backtracking.

    1. everything on the cheapest rung, with each method and effort: these cost nothing when the network runs
    2. the fewest steps up, in the order of promise, with which all bounds hold: by bisection
    3. of these each one back down, the dearest first, as long as all bounds hold

In 2 and 3 the best of many is taken, and what it shows is partly luck: there bounds hold where they are kept by one
standard error, as far as that is known.

Every candidate is measured once; a run that goes on finds its finished rows, and so takes the same way.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qgraph.commands.ladder import Costs, Rung
from qgraph.commands.sensitivity import Step
from qgraph.commands.tune_bench import Candidate
from qgraph.commands.tune_rows import HOPELESS, Row
from qgraph.quant.recipe import IN_FLOAT, LayerChoice, Recipe

log = logging.getLogger("qgraph")

METHODS = ("auto", "kl", "mse", "naive", "percentile")  # in the order of what they have shown
LEAST, MOST = "fast", "best"  # efforts
ALIKE = 0.02  # two costs that differ by less are one
PATIENCE = 4  # steps in a row that could not be taken back end the backtracking
Measure = Callable[[Sequence[Candidate]], Iterator[Row]]  # each as it is asked for; stops where time is up


@dataclass
class Search:
    """rungs: cheapest first.  measure: gives the row of each candidate, in order.  width: how many run at a time.

    steps: asked for where methods alone do not do.
    """

    layers: Sequence[str]
    rungs: Sequence[Rung]
    costs: Costs
    minimize: str
    measure: Measure
    steps: Callable[[], list[Step]]
    max_size: int | None = None
    seeks_accuracy: bool = False
    width: int = 1
    base: Recipe = Recipe()

    def __post_init__(self) -> None:
        self.best: Row | None = None  # the cheapest that holds

    def run(self) -> Row | None:
        """The cheapest row that holds; None where there is none. `best` is it at any moment."""
        start = self._free()
        if start.holds and self._at_bottom(start):
            return self.best
        steps = self._affordable(self.steps())
        if self.seeks_accuracy:
            rows = [start, *self._rows([self._prefix(start.recipe, steps, len(steps))] if steps else [])]
            self.best = min((row for row in rows if self._fits(row)), key=lambda row: row.beyond, default=None)
            return self.best
        taken = self._fewest(start.recipe, steps)
        if taken is not None:
            self._take_back(start.recipe, levels(steps[:taken]))
        return self.best

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _rows(self, candidates: Iterable[Candidate]) -> Iterator[Row]:
        for row in self.measure(list(candidates)):
            if row.holds and self._fits(row) and (self.best is None or self._is_better(row, self.best)):
                self.best = row
            yield row

    def _fits(self, row: Row) -> bool:
        return self.max_size is None or row.size <= self.max_size

    def _is_better(self, row: Row, best: Row) -> bool:
        """Cheaper; of two that are as cheap as the other, as far as times can tell, the smaller one.

        What keeps its bounds by an error bar is better than what only holds them.
        """
        if row.keeps != best.keeps:
            return row.keeps
        own, other = row.cost(self.minimize), best.cost(self.minimize)
        if abs(own - other) > ALIKE * max(own, other):
            return own < other
        return (row.size, row.beyond) < (best.size, best.beyond)

    def candidate(self, recipe: Recipe, chosen: Mapping[str, Rung], what: str) -> Candidate:
        """chosen: the rung of every layer."""
        return Candidate(replace(recipe, layers=recipe_layers(self.layers, chosen)), what, self.costs.size(chosen),
                         round(1000 * self.costs.time(chosen), 4))

    def _at_bottom(self, row: Row) -> bool:
        return row.recipe.layers == recipe_layers(self.layers, dict.fromkeys(self.layers, self.rungs[0]))

    # ---- 1 ----------------------------------------------------------------------------------------------------------

    def _free(self) -> Row:
        """The best row of all methods and efforts on the cheapest rung; where that is hopeless, on the next."""
        for number, rung in enumerate(self.rungs[:-1] or self.rungs):
            chosen = dict.fromkeys(self.layers, rung)
            whats = {method: self.candidate(replace(self.base, calib=method), chosen, f"all {rung}, {method}")
                     for method in METHODS}
            best: Row | None = None
            for row in self._rows([whats[METHODS[0]]]):
                best = row
            assert best is not None
            if best.surely_holds or best.holds and number:
                return best
            hopeless = best.state == HOPELESS
            if hopeless and number + 2 < len(self.rungs):
                continue
            vain = hopeless or rung.act_bits == IN_FLOAT  # no other range turns that, or there are none
            others = [] if vain else [whats[method] for method in METHODS[1:]]
            for row in self._rows(others):
                best = min(best, row, key=lambda row: (row.state == HOPELESS, row.beyond))
                if best.surely_holds or best.holds and number:
                    return best
            effort = self.base.effort
            if not best.holds and (effort == LEAST or effort != MOST and not vain):
                more = replace(best.recipe, effort=MOST)
                for row in self._rows([self.candidate(more, chosen, f"{best.what}, effort {MOST}")]):
                    best = min(best, row, key=lambda row: (row.state == HOPELESS, row.beyond))
            return best
        raise AssertionError("a ladder has a rung or more")

    # ---- 2 ----------------------------------------------------------------------------------------------------------

    def _affordable(self, steps: Sequence[Step]) -> list[Step]:
        """Those that leave the size below the bound, in their order."""
        if self.max_size is None:
            return list(steps)
        found: list[Step] = []
        for step in steps:
            if self.costs.size(self._chosen(levels([*found, step]))) <= self.max_size:
                found.append(step)
        return found

    def _chosen(self, level: Mapping[str, int]) -> dict[str, Rung]:
        return {layer: self.rungs[level.get(layer, 0)] for layer in self.layers}

    def _prefix(self, recipe: Recipe, steps: Sequence[Step], count: int) -> Candidate:
        level = levels(steps[:count])
        what = f"{len(level)} layers up, the last {' and '.join(steps[count - 1].layers)}"
        return self.candidate(recipe, self._chosen(level), what)

    def _fewest(self, recipe: Recipe, steps: Sequence[Step]) -> int | None:
        """How many steps it takes; None where all are too few. As many probes at a time as there are workers."""
        low, high = 0, len(steps) + 1  # low does not hold, high is not known to
        while high - low > 1:
            parts = range(1, self.width + 1)
            probes = sorted({low + (high - low) * part // (self.width + 1) for part in parts} - {low})
            rows = zip(probes, self._rows([self._prefix(recipe, steps, probe) for probe in probes]))
            for probe, row in rows:
                if row.keeps:
                    high = probe
                    break
                low = probe
        return high if high <= len(steps) else None

    # ---- 3 ----------------------------------------------------------------------------------------------------------

    def _take_back(self, recipe: Recipe, level: dict[str, int]) -> None:
        """level: of the layers that are up."""
        def saved(layer: str) -> float:
            at = level[layer]
            return self.costs.extra(self.minimize, layer, self.rungs[at - 1], self.rungs[at])

        failed = 0
        for layer in sorted(level, key=lambda layer: -saved(layer)):
            fewer = {**level, layer: level[layer] - 1}
            up = sum(at > 0 for at in fewer.values())
            what = f"{up} layers up, {layer} back to {self.rungs[fewer[layer]]}"
            for row in self._rows([self.candidate(recipe, self._chosen(fewer), what)]):
                level, failed = (fewer, 0) if row.keeps else (level, failed + 1)
            if failed == PATIENCE:
                return


def levels(steps: Iterable[Step]) -> dict[str, int]:
    """Layer -> how many rungs it is up behind these steps; those that are not up are left out."""
    return dict(Counter(layer for step in steps for layer in step.layers))


def recipe_layers(layers: Sequence[str], chosen: Mapping[str, Rung]) -> tuple[tuple[str, LayerChoice], ...]:
    """What a recipe says of single layers, without those that are as the others: 8 bits."""
    default = LayerChoice(8, 8)
    return tuple((layer, chosen[layer].choice) for layer in layers if chosen[layer].choice != default)
