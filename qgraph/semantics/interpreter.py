"""The reference interpreter: a graph, node by node, in NumPy, with exact integers where the graph says so.

A value is a `Tensor`: float32 reals or, behind a `fake_quantize`, the integer codes that stand for them.
Convolution, Deconvolution and FullyConnected of codes with codes accumulate exactly::

    acc  = sum (q_x - z_x) * (q_w - z_w)   [+ bias codes]         whole numbers, no rounding, no overflow
    real = acc * (s_x * s_w[c])            [+ float bias]         in float32, one rounding each; then the activation

Ops whose values pass through (`qgraph.ir.ops.kind`), and Concat of inputs with equal numbers, keep the codes.
Everything else computes on reals: layers that are `wide` sum them in float64.  What a target's
kernels do differently is judged against this.

An op without a kernel, or in a form that its kernel does not know, can be lent by an engine for float graphs: `RunOp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Callable, Union

import numpy as np

from qgraph.analysis.codes import are_bias_steps, channel_scales
from qgraph.data.open import Batch
from qgraph.errors import DataError, GraphError, QGraphError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import ROUNDER, QParams, online_params, per_axis, quantize
from qgraph.semantics.infer import infer, value_inputs
from qgraph.semantics.inputs import inputs_of
from qgraph.semantics.kernels import KERNELS, activate
from qgraph.semantics.linear import LINEAR, along_channels
from qgraph.semantics.tensor import Tensor, code_dtype, in_blocks

# ---- exact integers -------------------------------------------------------------------------------------------------

def partial_sum_bound(node: Node, data: Tensor, weight: Tensor) -> float:
    """No partial sum of the accumulation, in whatever order, is larger in magnitude than this."""
    low, high = data.ends
    low, high = min(0.0, low), max(0.0, high)
    w = weight.centered.astype(np.float64)
    axes = tuple(i for i in range(w.ndim) if i != ops.info(node.op).out_axis)
    plus, minus = np.maximum(w, 0).sum(axes), np.maximum(-w, 0).sum(axes)
    return float(max((plus * high - minus * low).max(), (minus * high - plus * low).max()))


def _sum_dtype(node: Node, data: Tensor, weight: Tensor) -> np.dtype:
    """The smallest float dtype whose whole numbers hold every partial sum."""
    bound = partial_sum_bound(node, data, weight)
    if bound >= 2.0 ** 53:
        raise UnsupportedError(f"{node}: found sums of up to {bound:.3g}, want below 2**53: use fewer bits")
    return np.dtype(np.float32 if bound < 2.0 ** 24 else np.float64)


def accumulate(node: Node, data: Tensor, weight: Tensor) -> np.ndarray:
    """The exact integer accumulator of a Convolution, Deconvolution or FullyConnected, without bias.

    Whole numbers, shaped as the op's output: float32 where no partial sum can reach 2**24, else float64; both exact.
    """
    dtype = _sum_dtype(node, data, weight)
    return LINEAR[node.op](node, data.centered.astype(dtype, copy=False), weight.centered.astype(dtype, copy=False))


def _integer_linear(node: Node, inputs: list[Tensor]) -> Tensor | None:
    """The op on codes, a few images at a time; None if it has to run in float."""
    data, weight = inputs[:2]
    if not (data.small and weight.small) or data.qp.granularity != "tensor":  # type: ignore[union-attr]
        return None
    weight_scale = channel_scales(node, weight.qp, weight.shape)  # type: ignore[arg-type]
    if weight_scale is None:
        return None
    scale = np.float64(data.qp.scale) * weight_scale  # type: ignore[union-attr]
    bias = inputs[2] if len(inputs) > 2 else None
    whole = None if bias is None else _whole_bias(bias, scale)
    dtype, factor = _sum_dtype(node, data, weight), scale.astype(np.float32)
    codes = weight.centered.astype(dtype, copy=False)

    def run(rows: slice) -> np.ndarray:
        part = LINEAR[node.op](node, data.part(rows).centered.astype(dtype, copy=False), codes)
        rank = part.ndim
        if whole is not None:
            part = part + along_channels(node, whole, rank)
        part = part.astype(np.float32, copy=False)
        part *= along_channels(node, factor, rank)
        if bias is not None and whole is None:
            part += along_channels(node, bias.real, rank)
        return activate(node, part)

    return Tensor(in_blocks(run, data.shape))


def _whole_bias(bias: Tensor, scale: np.ndarray) -> np.ndarray | None:
    """Whole numbers (float64) that the accumulator of the steps `scale` can add, or None for a bias in float."""
    if bias.follows:
        with np.errstate(all="ignore"):
            steps = bias.real / scale.astype(np.float32) + np.float32(ROUNDER)
            return (steps - np.float32(ROUNDER)).astype(np.float64)
    if bias.qp is None or not are_bias_steps(bias.qp, scale):
        return None
    return bias.codes.astype(np.float64) - per_axis(bias.qp.zero_point, bias.qp, bias.shape)


# ---- one node -------------------------------------------------------------------------------------------------------

def _numbers(qp: QParams) -> tuple:
    """What makes codes of two tensors mean the same values."""
    return qp.bits, qp.signed, qp.scale.tobytes(), qp.zero_point.tobytes()


def _shared(inputs: list[Tensor]) -> QParams | None:
    """The per-tensor params that all inputs carry, or None."""
    first = inputs[0].qp
    if first is None or first.granularity != "tensor" or not all(t.small for t in inputs):
        return None
    return first if len({_numbers(t.qp) for t in inputs if t.qp is not None}) == 1 else None


def _codes(value: Tensor, qp: QParams, rounding: str) -> np.ndarray:
    """In their smallest dtype, a few images at a time where no scale belongs to an image."""
    if qp.bits > 16 or not value.shape or (qp.granularity != "tensor" and qp.axis == 0):
        return quantize(value.real, qp, rounding)
    dtype = code_dtype(qp)
    return in_blocks(lambda rows: quantize(value.part(rows).real, qp, rounding).astype(dtype), value.shape)


def _adds_alike(node: Node, inputs: list[Tensor]) -> bool:
    """A sum of tensors of one shape with the images in front, which needs no more than a few images of each at once."""
    return (ops.info(node.op).combines == ops.SUM and len({t.shape for t in inputs}) == 1 and inputs[0].shape != ()
            and all(t.qp is None or t.qp.granularity == "tensor" for t in inputs))


def evaluate(node: Node, inputs: list[Tensor], rounding: str = "mxnet") -> list[Tensor]:
    """Outputs of one node. Raises UnsupportedError for an op without a kernel."""
    if node.op == "fake_quantize":
        qp = node.quant
        if qp is not None and qp.online:
            if qp.bits == 32:
                return [Tensor(inputs[0].real, follows=True)]
            qp = online_params(qp, inputs[0].real)
        if not isinstance(qp, QParams):  # a decision without numbers yet: float passes through
            return [inputs[0]]
        return [Tensor(codes=_codes(inputs[0], qp, rounding), qp=qp)]
    if node.op not in KERNELS:
        raise UnsupportedError(f"{node}: the reference interpreter has no kernel for this op; add one with "
                               f"@qgraph.semantics.kernels.kernel({node.op!r})")
    if node.op in LINEAR:
        exact = _integer_linear(node, inputs)
        if exact is not None:
            return [exact]
    run_kernel: Callable = KERNELS[node.op]
    passes = ops.kind(node) == ops.PASS or node.op in ops.IDENTITIES or node.op == "Concat"
    values = inputs[:1] if node.op in ("slice_like", "Crop") else inputs  # the others only lend their shape
    shared = _shared(values) if passes else None
    if _adds_alike(node, inputs):
        return [Tensor(in_blocks(lambda rows: np.asarray(run_kernel(node, *(t.part(rows).real for t in inputs)),
                                                         np.float32), inputs[0].shape))]
    if shared is not None:
        out = run_kernel(node, *(t.centered if t.small else t.real for t in inputs))
        return [Tensor(centered=array, qp=shared) for array in (out if isinstance(out, list) else [out])]
    out = run_kernel(node, *(t.real for t in inputs))
    return [Tensor(np.asarray(array, np.float32)) for array in (out if isinstance(out, list) else [out])]


# ---- the interpreter ------------------------------------------------------------------------------------------------

RunOp = Callable[[Node, Sequence[Union[np.ndarray, Node]], Sequence[bool]], Sequence[np.ndarray]]
"""(node, its inputs, which of them depend on parameters alone) -> its outputs. Raises UnsupportedError.

