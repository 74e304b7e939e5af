"""Where integers flow in a quantized graph: questions that passes and writers ask alike."""

from __future__ import annotations

import numpy as np

from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams, per_axis


def quantizer_name(port: Port) -> str:
    """How the fake_quantize of a tensor is called."""
    return port.key.replace(":", "_") + "_q"


def before_quantizer(g: Graph, port: Port) -> Port:
    """The tensor that the quantizer of this port reads; the port itself where it is not quantized."""
    return g.inputs(port.node)[0] if port.node.op == "fake_quantize" else port


def ranged(g: Graph, fq: Node) -> tuple[str, ...]:
    """Names of the tensors whose ranges a quantizer of activations is given."""
    assert fq.quant is not None
    return fq.quant.source or (g.inputs(fq)[0].key,)


def passes_integers(node: Node) -> bool:
    """Ops that the integer kernels run on codes as they are."""
    return node.op in ("Flatten", "Concat") or (node.op == "Pooling" and ops.kind(node) == ops.PASS)


def combines_codes(node: Node) -> bool:
    """Sums, products and concatenations that QDQ engines run on codes; ONNX's Sum (add_n) runs in float."""
    return bool(ops.info(node.op).combines) and node.op != "add_n"


def upper_end(node: Node) -> float | None:
    """Where a fused clip ends the values that a layer writes; its integer range must end there too. None is nowhere."""
    return float(node.fused.high) if node.fused is not None and node.fused.act == "clip" else None


def channel_scales(node: Node, params: QParams, shape: tuple[int, ...]) -> Array | None:
    """A weight's scale for each output channel of its layer, float64 (channels,), or None if it varies within one.

    params, shape: of the weight.
    """
    groups = ops.attr(node, "num_group") if node.op != "FullyConnected" else 1
    scale = np.broadcast_to(per_axis(params.scale, params, shape), shape)
    if node.op == "Deconvolution":  # (C, O / groups, *kernel), the channels of group g are rows g * C / groups ...
        scale = scale.reshape(groups, shape[0] // groups, *shape[1:]).swapaxes(1, 2)
        scale = scale.reshape(groups * shape[1], -1)
    else:
        scale = scale.reshape(shape[0], -1)
    return scale[:, 0].astype(np.float64) if (scale == scale[:, :1]).all() else None


def are_bias_steps(bias: QParams, scale: Array) -> bool:
    """Whether a bias with these params has codes that an accumulator of the steps `scale` (channels,) can add."""
    return bool(np.allclose(np.broadcast_to(bias.scale.astype(np.float64), scale.shape), scale, rtol=1e-6, atol=0))


def quantizers_behind(g: Graph, port: Port) -> list[Node]:
    """The fake_quantize nodes whose codes arrive at this port, past ops that pass them on; empty if floats do."""
    if port.node.op == "fake_quantize":
        return [port.node]
    if passes_integers(port.node):
        found = [quantizers_behind(g, p) for p in g.inputs(port.node)]
        return [fq for group in found for fq in group] if all(found) else []
    return []


def drop_quantizers(g: Graph) -> None:
    """fake_quantize(x)  ->  x, everywhere."""
    for fq in g.nodes("fake_quantize"):
        g.replace_uses(fq, g.inputs(fq)[0])
        g.remove(fq)


def folded_graph(g: Graph) -> Graph:
    """A quantized graph without its quantizers: float, with the weights' values on the grid."""
    twin = g.copy()
    drop_quantizers(twin)
    return twin


def is_dense(g: Graph, conv: Node) -> bool:
    """A 1x1 convolution of a 1x1 map, which is a fully connected layer and can write floats."""
    source = g.inputs(conv)[0].node
    while source.op == "fake_quantize":
        source = g.inputs(source)[0].node
    return (conv.op == "Convolution" and ops.attr(conv, "kernel") == (1, 1) and ops.attr(conv, "num_group") == 1
            and ops.attr(conv, "pad") == (0, 0) and source.op == "Pooling" and ops.attr(source, "global_pool"))


def fits_codes(node: Node, reader: Node) -> bool:
    """Return True if the reader's code range already clips where the node's fused activation does: it is redundant."""
    qp = reader.quant
    if reader.op != "fake_quantize" or not isinstance(qp, QParams) or qp.granularity != "tensor":
        return False
    low = node.fused.low if node.fused is not None else 0
    if float(qp.scale) * (qp.qmin - int(qp.zero_point)) < low:
        return False
    end = upper_end(node)
    return end is None or round(end / float(qp.scale)) + int(qp.zero_point) >= qp.qmax


def nonnegative(g: Graph) -> set[Port]:
    """Ports that never hold a negative value, as far as the ops tell."""
    found: set[Port] = set()
    for node in g.toposort():
        if _is_nonnegative(g, node, found):
            found.update(Port(node, index) for index in range(node.n_out))
    return found


def _is_nonnegative(g: Graph, node: Node, found: set[Port]) -> bool:
    row = ops.info(node.op)
    act = node.fused.act if node.fused is not None else ops.attr(node, "act_type") if node.op == "Activation" else ""
    if row.sign == ops.NONNEGATIVE or act in ops.NONNEGATIVE_ACTS:
        return True
    if node.fused is not None and act == "clip":
        return node.fused.low >= 0
    if node.op == "clip":
        return bool(ops.attr(node, "a_min") >= 0)
    if row.sign == ops.KEPT_SIGN or row.identity or ops.kind(node) in (ops.PASS, ops.AVERAGE):
        return g.inputs(node)[0] in found
    return bool(row.combines) and all(p in found for p in g.inputs(node))
