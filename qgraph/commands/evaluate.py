"""`qgraph.evaluate`: how good a model is, and how near to another one, on every output and by its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, TypeVar

from qgraph.arrays import Array
from qgraph.commands.judge import Counted, Judge
from qgraph.commands.open_model import open_model
from qgraph.commands.timing import Timing
from qgraph.data.open import Batch, Data
from qgraph.data.pairs import read_pairs
from qgraph.data.pieces import Piece, Pieces, Told, over_pieces
from qgraph.engines import check_runtime, executor
from qgraph.errors import DataError, OptionError
from qgraph.options import DataOptions, JudgeOptions, Progress
from qgraph.passes.canonicalize import Canonicalize
from qgraph.semantics.inputs import inputs_of
from qgraph.targets.base import Executor, Model
from qgraph.workers import Workers

ROUNDS = 5  # of few images, the first batch is run again for the time
REFERENCE = "reference"  # among the names of models in the timing
AnyModel = TypeVar("AnyModel", bound=Model)


def evaluate(model: Any, data: Any, reference: Any = None, *, options: JudgeOptions | None = None,
             pairs: str | None = None, progress: Progress | None = None, runtime: str = "auto",
             workers: Workers | None = None) -> dict[str, Any]:
    """{"images", "top1", "top5", "agreement", "ms_per_image", "scores", "judged", "timing"}; None for what is unknown.

    model, reference: what `open_model` takes.  data: what `qgraph.open_data` takes.
    pairs: a file of pairs of images by which embeddings are scored, instead of labels.
    scores: metric -> value, by the labels of the data and the task of the outputs; top1 and top5, in percent, are among
    them.
    judged: what `Judge.agreement` says of model and reference; agreement is the one in it.
    timing: what `Timing.to_dict` says of "model" and "reference", which run in alternation; ms_per_image is its median.
    runtime: the engine, of `qgraph.engines.MODEL_RUNTIMES`.
    workers: who runs the models on pieces of the images; but for times, which are then of the first batch in this
    process, the result does not depend on them.
    """
    return evaluate_all({"model": model}, data, reference, options=options, pairs=pairs, progress=progress,
                        runtime=runtime, workers=workers)["model"]


def evaluate_all(models: Mapping[str, Any], data: Any, reference: Any = None, *, options: JudgeOptions | None = None,
                 pairs: str | None = None, progress: Progress | None = None,
                 runtime: str = "auto", workers: Workers | None = None) -> dict[str, dict[str, Any]]:
    """Several models on the same images, side by side: name -> what `evaluate` says of it."""
    options = options or JudgeOptions()
    if REFERENCE in models and reference is not None:
        raise OptionError(f"a model is called {REFERENCE!r}, as --reference is in the result: give its whole file name")
    opened = {name: runnable(open_model(model).model) for name, model in models.items()}
    truth = runnable(open_model(reference).model) if reference is not None else None
    every = {**opened, **({} if truth is None else {REFERENCE: truth})}
    check_runtime(every.values(), runtime)
    first = next(iter(opened.values()))
    images = open_for(first, data, options)
    rows = None if pairs is None else read_pairs(pairs, images.names())
    judges = {name: Judge.of(model if truth is None or truth.ir is None else truth, options, rows)
              for name, model in opened.items()}
    contest = Contest(every, judges, runtime)
    timing = Timing(contest.executors())

    batches = iter(images)
    warm = next(batches, None)
    if warm is None:
        raise DataError(f"{images.name}: no image was read")
    found = timing.run(warm.feeds)
    if workers is not None and workers.apart:
        contest.look(warm, found)
        _judge_apart(contest, Pieces(images, workers), progress)
    else:
        told = Told("evaluating", images.num_items, progress)
        for batch in chain([warm], batches):
            contest.add(batch, timing.run(batch.feeds))
            told(len(batch))
    while timing.rounds < ROUNDS:
        timing.run(warm.feeds)
    times = timing.to_dict()
    return {name: _result(judge, truth is not None, times["models"][name]["ms_per_image"], times)
            for name, judge in judges.items()}


@dataclass
class Contest:
    """Models that run on the same images, by name, and who judges them. It travels, and runs where it is."""

    models: Mapping[str, Model]
    judges: Mapping[str, Judge]
    runtime: str

    def executors(self) -> dict[str, Executor]:
        """New ones."""
        return {name: executor(model, "evaluating a model", self.runtime) for name, model in self.models.items()}

    @cached_property
    def here(self) -> Mapping[str, Executor]:
        """Those of this process."""
        return self.executors()

    def look(self, batch: Batch, found: Mapping[str, Sequence[Array]]) -> None:
        """Let the judges know what the outputs of the first batch mean."""
        for name, judge in self.judges.items():
            judge.look(batch, found.get(REFERENCE, found[name]))

    def add(self, batch: Batch, found: Mapping[str, Sequence[Array]]) -> None:
        """Judge the outputs of a batch."""
        for name, judge in self.judges.items():
            judge.add(batch, found[name], found.get(REFERENCE))


def _judge_apart(contest: Contest, pieces: Pieces, progress: Progress | None) -> None:
    """Let workers run and judge pieces of the images."""
    for parts in over_pieces(partial(_judged, contest, pieces.shared), pieces, "evaluating", progress):
        for name, counted in parts.items():
            contest.judges[name].counted.add(counted)


def _judged(contest: Contest, shared: Data | None, told: Told, piece: Piece) -> dict[str, Counted]:
    """What the judges of the models count of one piece."""
    judges = {name: judge.blank(piece.first) for name, judge in contest.judges.items()}
    mine = replace(contest, judges=judges)
    for batch in piece.of(shared):
        mine.add(batch, {name: run.run(batch.feeds) for name, run in contest.here.items()})
        told(len(batch))
    return {name: judge.counted for name, judge in judges.items()}


def _result(judge: Judge, compared: bool, ms: float | None, times: dict[str, Any]) -> dict[str, Any]:
    agreement = judge.agreement() if compared else None
    return {**judge.scored(), "agreement": None if agreement is None else agreement["agreement"], "ms_per_image": ms,
            "judged": agreement, "timing": times}


def runnable(model: AnyModel) -> AnyModel:
    """The model without labels, which an engine would want to be fed. Changes it where it is a graph."""
    if model.ir is not None and len(inputs_of(model.ir)) != len(model.ir.data_inputs()):
        Canonicalize().run(model.ir)
    return model


def open_for(model: Model, data: Any, options: DataOptions) -> Data:
    """Data that fit the inputs of a model."""
    return options.open(data, {name: (0, *shape[1:]) if shape else () for name, shape in model.inputs.items()})
