"""Tengine's nodes from a graph: in float, or, where it has fake_quantize nodes, in int8 from inputs to outputs.

    fq(conv(fq(x), fq(w), fq(b)))  ->  Convolution: int8 tensors x and conv with one scale, int8 w and int32 b with one
                                       per output channel, the activation inside

Nodes keep the names of the graph's nodes.  Converters of single ops are in `nn`; see `convert` to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qgraph.analysis.channels import factors_of
from qgraph.analysis.codes import before_quantizer, folded_graph
from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams
from qgraph.semantics.cut import refused_by
from qgraph.semantics.infer import infer, value_inputs, value_nodes
from qgraph.targets.tengine.check import float_only, stays_in_float
from qgraph.targets.tengine.convert import CONVERTERS, FLOAT_ONLY, Context, check_activation, missing, new_layer
from qgraph.targets.tengine.export import INPUT_NAMES, scale_file
from qgraph.targets.tengine.files import FP32, INPUT, INT8, Model, Param, Tensor
from qgraph.targets.tengine.model import TengineModel, with_export


def to_tengine(g: Graph, shapes: Mapping[str, Sequence[int]] | None = None) -> TengineModel:
    """The graph as a Tengine model, with a batch of one.

    shapes: of the inputs by name, with any batch size; some ops need them.
    Raises UnsupportedError naming the node that Tengine, or a converter, cannot carry.
    """
    return _Emitter(g, dict(shapes or {})).run()


def carried_ops() -> dict[str, str]:
    """Op -> how a Tengine model carries it: "yes", or "float" where an int8 model cannot."""
    return {op: "float" if op in FLOAT_ONLY else "yes" for op in CONVERTERS}


def refused(g: Graph, shapes: Mapping[str, Sequence[int]],
            refuse: Callable[[Graph, Node], str] | None = None) -> dict[Node, str]:
    """Node -> why it cannot be carried, see `Target.refused`. refuse: why a layer has no int8 form, if it is to."""
    emitter = _Emitter(g, dict(shapes))

    def carry(node: Node) -> None:
        if refuse is not None and node.op in FLOAT_ONLY:
            raise UnsupportedError(float_only(node))
        if refuse is not None and ops.kind(node) == ops.COMPUTE and (why := refuse(g, node)):
            raise UnsupportedError(stays_in_float(node, why))
        emitter.carry(node)

    return refused_by(g, carry)


def frozen_tengine(g: Graph, shapes: Mapping[str, Sequence[int]] | None = None) -> TengineModel:
    """A quantized graph as a Tengine model, with what Tengine's own tools take."""
    model = with_export(to_tengine(g, shapes), folded_graph(g), shapes)
    names = {} if model.export is None else dict(zip((n.name for n in g.data_inputs()), INPUT_NAMES))
    model.scales = scale_file(g, names)
    return model


class _Emitter:
    def __init__(self, g: Graph, shapes: dict[str, Sequence[int]]) -> None:
        self.g = g
        self.reached = value_nodes(g)
        self.int8 = any(g.param(g.inputs(fq)[0]) is None for fq in g.nodes("fake_quantize"))
        self.input_shapes = {name: (1, *shape[1:]) for name, shape in shapes.items() if len(shape)}
        self.shapes = infer(g, self.input_shapes) if shapes else {}
        self.tm = Model()
        self.tensors: dict[Port, int] = {}
        self._made_by: dict[int, int] = {}  # tensor -> node
        self._params: dict[str, int] = {}
        self._users = {node.name for node in self.reached}
        self._given: set[str] = set()

    def run(self) -> TengineModel:
        for node in self.g.toposort():
            if node in self.reached:
                self.carry(node)
        for head in self.g.heads:
            if self.param(head) is not None or head.node.op == "null":
                raise UnsupportedError(f"{head.key}: is an output of the model and no operator's: Tengine gives back "
                                       "what its nodes compute")
        self.tm.outputs = [self._made_by[self.tensors[head]] for head in self.g.heads]
        return TengineModel(self.tm, factors=factors_of(self.g))

    def carry(self, node: Node) -> None:
        """Add what stands for this node. Raises UnsupportedError."""
        ports = value_inputs(self.g, node)
        if node.op == "null":
            if node.name not in self.g.params:
                self._input(node)
        elif node.op == "fake_quantize":
            self._quantizer(node, ports[0])
        elif node.op not in CONVERTERS:
            raise missing(node)
        elif self.int8 and node.op in FLOAT_ONLY:
            raise UnsupportedError(float_only(node))
        else:
            self.tensors[Port(node)] = CONVERTERS[node.op](Context(self, node, ports))

    def _input(self, node: Node) -> None:
        dims = tuple(self.input_shapes.get(node.name, ()))
        tensor = Tensor(self.name(node.name), INPUT, dims, INT8 if self.int8 else FP32,
                        scales=self.scale_of(node) if self.int8 else None)
        self.tensors[Port(node)] = self.add("InputOp", tensor.name, [], (), tensor)
        self.tm.inputs.append(len(self.tm.layers) - 1)

    def _quantizer(self, fq: Node, source: Port) -> None:
        if not isinstance(fq.quant, QParams):
            raise UnsupportedError(f"{fq.name}: not calibrated, so it cannot be written")
        if source in self.tensors:
            tensor = self.tensors[source]
            own = self.tm.tensors[tensor].scales
            if own is None or own[0] != fq.quant.scale:  # of an op that has no node of its own
                raise UnsupportedError(f"{fq.name}: asks for a scale of {float(fq.quant.scale):.6g} for {source.key}, "
                                       f"which Tengine would keep in {'float' if own is None else f'{own[0]:.6g}'}")
            self.tensors[Port(fq)] = tensor

    # ---- what converters ask for ------------------------------------------------------------------------------------

    def param(self, port: Port) -> np.ndarray | None:
        """The array behind an input, past its quantizer, or None if it is a value."""
        return self.g.param(before_quantizer(self.g, port))

    def scale_of(self, node: Node) -> np.ndarray:
        """The scale of what a node writes: of the fake_quantize that reads it."""
        quants = [v.quant for v, _ in self.g.uses(Port(node)) if v.op == "fake_quantize"]
        if not quants or not isinstance(quants[0], QParams):
            raise UnsupportedError(f"{node}: what it writes has no scale, and in an int8 model of Tengine every value "
                                   "has one; qgraph freeze --target tengine with its own passes gives it one")
        check_activation(quants[0], str(node))
        return np.array([quants[0].scale], np.float32)

    def is_taken(self, name: str) -> bool:
        return name in self._users or name in self._given

    def name(self, base: str) -> str:
        name, number = base, 0
        while name in self._given:
            number += 1
            name = f"{base}_{number}"
        self._given.add(name)
        return name

    def add(self, kind: str, name: str, inputs: Sequence[int], params: Sequence[Param], tensor: Tensor) -> int:
        """A node and the tensor that it writes; the tensor's number. A parameter is written once."""
        if kind == "Const" and name in self._params:
            return self._params[name]
        number = len(self.tm.tensors)
        self.tm.tensors.append(tensor)
        self._made_by[number] = len(self.tm.layers)
        self.tm.layers.append(new_layer(kind, name, inputs, number, params))
        if kind == "Const":
            self._params[name] = number
        return number
