"""Runs a graph of MXNet's ops on onnxruntime: the engine for float graphs where MXNet is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qgraph.ir.graph import Graph, Port
from qgraph.semantics.inputs import inputs_of
from qgraph.targets.base import Feeds
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.runtime import Executor


class GraphExecutor(Executor):
    """A graph, converted and compiled once per shape of its inputs, whatever the batch size.

    watch: the ports to return instead of the heads.
    fused is there for the sake of the interface: what is watched decides what can be fused here.
    """

    def __init__(self, graph: Graph, watch: Sequence[Port] | None = None, fused: bool = False, *, exact: bool = False,
                 optimize: bool = True) -> None:
        self._exact, self._optimize, self._sessions = exact, optimize, {}
        self._graph = graph.copy()
        twin = {n.name: n for n in self._graph.dag}
        wanted = [Port(twin[p.node.name], p.index) for p in (graph.heads if watch is None else watch)]
        self._graph.heads = list(dict.fromkeys(wanted))
        position = {p: i for i, p in enumerate(self._graph.heads)}
        self._order = [position[p] for p in wanted]
        self.inputs = inputs_of(self._graph)

    def _session(self, feeds: Feeds) -> tuple[Any, list[str]]:
        """Converted again for every shape of the inputs: some converters need it."""
        key = tuple((name, feeds[name].shape[1:]) for name in self.inputs)
        if key not in self._sessions:
            self._sessions.clear()  # one shape at a time: memory stays that of one executor
            model = to_onnx(self._graph, {name: feeds[name].shape for name in self.inputs}, check=False)
            self._sessions[key] = self._open(model.to_bytes()), [model.outputs[i] for i in self._order]
        return self._sessions[key]
