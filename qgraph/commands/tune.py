"""`qgraph tune`: the cheapest form of a network that keeps what is asked of its accuracy."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from qgraph.commands.freeze import freeze
from qgraph.commands.goal import SIZE, Goal, Standing
from qgraph.commands.ladder import Costs, Rung, ladder
from qgraph.commands.search import Search
from qgraph.commands.sensitivity import sensitivity
from qgraph.commands.tune_bench import Bench, Candidate
from qgraph.commands.tune_costs import float_run, measured_costs, one_image, side_by_side
from qgraph.commands.tune_rows import Row, Rows, markdown
from qgraph.errors import CheckFailed, OptionError
from qgraph.files import check_output, size_text, write_files
from qgraph.options import RECIPE_FIELDS, FreezeOptions, Progress, recipe_of
from qgraph.targets.registry import get_target
from qgraph.workers import Here, Workers

log = logging.getLogger("qgraph")

ROWS, TABLE, SENSITIVITY = ".tune.json", ".tune.md", ".sensitivity.json"


@dataclass(frozen=True)
class Job:
    """What workers make their bench of. model, data, judge_data, calib_data: as of `tune`."""

    model: Any
    options: FreezeOptions
    goal: Goal
    data: Any
    judge_data: Any = None
    calib_data: Any = None

    def bench(self, progress: Progress | None = None) -> Bench:
        return Bench(self.model, self.options, self.goal, self.data, self.judge_data, self.calib_data, progress)


@dataclass
class Tuned:
    """row: the candidate that was chosen.  judged: standing by bound, on the half that tuning never saw.

    times: of `Timing`, of float, everything in integers and the result; {} where nothing is timed.  paths: of the files
    that were written.  ended: why the search ended.
    """

    row: Row
    rows: Rows
    judged: dict[str, Standing]
    judged_images: int
    times: dict[str, Any]
    paths: list[str]
    ended: str
    size: int
    front: list[Row] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"row": self.row.to_dict(), "judged": {name: asdict(found) for name, found in self.judged.items()},
                "judged_images": self.judged_images, "times": self.times, "ended": self.ended, "size": self.size,
                "candidates": len(self.rows.found), "files": self.paths}


_BENCHES: list[tuple[Job, Bench]] = []  # of this process, the last one alone


def measure(job: Job, candidate: Candidate) -> Row:
    """A candidate's row, on the bench of this process."""
    if not _BENCHES or _BENCHES[0][0] is not job and _BENCHES[0][0] != job:
        _BENCHES[:] = [(job, job.bench())]
    return _BENCHES[0][1].measure(candidate)


def tune(model: Any, data: Any, goal: Goal, options: FreezeOptions | None = None, *, prefix: str,
         judge_data: Any = None, calib_data: Any = None, weight_bits: Sequence[int] = (), budget: float | None = None,
         restart: bool = False, workers: Workers | None = None, progress: Progress | None = None) -> Tuned:
    """Find the cheapest recipe that keeps the goal, and freeze with it.

    model: what `freeze` takes.  data: images to tune on; without judge_data a half of them judges the result.
    options: of `freeze`; candidates begin with their effort and granularity, and what they exclude stays in float.
    prefix: of the files.
    calib_data: [default: MODEL-calib.npz, the images that skip leaves out, some of the tuning half].
    weight_bits: those to try; 8 always is.  budget: minutes.
    Raises OptionError, DataError before any work for what cannot be; CheckFailed where nothing keeps the goal, and
    where the result breaks it beyond doubt on images that tuning never saw.
    """
    options = options or FreezeOptions()
    base = recipe_of(options, "")  # what candidates begin with
    plain = {name: getattr(FreezeOptions, name) for name in RECIPE_FIELDS}
    options = dataclasses.replace(options, recipe=None, **plain)
    target = get_target(options.target)
    rungs = ladder(target, goal.minimize, weight_bits)
    job = Job(model, options, goal, data, judge_data, calib_data)
    bench = job.bench(progress)
    check_output(prefix, [f"{prefix}{ROWS}", prefix + target.suffix], bench.opened.files)
    _BENCHES[:] = [(job, bench)]
    rows = Rows(f"{prefix}{ROWS}", {**bench.about(), "rungs": [str(rung) for rung in rungs], "base": base.to_dict()})
    if not restart and (count := rows.take()):
        log.info("%d finished candidates are in %s", count, rows.path)
    bench.truth(bench.tuning)
    costs = _costs(bench, rows, goal.minimize)
    _check_size(costs, rungs, goal)
    tuning = _Tuning(job, rows, workers or Here(), None if budget is None else time.monotonic() + 60 * budget, progress)
    search = Search(list(bench.layers), rungs, costs, goal.minimize, tuning.measure,
                    lambda: sensitivity(bench, rungs, f"{prefix}{SENSITIVITY}").steps(rungs, costs, goal.minimize,
                                                                                         target.quantizes_between),
                    goal.max_size, goal.seeks_accuracy, tuning.workers.count,
                    dataclasses.replace(base, graph=bench.source.digest()))
    ended = "done"
    try:
        search.run()
    except _TimeUp:
        ended = f"--budget: {budget:g} minutes are over"
    if search.best is None:
        nearest = min(rows.found.values(), key=lambda row: row.beyond, default=None)
        raise CheckFailed(f"{ended}, and of {len(rows.found)} candidates none keeps the goal"
                          + (f"; nearest was: {nearest.what} ({_told(nearest.standings)})" if nearest else "")
                          + f"; they are in {rows.path}")
    return _finish(job, bench, rows, search.best, rungs, prefix, ended)


