"""The part of a convolution's kernel that an ONNX file holds."""

from __future__ import annotations

from qgraph.analysis.codes import before_quantizer
from qgraph.analysis.windows import Window, whole, window
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node


def written_window(g: Graph, layer: Node) -> Window:
    """The window of a Convolution without zero taps at its edges, and the padding around it.

    All of the kernel in an int8 layer that reads an odd number of channels: onnxruntime, on CPUs without VNNI, adds
    pairs of products in 16 bits, in the order (tap, channel).  There the pairs are others in a smaller kernel, and what
    `limit-weights` knows of overflow is known of the graph's.
    """
    port = g.inputs(layer)[1]
    weight = g.param(before_quantizer(g, port))
    if port.node.op != "fake_quantize" or weight is None:
        return window(g, layer)
    depthwise = weight.shape[1] == 1 and ops.attr(layer, "num_group") == len(weight)
    return whole(layer) if weight.shape[1] % 2 and not depthwise else window(g, layer)
