"""The network in float as Tengine's own `convert_tool -f mxnet` reads it, and the scale file of its `quant_tool_int8`.

convert_tool parses MXNet's line layout, not JSON, reads every parameter as float32, and knows few spellings; some
attributes it ignores without a word.  So the export is rewritten where an equal form exists, and refused, with the
reason, where none does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.files import Content
from qgraph.formats.mxnet_json import JsonGraph, JsonNode, compose
from qgraph.formats.mxnet_writer import lower_float
from qgraph.formats.ndarray import dump_params
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams
from qgraph.registry import enter
from qgraph.semantics.infer import Shape, infer

INPUT_NAMES = ("data", "x", "y")  # inputs of other names crash it
_DROPPED = {"label": "lbl", "state": "stt"}  # inputs whose names contain these are dropped
TAKEN = frozenset({
    "Activation", "BatchNorm", "Convolution", "Pooling", "SoftmaxOutput", "SoftmaxActivation", "Concat", "Dropout",
    "LeakyReLU", "FullyConnected", "Reshape", "SwapAxis", "add_n", "clip", "transpose", "Crop", "Flatten", "Embedding",
    "InstanceNorm", "broadcast_mul", "elemwise_add", "elemwise_mul", "L2Normalization", "abs", "ceil", "floor", "sin",
    "cos", "tan"})
"""Ops of convert_tool that compute here what they do in MXNet, once rewritten."""

Rewrite = Callable[["_Export", Node], None]
REWRITES: dict[str, Rewrite] = {}


def rewrite(*names: str) -> Callable[[Rewrite], Rewrite]:
    """Register what makes this op one that convert_tool gets right, or raises UnsupportedError."""
    return enter(REWRITES, names)


def export(g: Graph, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """A copy of a float graph in the form that convert_tool takes. Raises UnsupportedError, naming the node."""
    return _Export(lower_float(g), dict(shapes or {})).run()


class _Export:
    def __init__(self, g: Graph, shapes: dict[str, Sequence[int]]) -> None:
        self.g = g
        self.shapes: dict[Port, Shape] = infer(g, shapes) if shapes else {}

    def run(self) -> Graph:
        for node in self.g.toposort():
            if node.op in REWRITES:
                REWRITES[node.op](self, node)
            if node.op != "null" and node.op not in TAKEN:
                raise refuse(node, "convert_tool does not know this op")
            node.attrs = {key: value for key, value in node.attrs.items() if not key.startswith("__")}
        inputs = self.g.data_inputs()
        if len(inputs) > len(INPUT_NAMES):
            raise refuse(inputs[len(INPUT_NAMES)], f"convert_tool takes at most {len(INPUT_NAMES)} inputs")
        for node in self.g.toposort():
            if node in inputs:
                self._free(INPUT_NAMES[inputs.index(node)], node)
                self.g.rename(node, INPUT_NAMES[inputs.index(node)])
            elif node.op == "null":
                name = node.name
                for word, other in _DROPPED.items():
                    name = name.replace(word, other)
                self.g.rename(node, name)
        return self.g

    def _free(self, name: str, wanted_by: Node) -> None:
        for node in self.g.toposort():
            if node.name == name and node is not wanted_by:
                self.g.rename(node, f"{name}_node")


def refuse(node: Node, why: str) -> UnsupportedError:
    return UnsupportedError(f"{node}: {why}")


@rewrite("Convolution")
def _convolution(e: _Export, node: Node) -> None:
    """It ignores dilation: the same kernel with zeros between its taps."""
    dilate, port = ops.attr(node, "dilate"), e.g.inputs(node)[1]
    weight = e.g.param(port)
    if not ops.is_2d(node):
        raise refuse(node, "convert_tool has 2-D convolutions, NCHW, alone")
    if dilate == (1, 1):
        return
    if weight is None:
        raise refuse(node, "convert_tool ignores dilation")
    sizes = tuple(d * (k - 1) + 1 for d, k in zip(dilate, weight.shape[2:]))
    spread = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    spread[:, :, ::dilate[0], ::dilate[1]] = weight
    e.g.set_input(node, 1, e.g.add_param(f"{port.node.name}_spread", spread, origin=(port.node.name,)))
    node.attrs.update(kernel=str(sizes), dilate="(1, 1)")
    e.g.prune()


@rewrite("Pooling")
def _pooling(e: _Export, node: Node) -> None:
    how, convention = ops.attr(node, "pool_type"), ops.attr(node, "pooling_convention")
    if how not in ("max", "avg") or convention not in ("valid", "full"):
        raise refuse(node, "convert_tool has max and average pooling, valid or full, alone")
    if how == "avg" and not ops.attr(node, "global_pool"):
        if any(ops.attr(node, "pad")) and ops.attr(node, "count_include_pad"):
            raise refuse(node, "convert_tool leaves the padding out of an average, and this one counts it "
                               "(count_include_pad)")
        node.attrs["count_include_pad"] = "False"


@rewrite("clip")
def _clip(e: _Export, node: Node) -> None:
    """It compares strings: "0" and "6" make a ReLU6."""
    if (ops.attr(node, "a_min"), ops.attr(node, "a_max")) != (0.0, 6.0):
        raise refuse(node, "convert_tool takes a clip to 0..6 alone")
    node.attrs = {"a_min": "0", "a_max": "6"}


@rewrite("relu", "sigmoid", "tanh")
def _activation(e: _Export, node: Node) -> None:
    node.op, node.attrs = "Activation", {"act_type": node.op}


@rewrite("Activation")
def _known_activation(e: _Export, node: Node) -> None:
    if ops.attr(node, "act_type") not in ("relu", "sigmoid", "tanh"):
        raise refuse(node, f"convert_tool has no activation {ops.attr(node, 'act_type')}")


@rewrite("LeakyReLU")
def _leaky_relu(e: _Export, node: Node) -> None:
    """The slope has to be said."""
    kind = ops.attr(node, "act_type")
    if kind not in ("leaky", "elu", "prelu"):
        raise refuse(node, f"convert_tool has no LeakyReLU of {kind}")
    node.attrs = {"act_type": kind, **({} if kind == "prelu" else {"slope": f"{ops.attr(node, 'slope'):.9g}"})}


@rewrite("softmax")
def _softmax(e: _Export, node: Node) -> None:
    shape, axis = e.shapes.get(e.g.inputs(node)[0]), ops.attr(node, "axis")
    if ops.attr(node, "temperature") is not None or ops.attr(node, "use_length") or not (
            shape is not None and axis in (1, 1 - len(shape))):
        raise refuse(node, "convert_tool has a softmax over axis 1 alone, and wants to know its shape (--input-shape)")
    node.op, node.attrs = "SoftmaxActivation", {} if len(shape) == 2 else {"mode": "channel"}


@rewrite("broadcast_add")
def _add(e: _Export, node: Node) -> None:
    first, second = (e.shapes.get(port) for port in e.g.inputs(node))
    if first is None or first != second:
        raise refuse(node, "convert_tool adds values of one shape alone")
    node.op = "elemwise_add"


@rewrite("mean", "_contrib_AdaptiveAvgPooling2D")
def _mean(e: _Export, node: Node) -> None:
    """Over height and width: a global average pooling, and a Flatten where the axes go."""
    flat = node.op == "mean" and not ops.attr(node, "keepdims")
    if node.op == "mean":
        shape = e.shapes.get(e.g.inputs(node)[0])
        axes = sorted(axis % 4 for axis in ops.attr(node, "axis"))
        if shape is None or len(shape) != 4 or axes != [2, 3] or ops.attr(node, "exclude"):
            raise refuse(node, "convert_tool has a mean over height and width alone")
    elif ops.attr(node, "output_size") not in ((), (1,), (1, 1)):
        raise refuse(node, "convert_tool has no adaptive pooling but for the size of 1")
    node.op, node.attrs = "Pooling", {"global_pool": "True", "kernel": "(1, 1)", "pool_type": "avg"}
    if flat:
        e.g.insert_after(node, "Flatten", f"{node.name}_flatten")


@rewrite("FullyConnected")
def _fully_connected(e: _Export, node: Node) -> None:
    if not ops.attr(node, "flatten"):
        raise refuse(node, "convert_tool has no flatten=False")


# ---- files ----------------------------------------------------------------------------------------------------------

def export_files(g: Graph, prefix: str) -> dict[str, Content]:
    """The checkpoint of a graph that `export` made: variables without attributes, float32 arrays."""
    order = g.toposort()
    number = {node: i for i, node in enumerate(order)}
    nodes = [JsonNode(n.op, n.name, dict(n.attrs), [(number[p.node], p.index) for p in g.inputs(n)], []) for n in order]
    nodes = [n._replace(attrs={}) if n.op == "null" else n for n in nodes]
    text = compose(JsonGraph(nodes, [(number[h.node], h.index) for h in g.heads]))
    aux = {g.inputs(n)[slot].node for n in order for slot, name in enumerate(ops.info(n.op).inputs)
           if name in ops.info(n.op).aux}
    arrays = {f"{'aux' if n in aux else 'arg'}:{n.name}": np.atleast_1d(np.asarray(g.params[n.name], np.float32))
              for n in order if g.is_param(n)}
    return {f"{prefix}-symbol.json": text, f"{prefix}-0000.params": lambda stream: dump_params(stream, arrays)}


def scale_file(g: Graph, inputs: Mapping[str, str] | None = None) -> str:
    """What ``quant_tool_int8 -f`` reads: ``<tensor> <step> 0``, a line for every value, and the values' other names.

    A layer that carries an activation has a line by its own name and one by the activation's.  inputs: the export's
    names of the inputs.  An unknown name is ignored there; a missing one silently has step 0.
    """
    lines: dict[str, str] = {}
    for fq in g.nodes("fake_quantize"):
        source = g.inputs(fq)[0]
        if g.param(source) is not None or not isinstance(fq.quant, QParams):
            continue
        node = source.node
        names = [(inputs or {}).get(node.name, node.name)]
        if node.fused is not None or (node.op == "LeakyReLU" and node.attrs.get("act_type")):
            names += [node.origin[-1]] if node.origin else [f"{node.name}_act"]
        for name in names:
            lines.setdefault(name, f"{name} {float(fq.quant.scale):.9g} 0\n")
    return "".join(lines.values())
