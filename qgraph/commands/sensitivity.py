"""What each layer costs the outputs on each rung of the ladder, and the order in which raising layers promises most.

The error budget ranks (`qgraph.analysis.budget`): noise that arrives at the outputs, of each layer alone, to first
order.  What ranks high is measured: the noise that is left with the layer one rung up and all others as they are.
Kept in a file, which a later run on the same network and images goes on with.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qgraph.analysis.budget import judged_ports, noise_of
from qgraph.commands.goal import LATENCY
from qgraph.commands.ladder import FLOAT_BITS, Costs, Rung
from qgraph.commands.trial import Trial
from qgraph.commands.tune_bench import Bench
from qgraph.errors import FormatError
from qgraph.files import read_at_most, write_files
from qgraph.ir.graph import Graph
from qgraph.quant.recipe import Layers, Recipe

log = logging.getLogger("qgraph")

FORMAT = "qgraph-sensitivity"
MAX_BYTES = 16 << 20
IMAGES = 8  # on which it is measured
MEASURED = 8  # steps that are measured one at a time
TRIFLE = 0.01  # a step that takes away a smaller part of the noise comes behind all others


class Step(NamedTuple):
    """One layer, one rung up. noise: that it takes away from the outputs.  extra: what it costs, as `Costs.extra`."""

    layer: str
    rung: int
    noise: float
    extra: float


@dataclass
class Sensitivity:
    """powers: rung -> layer -> noise that arrives at the outputs, as a part of the signal.

    measured: rung, layer -> noise that the outputs lose with this layer one rung up.
    """

    about: dict[str, Any]
    powers: dict[str, dict[str, float]] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)

    def steps(self, rungs: Sequence[Rung], costs: Costs, minimize: str = LATENCY) -> list[Step]:
        """All steps, the most promising first, those of a layer in order."""
        total = sum(self.powers[str(rungs[0])].values()) or 1.0
        found: list[tuple[bool, float, Step]] = []
        for layer in costs.weights:
            behind, least = False, float("inf")
            for number, (low, high) in enumerate(zip(rungs, rungs[1:])):
                noise = self._taken(layer, low, high)
                extra = costs.extra(minimize, layer, low, high)
                behind = behind or noise < TRIFLE * total
                least = min(least, noise / extra)
                found.append((behind, -least, Step(layer, number + 1, noise, extra)))
        return [step for _, _, step in sorted(found, key=lambda row: (row[0], row[1], row[2].rung))]

    def _taken(self, layer: str, low: Rung, high: Rung) -> float:
        if (known := self.measured.get(str(low), {}).get(layer)) is not None:
            return known
        return self.powers[str(low)].get(layer, 0.0) - self.powers.get(str(high), {}).get(layer, 0.0)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "about": self.about, "powers": self.powers, "measured": self.measured},
                          indent=1) + "\n"


def sensitivity(bench: Bench, rungs: Sequence[Rung], path: str) -> Sensitivity:
    """Of every rung but float; measured, or read from the file of an earlier run and completed."""
    about = {"model": bench.source.digest(), "target": str(bench.target), "exclude": list(bench.options.exclude),
             "images": [bench.calibration.name, bench.calibration.fingerprint()]}
    found = _kept(path, about)
    for number, rung in enumerate(rungs):
        if rung.weight_bits == FLOAT_BITS or str(rung) in found.powers:
            continue
        trial = Trial(bench.source, bench.calibration, bench.with_recipe(Recipe(layers=(("*", rung.choice),))),
                      bench.engine, progress=bench.progress, images=IMAGES)
        costs = {cost.layer: cost for cost in trial.budget().costs}
        found.powers[str(rung)] = {layer: _short(cost.power) for layer, cost in costs.items()}
        write_files({path: found.to_json()})
        if number + 1 < len(rungs):
            _measure(found, trial, rung, rungs[number + 1], bench)
            write_files({path: found.to_json()})
    return found


def _measure(found: Sensitivity, trial: Trial, rung: Rung, higher: Rung, bench: Bench) -> None:
    """The layers of the most noise, one rung up, one at a time."""
    powers = found.powers[str(rung)]
    whole = _noise(trial, trial.quantized)
    mine = found.measured.setdefault(str(rung), {})
    ranked = sorted(powers, key=lambda layer: -powers[layer])[:MEASURED]
    for number, layer in enumerate(ranked):
        layers: Layers = (("*", rung.choice), (layer, higher.choice))
        mine[layer] = _short(whole - _noise(trial, trial.with_layers(layers)))
        if bench.progress:
            bench.progress("measuring layers", number + 1, len(ranked))


def _noise(trial: Trial, g: Graph) -> float:
    """The mean noise of the outputs, in the engine: fast, and exact but for what it adds in float."""
    found = trial.engine.exact(g, judged_ports(g)).run(trial.feeds)
    return sum(noise_of(a, b) for a, b in zip(trial.want, found)) / len(found)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _kept(path: str, about: Mapping[str, Any]) -> Sensitivity:
    """What an earlier run has measured of the same; nothing of another network, other images, or a damaged file."""
    fresh = Sensitivity(dict(about))
    if not os.path.isfile(path):
        return fresh
    try:
        body = json.loads(read_at_most(path, MAX_BYTES).decode("utf-8"))
        if body["format"] != FORMAT:
            raise ValueError(f"format is {body['format']!r:.40}")
        powers, measured = (_numbers(body[name]) for name in ("powers", "measured"))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: not the sensitivities of qgraph tune ({error}); remove the file") from None
    if body.get("about") != fresh.about:
        log.info("%s is of another network or of other images: measured again", path)
        return fresh
    return Sensitivity(fresh.about, powers, measured)


def _numbers(body: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {str(rung): {str(layer): float(value) for layer, value in row.items()} for rung, row in body.items()}
