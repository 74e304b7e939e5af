"""Executes a Tengine model with the NumPy reference: Tengine itself is on no package index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qgraph.errors import QGraphError
from qgraph.ir.graph import Graph, Port
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.targets.tengine.files import from_bytes
from qgraph.targets.tengine.model import TengineModel

_ROUNDING = "half-away"


class Executor(Reference):
    """watch: ports of `model.graph` to return instead of the outputs."""

    def __init__(self, model: TengineModel, watch: Sequence[Port] | None = None, fused: bool = False) -> None:
        super().__init__(model.graph, watch, _ROUNDING)


def check_read_back(g: Graph, model: TengineModel, feeds: Mapping[str, np.ndarray]) -> None:
    """Raise QGraphError unless the file, read back and executed, gives the integers of `g`, every one.

    g: the graph with fake_quantize nodes that `model` was written from.
    """
    written = TengineModel(from_bytes(model.data, "the .tmfile"))
    pairs = zip(Reference(g, rounding=_ROUNDING).run(feeds), Executor(written).run(feeds))
    for name, (want, found) in zip(model.outputs, pairs):
        if not np.array_equal(want, found):
            raise QGraphError(f"the .tmfile is wrong: {name}, read back, differs from the frozen graph. This is a bug "
                              "of qgraph; nothing was written")
