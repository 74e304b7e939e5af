"""What layers read in the float network, for passes that walk the quantized one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping

import numpy as np

from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.interpreter import Executor, RunOp

KEPT_BYTES = 1 << 28  # what is beyond is walked for again
Take = Callable[[Node, np.ndarray], np.ndarray]  # (layer, the tensor that it reads) -> what is wanted of that


class KeptReads:
    """What layers read, for further walks along the same float network on the same images, up to `KEPT_BYTES`."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Hashable], np.ndarray] = {}
        self._room = KEPT_BYTES

    def get(self, key: tuple[str, Hashable]) -> np.ndarray | None:
        return self._kept.get(key)

    def put(self, key: tuple[str, Hashable], array: np.ndarray) -> None:
        if key not in self._kept and array.nbytes <= self._room:
            self._kept[key] = array
            self._room -= array.nbytes


class FloatReads:
    """The float network on some images, walked as far as it is asked for; what layers read is kept till then.

    keys: layer -> what else decides what is taken of the tensor.
    take: what is wanted of the tensor that a layer reads, while that is there.
    kept: what earlier walks have found; nothing is walked for that.
    """

    def __init__(self, g: Graph, keys: Mapping[str, Hashable], feeds: Mapping[str, np.ndarray], run_op: RunOp | None,
                 take: Take, kept: KeptReads | None = None) -> None:
        self._keys, self._kept = keys, kept
        self._ready: dict[str, np.ndarray] = {}
        found = [node for node in g.nodes() if node.name in keys and self._known(node.name) is None]
        self._ahead = self._walk(g, found, feeds, run_op, take)

    def of(self, layer: str) -> np.ndarray | None:
        """What this layer reads, or None if it is unknown. Each is given once."""
        known = self._known(layer)
        if known is not None:
            return known
        while layer not in self._ready:
            if next(self._ahead, None) is None:
                return None
        found = self._ready.pop(layer)
        if self._kept is not None:
            self._kept.put((layer, self._keys[layer]), found)
        return found

    def _known(self, layer: str) -> np.ndarray | None:
        return None if self._kept is None else self._kept.get((layer, self._keys[layer]))

    def _walk(self, g: Graph, layers: list[Node], feeds: Mapping[str, np.ndarray], run_op: RunOp | None,
              take: Take) -> Iterator[Node]:
        readers: dict[Port, list[Node]] = {}
        for node in layers:
            readers.setdefault(g.inputs(node)[0], []).append(node)
        for source, _, outputs in Executor(g, list(readers), run_op=run_op).walk(feeds):
            for index, tensor in enumerate(outputs):
                for node in readers.get(Port(source, index), ()):
                    self._ready[node.name] = take(node, tensor.real)
            yield source
