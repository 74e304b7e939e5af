"""What layers read in the float network, for passes that walk the quantized one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.interpreter import Executor, RunOp

Take = Callable[[Node, np.ndarray], np.ndarray]  # (layer, the tensor that it reads) -> what is wanted of that


class FloatReads:
    """The float network on some images, walked as far as it is asked for; what layers read is kept till then.

    take: what is wanted of the tensor that a layer reads, while that is there.
    """

    def __init__(self, g: Graph, layers: Iterable[str], feeds: Mapping[str, np.ndarray], run_op: RunOp | None,
                 take: Take) -> None:
        names = set(layers)
        found = [node for node in g.nodes() if node.name in names]
        self._kept: dict[str, np.ndarray] = {}
        self._ahead = self._walk(g, found, feeds, run_op, take)

    def of(self, layer: str) -> np.ndarray | None:
        """What this layer reads, or None if it is unknown. Each is given once."""
        while layer not in self._kept:
            if next(self._ahead, None) is None:
                return None
        return self._kept.pop(layer)

    def _walk(self, g: Graph, layers: list[Node], feeds: Mapping[str, np.ndarray], run_op: RunOp | None,
              take: Take) -> Iterator[Node]:
        readers: dict[Port, list[Node]] = {}
        for node in layers:
            readers.setdefault(g.inputs(node)[0], []).append(node)
        for source, _, outputs in Executor(g, list(readers), run_op=run_op).walk(feeds):
            for index, tensor in enumerate(outputs):
                for node in readers.get(Port(source, index), ()):
                    self._kept[node.name] = take(node, tensor.real)
            yield source
