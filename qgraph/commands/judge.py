"""How a model is judged: every output against that of another model and against labels, by its task."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qgraph.analysis.difference import Difference
from qgraph.arrays import Array
from qgraph.data.open import Batch
from qgraph.errors import OptionError
from qgraph.ir.graph import Graph
from qgraph.options import JudgeOptions
from qgraph.targets.base import Model
from qgraph.tasks.base import Head, Result, Tally, Task
from qgraph.tasks.decoded import Decode
from qgraph.tasks.detection import ROW, Detection
from qgraph.tasks.embedding import Embedding
from qgraph.tasks.registry import Assigned, assign, check_chosen, heads_of
from qgraph.tasks.values import Values


@dataclass
class Counted:
    """What was counted over some images. It travels, and adds up exactly.

    first: the number of the first image.  differences: of each output.  agreements, scores: by the number of the task.
    """

    differences: list[Difference]
    first: int = 0
    images: int = 0
    agreements: dict[int, Tally] = field(default_factory=dict)
    scores: dict[int, Tally] = field(default_factory=dict)

    def add(self, other: Counted) -> None:
        """Other images."""
        self.images += other.images
        self.differences = [mine + theirs for mine, theirs in zip(self.differences, other.differences)]
        for mine, theirs in ((self.agreements, other.agreements), (self.scores, other.scores)):
            for number, tally in theirs.items():
                mine[number] = _sum(mine.get(number), tally)


class Judge:
    """Counts over batches. names: of the outputs.  g: the graph they come from, where there is one.

    tasks: known from the first batch on.  What ``--decode`` makes of all outputs is judged as detection, ahead of the
    outputs themselves; these are values then, unless ``--task`` says otherwise.
    pairs: (pairs, 3) the numbers of two images and 1 where they show the same, by which embeddings are scored.
    Raises OptionError for options that cannot be.
    """

    def __init__(self, names: Sequence[str], g: Graph | None = None, options: JudgeOptions | None = None,
                 pairs: Array | None = None) -> None:
        options = options or JudgeOptions()
        self.names, self._g, self._pairs = list(names), g, pairs
        self._decode = None if options.decode is None else Decode(options.decode)
        self._chosen = options.task if self._decode is None else (*options.task, Values.name)
        self._decoded: Task | None = None
        check_chosen(self._chosen, self.names)
        self.tasks: list[Assigned] = []
        self.counted = self._nothing(0)

    @classmethod
    def of(cls, model: Model, options: JudgeOptions, pairs: Array | None = None) -> Judge:
        """Of the outputs of a model, which are told by its ops where it has a graph."""
        return cls(model.outputs, model.ir, options, pairs)

    @property
    def images(self) -> int:
        return self.counted.images

    def look(self, batch: Batch, outputs: Sequence[Array]) -> None:
        """Know the tasks by the first batch. outputs: those of the model that is the truth, or else of the judged."""
        if not self.tasks:
            self.tasks = self._assigned(batch, outputs)

    def blank(self, first: int) -> Judge:
        """One that knows the same tasks and has counted nothing, for the images from that number on."""
        twin = copy.copy(self)
        twin.counted = self._nothing(first)
        return twin

    def _nothing(self, first: int) -> Counted:
        return Counted([Difference() for _ in self.names], first)

    @classmethod
    def sum(cls, judges: Sequence[Judge]) -> Judge:
        """One that has counted what these have, of the same outputs and in this order; at least one."""
        whole = judges[0].blank(0)
        for judge in judges:
            whole.counted.add(judge.counted)
        return whole

    def add(self, batch: Batch, found: Sequence[Array], want: Sequence[Array] | None = None) -> None:
        """The outputs of a batch. want: those of the model that is the truth.

        Raises OptionError for outputs that are not alike, DataError for labels that do not fit the task.
        """
        self.look(batch, found if want is None else want)
        if want is not None:
            self._compare(want, found)
        counted, unscored = self.counted, True
        first = counted.first + counted.images
        for number, (task, outputs, _) in enumerate(self.tasks):
            mine = self._read(task, outputs, found, batch)
            if want is not None:
                tally = task.agreement(self._read(task, outputs, want, batch), mine, first)
                counted.agreements[number] = _sum(counted.agreements.get(number), tally)
            score = self._score(task, mine, batch, first) if unscored else None
            if score is not None:
                counted.scores[number] = _sum(counted.scores.get(number), score)
                unscored = False  # labels are of one task
        if self._pairs is not None and unscored:
            raise OptionError("--pairs: no output is an embedding; --task embedding:OUTPUT says which one is")
        counted.images += len(batch)

    def _score(self, task: Task, found: Sequence[Array], batch: Batch, first: int) -> Tally | None:
        """By the pairs or the labels, None where the task knows none."""
        if self._pairs is not None:
            if not isinstance(task, Embedding):
                return None
            return task.verify(found, self._pairs, batch.ids, first)
        if batch.labels is None or not task.labels:
            return None
        return task.score(found, batch.labels, batch.ids, first)

    def _assigned(self, batch: Batch, like: Sequence[Array]) -> list[Assigned]:
        heads = heads_of(self.names, like, len(batch), self._g, batch.feeds)
        found = assign(heads, self._chosen)
        if self._decode is None:
            return found
        self._decoded = Detection([Head(self._decode.name, (len(batch), 0, ROW), len(batch), (), heads[0].like)])
        return [Assigned(self._decoded, tuple(range(len(heads))), 1.0), *found]

    def readings(self, batch: Batch, outputs: Sequence[Array]) -> list[tuple[Task, list[Array]]]:
        """Each task with what it reads of a model's outputs of a batch."""
        return [(task, self._read(task, numbers, outputs, batch)) for task, numbers, _ in self.tasks]

    def _read(self, task: Task, outputs: Sequence[int], values: Sequence[Array], batch: Batch) -> list[Array]:
        """What a task reads of a model's outputs."""
        if self._decode is not None and task is self._decoded:
            return [self._decode(values, batch.feeds, len(batch))]
        return [values[number] for number in outputs]

    def _compare(self, want: Sequence[Array], found: Sequence[Array]) -> None:
        for name, difference, a, b in zip(self.names, self.counted.differences, want, found):
            if a.shape != b.shape:
                raise OptionError(f"the models' outputs {name} have the shapes {a.shape} and {b.shape}, want two of "
                                  "the same network")
            difference.update(a, b)

    def scores(self) -> Result:
        """Metric -> value, of the task that has labels; {} without."""
        return {name: value for number, tally in self.counted.scores.items()
                for name, value in _rounded(self.tasks[number].task, tally).items()}

    def scored(self) -> dict[str, Any]:
        """{"images", "top1", "top5", "scores": of all metrics}; None for what is not known."""
        found = self.scores()
        return {"images": self.images, "top1": found.get("top1"), "top5": found.get("top5"), "scores": found}

    def agreement(self) -> dict[str, Any]:
        """{"images", "worst": output, "tasks": [{"task", "outputs", "sure", "main": metric, "metrics", "ruined"}],
        "outputs": [{"name", "task", "sqnr_db", "cosine", "max_error"}], "top1": of the first classification or None,
        "agreement": the least main metric of those in percent or None, and the three numbers of the worst output}.

        tasks: that nearest to ruin, or farthest beyond it, comes first; boxes that are decoded alone tell of ruin.
        worst: its output with the lowest SQNR.
        """
        differences = [difference.to_dict() for difference in self.counted.differences]
        rows = sorted((self._row(number, differences) for number in range(len(self.tasks))),
                      key=lambda row: row.standing)
        lowest = rows[0].assigned.outputs
        worst = min(lowest, key=lambda number: (_sqnr(differences[number]), number))
        tasks = {number: task.name for task, outputs, _ in self.tasks for number in outputs}
        percents = [row.main for row in rows if row.unit == "%" and row.main is not None]
        top1 = [row.metrics["top1"] for row in rows if "top1" in row.metrics]
        return {"images": self.images, "top1": top1[0] if top1 else None, "agreement": min(percents, default=None),
                "worst": self.names[worst], **differences[worst], "tasks": [self._as_dict(row) for row in rows],
                "outputs": [{"name": name, "task": tasks[number], **differences[number]}
                            for number, name in enumerate(self.names)]}

    def _row(self, number: int, differences: Sequence[Result]) -> _Row:
        assigned = self.tasks[number]
        task = assigned.task
        found = _rounded(task, self.counted.agreements[number]) or differences[assigned.outputs[0]]
        main = found[task.main]
        return _Row(assigned, found, main, task.metrics[task.main].unit, task.standing(main))

    def _as_dict(self, row: _Row) -> dict[str, Any]:
        task, _, sure = row.assigned
        return {"task": task.name, "outputs": [head.name for head in task.heads], "sure": sure, "main": task.main,
                "metrics": row.metrics, "ruined": row.standing < 0 and self._decoded in (None, task)}


class _Row(NamedTuple):
    """main: the value of the main metric, in the unit."""

    assigned: Assigned
    metrics: Result
    main: float | None
    unit: str
    standing: float


def _sum(before: Tally | None, tally: Tally) -> Tally:
    return tally if before is None else before + tally


def _rounded(task: Task, tally: Tally) -> Result:
    return {name: None if value is None else round(value, 2 if task.metrics[name].unit == "%" else 6)
            for name, value in tally.result().items()}


def _sqnr(difference: Result) -> float:
    value = difference["sqnr_db"]
    return float("inf") if value is None else value
