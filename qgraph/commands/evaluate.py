"""`qgraph.evaluate`: how good a model is, and how near to another one, on every output and by its task."""

from __future__ import annotations

import time
from itertools import chain
from typing import Any, TypeVar

from qgraph.commands.judge import Judge
from qgraph.commands.open_model import open_model
from qgraph.data.open import Data
from qgraph.engines import executor
from qgraph.errors import DataError
from qgraph.options import DataOptions, JudgeOptions, Progress
from qgraph.passes.canonicalize import Canonicalize
from qgraph.semantics.inputs import inputs_of
from qgraph.targets.base import Model

AnyModel = TypeVar("AnyModel", bound=Model)


def evaluate(model: Any, data: Any, reference: Any = None, *, options: JudgeOptions | None = None,
             progress: Progress | None = None, runtime: str = "auto") -> dict[str, Any]:
    """{"images", "top1", "top5", "agreement", "ms_per_image", "scores", "judged"}; None for what cannot be known.

    model, reference: what `open_model` takes.  data: what `qgraph.open_data` takes.
    scores: metric -> value, by the labels of the data and the task of the outputs; top1 and top5 are among them.
    judged: what `Judge.agreement` says of model and reference; agreement is the one in it.
    runtime: the engine, of `qgraph.engines`.
    ms_per_image is wall time of the model alone, without the first batch, which warms up.
    """
    options = options or JudgeOptions()
    judged = runnable(open_model(model).model)
    other = runnable(open_model(reference).model) if reference is not None else None
    run = executor(judged, "evaluating a model", runtime)
    truth = executor(other, "evaluating a model", runtime) if other is not None else None
    opened = open_for(judged, data, options)

    batches = iter(opened)
    first = next(batches, None)
    if first is None:
        raise DataError(f"{opened.name}: no image was read")
    run.run(first.feeds)
    judge, seconds = judge_of(judged if other is None or other.ir is None else other, options), 0.0
    for batch in chain([first], batches):
        started = time.perf_counter()
        found = run.run(batch.feeds)
        seconds += time.perf_counter() - started
        judge.add(batch, found, None if truth is None else truth.run(batch.feeds))
        if progress:
            progress("evaluating", judge.images, opened.num_items)
    scores, agreement = judge.scores(), None if truth is None else judge.agreement()
    return {"images": judge.images, "top1": scores.get("top1"), "top5": scores.get("top5"),
            "agreement": None if agreement is None else agreement["agreement"],
            "ms_per_image": round(1000 * seconds / judge.images, 3), "scores": scores, "judged": agreement}


def runnable(model: AnyModel) -> AnyModel:
    """The model without labels, which an engine would want to be fed. Changes it where it is a graph."""
    if model.ir is not None and len(inputs_of(model.ir)) != len(model.ir.data_inputs()):
        Canonicalize().run(model.ir)
    return model


def judge_of(model: Model, options: JudgeOptions) -> Judge:
    """A judge of the outputs of a model, which are told by its ops where it has a graph."""
    return Judge(model.outputs, model.ir, options)


def open_for(model: Model, data: Any, options: DataOptions) -> Data:
    """Data that fit the inputs of a model."""
    return options.open(data, {name: (0, *shape[1:]) if shape else () for name, shape in model.inputs.items()})
