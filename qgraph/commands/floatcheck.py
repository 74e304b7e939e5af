"""Float-preserving passes, checked: a wrong rewrite must never pass for a quantization error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from qgraph.arrays import Array
from qgraph.commands.ties import fed_in_front_of_jumps
from qgraph.errors import DataError, GraphError, PassError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, PassManager, PassRecord
from qgraph.semantics.legal import legal_values
from qgraph.targets.base import Feeds

log = logging.getLogger("qgraph")

UNCHECKED = "WARNING: --no-float-check: %s; nothing says that its outputs are the model's"

TOLERANCE = 1e-4  # of the largest output; folding in float32 costs about 1e-6
ROUNDING = 8  # times what one rounding of everything costs, float32 engines may disagree by
_DRAWS = 2
_AT_ONCE = 32  # tensors watched in one run

Values = Callable[[Sequence[Any]], "list[Array]"]  # of these tensors


def run_checked(passes: Sequence[Pass], g: Graph, feeds: Feeds, executor: Any, dump_dir: str = "",
                records: list[PassRecord] | None = None, check: bool = True) -> float:
    """Run the passes on `g`; the largest relative change of an output over those that promise to preserve them.

    executor: `qgraph.engines.runtime(...)`.  check: False takes their word.
    Raises PassError naming the first pass that broke its promise.
    """
    records = [] if records is None else records
    if not check:
        log.warning(UNCHECKED, "the float passes were not checked")
    worst = 0.0
    for preserves, group in groupby(passes, key=lambda step: step.preserves_float):
        steps = tuple(group)
        before = g.copy()
        PassManager(steps, dump_dir, records).run(g)
        if not preserves or not check:
            continue
        comparison = _Comparison(before, g, feeds, executor)
        if (error := comparison.error) > TOLERANCE:
            if comparison.departs():
                raise PassError(_blame(steps, before, feeds, executor))
            log.warning("warning: the float passes changed the outputs by %.1e of their size, which is what rounding "
                        "alone does to them", error)
        worst = max(worst, error)
    return worst


def _blame(steps: tuple[Pass, ...], before: Graph, feeds: Feeds, executor: Any) -> str:
    g = before.copy()
    for step in steps:
        last = g.copy()
        step.run(g)
        comparison = _Comparison(before, g, feeds, executor)
        if comparison.error > TOLERANCE and comparison.departs():
            where = _Comparison(last, g, feeds, executor).first_departure()
            return (f"pass {step.name} changed the outputs by {comparison.error:.2g} of their size on a random batch, "
                    f"want below {comparison.bound:.2g}{where}; if it is meant to, say preserves_float = False in its "
                    "class; --no-float-check goes on all the same")
    return ("the float passes changed the outputs, but not when run one by one; this is a bug of qgraph; "
            "--no-float-check goes on all the same")


class _Comparison:
    """The outputs of a graph before and after a pass.

    error: largest difference of an output, as a part of the largest value of that output; inf where only one is
    finite.  bound: what is allowed for the output that departs.
    """

    def __init__(self, before: Graph, after: Graph, feeds: Feeds, executor: Any) -> None:
        self.before, self.after, self._feeds, self._executor = before, after, feeds, executor
        self._pairs = [_comparable(before, after, p, q) for p, q in zip(before.heads, after.heads)]
        self.bound = TOLERANCE
        self._fed: dict[str, Array] = {}
        if len(before.heads) != len(after.heads):
            self._pairs, self._errors = [], [np.inf]
        else:
            self._errors = self._compare()
        self.error = max(self._errors, default=0.0)

    def _compare(self) -> list[float]:
        return [relative_error(a, b) for a, b in zip(self._want(self._pairs), self._found(self._pairs))]

    def _want(self, pairs: Sequence[tuple[Port, Port]]) -> list[Array]:
        return list(self._executor(self.before, watch=[p for p, _ in pairs]).run({**self._feeds, **self._fed}))

    def _found(self, pairs: Sequence[tuple[Port, Port]]) -> list[Array]:
        return list(self._executor(self.after, watch=[q for _, q in pairs]).run(self._feeds))

    def _bounds(self, pairs: Sequence[tuple[Port, Port]]) -> list[float]:
        return rounding_bounds(self.before, [p for p, _ in pairs], {**self._feeds, **self._fed}, self._executor,
                               self._fed)

    def _twins(self) -> dict[str, Node]:
        """Name of a node of `before` -> that of `after` with its value, in topological order."""
        theirs = {n.name for n in self.before.dag if n.op != "null"}
        return {name: n for n in self.after.toposort()
                if (name := users_name(n)) in theirs and n.op != "null" and n.layout is None and n.scales is None
                and not np.any(n.shift)}

    def _choose_alike(self) -> None:
        """From now on `before` makes its choices between the numbers of `after`, which are outputs too."""
        twins = self._twins()
        before, sources = fed_in_front_of_jumps(self.before, lambda node: node.name in twins)
        if self._fed or not sources:
            return
        nodes = {node.name: node for node in before.dag}
        fed = [(Port(nodes[source.name]), Port(twins[source.name])) for source in sources.values()]
        plain = self.before, self._pairs, self._fed
        self._fed = dict(zip(sources, self._found(fed)))
        self._pairs = [(Port(nodes[p.node.name], p.index), q) for p, q in self._pairs] + fed
        self.before = before
        try:
            self._errors = self._compare()
        except (DataError, GraphError, UnsupportedError):  # an engine may refuse a network that is cut up
            self.before, self._pairs, self._fed = plain

    def departs(self) -> bool:
        """Whether an output changed by more than rounding explains."""
        if not self._pairs:
            return True
        self._choose_alike()
        for error, bound in zip(self._errors, self._bounds(self._pairs)):
            if error > bound or np.isinf(error):
                self.bound = bound
                return True
        return False

    def first_departure(self) -> str:
        """Where it begins, in the words of a message, or ""."""
        self._choose_alike()
        theirs = {n.name: n for n in self.before.dag}
        pairs = [(Port(theirs[name]), Port(node)) for name, node in self._twins().items()]
        found = first_departure(pairs, self._want, self._found, self._bounds)
        return "" if found is None else f", first at {pairs[found][1].node}"


def users_name(node: Node) -> str:
    """The name of the user's node whose value this node has."""
    return node.origin[-1] if node.origin else node.name


