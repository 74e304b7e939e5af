"""ncnn's layers from a graph, in float or, where it has fake_quantize nodes, with layers in int8.

    conv(fq(x), fq(w), b)  ->  Convolution with int8 weights, their scales, the scale of x, and b in float

Between layers values are float32, but where ncnn's own tool keeps them in int8 (`int8.fuse_requantize`).  Layers
keep the names of the graph's nodes, and blobs those of the nodes that have the value in the user's model.
Converters of single ops are in `nn`, `math` and `shape`; see `convert` to add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qgraph.analysis.channels import factors_of
from qgraph.analysis.codes import nonnegative
from qgraph.errors import GraphError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams
from qgraph.semantics.cut import refused_by
from qgraph.semantics.infer import Shape, infer, value_inputs, value_nodes
from qgraph.semantics.interpreter import Tensor, evaluate
from qgraph.semantics.kernels import KERNELS
from qgraph.targets.ncnn import math as _math  # noqa: F401  (the import fills the table)
from qgraph.targets.ncnn import nn  # noqa: F401
from qgraph.targets.ncnn import shape as _shape  # noqa: F401
from qgraph.targets.ncnn.convert import CONVERTERS, MAX_RANK, Context, missing, sizes
from qgraph.targets.ncnn.files import Layer
from qgraph.targets.ncnn.int8 import fuse_requantize, limit_winograd
from qgraph.targets.ncnn.model import NcnnModel
from qgraph.targets.ncnn.runtime import Codes

_BATCHES = (2, 3)
_FILLS = {"zeros_like": 0.0, "ones_like": 1.0, "_zeros": 0.0, "_ones": 1.0, "_full": 0.0}


def to_ncnn(g: Graph, shapes: Mapping[str, Sequence[int]] | None = None) -> NcnnModel:
    """The graph as an ncnn model, for one image at a time.

    shapes: of the inputs by name, with any batch size; some ops need them.
    Raises UnsupportedError naming the node that ncnn, or a converter, cannot carry.
    """
    return _Emitter(g, dict(shapes or {})).run()


def refused(g: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[Node, str]:
    """Node -> why it cannot be carried, see `Target.refused`."""
    return refused_by(g, _Emitter(g, dict(shapes)).carry)


def carried_ops() -> dict[str, str]:
    """Op -> how an ncnn model carries it: "yes", or "constant" where its value is written in its place."""
    return {**dict.fromkeys(_FILLS, "constant"), **dict.fromkeys(CONVERTERS, "yes")}


def batch_shapes(g: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[Port, Shape]:
    """Shape of every known port: -1 is a first axis that is the batch, -2 what depends on its size in another way.

    A network that is written for one image has neither.
    """
    if not shapes:
        return {}

    def of(batch: int) -> dict[Port, Shape]:
        return infer(g, {name: (batch, *shape[1:]) for name, shape in shapes.items()})

    try:
        first, second = (of(batch) for batch in _BATCHES)
    except GraphError:
        return of(1)
    return {port: tuple(a if a == b else -1 if (axis, a, b) == (0, *_BATCHES) else -2
                        for axis, (a, b) in enumerate(zip(shape, second[port])))
            for port, shape in first.items() if port in second and len(second[port]) == len(shape)}


def _of_one(shape: Shape) -> list[int]:
    """The shape of a batch of one image."""
    return [1 if d < 0 else d for d in shape]


class _Emitter:
    def __init__(self, g: Graph, shapes: dict[str, Sequence[int]]) -> None:
        self.g, self.order = g, g.toposort()
        self.input_shapes = shapes
        self.shapes = batch_shapes(g, shapes)
        self.layers: list[Layer] = []
        self.blobs: dict[Port, str] = {}
        self.constants: dict[Port, np.ndarray] = {}
        self.fused: dict[Node, Node] = {}  # activation -> the layer that has taken it in
        self.nonnegative = nonnegative(g)
        self.made_for: dict[str, Node] = {}  # layer -> node
        self._count = 0

    def fresh(self) -> str:
        """A name for the time being; `_names` gives the final ones."""
        self._count += 1
        return f" {self._count}"

    def add(self, layer: Layer, node: Node) -> None:
        self.made_for[layer.name] = node
        self.layers.append(layer)

    # ---- the whole --------------------------------------------------------------------------------------------------

    def run(self) -> NcnnModel:
        reached = value_nodes(self.g)
        for node in self.order:
            if node in reached:
                self.carry(node)
        heads = [self._head(head) for head in self.g.heads]
        quantizers = {fq: self.blobs[Port(fq)] for fq in self.g.nodes("fake_quantize") if Port(fq) in self.blobs}
        wanted = _names(self.g, self.order, self.layers, self.blobs, self.made_for, self.fused)
        outputs = _split(self.layers, heads, wanted)
        fused = fuse_requantize(self.layers)
        masked = limit_winograd(self.layers, {wanted[b] for p, b in self.blobs.items() if p in self.nonnegative})
        codes = {fq: Codes(wanted[blob], fq.quant) for fq, blob in quantizers.items()
                 if isinstance(fq.quant, QParams)}
        return NcnnModel(self.layers, outputs, integers=codes, requantized=fused, masked=masked,
                         factors=factors_of(self.g))

    def _head(self, head: Port) -> str:
        if head not in self.blobs:
            self.blobs[head] = Context(self, head.node, [head]).blob()
        if head.node.op == "null":
            return str(Context(self, head.node, [head]).layer("Noop", self.blobs[head]))
        return self.blobs[head]

    # ---- values -----------------------------------------------------------------------------------------------------

    def blob(self, port: Port) -> str:
        if port not in self.blobs:
            raise UnsupportedError(f"{port.key}: is read as a value of the image, but it is a constant")
        return self.blobs[port]

    def constant(self, port: Port) -> np.ndarray | None:
        return self.constants.get(port)

    def carry(self, node: Node) -> None:
        """Add what stands for this node. Raises UnsupportedError."""
        ports = value_inputs(self.g, node)
        if node.op == "null":
            self._variable(node)
        elif node.op == "fake_quantize":
            self._quantizer(node, ports[0])
        elif node in self.fused:
            self.blobs[Port(node)] = self.blobs[Port(self.fused[node])]
        elif not self._fold(node, ports):
            if node.op not in CONVERTERS:
                raise missing(node)
            found = CONVERTERS[node.op](Context(self, node, ports))
            for index, name in enumerate([found] if isinstance(found, str) else found):
                self.blobs[Port(node, index)] = name

    def _variable(self, node: Node) -> None:
        port = Port(node)
        if node.name in self.g.params:
            self.constants[port] = self.g.params[node.name]
            return
        shape = self.input_shapes.get(node.name, ())
        if len(shape) > MAX_RANK + 1:
            raise UnsupportedError(f"{node.name}: has the shape {tuple(shape)}, and an input of ncnn at most "
                                   f"{MAX_RANK} axes besides the batch")
        params = sizes(shape[1:])
        name = self.blobs[port] = self.fresh()
        self.add(Layer("Input", self.fresh(), [], [name], {k: v for k, v in params.items() if v}), node)

    def _quantizer(self, fq: Node, source: Port) -> None:
        if not isinstance(fq.quant, QParams):
            raise UnsupportedError(f"{fq.name}: not calibrated, so it cannot be written")
        if source in self.constants:
            self.constants[Port(fq)] = self.constants[source]
            return
        for reader, slot in self.g.uses(fq):
            if ops.kind(reader) != ops.COMPUTE or slot or self.g.inputs(reader)[1].node.op != "fake_quantize":
                raise UnsupportedError(f"{fq.name}: is read by {reader}, which is no integer layer: ncnn quantizes "
                                       "what such layers read, and nothing else")
        self.blobs[Port(fq)] = self.blobs[source]

    def _fold(self, node: Node, ports: list[Port]) -> bool:
        """What depends on parameters and shapes alone, such as anchors, is computed now."""
        shape_only = ops.SHAPE_ONLY.get(node.op, ())
        unclear = [p for slot, p in enumerate(ports) if slot in shape_only and -2 in self.shapes.get(p, (-2,))]
        if node.op in _FILLS and (not ports or -2 not in self.shapes.get(ports[0], (-2,))):
            shape = self.shapes[ports[0]] if ports else ops.attr(node, "shape")
            value = ops.attr(node, "value") if node.op == "_full" else _FILLS[node.op]
            self.constants[Port(node)] = np.full(_of_one(shape), value, np.float32)
            return True
        if node.op not in KERNELS or unclear or not all(
                p in self.constants or (slot in shape_only and p in self.shapes) for slot, p in enumerate(ports)):
            return False
        arrays = [self.constants[p] if p in self.constants else
                  np.zeros(_of_one(self.shapes[p]), np.float32) for p in ports]
        for index, tensor in enumerate(evaluate(node, [Tensor(np.asarray(a, np.float32)) for a in arrays])):
            self.constants[Port(node, index)] = tensor.real
        return True

    def take_activation(self, node: Node, kinds: Sequence[str]) -> Node | None:
        """The only reader of a layer, if it is an activation that the layer can carry: it is taken in."""
        if not self.g.has_one_use(node):
            return None
        reader, slot = self.g.uses(node)[0]
        kind = ops.attr(reader, "act_type") if reader.op in ("Activation", "LeakyReLU") else reader.op
        if slot or kind not in kinds:
            return None
        self.fused[reader] = node
        return reader


# ---- names ----------------------------------------------------------------------------------------------------------

def _names(g: Graph, order: Sequence[Node], layers: list[Layer], blobs: Mapping[Port, str],
           made_for: Mapping[str, Node], fused: Mapping[Node, Node]) -> dict[str, str]:
    """Give blobs and layers their names; name for the time being -> name of the blob.

    A layer that makes a node's value is called as the node, a blob as the node of the user's model that has this value:
    with an activation taken in, as the activation.
    """
    users = {n.name for n in order}
    heads = set(g.heads)
    wanted: dict[str, str] = {}
    given: set[str] = set()
    for port, blob in blobs.items():
        node = port.node
        if node.op == "fake_quantize" or (blob in wanted and node not in fused):
            continue  # passed on
        name = port.key
        carries = node.fused is not None or (node.op == "LeakyReLU" and "act_type" in node.attrs)
        if port.index == 0 and node.origin and node.origin[-1] not in users and (carries or port in heads):
            name = node.origin[-1]
        wanted[blob] = port.key if name in given else name
        given.add(wanted[blob])
    taken = set(given)

    def unique(base: str) -> str:
        name, number = base, 0
        while name in taken:
            number += 1
            name = f"{base}{number}"
        taken.add(name)
        return name

    called: set[str] = set()
    primary: dict[Node, Layer] = {}
    for layer in layers:  # of several layers the one with weights, else the last, has the node's name
        node = made_for[layer.name]
        if node not in primary or not primary[node].weights or primary[node].type == "MemoryData":
            primary[node] = layer
    for layer in layers:
        node = made_for[layer.name]
        for blob in layer.outputs:
            if blob not in wanted:
                wanted[blob] = unique(f"{node.name}/{layer.type.lower()}")
    for layer in layers:
        node = made_for[layer.name]
        name = node.name if primary[node] is layer else wanted[layer.outputs[0]]
        base, number = name, 0
        while name in called:
            number += 1
            name = f"{base}/{layer.type.lower()}{number if number > 1 else ''}"
        called.add(name)
        layer.name = name
        layer.inputs = [wanted[blob] for blob in layer.inputs]
        layer.outputs = [wanted[blob] for blob in layer.outputs]
    return wanted


def _split(layers: list[Layer], heads: Sequence[str], wanted: dict[str, str]) -> list[str]:
    """Put a Split behind every blob with several readers, heads among them; the names of the outputs.

    An output keeps its name: what makes a blob that others read too gets another one, which `wanted` then says.
    """
    readers: dict[str, list[tuple[Layer, int]]] = {}
    for layer in layers:
        for slot, blob in enumerate(layer.inputs):
            readers.setdefault(blob, []).append((layer, slot))
    outputs: list[str] = []
    names = [wanted[head] for head in heads]
    taken = {blob for layer in layers for blob in layer.outputs}
    for index, name in enumerate(names):
        copy = name
        while copy in outputs or (copy != name and copy in taken):
            copy = f"{name}_{index}" if copy == name else copy + "_"
        outputs.append(copy)
    result: list[Layer] = []
    for layer in layers:
        result.append(layer)
        for at, blob in enumerate(layer.outputs):
            uses = readers.get(blob, [])
            copies = [copy for copy, name in zip(outputs, names) if name == blob]
            if len(uses) + len(copies) < 2:
                continue
            source = blob
            if copies:
                source = layer.outputs[at] = f"{blob}_split"
                for key, name in wanted.items():
                    if name == blob:
                        wanted[key] = source
            branches = [f"{blob}_splitncnn_{i}" for i in range(len(uses))]
            for (reader, slot), branch in zip(uses, branches):
                reader.inputs[slot] = branch
            result.append(Layer("Split", f"splitncnn_{blob}", [source], [*branches, *copies]))
    layers[:] = result
    return outputs
