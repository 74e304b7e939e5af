"""Fully connected layers that read signed codes, which MXNet computes wrongly on CPUs without VNNI."""

from __future__ import annotations

from qgraph.analysis.codes import quantizers_behind
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._in_float import leave_in_float
from qgraph.quant.spec import QParams


@register
class SignedDense(Pass):
    """Leave dense layers that read signed codes in float, where MXNet's kernel would overflow.

        dense(fq{s8}(x), fq(w), b)  ->  dense(x, w, b), in float

    MXNet's kernel adds pairs of signed products in 16 bits with all 8 bits of the weights.  A convolution that reads
    signed codes gets weights small enough (`calibrate`, signed_input_limit), which this kernel has no way to take.

    trained: tensors whose range was chosen in training; their quantizers stay, as the range clips.
    """

    name = "signed-dense"
    requires = ("calibrate",)
    trained: frozenset[str] = frozenset()

    def run(self, g: Graph) -> int:
        count = 0
        for node in g.nodes("FullyConnected"):
            quantizers = quantizers_behind(g, g.inputs(node)[0])
            weight = g.inputs(node)[1].node
            if weight.op == "fake_quantize" and quantizers and _is_signed(quantizers[0]):
                leave_in_float(g, node, self.trained)
                count += 1
        if count:
            g.prune()
        return count


def _is_signed(fq: Node) -> bool:
    return isinstance(fq.quant, QParams) and bool(fq.quant.signed)