def first_departure(pairs: Sequence[Any], want: Values, found: Values,
                    bounds: Callable[[Sequence[Any]], list[float]]) -> int | None:
    """The number of the first pair, in topological order, whose tensors differ by more than rounding explains."""
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start:start + _AT_ONCE]
        errors = [relative_error(a, b) for a, b in zip(want(part), found(part))]
        if max(errors) <= TOLERANCE:
            continue
        for number, (error, bound) in enumerate(zip(errors, bounds(part)), start):
            if error > bound:
                return number
    return None


def rounding_bounds(g: Graph, watch: Sequence[Port], feeds: Feeds, executor: Any,
                    fixed: Collection[str] = ()) -> list[float]:
    """What float32 engines may disagree by, for each of these tensors: at least `TOLERANCE`.

    Each of an engine's sums is off by its roundings, as if its terms had been rounded once more.  So all parameters and
    inputs are moved by a last bit, at random, and a tensor may differ by `ROUNDING` times what it then moves.
    fixed: inputs that are not moved.
    """
    runs = [executor(g, watch=watch).run(feeds)]
    for moved, moved_feeds in rounded_anew(g, feeds, fixed):
        twin = {n.name: n for n in moved.dag}
        runs.append(executor(moved, watch=[Port(twin[p.node.name], p.index) for p in watch]).run(moved_feeds))
    return [bound(want, moved) for want, *moved in zip(*runs)]


def bound(want: Array, moved: Sequence[Array]) -> float:
    """What a tensor may differ by. moved: its values with other last bits in all that they depend on."""
    return max(TOLERANCE, *(ROUNDING * relative_error(want, values) for values in moved))


def rounded_anew(g: Graph, feeds: Feeds, fixed: Collection[str] = ()) -> Iterator[tuple[Graph, Feeds]]:
    """Copies of a graph and of its inputs, whose values have another last bit. fixed: inputs that stay."""
    for seed in range(_DRAWS):
        rng = np.random.default_rng(seed)
        moved = g.copy()
        moved.params = {name: _moved(array, rng) for name, array in g.params.items()}
        yield moved, {name: array if name in fixed else _moved(array, rng) for name, array in feeds.items()}


def _moved(array: Array, rng: np.random.Generator) -> Array:
    """Each value times 1 - 2**-23 or 1 + 2**-23; whole numbers, which may be indices, stay."""
    if array.dtype.kind != "f" or np.array_equal(array, np.rint(array)):
        return array
    signs = rng.integers(0, 2, array.shape, dtype=np.int8) * np.float32(2) - np.float32(1)
    return np.asarray(array * (1 + signs * np.float32(2.0**-23)), array.dtype)


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


def random_feeds(g: Graph, shapes: Mapping[str, Sequence[int]], seed: int,
                 like: Feeds | None = None) -> dict[str, Array]:
    """Normal noise of these shapes, with the mean and the spread of a batch of real data if there is one.

    Indices, boxes and lengths are drawn from what is legal in `g`.
    """
    rng = np.random.default_rng(seed)
    legal = legal_values(g, shapes)
    feeds = {}
    for name, shape in shapes.items():
        mean, spread = 0.0, 1.0
        if like is not None and name in like:
            mean, spread = float(like[name].mean()), float(like[name].std()) or 1.0
        feeds[name] = (mean + spread * rng.standard_normal(tuple(shape))).astype(np.float32)
        if name in legal:
            feeds[name] = legal[name].draw(feeds[name], rng)
    return feeds
