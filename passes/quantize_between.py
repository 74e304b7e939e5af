"""Quantize what flows between integer layers, as QDQ engines want it."""

from __future__ import annotations

import dataclasses

from networkx.utils import UnionFind

from qgraph.analysis.codes import combines_codes, quantizer_name, upper_end
from qgraph.analysis.observed import observed_ports
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._placing import KERNEL_BITS, activation_spec, ensure_quantizer, share_range
from qgraph.quant.spec import QSpec


@register
class QuantizeBetween(Pass):
    """Place quantizers for QDQ engines (onnx): on every tensor that an integer op reads or writes.

        conv(fq(x), fq(w))               ->  fq(conv(fq(x), fq(w)))
        conv1 + conv2, read by a layer   ->  fq(fq(conv1) + fq(conv2))
        maxpool(fq(x)), read by a layer  ->  fq'(maxpool(fq(x))), one scale for fq and fq'

    The engine fuses each op with the quantizers around it.  Layers with weights write codes, except a FullyConnected
    without activation that only float ops read.  Sums, products, concatenations, poolings and ops that only move values
    run on codes if they read codes and if a layer with weights reads their result, directly or through such ops.

    Shared scales: an op that passes values on keeps the scale of its input, and the inputs of a Concat take that of its
    output.  An input behind an activation keeps its own if the others end elsewhere: its codes must end where the
    activation does, or the engine could not drop the activation.
    """

    name = "quantize-between"
    requires = ("insert-fake-quantize",)

    def run(self, g: Graph) -> int:
        return _Between(g).run()


class _Between:
    def __init__(self, g: Graph) -> None:
        self.g, self.count = g, 0
        self.order = g.toposort()
        # what layers read is quantized already, and their quantizers hide it
        self.observed = {p.key for p in observed_ports(g)} | {g.inputs(fq)[0].key for fq in g.nodes("fake_quantize")}
        self.integer = self._integer_nodes()
        self.sets = UnionFind()  # quantizers that share a scale

    def run(self) -> int:
        act = activation_spec(self.g)
        if act is None:
            return 0
        for node in self.order:
            if node not in self.integer:
                continue
            if node.op == "FullyConnected":
                self._flatten(node)
            reads = [self._ensure(port, act) for port in self._data(node)]
            if node.op != "FullyConnected" or node.fused is not None or self.wanted[node]:
                # towards float ops nothing is clipped
                self._ensure(Port(node), act if self.wanted[node] else dataclasses.replace(act, whole=True))
            if node.op == "Concat" or ops.kind(node) == ops.PASS:
                self._share(node, reads)
        self._unite()
        return self.count

    def _flatten(self, node: Node) -> None:
        """dense(fq(x))  ->  dense(fq'(flatten(fq(x)))), as engines fuse a dense layer with the quantizer right before.

        Behind a quantizer that others read, or of a tensor that an integer op writes, both stay, with one scale.
        """
        fq = self.g.inputs(node)[0].node
        source = self.g.inputs(fq)[0]
        if not ops.attr(node, "flatten") or source.node.op in ("Flatten", "FullyConnected"):
            return
        flat = self.g.add("Flatten", [fq], node.name + "_flatten", origin=source.node.origin or (source.node.name,))
        behind = self.g.add("fake_quantize", [flat], quantizer_name(Port(flat)), quant=fq.quant, origin=flat.origin)
        self.g.set_input(node, 0, behind)
        self._share(flat, [fq])
        self.count += 1

    def _data(self, node: Node) -> list[Port]:
        """The inputs that flow: not the parameters, and in layers with weights only the data."""
        inputs = self.g.inputs(node)
        return inputs[:1] if ops.kind(node) == ops.COMPUTE else [p for p in inputs if self.g.param(p) is None]

    def _integer_nodes(self) -> set[Node]:
        carries: dict[Node, bool] = {}  # its output comes in codes, or could for nothing
        for node in self.order:
            if node.op == "fake_quantize":
                source = self.g.inputs(node)[0]
                carries[node] = self.g.param(source) is None and _fits_kernels(node)
            elif ops.kind(node) == ops.COMPUTE:
                carries[node] = self._is_integer_layer(node)
            elif combines_codes(node):
                ports = self._data(node)
                carries[node] = len(ports) > 1 and any(carries[p.node] for p in ports)
            else:
                carries[node] = self._moves(node) and carries[self.g.inputs(node)[0].node]
        self.wanted: dict[Node, bool] = {}  # a layer with weights reads it, maybe through such ops
        found: set[Node] = set()
        for node in reversed(self.order):
            readers = self.g.readers(node)
            self.wanted[node] = any(v in found and (ops.kind(v) == ops.COMPUTE or self.wanted[v])
                                    or v.op == "fake_quantize" and self.wanted[v] for v in readers)
            if ops.kind(node) == ops.COMPUTE:
                if carries[node]:
                    found.add(node)
            elif carries[node] and self.wanted[node] and node.op != "fake_quantize":
                found.add(node)
        return found

    def _is_integer_layer(self, node: Node) -> bool:
        inputs = self.g.inputs(node)
        return len(inputs) > 1 and all(p.node.op == "fake_quantize" and _fits_kernels(p.node) for p in inputs[:2])

    def _moves(self, node: Node) -> bool:
        """One input, one output, of values from the input's range."""
        return ops.kind(node) in (ops.PASS, ops.AVERAGE) and node.n_out == 1 and len(self.g.inputs(node)) == 1

    def _ensure(self, port: Port, spec: QSpec) -> Node:
        """The fake_quantize of a port, read by all its readers; a new one if there is none."""
        if port.node.op == "fake_quantize":
            return port.node
        fq, changed = ensure_quantizer(self.g, port, spec)
        self.count += changed
        return fq

    # ---- scales -----------------------------------------------------------------------------------------------------

    def _share(self, node: Node, reads: list[Node]) -> None:
        written = next(v for v, _ in self.g.uses(node) if v.op == "fake_quantize")
        if node.op == "Concat":
            ends = [self._ends(fq) for fq in reads]
            if len(set(ends)) > 1:
                free = (False, None) if not all(zero for zero, _ in ends) else (True, None)
                reads = [fq for fq, end in zip(reads, ends) if end == free]
        for fq in reads:
            self.sets.union(fq, written)

    def _ends(self, fq: Node) -> tuple[bool, float | None]:
        """Whether its values come from a fused activation, through ops that pass values on, and where that ends."""
        node = self.g.inputs(fq)[0].node
        while node.op == "fake_quantize" or node.op == "Concat" or self._moves(node):
            node = self.g.inputs(node)[0].node
        if node.fused is not None:
            return node.fused.act in ("relu", "clip"), upper_end(node)
        return node.op == "Activation" and ops.attr(node, "act_type") == "relu", None

    def _unite(self) -> None:
        """One range for what shares a scale: the union of those of its tensors that calibration looks at."""
        groups: dict[Node, list[Node]] = {}
        for node in self.g.nodes("fake_quantize"):
            if node in self.sets.parents:
                groups.setdefault(self.sets[node], []).append(node)
        for group in groups.values():
            sources = {fq.quant.source for fq in group if fq.quant is not None}
            if len(sources) == 1 and () not in sources:
                continue  # united by an earlier run
            names = tuple(name for name in dict.fromkeys(self.g.inputs(fq)[0].key for fq in group)
                          if name in self.observed)
            self.count += share_range(group, names)


def _fits_kernels(fq: Node) -> bool:
    return fq.quant is not None and fq.quant.bits <= KERNEL_BITS and not fq.quant.alone
