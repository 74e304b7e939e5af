"""Runs a graph on MXNet, bound without MXNet's own fusing, which renames tensors and miscomputes some residual nets."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import numpy as np

from qgraph.data.open import Batch
from qgraph.errors import DataError, MissingDependencyError, QGraphError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.legal import Legal, legal_values
from qgraph.targets.base import Feeds, check_feeds
from qgraph.targets.mxnet.roi_align import with_zeros

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
    """Rewrite `g` so that MXNet fuses each layer with its activation only. Returns False if that is not possible.

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
    way_out: what else may run a graph that MXNet cannot, for messages.
    Raises UnsupportedError, which names the node, for an op that this MXNet lacks or cannot run.
    """

    def __init__(self, graph: Graph, watch: Sequence[Port] | None = None, fused: bool = False,
                 way_out: Callable[[Graph], str] | None = None) -> None:
        from qgraph.formats.mxnet_writer import to_mxnet

        self._mx = import_mxnet("running a model on MXNet")
        wanted = list(graph.heads if watch is None else watch)
        heads = list(dict.fromkeys(wanted))
        position = {p: i for i, p in enumerate(heads)}
        self._order = [position[p] for p in wanted]
        bare = graph.copy()
        twin = {n.name: n for n in bare.dag}
        bare.heads = [Port(twin[p.node.name], p.index) for p in heads]
        self.inputs = [n.name for n in bare.data_inputs()]
        self._way_out = way_out
        self._source = bare
        bare = with_zeros(bare)
        if any(n.op == "fake_quantize" for n in bare.dag):
            from qgraph.targets.mxnet.sim import lower

            bare = lower(bare)
        # "default" fuses nothing, as "NONE" does, which logs a line at every bind
        self._backend = "MKLDNN" if fused and _let_fuse(bare) else "default"
        self._graph = bare
        try:
            self._symbol, self._args, self._aux = to_mxnet(bare)
        except self._mx.MXNetError as error:
            if (node := self._lacking(str(error))) is None:
                raise UnsupportedError(f"MXNet does not take this model: {_said(error)}") from error
            raise self._refusal(node, f"this MXNet ({self._mx.__version__}) has no such op") from error
        self._bound: dict[tuple, tuple[Any, dict[str, Legal]]] = {}

    def _bind(self, feeds: Feeds) -> tuple[Any, dict[str, Legal]]:
        """(the compiled graph, values of inputs beyond which MXNet crashes)"""
        shapes = {name: feeds[name].shape for name in self.inputs}
        key = tuple(shapes.items())
        if key not in self._bound:
            mx = self._mx
            args = {**self._args, **{name: mx.nd.zeros(shape) for name, shape in shapes.items()}}
            self._bound.clear()  # one shape at a time: memory stays that of one executor
            try:
                with subgraph_backend(self._backend):
                    bound = self._symbol.bind(mx.current_context(), args, grad_req="null", aux_states=self._aux)
            except mx.MXNetError as error:
                raise DataError(f"MXNet cannot run this model on inputs of shape {shapes}: "
                                f"{_said(error)}") from error
            self._bound[key] = bound, legal_values(self._source, shapes, crash=True)
        return self._bound[key]

    def _forward(self, feeds: Feeds) -> list[Any]:
        check_feeds(self.inputs, feeds)
        bound, legal = self._bind(feeds)
        for name, wanted in legal.items():
            if (bad := wanted.outside(feeds[name])).size:
                raise DataError(f"input {name} holds {bad.flat[0]:g} in a batch of {len(feeds[name])}, want "
                                f"{wanted.first_place()}, the values that {wanted.reader} can read; "
                                "numbers of images count within the batch (--batch-size)")
        outputs = bound.forward(is_train=False, **{n: self._mx.nd.array(feeds[n]) for n in self.inputs})
        return [outputs[i] for i in self._order]

    def start(self, feeds: Feeds) -> list[Any]:
        """Begin a forward pass; the arrays returned wait for it when they are read."""
        try:
            return self._forward(feeds)
        except self._mx.MXNetError as error:
            raise self._cannot_run(feeds, error) from error

    def _read(self, arrays: Sequence[Any], feeds: Feeds, into: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
        """Wait for the arrays. into: memory to use again, where it has the right form."""
        try:
            return [self._copied(array, old) for array, old in zip_longest(arrays, into)]
        except self._mx.MXNetError as error:
            raise self._cannot_run(feeds, error) from error

    def _copied(self, array: Any, old: np.ndarray | None) -> np.ndarray:
        """The array's values, in `old` where that fits: the system hands out fresh memory at the price of a copy."""
        if old is None or old.shape != array.shape or old.dtype != array.dtype:
            return np.asarray(array.asnumpy())
        base = self._mx.base
        base.check_call(base._LIB.MXNDArraySyncCopyToCPU(array.handle, old.ctypes.data_as(ctypes.c_void_p),
                                                         ctypes.c_size_t(old.size)))
        return old

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """The values of the heads, or of the watched tensors."""
        return self._read(self.start(feeds), feeds)

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        """(batch, values) for every batch; MXNet computes the next one while the caller looks at this one."""
        previous: Any = None
        pending: list[Any] | None = None
        values: list[np.ndarray] = []
        for batch in batches:
            if pending is not None:
                values = self._read(pending, previous.feeds, values)
            pending = self.start(batch.feeds)
            if values:
                yield previous, values
            previous = batch
        if pending is not None:
            yield previous, self._read(pending, previous.feeds, values)

    # ---- what MXNet cannot run --------------------------------------------------------------------------------------

    def _lacking(self, message: str) -> Node | None:
        """The first node whose op is not there, or whose Custom op was not registered."""
        there = set(self._mx.operator.get_all_registered_operators())
        return next((n for n in self._graph.toposort() if n.op != "null" and (
            n.op not in there or (n.op == "Custom" and n.attrs.get("op_type", "") in message))), None)

    def _cannot_run(self, feeds: Feeds, error: Exception) -> QGraphError:
        """The error that names the node, which is found by bisection: the first `low` nodes run, `high` do not."""
        order = [n for n in self._graph.toposort() if n.op != "null"]
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._runs(order[:middle], feeds) else (low, middle)
        return self._refusal(order[low], f"MXNet cannot run it: {_said(error)}")

    def _runs(self, nodes: Sequence[Node], feeds: Feeds) -> bool:
        within = set(nodes)
        ends = [Port(n) for n in nodes if not any(reader in within for reader, _ in self._graph.uses(n))]
        part = Executor(self._graph, ends)
        try:
            for array in part._forward(feeds):
                array.wait_to_read()
        except self._mx.MXNetError:
            return False
        return True

    def _refusal(self, node: Node, why: str) -> UnsupportedError:
        before = next((p.node.name for p in self._graph.inputs(node) if p.node.op != "null"), "NAME")
        other = self._way_out(self._source) if self._way_out is not None else ""
        return UnsupportedError(f"{node}: {why}; {other}--outputs {before} ends the model before it")


def _said(error: Exception) -> str:
    """The line of an MXNetError that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if "Error" in line or "heck failed" in line]
    text = (lines or str(error).strip().splitlines() or [type(error).__name__])[-1]
    return text.removeprefix("MXNetError: ")[:300]


def run(graph: Graph, feeds: Feeds, watch: Sequence[Port] | None = None) -> list[np.ndarray]:
    """One forward pass, see `Executor`."""
    return Executor(graph, watch).run(feeds)