An input that is a node has no inputs of its own, and its reader decides on its shape: _zeros() {shape=(0, 8)}.
"""


class Executor:
    """Runs a graph again and again; what depends on parameters alone (quantized weights) is computed once.

    watch: the ports to return instead of the heads.  Nodes that no watched port depends on are not run.
    rounding: how `fake_quantize` rounds, a key of `qgraph.quant.spec.ROUNDING`.
    run_op: what computes an op that fails here.  What it cannot compute either is unknown, and what depends on that.
    The graph must not change while the executor is in use.
    """

    def __init__(self, graph: Graph, watch: Sequence[Port] | None = None, rounding: str = "mxnet",
                 run_op: RunOp | None = None) -> None:
        self.graph, self.rounding, self.run_op = graph, rounding, run_op
        self.watch = list(graph.heads if watch is None else watch)
        self._inputs = {node: value_inputs(graph, node) for node in graph.toposort()}
        needed: set[Node] = set()
        pending = [port.node for port in self.watch]
        while pending:
            node = pending.pop()
            if node not in self._inputs:
                raise GraphError(f"{node}: found it outside the graph, want a port that the heads depend on")
            if node not in needed:
                needed.add(node)
                pending += [port.node for port in self._inputs[node]]
        self.order = [node for node in self._inputs if node in needed]
        self._last_reader = {port: node for node in self.order for port in self._inputs[node]}
        self._dies: dict[Node, list[Port]] = {node: [] for node in self.order}
        for port, node in self._last_reader.items():
            self._dies[node].append(port)
        self._constants: dict[Node, list[Tensor]] = {
            node: [Tensor(np.asarray(graph.params[node.name], np.float32))]
            for node in self.order if graph.is_param(node)}
        self._checked: set[tuple] = set()

    @property
    def inputs(self) -> list[str]:
        return inputs_of(self.graph)

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        """(batch, values) for every batch."""
        for batch in batches:
            yield batch, self.run(batch.feeds)

    def walk(self, feeds: Mapping[str, np.ndarray]) -> Iterator[tuple[Node, list[Tensor], list[Tensor]]]:
        """(node, inputs, outputs) of each node, variables too, in topological order, as it is computed.

        Later nodes read what the caller leaves in `outputs`, which is empty for a node whose values are unknown.
        """
        arrays = self._feed(feeds)
        values: dict[Port, Tensor] = {}
        for node in self.order:
            ports = self._inputs[node]
            inputs = [values[port] for port in ports if port in values]
            unknown = [port.node for port in ports if port not in values]
            if node in self._constants:
                outputs = self._constants[node]
            elif node.op == "null":
                outputs = [Tensor(arrays[node.name])]
            elif any(self._inputs[source] for source in unknown):
                outputs = []
            else:
                outputs = self.evaluate(node, [values.get(port) for port in ports])
                if outputs and ports and all(port.node in self._constants for port in ports):
                    self._constants[node] = outputs
            yield node, inputs, outputs
            for index, tensor in enumerate(outputs):
                if (port := Port(node, index)) in self._last_reader:
                    values[port] = tensor
            for port in self._dies[node]:
                values.pop(port, None)

    def known_tensors(self, feeds: Mapping[str, np.ndarray]) -> dict[Port, Tensor]:
        """Values of the watched ports, with their codes, without those that are unknown."""
        found: dict[Port, Tensor] = {}
        watched = {port.node for port in self.watch}
        for node, _, outputs in self.walk(feeds):
            if node in watched:
                found.update((Port(node, index), tensor) for index, tensor in enumerate(outputs))
        return found

    def run_tensors(self, feeds: Mapping[str, np.ndarray]) -> list[Tensor]:
        """Values of the watched ports, with their codes. Raises UnsupportedError for one that is unknown."""
        found = self.known_tensors(feeds)
        if unknown := [port.key for port in self.watch if port not in found]:
            raise UnsupportedError(f"{unknown[0]}: its value is unknown, as neither the reference nor the engine runs "
                                   "an op that it depends on")
        return [found[port] for port in self.watch]

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Real values (float32) of the watched ports. feeds: an array per input, by name."""
        return [tensor.real for tensor in self.run_tensors(feeds)]

    def _feed(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = [n.name for n in self.order if n.op == "null" and n not in self._constants]
        missing = [name for name in wanted if name not in feeds]
        if missing:
            raise DataError(f"feeds: found {', '.join(sorted(feeds)) or 'none'}, want also {', '.join(missing[:5])}")
        arrays = {name: np.asarray(feeds[name], np.float32) for name in wanted}
        shapes = {name: array.shape for name, array in arrays.items()}
        if self.run_op is None and (key := tuple(sorted(shapes.items()))) not in self._checked:
            infer(self.graph, shapes)  # a clear message before anything is allocated
            self._checked.add(key)
        return arrays

    def evaluate(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Tensor]:
        """The outputs of a node of the graph for any inputs; [] where they are not known."""
        known = [tensor for tensor in inputs if tensor is not None]
        try:
            if len(known) == len(inputs):
                return self._own(node, known)
        except QGraphError:
            if self.run_op is None:
                raise
        if self.run_op is None or not inputs:
            return []
        ports = self._inputs[node]
        values = [port.node if tensor is None else tensor.real for port, tensor in zip(ports, inputs)]
        try:
            arrays = self.run_op(node, values, [port.node in self._constants for port in ports])
        except UnsupportedError:
            return []
        return [Tensor(np.asarray(array, np.float32)) for array in arrays]

    def _own(self, node: Node, inputs: list[Tensor]) -> list[Tensor]:
        try:
            with np.errstate(all="ignore"):  # NaN and Inf are values here, for the caller to find
                outputs = evaluate(node, inputs, self.rounding)
        except QGraphError:
            raise
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, MemoryError) as error:
            raise GraphError(f"{node}: failed on inputs of {[t.real.shape for t in inputs]}: {error}") from error
        if len(outputs) < node.n_out:
            raise UnsupportedError(f"{node}: found {len(outputs)} outputs from the kernel, want {node.n_out}")
        return outputs


def run(graph: Graph, feeds: Mapping[str, np.ndarray], watch: Sequence[Port] | None = None,
        rounding: str = "mxnet") -> list[np.ndarray]:
    """Run a graph once, see `Executor`."""
    return Executor(graph, watch, rounding).run(feeds)
