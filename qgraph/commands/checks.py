"""How a frozen model is judged: against the network that it is made from, and its kernels against exact arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from qgraph import engines
from qgraph.calibration.images import CalibrationImages
from qgraph.calibration.pieces import in_pieces_to_run
from qgraph.commands import departure
from qgraph.commands.examples import Examples
from qgraph.commands.judge import Judge
from qgraph.commands.network import FloatNetwork
from qgraph.commands.shared import Truth
from qgraph.data.open import Batch, Data
from qgraph.engines import Engine
from qgraph.ir.graph import Graph
from qgraph.quant.spec import QSpec
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets.base import Executor, Feeds, Model, Target

log = logging.getLogger("qgraph")

AGREEMENT_IMAGES = 128
REFERENCE_IMAGES = 4
_NOT_JUDGED: dict[str, Any] = {"agreement": None, "departure": None, "examples": []}


def judge(g: Graph, network: FloatNetwork, judged: Judge, model: Model, images: CalibrationImages | None,
          given: Data | None, target: Target, engine: Engine, truth: Truth) -> dict[str, Any]:
    """Agreement with the network, the kernels' departure from exact arithmetic, examples; None for what is not known.

    g: the graph with fake_quantize nodes that `model` was written from.  judged: of the network's outputs.
    given: the images to judge on; without, those that calibration left out, and where it took all, the same.
    truth: the outputs that the frozen model should have.
    Where the engine that alone runs the model is not the chosen one, the simulation is judged, and no kernels; by the
    reference, which is slow and so sees one batch, where the chosen engine lacks the arithmetic.
    """
    if images is None:
        return dict(_NOT_JUDGED)
    data = given or images.left_out(AGREEMENT_IMAGES) or images.data
    batches: Iterable[Batch] = data if given else islice(data, -(-AGREEMENT_IMAGES // data.batch_size))

    examples = Examples(network.options.report_images)

    def agreement(found: Executor, batches: Iterable[Batch]) -> dict[str, Any]:
        for number, batch in enumerate(batches if _is_online(g) else in_pieces_to_run(batches, g)):
            got, want = found.run(batch.feeds), truth.outputs(number, batch)
            judged.add(batch.unlabelled(), got, want)
            examples.add(batch, got, want, judged)
        return {**judged.agreement(), "data": data.name, "calibrated_on_it": data is images.data,
                **network.agreement_with}

    if model.float_engine and model.float_engine != engine.name:
        simulated: Executor
        if engine.any_quantizer or not _is_beyond_codes(g):
            log.warning("warning: the files for %s are judged by simulation: its kernels do not run on this runtime",
                        model.engine)
            simulated = engine.exact(g)
        else:
            log.warning("warning: the files for %s are judged by simulation, in NumPy on one batch: this runtime has "
                        "no ranges of the running batch, and no activations of more than 8 bits", model.engine)
            simulated, batches = Reference(g, rounding=target.spec.rounding, run_op=engine.run_op), islice(data, 1)
        return {**_NOT_JUDGED, "agreement": agreement(simulated, batches),
                "examples": examples.to_list(data.preprocess)}
    if why := model.absent():
        log.warning("warning: the files for %s were not run: %s, with which freezing checks them", target.name, why)
        return dict(_NOT_JUDGED)

    def run(model: Model, watch: Sequence[Hashable] | None = None) -> Executor:
        return engines.executor(model, "judging the frozen model", watch=watch)

    return {"agreement": agreement(run(model), batches),
            "departure": _kernels(g, model, images, target, engine, run),
            "examples": examples.to_list(data.preprocess)}


def reference_feeds(images: CalibrationImages) -> Feeds:
    """The few images that exact arithmetic, which is slow, is computed on."""
    return {name: np.ascontiguousarray(x[:REFERENCE_IMAGES]) for name, x in images.first.feeds.items()}


def _kernels(g: Graph, model: Model, images: CalibrationImages, target: Target, engine: Engine,
             run: Any) -> dict[str, Any] | None:
    if not model.has_kernels:
        return None
    return departure.kernel_departure(g, model, reference_feeds(images), target.spec.rounding, run, engine.run_op)


def _is_online(g: Graph) -> bool:
    """Whether an activation has ranges of the running batch, so that batches count."""
    return any(spec.online for spec in _of_activations(g))


def _is_beyond_codes(g: Graph) -> bool:
    """Whether an activation has ranges of the running batch, or more than 8 bits."""
    return any(spec.online or spec.bits > 8 for spec in _of_activations(g))


def _of_activations(g: Graph) -> list[QSpec]:
    return [fq.quant for fq in g.nodes("fake_quantize")
            if fq.quant is not None and g.param(g.inputs(fq)[0]) is None]
