"""Runs a graph on MXNet, bound without MXNet's own fusing, which renames tensors and miscomputes some residual nets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from qgraph.data.open import Batch
from qgraph.errors import DataError, MissingDependencyError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.targets.base import Feeds

_BACKEND = "MXNET_SUBGRAPH_BACKEND"


def import_mxnet(what_for: str, instead: str = "") -> Any:
    """The mxnet module, quiet; MissingDependencyError says how to get it, or what to do `instead`."""
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    try:
        import mxnet
    except (ImportError, AttributeError, OSError) as error:  # a NumPy that is too new is an AttributeError
        raise MissingDependencyError("mxnet", what_for, "mxnet", instead) from error
    return mxnet


def is_installed() -> bool:
    """Whether MXNet is there and works."""
    try:
        import_mxnet("")
    except MissingDependencyError:
        return False
    return True


@contextmanager
def subgraph_backend(name: str) -> Iterator[None]:
    """MXNet reads its subgraph backend at each bind; the caller's setting is restored."""
    before = os.environ.get(_BACKEND)
    os.environ[_BACKEND] = name
    try:
        yield
    finally:
        os.environ.pop(_BACKEND) if before is None else os.environ.__setitem__(_BACKEND, before)


_READS = {"Convolution", "Deconvolution", "FullyConnected", "Pooling", "Concat", "Flatten", "elemwise_add", "Cast"}


def _leaves_alone(layer: Node, reader: Node) -> bool:
    """Whether MXNet fuses the two in no way, or in one that changes nothing."""
    if reader.op == "LeakyReLU":
        return bool(ops.attr(reader, "act_type") == "leaky" and ops.attr(reader, "slope") == 1)
    return reader.op in _READS or (reader.op == "BatchNorm" and layer.fused is not None)


def _let_fuse(g: Graph) -> bool:
    """Make `g` one whose layers MXNet fuses with their own activation and nothing else; False if that cannot be had.

    MXNet fuses without regard to which tensors are watched, and its conv + sum is wrong in some graphs; a broadcast_add
    is the same sum, and is left alone.  The numbers are those of the graph that is not fused, bit for bit.
    """
    layers = [n for n in g.dag if n.op in ("Convolution", "FullyConnected")]
    if any(not _leaves_alone(n, reader) for n in layers for reader, _ in g.uses(n)):
        return False
    for node in g.nodes("elemwise_add"):
        node.op = "broadcast_add"
    return True


class Executor:
    """A graph of MXNet ops, compiled once per shape of its inputs, for the current context.

    watch: the tensors to return instead of the heads.
    fused: let MXNet fuse activations into layers where that is safe: two to three times as fast behind clip.
    """

    def __init__(self, graph: Graph, watch: Sequence[Port] | None = None, fused: bool = False) -> None:
        from qgraph.formats.mxnet import to_mxnet

        self._mx = import_mxnet("running a model on MXNet")
        wanted = list(graph.heads if watch is None else watch)
        heads = list(dict.fromkeys(wanted))
        position = {p: i for i, p in enumerate(heads)}
        self._order = [position[p] for p in wanted]
        bare = graph.copy()
        twin = {n.name: n for n in bare.dag}
        bare.heads = [Port(twin[p.node.name], p.index) for p in heads]
        self.inputs = [n.name for n in bare.data_inputs()]
        if any(n.op == "fake_quantize" for n in bare.dag):
            from qgraph.targets.mxnet.sim import lower

            bare = lower(bare)
        # "default" fuses nothing, as "NONE" does, which logs a line at every bind
        self._backend = "MKLDNN" if fused and _let_fuse(bare) else "default"
        self._symbol, self._args, self._aux = to_mxnet(bare)
        self._bound: dict[tuple, Any] = {}

    def _bind(self, feeds: Feeds) -> Any:
        shapes = {name: feeds[name].shape for name in self.inputs}
        key = tuple(shapes.items())
        if key not in self._bound:
            mx = self._mx
            args = {**self._args, **{name: mx.nd.zeros(shape) for name, shape in shapes.items()}}
            self._bound.clear()  # one shape at a time: memory stays that of one executor
            try:
                with subgraph_backend(self._backend):
                    self._bound[key] = self._symbol.bind(mx.current_context(), args, grad_req="null",
                                                         aux_states=self._aux)
            except mx.MXNetError as error:
                raise DataError(f"MXNet cannot run this model on inputs of shape {shapes}: "
                                f"{str(error).splitlines()[0]}") from error
        return self._bound[key]

    def start(self, feeds: Feeds) -> list[Any]:
        """Begin a forward pass; the arrays returned wait for it when they are read."""
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise DataError(f"the model wants input {', '.join(missing)}; found {', '.join(feeds)}")
        bound = self._bind(feeds)
        outputs = bound.forward(is_train=False, **{n: self._mx.nd.array(feeds[n]) for n in self.inputs})
        return [outputs[i] for i in self._order]

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """The values of the heads, or of the watched tensors."""
        return [array.asnumpy() for array in self.start(feeds)]

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[np.ndarray]]]:
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


def run(graph: Graph, feeds: Feeds, watch: Sequence[Port] | None = None) -> list[np.ndarray]:
    """One forward pass, see `Executor`."""
    return Executor(graph, watch).run(feeds)
