"""`qgraph.evaluate`: accuracy, agreement with another model, and time, on labelled images."""

from __future__ import annotations

import time
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from qgraph.arrays import Array
from qgraph.commands.departure import class_scores
from qgraph.commands.open_model import open_model
from qgraph.data.open import Batch, Data
from qgraph.engines import executor
from qgraph.errors import DataError
from qgraph.options import DataOptions, Progress
from qgraph.passes.canonicalize import Canonicalize
from qgraph.semantics.inputs import inputs_of
from qgraph.targets.base import Executor, Model

AnyModel = TypeVar("AnyModel", bound=Model)


def evaluate(model: Any, data: Any, reference: Any = None, *, options: DataOptions | None = None,
             progress: Progress | None = None, runtime: str = "auto") -> dict[str, Any]:
    """{"images", "top1", "top5", "agreement" (percent), "ms_per_image"}; None for what cannot be known.

    model, reference: what `open_model` takes.  data: what `qgraph.open_data` takes.  top1 and top5 want labels,
    agreement a reference.  runtime: the engine, of `qgraph.engines`.
    ms_per_image is wall time of the model alone, without the first batch, which warms up.
    Raises DataError for a model that is no classifier.
    """
    judged = runnable(open_model(model).model)
    other = runnable(open_model(reference).model) if reference is not None else None
    run = executor(judged, "evaluating a model", runtime)
    run_other = executor(other, "evaluating a model", runtime) if other is not None else None
    opened = open_for(judged, data, options or DataOptions())

    batches = iter(opened)
    first = next(batches, None)
    if first is None:
        raise DataError(f"{opened.name}: no image was read")
    run.run(first.feeds)
    found, expected = Tally(), Tally()
    for batch in chain([first], batches):
        found.add(run, batch)
        if run_other is not None:
            expected.add(run_other, batch)
        if progress:
            progress("evaluating", found.images, opened.num_items)
    return found.result(expected.classes if run_other is not None else None)


class Tally:
    """Counts over batches of what `evaluate` reports. classes: the one predicted for each image so far."""

    def __init__(self) -> None:
        self._classes: list[Array] = []
        self.images = self.labelled = self.top1 = self.top5 = 0
        self.seconds = 0.0

    @property
    def classes(self) -> Array:
        return np.concatenate(self._classes)

    def add(self, run: Executor, batch: Batch) -> None:
        """Run an Executor on a batch. Raises DataError for a model that is no classifier, and for labels not its."""
        started = time.perf_counter()
        scores = _scores(run.run(batch.feeds)[0])
        self.seconds += time.perf_counter() - started
        self.images += len(batch)
        self._classes.append(scores.argmax(1))
        if batch.labels is not None:
            labels = _class_labels(batch.labels, scores.shape[1], batch.ids[0])
            ranked = np.argsort(-scores, axis=1, kind="stable")[:, :5]
            self.top1 += int((ranked[:, 0] == labels).sum())
            self.top5 += int((ranked == labels[:, None]).any(axis=1).sum())
            self.labelled += len(batch)

    def result(self, expected: Array | None = None) -> dict[str, Any]:
        """expected: the classes that the model should predict, image by image."""
        return {"images": self.images, "top1": _percent(self.top1, self.labelled),
                "top5": _percent(self.top5, self.labelled),
                "agreement": None if expected is None else _percent(int((expected == self.classes).sum()), self.images),
                "ms_per_image": round(1000 * self.seconds / self.images, 3)}


def _percent(count: int, total: int) -> float | None:
    return round(100 * count / total, 2) if total else None


def runnable(model: AnyModel) -> AnyModel:
    """The model without labels, which an engine would want to be fed. Changes it where it is a graph."""
    if model.ir is not None and len(inputs_of(model.ir)) != len(model.ir.data_inputs()):
        Canonicalize().run(model.ir)
    return model


def open_for(model: Model, data: Any, options: DataOptions) -> Data:
    """Data that fit the inputs of a model."""
    return options.open(data, {name: (0, *shape[1:]) if shape else () for name, shape in model.inputs.items()})


def _scores(output: Array) -> Array:
    scores = class_scores(output)
    if scores is None:
        raise DataError(f"the model's first output has the shape {output.shape}, want one score per class "
                        "(N, classes); `qgraph compare` judges other models")
    return scores


def _class_labels(labels: Array | list[Array], classes: int, where: str) -> Array:
    if isinstance(labels, list) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: its label is not one class number, want a whole number per image")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(f"{where} and its batch: found labels {labels.min()} to {labels.max()}, but the model has "
                        f"{classes} classes")
    return labels
