"""The parts of `qgraph tune` that need no network: ladders, costs, the search, error bars, the file of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qgraph.commands.goal import LATENCY, SIZE, Goal, Standing, standings
from qgraph.commands.judge import Judge
from qgraph.commands.ladder import Costs, Rung, ladder
from qgraph.commands.search import PATIENCE, Search, recipe_layers
from qgraph.commands.sensitivity import Reading, Sensitivity, Step
from qgraph.commands.tune_bench import Candidate
from qgraph.commands.tune_rows import FAILS, HOLDS, HOPELESS, Row, Rows, markdown
from qgraph.data.open import Batch
from qgraph.errors import FormatError, OptionError
from qgraph.options import JudgeOptions
from qgraph.quant.recipe import IN_FLOAT, LayerChoice, Recipe
from qgraph.targets.registry import get_target

INTEGERS, FLOAT = Rung(8, 8, 8, True), Rung(32, IN_FLOAT, 32, False)
SMALL = Rung(4, IN_FLOAT, 4, False)


# ---- ladders, costs -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("target", "minimize", "bits", "rungs"), [
    ("onnx", LATENCY, (), [INTEGERS, FLOAT]),
    ("onnx", SIZE, (), [SMALL, INTEGERS, FLOAT]),
    ("onnx", SIZE, (3,), [Rung(3, IN_FLOAT, 4, False), INTEGERS, FLOAT]),
    ("mxnet-sim", SIZE, (2, 4), [Rung(2, 8, 2, False), Rung(4, 8, 4, False), Rung(8, 8, 8, False), FLOAT]),
    ("ncnn", LATENCY, (), [INTEGERS, FLOAT]),
    ("tengine", LATENCY, (), [INTEGERS]),
])
def test_a_ladder_follows_from_the_table_of_the_target(target: str, minimize: str, bits: tuple[int, ...],
                                                       rungs: list[Rung]) -> None:
    assert ladder(get_target(target), minimize, bits) == rungs


@pytest.mark.parametrize(("target", "minimize", "bits", "said"), [
    ("onnx", LATENCY, (4,), "4: makes onnx no better than 8 bits do at --minimize latency; --minimize size may"),
    ("mxnet", SIZE, (4,), "--weight-bits 4: target mxnet has no such weights"),
    ("mxnet-sim", LATENCY, (), "mxnet-sim simulates, and its time says nothing"),
])
def test_bits_that_bring_nothing_are_refused(target: str, minimize: str, bits: tuple[int, ...], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ladder(get_target(target), minimize, bits)


def test_costs_add_up() -> None:
    costs = Costs({"a": 1000, "b": 10}, 40, {"a": (1.0, 3.0), "b": (0.5, 0.25)}, 0.1)
    assert costs.size({"a": SMALL, "b": FLOAT}) == 40 + 500 + 40
    assert costs.time({"a": INTEGERS, "b": FLOAT}) == pytest.approx(1.35)
    assert costs.extra(LATENCY, "a", INTEGERS, FLOAT) == 2 and costs.extra(LATENCY, "b", INTEGERS, FLOAT) == -0.25
    assert costs.extra(SIZE, "a", SMALL, INTEGERS) == 500


def chain(between: bool) -> list[tuple[str, ...]]:
    """The order for a -> t -> b -> u -> c, where rounding t costs most, then the weights of c."""
    found = Sensitivity({}, {"8": {"a": 0.1, "b": 0.1, "c": 2.0}}, {"in": 0.0, "t": 9.0, "u": 0.2}, {
        "in": Reading(("a",), ()), "t": Reading(("b",), ("a",)), "u": Reading(("c",), ("b",))})
    costs = Costs(dict.fromkeys("abc", 100), 0, dict.fromkeys("abc", (1.0, 2.0)))
    rungs = [INTEGERS, FLOAT]
    assert found.noise(dict.fromkeys("abc", INTEGERS), between) == pytest.approx(11.4)
    assert found.noise({"a": INTEGERS, "b": FLOAT, "c": INTEGERS}, between) == pytest.approx(11.3 if between else 2.3)
    assert found.noise(dict.fromkeys("abc", FLOAT), between) == 0
    return [step.layers for step in found.steps(rungs, costs, LATENCY, between)]


def test_the_order_of_promise() -> None:
    """A tensor that an integer layer writes in codes is exact only when its writer is in float too."""
    assert chain(between=False) == [("b",), ("c",), ("a",)]
    first, *rest = chain(between=True)
    assert set(first) == {"a", "b"} and rest == [("c",)]


def test_noise_counts_by_what_it_costs_to_take_away() -> None:
    """But what costs next to nothing is not preferred for that."""
    found = Sensitivity({}, {"8": {"dear": 5.0, "cheap": 4.0, "free": 0.5}})
    costs = Costs(dict.fromkeys(("dear", "cheap", "free"), 1), 0,
                  {"dear": (1.0, 9.0), "cheap": (1.0, 2.0), "free": (1.0, 0.9)})
    steps = found.steps([INTEGERS, FLOAT], costs, LATENCY, between=False)
    assert [step.layers for step in steps] == [("cheap",), ("free",), ("dear",)]
    assert [step.extra for step in steps] == pytest.approx([1.0, -0.1, 8.0])


# ---- the search -----------------------------------------------------------------------------------------------------

class Network:
    """Layers a to h with a noise each; a bound holds where the noise of the layers in integers is at most `allowed`.

    methods: what one adds.  error: of every measurement.  asked: all candidates, in order.
    """

    noise = dict(zip("abcdefgh", (1, 16, 2, 8, 1, 4, 1, 1)))

    def __init__(self, allowed: float, error: float = 0.0, **methods: float) -> None:
        self.allowed, self.error, self.methods = allowed, error, methods
        self.asked: list[Candidate] = []

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[Row]:
        for candidate in candidates:
            self.asked.append(candidate)
            raised = {layer for layer, choice in candidate.recipe.layers if choice.in_float}
            noise = sum(value for layer, value in self.noise.items() if layer not in raised)
            beyond = noise + self.methods.get(candidate.recipe.calib or "", 0) - self.allowed
            state = HOLDS if beyond <= 0 else HOPELESS if beyond > 20 else FAILS
            yield Row(candidate.recipe, candidate.what, state, 10, {"drop": Standing(beyond, beyond, self.error)},
                      candidate.size, candidate.ms, 8 - len(raised))

    def search(self, **more: Any) -> Search:
        costs = Costs(dict.fromkeys(self.noise, 100), 0, dict.fromkeys(self.noise, (1.0, 2.0)))
        steps = [Step((layer,), noise, 1.0) for layer, noise in sorted(self.noise.items(), key=lambda row: -row[1])]
        return Search(list(self.noise), [INTEGERS, FLOAT], costs, LATENCY, self.measure, lambda: steps, **more)


def in_float(row: Row | None) -> set[str]:
    assert row is not None
    return {layer for layer, choice in row.recipe.layers if choice.in_float}


def test_what_holds_at_once_ends_the_search() -> None:
    network = Network(40)
    assert in_float(network.search().run()) == set() and len(network.asked) == 1


def test_a_target_without_float_has_methods_alone() -> None:
    network = Network(33.0, kl=-5.0, mse=-2.0)
    search = network.search()
    search.rungs, search.steps = [INTEGERS], list
    found = search.run()
    assert found is not None and found.recipe.calib == "kl" and in_float(found) == set()


def test_methods_come_before_float() -> None:
    network = Network(33.8, mse=-5.0)
    found = network.search().run()
    assert found is not None and found.recipe.calib == "mse" and in_float(found) == set()
    assert [candidate.recipe.calib for candidate in network.asked] == ["auto", "kl", "mse"]


@pytest.mark.parametrize(("allowed", "raised"), [(18, {"b"}), (10, {"b", "d"}), (6, {"b", "d", "f"})])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_fewest_layers_that_do(allowed: float, raised: set[str], width: int) -> None:
    network = Network(allowed)
    assert in_float(network.search(width=width).run()) == raised
    recipes = [candidate.recipe for candidate in network.asked]
    assert len(recipes) < 24


def test_backtracking_finds_what_bisection_missed() -> None:
    """The order promised layer a first, which does nothing here."""
    network = Network(18)
    search = network.search()
    steps = [Step(("a",), 99.0, 5.0), *(step for step in search.steps() if step.layers != ("a",))]
    search.steps = lambda: steps
    assert in_float(search.run()) == {"b"}
    assert network.asked[-1].what.endswith("back to 8-bit weights")


def test_of_two_that_are_as_fast_the_smaller_one_is_taken() -> None:
    search = Network(0).search()
    fast, small, slow = (replace(row("a", HOLDS, ms, -1.0), size=size) for ms, size in ((1.0, 500), (1.01, 100),
                                                                                       (1.1, 50)))
    assert search._is_better(small, fast) and not search._is_better(fast, small)
    assert not search._is_better(slow, small)


def test_nothing_holds() -> None:
    network = Network(-1)
    assert network.search().run() is None
    assert in_float(list(network.measure(network.asked[-1:]))[0]) == set(network.noise)


@pytest.mark.parametrize(("error", "raised"), [(0.0, {"b"}), (0.5, {"b"}), (2.5, {"b", "d"}),
                                               (float("inf"), {"b"})])
def test_what_is_the_best_of_many_holds_by_an_error_bar(error: float, raised: set[str]) -> None:
    network = Network(20, error)  # without b the noise is 18
    assert in_float(network.search().run()) == raised


def test_backtracking_gives_up() -> None:
    network = Network(0)
    network.search().run()
    assert sum("back to" in candidate.what for candidate in network.asked) == PATIENCE


def test_as_accurate_as_the_size_allows() -> None:
    costs = 800 + 2 * 300
    found = Network(0).search(max_size=costs, seeks_accuracy=True).run()
    assert in_float(found) == {"b", "d"} and found is not None and found.size == costs


def test_layers_that_are_as_the_others_are_not_written() -> None:
    assert recipe_layers("abc", {"a": INTEGERS, "b": FLOAT, "c": SMALL}) == (
        ("b", LayerChoice(in_float=True)), ("c", LayerChoice(4, IN_FLOAT)))


# ---- bounds and their error bars ------------------------------------------------------------------------------------

def judges(right: np.ndarray, like_float: np.ndarray, size: int = 10) -> tuple[list[Judge], list[Judge]]:
    """(of a model that is right there, of a float model that always is): blocks of so many images of two classes."""
    found, truth = [], []
    for start in range(0, len(right), size):
        rows = slice(start, start + size)
        labels = np.zeros(len(right[rows]), np.int64)
        want = np.stack([np.ones(len(labels)), np.zeros(len(labels))], 1).astype(np.float32)
        got = np.where(like_float[rows, None] & right[rows, None], want, want[:, ::-1]).astype(np.float32)
        batch = Batch({"data": want}, labels, [str(i) for i in range(len(labels))])
        for outputs, other in ((got, want), (want, None)):
            judge = Judge(["out"], options=JudgeOptions(task=("classification",)))
            judge.add(batch, [outputs], None if other is None else [other])
            (found if other is not None else truth).append(judge)
    return found, truth


def test_the_error_bar_is_that_of_a_share() -> None:
    """For a drop of shares, paired with a float model that is always right, sqrt(p (1 - p) / n)."""
    rng = np.random.default_rng(0)
    right = rng.random(320) < 0.9
    found, truth = judges(right, np.ones(320, bool), size=10)
    drop, agreement = standings(Goal(max_drop=0.5, min_agreement=80).bounds, found, truth).values()
    share = 1 - right.mean()
    assert drop.value == pytest.approx(100 * share, abs=0.01) and agreement.value == pytest.approx(100 - drop.value)
    assert drop.error == pytest.approx(100 * np.sqrt(share * (1 - share) / 320), rel=0.3)
    assert not drop.holds and drop.hopeless and not drop.compatible
    assert agreement.holds and not agreement.hopeless and agreement.compatible


def test_a_drop_is_claimed_only_beyond_its_error_bar() -> None:
    right = np.ones(80, bool)
    right[[3, 31, 55]] = False
    found, truth = judges(right, np.ones(80, bool))
    (drop,) = standings(Goal(max_drop=2.0).bounds, found, truth).values()
    assert not drop.holds and not drop.hopeless and drop.compatible
    (few,) = standings(Goal(max_drop=2.0).bounds, found[:3], truth[:3]).values()
    assert few.error == float("inf") and not few.hopeless


def test_a_metric_of_eval() -> None:
    found, truth = judges(np.ones(40, bool), np.ones(40, bool))
    (top1,) = standings(Goal(min_metrics=(("top1", 99.0),)).bounds, found, truth).values()
    assert top1.value == 100 and top1.holds
    with pytest.raises(OptionError, match="top2: is not known here.*did you mean top5"):
        standings(Goal(min_metrics=(("top2", 99.0),)).bounds, found, truth)
    with pytest.raises(OptionError, match="nothing says what may be lost"):
        Goal()


# ---- the file -------------------------------------------------------------------------------------------------------

def row(what: str, state: str, ms: float, beyond: float) -> Row:
    return Row(Recipe(calib="kl", layers=((what, LayerChoice(in_float=True)),)), what, state, 5,
               {"drop": Standing(beyond + 1, beyond, float("inf") if state == HOPELESS else 0.5)}, 100, ms, 3)


def test_rows_are_read_back(tmp_path: Path) -> None:
    costs = {"rest": 3, "other": 0.5, "seconds": {"a": [1.0, 2.0]}}
    rows = Rows(str(tmp_path / "t.tune.json"), {"model": "aa"}, costs=costs)
    for one in (row("a", HOLDS, 2.0, -1.0), row("b", HOPELESS, 1.0, 9.0), row("c", FAILS, 3.0, 0.5)):
        rows.add(one)
    again = Rows(rows.path, {"model": "aa"})
    assert again.take() == 3 and again.found == rows.found and again.costs == rows.costs
    assert again.to_json() == rows.to_json()
    with pytest.raises(OptionError, match="its rows are of another run \\(model: aa, now bb\\)"):
        Rows(rows.path, {"model": "bb"}).take()
    assert Rows(str(tmp_path / "none.json"), {}).take() == 0


@pytest.mark.parametrize("change", [lambda body: body.pop("rows"), lambda body: body["rows"][0].update(state="good"),
                                    lambda body: body["rows"][0].update(size="x"), lambda body: body.update(rows=3),
                                    lambda body: body["rows"][0]["recipe"].update(calib="none"),
                                    lambda body: body.update(costs={"rest": []})])
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any) -> None:
    rows = Rows(str(tmp_path / "t.json"), {})
    rows.add(row("a", HOLDS, 2.0, -1.0))
    body = json.loads(Path(rows.path).read_text())
    change(body)
    Path(rows.path).write_text(json.dumps(body))
    with pytest.raises(FormatError, match="not the finished rows of qgraph tune"):
        Rows(rows.path, {}).take()


def test_the_front() -> None:
    rows = Rows("", {}, {one.recipe: one for one in (
        row("cheap", FAILS, 1.0, 2.0), row("worse", FAILS, 1.5, 3.0), row("good", HOLDS, 2.0, -1.0),
        row("hopeless", HOPELESS, 0.1, 9.0), row("dear", HOLDS, 3.0, -0.5))})
    front = rows.front(LATENCY)
    assert [one.what for one in front] == ["cheap", "good"]
    assert "| **>** | good | 5 | 0.00 +- 0.50 | 0.1 | 2.000 | holds |" in markdown(front, front[1])
