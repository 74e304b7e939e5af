"""Float-preserving passes, checked: a wrong rewrite must never pass for a quantization error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import PassError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import Pass, PassManager, PassRecord

TOLERANCE = 1e-4  # of the largest output; folding in float32 costs about 1e-6

Feeds = Mapping[str, Array]


def run_checked(passes: Sequence[Pass], g: Graph, feeds: Feeds, executor: Any, dump_dir: str = "",
                records: list[PassRecord] | None = None) -> float:
    """Run the passes on `g`; the largest relative change of an output over those that promise to preserve them.

    executor: `qgraph.engines.runtime(...)`.  Raises PassError naming the first pass that broke its promise.
    """
    records = [] if records is None else records
    worst = 0.0
    for preserves, group in groupby(passes, key=lambda step: step.preserves_float):
        steps = tuple(group)
        before = g.copy()
        PassManager(steps, dump_dir, records).run(g)
        if not preserves:
            continue
        error = change(before, g, feeds, executor)
        if error > TOLERANCE:
            raise PassError(_blame(steps, before, feeds, executor))
        worst = max(worst, error)
    return worst


def _blame(steps: tuple[Pass, ...], before: Graph, feeds: Feeds, executor: Any) -> str:
    g = before.copy()
    for step in steps:
        step.run(g)
        error = change(before, g, feeds, executor)
        if error > TOLERANCE:
            return (f"pass {step.name} changed the outputs by {error:.2g} of their size on a random batch, want below "
                    f"{TOLERANCE}; if it is meant to, say preserves_float = False in its class")
    return "the float passes changed the outputs, but not when run one by one; this is a bug of qgraph"


def change(before: Graph, after: Graph, feeds: Feeds, executor: Any) -> float:
    """Largest difference of an output, as a part of the largest value of that output; inf where only one is finite."""
    ports = [_comparable(before, after, p, q) for p, q in zip(before.heads, after.heads)]
    if len(before.heads) != len(after.heads):
        return np.inf
    want = executor(before, watch=[p for p, _ in ports]).run(feeds)
    found = executor(after, watch=[q for _, q in ports]).run(feeds)
    return max((relative_error(a, b) for a, b in zip(want, found)), default=0.0)


def relative_error(want: Array, found: Array) -> float:
    if want.shape != found.shape:
        return np.inf
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    want, found = want[finite].astype(np.float64), found[finite].astype(np.float64)
    size = np.abs(want).max(initial=0.0)
    return float(np.abs(want - found).max(initial=0.0) / (size or 1.0))


def _comparable(before: Graph, after: Graph, p: Port, q: Port) -> tuple[Port, Port]:
    """The outputs, or what goes into their softmax: it would hide differences, and may read a label."""
    first, second = ops.head(p.node), ops.head(q.node)
    if first == ops.SQUASHES and (second == ops.SQUASHES or q.node.attrs.get("act_type") == "sigmoid"):
        return before.inputs(p.node)[0], after.inputs(q.node)[0]
    if first == ops.REPEATS:
        return before.inputs(p.node)[0], q
    return p, q


def random_feeds(shapes: Mapping[str, Sequence[int]], seed: int, like: Feeds | None = None) -> dict[str, Array]:
    """Normal noise of these shapes, with the mean and the spread of a batch of real data if there is one."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for name, shape in shapes.items():
        mean, spread = 0.0, 1.0
        if like is not None and name in like:
            mean, spread = float(like[name].mean()), float(like[name].std()) or 1.0
        feeds[name] = (mean + spread * rng.standard_normal(tuple(shape))).astype(np.float32)
    return feeds