class _TimeUp(Exception):
    """The minutes of ``--budget`` are over."""


@dataclass
class _Tuning:
    """Measures candidates by workers, and keeps their rows. deadline: of `time.monotonic`."""

    job: Job
    rows: Rows
    workers: Workers
    deadline: float | None
    progress: Progress | None

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[Row]:
        """A row for each, in order; those of an earlier run are not measured again."""
        todo = [candidate for candidate in candidates if candidate.recipe not in self.rows.found]
        fresh = self.workers.map(partial(measure, self.job), todo, "candidates")
        for candidate in candidates:
            if (known := self.rows.found.get(candidate.recipe)) is not None:
                yield known
                continue
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise _TimeUp
            row = next(fresh)
            self.rows.add(row)
            log.info("%-8s %s: %s, %s%s", row.state, row.what, _told(row.standings), size_text(row.size),
                     f", {row.ms:.3f} ms" if row.ms else "")
            if self.progress:
                self.progress("candidates", len(self.rows.found), None)
            yield row


def _told(found: Mapping[str, Standing]) -> str:
    return ", ".join(f"{name} {one.value:.2f} +- {one.error:.2f}" for name, one in found.items())


def _costs(bench: Bench, rows: Rows, minimize: str) -> Costs:
    """As they were measured when the rows were begun: a run that goes on must take the same way."""
    if rows.costs is None:
        costs = measured_costs(bench, minimize)
        rows.costs = {"rest": costs.rest, "other": costs.other,
                      "seconds": {layer: list(pair) for layer, pair in costs.seconds.items()}}
        rows.write()
    said = rows.costs
    seconds = {layer: (float(pair[0]), float(pair[1])) for layer, pair in said["seconds"].items()}
    return Costs(bench.layers, int(said["rest"]), seconds, float(said["other"]))


def _check_size(costs: Costs, rungs: Sequence[Rung], goal: Goal) -> None:
    least = costs.size(dict.fromkeys(costs.weights, rungs[0]))
    if goal.max_size is not None and least > goal.max_size:
        raise OptionError(f"--max-size {goal.max_size}: with {rungs[0]} everywhere the network has {least} bytes"
                          + ("" if goal.minimize == SIZE else f"; --minimize {SIZE} may go below"))


def _finish(job: Job, bench: Bench, rows: Rows, best: Row, rungs: Sequence[Rung], prefix: str, ended: str) -> Tuned:
    """Freeze with the recipe, judge on the other half, time, write."""
    options = dataclasses.replace(job.options, recipe=best.recipe, exclude=(), output=prefix, select=None, skip=None)
    frozen = freeze(job.model, options, calib_data=bench.calibration)
    run = bench.runs(frozen.graph, frozen.model)
    judged, images = bench.judged(run, bench.judging, early=False)
    times: dict[str, Any] = {}
    if job.goal.minimize != SIZE:
        feeds = one_image(bench)
        all_integers = bench.build(dataclasses.replace(best.recipe, layers=()))
        times = side_by_side({"float": float_run(bench, feeds), "integers": bench.runs(*all_integers), "result": run},
                             feeds)
    paths = frozen.save(prefix)
    tuned = Tuned(best, rows, judged, images, times, [*paths, rows.path, f"{prefix}{TABLE}"], ended, frozen.model.size,
                  rows.front(job.goal.minimize))
    rows.result = tuned.to_dict()
    rows.write()
    write_files({f"{prefix}{TABLE}": _page(tuned, best)})
    if os.path.isfile(f"{prefix}{SENSITIVITY}"):
        tuned.paths.append(f"{prefix}{SENSITIVITY}")
    return tuned


def _page(tuned: Tuned, best: Row) -> str:
    return (f"# Candidates that no other one beats in cost and accuracy\n\n{markdown(tuned.front, best)}\n"
            f"# All {len(tuned.rows.found)} candidates, as measured\n\n{markdown([*tuned.rows.found.values()], best)}")
