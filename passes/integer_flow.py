"""Keep values in integers from one layer to the next."""

from __future__ import annotations

import dataclasses

from qgraph.analysis.codes import before_quantizer, is_dense, passes_integers, ranged, upper_end
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._placing import activation_spec, ensure_quantizer, quantizer_of
from qgraph.quant.spec import QSpec


@register
class IntegerFlow(Pass):
    """Place quantizers for MXNet's kernels (mxnet): one wherever the integer engine rounds, and nowhere else.

    Case 1, hoist: a quantizer behind an op that only passes values on goes in front of it (exact), where the layer
    that made the values can produce integers itself.

        fq(pool(conv))       ->  pool(fq(conv))
        fq(concat(a, b))     ->  concat(fq(a), fq(b)), ranges of the concat

    Case 2, residual: one operand is accumulated before rounding (the convolution with no other reader), the other must
    be an integer, and so is the sum.

        add(conv(x), y)      ->  fq(add(conv(x), fq(y)))

    Case 3, output: what a quantized convolution writes is rounded even if a float op reads it.  A FullyConnected, or a
    1x1 convolution of a globally pooled map, can write floats.

    The output of a convolution or sum with a fused activation is unsigned, without one signed: that is what the
    kernels write.

    exact: only what changes no value, for networks that were trained quantized: case 1, where nobody else reads what is
    passed on.
    """

    name = "integer-flow"
    requires = ("insert-fake-quantize",)
    exact: bool = False

    def run(self, g: Graph) -> int:
        flow = _Flow(g)
        if self.exact:
            flow.hoist_exactly()
            return flow.count
        flow.hoist()
        flow.residuals()
        flow.outputs()
        return flow.count


