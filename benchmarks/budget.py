"""The error budget against the truth: each layer left in float, one by one, on trained networks.

    python benchmarks/budget.py [--images N] [NETWORK ...]

For each network: the three layers that the budget names first, those whose exclusion takes away most noise, and the sum
of all costs as a multiple of the measured noise.  All on the same few images, in exact arithmetic.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from doctor_cases import CASES, HEALTHY

from qgraph.analysis.budget import judged_ports, noise_of
from qgraph.commands.open_model import open_model
from qgraph.commands.trial import Trial
from qgraph.engines import runtime
from qgraph.ir.graph import Graph
from qgraph.options import FreezeOptions
from qgraph.passes.canonicalize import Canonicalize
from qgraph.semantics.inputs import inputs_of

NETWORKS = ("cifar_resnet20_v1", "mobilenetv1_0.75_192_bn", "squeezenet1.1")
FIRST = 3
IMAGES, MORE = 96, 480  # ten numbers of an image say less than a thousand


def trial_of(name: str, images: int) -> Trial:
    """On so many images, spread evenly; they calibrate, too."""
    prefix, path, given = HEALTHY[name]
    options = FreezeOptions(**{**given, "select": None})
    source = open_model(str(CASES / prefix)).as_graph("a budget")
    Canonicalize().run(source)
    shapes: dict[str, Sequence[int]] = {name: () for name in inputs_of(source)}
    step = options.open(str(CASES / path), shapes).num_items // images
    data = dataclasses.replace(options, select=f"::{step}").open(str(CASES / path), shapes, images)
    return Trial(source, data, options, runtime("a budget"), images=images)


def against_leaving_out(trial: Trial) -> Mapping[str, Any]:
    """{"budget", "truth": layer -> the part of the noise that leaving it in float takes away, the largest first, as
    predicted and as measured; "predicted", "uncorrelated": sums of the budget as multiples of the measured noise}"""
    budget = trial.budget()
    without = {layer: 1 - _noise(trial, trial.without(layer)) / budget.noise for layer in trial.layers}
    return {"budget": {cost.layer: cost.taken / budget.noise for cost in budget.ranked()},
            "truth": dict(sorted(without.items(), key=lambda row: -row[1])),
            "uncorrelated": budget.powers / budget.noise, "predicted": budget.predicted / budget.noise}


def _noise(trial: Trial, g: Graph) -> float:
    """As `Trial.noise`, by the engine, which is faster than the reference."""
    found = trial.engine(g, watch=judged_ports(g)).run(trial.feeds)
    return float(np.mean([noise_of(a, b) for a, b in zip(trial.want, found)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, help=f"[default: {IMAGES}, of CIFAR {MORE}]")
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    args = parser.parse_args()
    for name in args.networks:
        images = args.images or (MORE if name.startswith("cifar") else IMAGES)
        trial = trial_of(name, images)
        start = time.perf_counter()
        found = against_leaving_out(trial)
        print(f"{name}: {len(trial.layers)} layers, {images} images, {time.perf_counter() - start:.0f} s; "
              f"predicted noise {found['predicted']:.2f} of the measured one ({found['uncorrelated']:.2f} if no errors "
              "were correlated)")
        for title in ("budget", "truth"):
            print(f"  {title:<9} " + ", ".join(f"{layer} {100 * part:.1f} %"
                                               for layer, part in [*found[title].items()][:FIRST + 2]))
        first, second = ([*found[title]][:FIRST] for title in ("budget", "truth"))
        same = len({*first} & {*second})
        print(f"  of the first {FIRST}: {same} the same" + (", in the same order" if first == second else ""))


if __name__ == "__main__":
    main()
