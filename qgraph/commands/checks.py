"""How a frozen model is judged: against the float model, and its kernels against exact arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from qgraph.commands import departure
from qgraph.data.open import Data
from qgraph.engines import executor as open_executor
from qgraph.errors import UnsupportedError
from qgraph.ir.graph import Graph
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets import base as targets
from qgraph.targets.ncnn.model import NcnnModel
from qgraph.targets.ncnn.runtime import is_installed as ncnn_is_installed
from qgraph.targets.onnx.model import OnnxModel
from qgraph.targets.tengine.model import TengineModel

log = logging.getLogger("qgraph")

AGREEMENT_IMAGES = 128
REFERENCE_IMAGES = 4


def run_checks(g: Graph, float_graph: Graph, lowered: Graph | OnnxModel | NcnnModel | TengineModel, data: Data,
            target: targets.Target, executor: Any) -> dict[str, Any]:
    """Agreement with the float model, and the kernels' departure from exact arithmetic.

    Where MXNet is not there to run what is frozen for it, the simulation is judged, and no kernels; by the reference,
    which is slow and so sees one batch, where the engine lacks the arithmetic (`_is_beyond_onnx`).
    """
    batches = list(islice(data, -(-AGREEMENT_IMAGES // data.batch_size)))
    feeds = {name: np.ascontiguousarray(x[:REFERENCE_IMAGES]) for name, x in batches[0].feeds.items()}
    if isinstance(lowered, Graph) and executor.engine != "mxnet":
        if _is_beyond_onnx(g):
            log.warning("warning: the files for MXNet are judged by simulation, in NumPy on one batch: this runtime "
                        "has no ranges of the running batch, and no activations of more than 8 bits")
            simulated, batches = Reference(g, rounding=target.rounding), batches[:1]
        else:
            log.warning("warning: the files for MXNet are judged by simulation: its kernels do not run on this runtime")
            simulated = executor(g)
        return {"agreement": departure.agreement(executor(float_graph), simulated, batches), "departure": None}
    if isinstance(lowered, NcnnModel) and not ncnn_is_installed():
        log.warning("warning: the files for ncnn were not run: pip install \"qgraph[ncnn]\" lets freezing check them")
        return {"agreement": None, "departure": None}

    def run(model: Any, watch: Sequence[Any] | None = None) -> Any:
        return open_executor(model, "judging the frozen model", watch=watch)

    found = departure.agreement(executor(float_graph), run(lowered), batches)
    if isinstance(lowered, TengineModel):  # run by the reference, which has nothing to depart from
        return {"agreement": found, "departure": None}
    try:
        judged = departure.kernel_departure(g, lowered, feeds, target.rounding, run)
    except UnsupportedError as error:  # an op that the reference does not know
        log.warning("warning: the kernels were not compared with exact arithmetic: %s", error)
        judged = None
    return {"agreement": found, "departure": judged}


def _is_beyond_onnx(g: Graph) -> bool:
    """Whether an activation is quantized as no QuantizeLinear of ours can."""
    specs = [fq.quant for fq in g.nodes("fake_quantize") if g.param(g.inputs(fq)[0]) is None]
    return any(spec is not None and (spec.online or spec.bits > 8) for spec in specs)
