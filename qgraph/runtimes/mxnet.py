"""Runs a graph on MXNet, bound without MXNet's own fusing, which renames tensors and miscomputes some residual nets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from qgraph.errors import DataError, MissingDependencyError
from qgraph.ir import Graph, Port

_BACKEND = "MXNET_SUBGRAPH_BACKEND"


def import_mxnet(what_for: str) -> Any:
    """The mxnet module, quiet; MissingDependencyError says how to get it."""
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    try:
        import mxnet
    except ImportError as error:
        raise MissingDependencyError("mxnet", what_for, "mxnet") from error
    return mxnet


@contextmanager
def subgraph_backend(name: str) -> Iterator[None]:
    """MXNet reads its subgraph backend at each bind; the caller's setting is restored."""
    before = os.environ.get(_BACKEND)
    os.environ[_BACKEND] = name
    try:
        yield
    finally:
        os.environ.pop(_BACKEND) if before is None else os.environ.__setitem__(_BACKEND, before)


class Executor:
    """A graph of MXNet ops, compiled once per shape of its inputs.

    watch: the tensors to return instead of the heads.
    """

    def __init__(self, graph: Graph, watch: Sequence[Port] | None = None) -> None:
        from qgraph.formats.mxnet import to_mxnet

        self._mx = import_mxnet("running a model on MXNet")
        if watch is not None:
            heads, graph.heads = graph.heads, list(dict.fromkeys(watch))
            try:
                self._symbol, self._args, self._aux = to_mxnet(graph)
                self.inputs = [n.name for n in graph.data_inputs()]
            finally:
                graph.heads = heads
            position = {p: i for i, p in enumerate(dict.fromkeys(watch))}
            self._order = [position[p] for p in watch]
        else:
            self._symbol, self._args, self._aux = to_mxnet(graph)
            self.inputs = [n.name for n in graph.data_inputs()]
            self._order = list(range(len(graph.heads)))
        self._bound: dict[tuple, Any] = {}

    def _bind(self, feeds: dict[str, np.ndarray]) -> Any:
        shapes = {name: feeds[name].shape for name in self.inputs}
        key = tuple(shapes.items())
        if key not in self._bound:
            mx = self._mx
            args = {**self._args, **{name: mx.nd.zeros(shape) for name, shape in shapes.items()}}
            self._bound.clear()  # one shape at a time: memory stays that of one executor
            try:
                with subgraph_backend("default"):  # fuses nothing, as "NONE", which logs a line at every bind
                    self._bound[key] = self._symbol.bind(mx.cpu(), args, grad_req="null", aux_states=self._aux)
            except mx.MXNetError as error:
                raise DataError(f"MXNet cannot run this model on inputs of shape {shapes}: "
                                f"{str(error).splitlines()[0]}") from error
        return self._bound[key]

    def start(self, feeds: dict[str, np.ndarray]) -> list[Any]:
        """Begin a forward pass; the arrays returned wait for it when they are read."""
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise DataError(f"the model wants input {', '.join(missing)}; found {', '.join(feeds)}")
        bound = self._bind(feeds)
        outputs = bound.forward(is_train=False, **{n: self._mx.nd.array(feeds[n]) for n in self.inputs})
        return [outputs[i] for i in self._order]

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The values of the heads, or of the watched tensors."""
        return [array.asnumpy() for array in self.start(feeds)]

    def stream(self, batches: Iterable[Any]) -> Iterator[tuple[Any, list[np.ndarray]]]:
        """(batch, values) for every batch; MXNet computes the next one while the caller looks at this one."""
        previous: Any = None
        pending: list[Any] | None = None
        for batch in batches:
            values = [array.asnumpy() for array in pending] if pending is not None else None
            pending = self.start(batch.feeds)
            if values is not None:
                yield previous, values
            previous = batch
        if pending is not None:
            yield previous, [array.asnumpy() for array in pending]


def run(graph: Graph, feeds: dict[str, np.ndarray], watch: Sequence[Port] | None = None) -> list[np.ndarray]:
    """One forward pass, see `Executor`."""
    return Executor(graph, watch).run(feeds)
