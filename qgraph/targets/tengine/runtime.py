"""Executes a Tengine model with the NumPy reference: Tengine itself is on no package index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.errors import QGraphError
from qgraph.ir.graph import Graph, Port
from qgraph.quant.spec import QParams, shown_granularity
from qgraph.quant.table import CalibrationTable
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets.tengine.files import from_bytes
from qgraph.targets.tengine.model import TengineModel

_ROUNDING = "half-away"
_LEVELS = ("kl", "mse")  # methods whose ranges depend on the number of codes


class Executor(Reference):
    """watch: ports of `model.graph` to return instead of the outputs."""

    def __init__(self, model: TengineModel, watch: Sequence[Port] | None = None, fused: bool = False) -> None:
        super().__init__(model.graph, watch, _ROUNDING)

    def stream(self, batches: Iterable[Any]) -> Iterator[tuple[Any, list[np.ndarray]]]:
        """(batch, values) for every batch."""
        for batch in batches:
            yield batch, self.run(batch.feeds)


def facts(g: Graph, model: TengineModel, table: CalibrationTable | None,
          feeds: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    """For the report: what the file holds, and what of the choices Tengine has only in another form.

    g: the graph with fake_quantize nodes that `model` was written from.  feeds: images on which the file, read back and
    executed, must give the integers of `g`, every one; QGraphError if it does not.
    """
    if feeds is not None:
        written = TengineModel(from_bytes(model.data, "the .tmfile"))
        pairs = zip(Reference(g, rounding=_ROUNDING).run(feeds), Executor(written).run(feeds))
        for name, (want, found) in zip(model.outputs, pairs):
            if not np.array_equal(want, found):
                raise QGraphError(f"the .tmfile is wrong: {name}, read back, differs from the frozen graph. This is a "
                                  "bug of qgraph; nothing was written")
    weights = [n.quant for n in g.nodes("fake_quantize")
               if isinstance(n.quant, QParams) and n.quant.bits != 32 and g.param(g.inputs(n)[0]) is not None]
    equivalents = ["every value is -127..127 with one scale, inputs and outputs too: Tengine's int8 has no unsigned "
                   "codes, so what is never negative has 127"] if weights else []
    if table is not None and table.signed is None and table.method in _LEVELS:
        equivalents.append(f"the ranges were chosen by {table.method} for unsigned codes where nothing is negative: "
                           "calibrated for tengine alone they suit its codes better")
    if bits := sorted({q.bits for q in weights if q.bits < 8}):
        equivalents.append(f"weights of {', '.join(map(str, bits))} bits are stored in 8")
    if coarse := sorted({q.granularity for q in weights} - {"channel"}):
        equivalents.append(f"one scale per {' and '.join(map(shown_granularity, coarse))} is repeated for each output "
                           "channel")
    return {"inputs": list(model.inputs), "outputs": model.outputs, "ops": model.op_counts,
            "read_back_images": 0 if feeds is None else len(next(iter(feeds.values()))), "equivalents": equivalents}