class _Flow:
    def __init__(self, g: Graph) -> None:
        self.g, self.count = g, 0
        self.order = g.toposort()
        self.position = {n: i for i, n in enumerate(self.order)}
        self.dtype: dict[Node, str] = {}  # "u" or "s": the codes that the node's kernel writes; "" is float
        self.end: dict[Node, float | None] = {}  # where these codes end, see `upper_end`
        for node in self.order:
            self.dtype[node] = self._output_dtype(node)
            passed = passes_integers(node) or node.op == "fake_quantize"
            self.end[node] = self.end[g.inputs(node)[0].node] if passed else upper_end(node)
        # act is for tensors that layers with weights read; a tensor that only float ops read keeps its full range
        self.act = activation_spec(g)
        self.output = dataclasses.replace(self.act, whole=True) if self.act is not None else None

    def _output_dtype(self, node: Node) -> str:
        inputs = self.g.inputs(node)
        if node.op == "Convolution":
            quantized = len(inputs) > 1 and all(p.node.op == "fake_quantize" for p in inputs[:2])
            return ("u" if node.fused is not None else "s") if quantized else ""
        if node.op == "elemwise_add":
            return self._sum_dtype(node, inputs)
        if node.op == "fake_quantize" or passes_integers(node):
            kinds = {(self.dtype[p.node], self.end[p.node]) for p in inputs}  # one range must be right for all
            return kinds.pop()[0] if len(kinds) == 1 else ""
        return ""

    def _sum_dtype(self, add: Node, inputs: list[Port]) -> str:
        """With an activation a sum needs a convolution to be fused into; without, integers can be added as they are."""
        if add.fused is not None:
            return "u" if any(self._can_accumulate(p) for p in inputs) else ""
        dtypes = {self.dtype[p.node] for p in inputs}
        if any(self._can_accumulate(p) for p in inputs):
            return "s"
        return "" if "" in dtypes else "s" if "s" in dtypes else "u"

    def _can_accumulate(self, port: Port) -> bool:
        node = port.node
        return (node.op == "Convolution" and bool(self.dtype[node]) and node.fused is None
                and self.g.has_one_use(port))

    def _quantizer(self, port: Port) -> Node | None:
        return quantizer_of(self.g, port)

    def _ensure(self, port: Port, spec: QSpec) -> Node:
        fq, changed = ensure_quantizer(self.g, port, spec)
        self.dtype.setdefault(fq, self.dtype[port.node])
        self.count += changed
        return fq

    def hoist(self) -> None:
        for node in reversed(self.order):
            fq = self._quantizer(Port(node)) if self.dtype[node] and node.op != "fake_quantize" else None
            if fq is None:
                continue
            self._ensure(Port(node), fq.quant)  # type: ignore[arg-type]
            if passes_integers(node):
                self._move(fq, node)

    def hoist_exactly(self) -> None:
        for node in reversed(self.order):
            fq = self._quantizer(Port(node)) if self.dtype[node] and passes_integers(node) else None
            ports = [*self.g.inputs(node), Port(node)]
            if fq is not None and all(self.g.has_one_use(port) for port in ports):
                self._move(fq, node)

    def _move(self, fq: Node, node: Node) -> None:
        """Case 1: from behind `node` to all its inputs, where ranges unite with those asked for there."""
        assert fq.quant is not None
        wanted = ranged(self.g, fq)
        self.g.replace_uses(fq, node)
        self.g.remove(fq)
        self.count += 1
        for port in dict.fromkeys(self.g.inputs(node)):
            port = before_quantizer(self.g, port)
            there = self._quantizer(port)
            names = (ranged(self.g, there) if there else ()) + wanted
            moved = self._ensure(port, fq.quant)
            moved.quant = dataclasses.replace(moved.quant or fq.quant, source=tuple(dict.fromkeys(names)))

    def residuals(self) -> None:
        """Case 2."""
        for add in self.order:
            if add.op != "elemwise_add" or not self.dtype[add] or self.act is None:
                continue
            ports = self.g.inputs(add)
            fused = [p for p in ports if self._can_accumulate(p)]
            main = max(fused, key=lambda p: self.position[p.node]) if fused else None
            if main is not None and add.fused is None:
                if any(self.dtype[p.node] == "u" for p in ports):
                    main = None  # without an activation the kernel adds an unsigned operand wrongly
                else:
                    self._sign([p for p in ports if p != main])
            for port in ports:
                if port != main:
                    self._make_integer(port, self.act)
            self._ensure(Port(add), self.output)  # type: ignore[arg-type]

    def _sign(self, ports: list[Port]) -> None:
        """Operands that are quantized from floats get signed codes."""
        for port in ports:
            if not self.dtype[port.node] and self.act is not None:
                fq = port.node if port.node.op == "fake_quantize" else self._ensure(port, self.act)
                if fq.quant is not None and not fq.quant.signed:
                    fq.quant = dataclasses.replace(fq.quant, signed=True)
                    self.count += 1

    def _make_integer(self, port: Port, spec: QSpec) -> None:
        """Quantize a tensor where it is made: in front of the ops that pass integers on."""
        if self._is_integer(port):
            return
        if passes_integers(port.node) and self.dtype[port.node]:
            for source in self.g.inputs(port.node):
                self._make_integer(source, spec)
        else:
            self._ensure(port, spec)

    def _is_integer(self, port: Port) -> bool:
        node = port.node
        return node.op == "fake_quantize" or (passes_integers(node)
                                              and all(self._is_integer(p) for p in self.g.inputs(node)))

    def outputs(self) -> None:
        """Case 3."""
        for node in self.order:
            if node.op not in ("Convolution", "elemwise_add") or not self.dtype[node] or self._is_accumulated(node):
                continue
            if is_dense(self.g, node) and self._quantizer(Port(node)) is None:
                continue
            fq = self._ensure(Port(node), self.output)  # type: ignore[arg-type]
            assert fq.quant is not None
            if fq.quant.signed is None:
                fq.quant = dataclasses.replace(fq.quant, signed=self.dtype[node] == "s")
                self.count += 1

    def _is_accumulated(self, node: Node) -> bool:
        """Read by a sum in integers, which the other operand's quantizer has made its main operand."""
        uses = self.g.uses(node)
        return (len(uses) == 1 and uses[0][0].op == "elemwise_add" and bool(self.dtype[uses[0][0]])
                and self._quantizer(Port(node)) is None)
