"""The error budget against the truth: each layer left in float, one by one, on trained networks.

    python benchmarks/budget.py [--images N] [NETWORK ...]

For each network: the three layers that the budget names first, those whose exclusion takes away most noise, and the sum
of all costs as a multiple of the measured noise.  All on the same few images, in exact arithmetic.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from doctor_cases import CASES, HEALTHY

from qgraph.commands.open_model import open_model
from qgraph.commands.trial import Trial
from qgraph.engines import runtime
from qgraph.options import FreezeOptions
from qgraph.passes.canonicalize import Canonicalize
from qgraph.semantics.inputs import inputs_of

NETWORKS = ("cifar_resnet20_v1", "mobilenetv1_0.75_192_bn", "squeezenet1.1")
FIRST = 3


def trial_of(name: str, images: int) -> Trial:
    prefix, path, given = HEALTHY[name]
    options = FreezeOptions(**given)
    source = open_model(str(CASES / prefix)).as_graph("a budget")
    Canonicalize().run(source)
    data = options.open(str(CASES / path), {name: () for name in inputs_of(source)}, images)
    return Trial(source, data, options, runtime("a budget"), images=images)


def against_leaving_out(trial: Trial) -> Mapping[str, Any]:
    """{"budget": layers by cost, "truth": layers by what leaving them out takes away, "ratio": predicted / measured}"""
    budget = trial.budget()
    without = {layer: float(np.mean(trial.noise(trial.without(layer)))) for layer in trial.layers}
    return {"budget": [*budget.shares()], "truth": sorted(without, key=lambda layer: without[layer]),
            "ratio": budget.predicted / budget.noise, "shares": budget.shares(),
            "gains": {layer: 1 - noise / budget.noise for layer, noise in without.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    args = parser.parse_args()
    for name in args.networks:
        trial = trial_of(name, args.images)
        start = time.perf_counter()
        found = against_leaving_out(trial)
        print(f"{name}: predicted / measured noise {found['ratio']:.2f}, {len(trial.layers)} layers, "
              f"{time.perf_counter() - start:.1f} s")
        for title, of in (("budget", "shares"), ("left out", "gains")):
            order = found["budget" if of == "shares" else "truth"]
            print(f"  {title:<9} " + ", ".join(f"{layer} {100 * found[of][layer]:.1f} %" for layer in order[:FIRST + 2]))
        same = len(set(found["budget"][:FIRST]) & set(found["truth"][:FIRST]))
        print(f"  of the first {FIRST}: {same} the same"
              + (", in the same order" if found["budget"][:FIRST] == found["truth"][:FIRST] else ""))


if __name__ == "__main__":
    main()
