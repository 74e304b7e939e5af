"""bn-to-affine: a BatchNorm that no convolution could take becomes one per-channel step, a depthwise 1x1 Convolution.

    before   %bn = BatchNorm(%x, gamma, beta, mean, var)
    after    %bn = Convolution(%x, %bn_weight (C, 1, 1, 1), %bn_bias (C)) {kernel=(1, 1) num_filter=C num_group=C}

    bn_weight = s = gamma / sqrt(var + eps)        bn_bias = beta - mean * s

So later passes and targets need no op of their own for it: it is quantized, and takes a ReLU, as any depthwise
convolution.  Done where the input is sure to be (N, C, H, W): it comes from or goes to a 2-d convolution or pooling by
ops that keep the layout.  Any other BatchNorm (of a dense layer, say) is left as it is.
"""

from __future__ import annotations

import logging

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import MatchFail, Pass, register
from qgraph.passes._affine import bn_affine

log = logging.getLogger("qgraph")

# give back the layout of their inputs: all of them, or the first where the others are parameters or shapes
ELEMENTWISE = frozenset({
    "Activation", "clip", "relu", "sigmoid", "tanh", "exp", "sqrt", "abs", "LeakyReLU", "hard_sigmoid", "BatchNorm",
    "InstanceNorm", "L2Normalization", "LRN", "SoftmaxActivation", "Dropout", "BlockGrad", "_copy", "identity", "Cast",
    "fake_quantize", "Pad", "UpSampling", "_contrib_BilinearResize2D", "_contrib_AdaptiveAvgPooling2D", "slice",
    "slice_axis", "slice_like", "Crop", "_plus_scalar", "_minus_scalar", "_rminus_scalar", "_mul_scalar", "_div_scalar",
    "_rdiv_scalar", "_maximum_scalar", "_minimum_scalar", "_power_scalar"})
JOINS = frozenset({"elemwise_add", "elemwise_sub", "elemwise_mul", "elemwise_div", "add_n", "Concat"})


def _is_conv2d(node: Node) -> bool:
    """Surely reads and writes (N, C, H, W)."""
    return (node.op in ("Convolution", "Deconvolution", "Pooling") and len(ops.attr(node, "kernel")) == 2
            and ops.channels_first(node))


def image_nodes(g: Graph) -> set[Node]:
    """Nodes whose outputs are surely (N, C, H, W). Three walks: down from the convolutions, up, and down again."""
    order = g.toposort()
    known = {n for n in order if _is_conv2d(n)}

    def carries(node: Node) -> list[Node]:
        """Inputs that have the layout of the node's output."""
        if node.op in JOINS:
            return [p.node for p in g.inputs(node)]
        if node.op in ELEMENTWISE or node.op == "Pooling" and ops.attr(node, "global_pool"):
            return [p.node for p in g.inputs(node)[:1]]
        return []

    def down() -> None:
        for n in order:
            if n not in known and any(source in known for source in carries(n)):
                known.add(n)

    down()
    for node in reversed(order):
        if _is_conv2d(node):
            known.update(p.node for p in g.inputs(node)[:1])
        elif node in known:
            known.update(carries(node))
    down()
    return known


@register
class BNToAffine(Pass):
    """BatchNorm -> depthwise 1x1 Convolution, for what fold-bn and fold-bn-forward left."""

    name = "bn-to-affine"
    preserves_float = True

    def run(self, g: Graph) -> int:
        left = g.nodes("BatchNorm")
        images = image_nodes(g) if left else set()
        count = 0
        for bn in left:
            try:
                self._rewrite(g, bn, images)
                count += 1
            except MatchFail as miss:
                log.debug("%s: %s", self.name, miss)
        if count:
            g.prune()
        return count

    def _rewrite(self, g: Graph, bn: Node, images: set[Node]) -> None:
        x = g.inputs(bn)[0]
        if x.node not in images:
            raise MatchFail(bn, f"its input {x.node} is not sure to be (N, C, H, W)")
        if ops.attr(bn, "axis") % 4 != 1:
            raise MatchFail(bn, f"normalizes axis {ops.attr(bn, 'axis')}, want 1")
        scale, shift = bn_affine(g, bn)
        dtype = g.params[g.inputs(bn)[2].node.name].dtype
        origin = bn.origin or (bn.name,)
        weight = g.add_param(f"{bn.name}_weight", scale.astype(dtype).reshape(-1, 1, 1, 1), origin)
        bias = g.add_param(f"{bn.name}_bias", shift.astype(dtype), origin)
        affine = g.add("Convolution", [x, weight, bias], f"{bn.name}_affine", kernel=(1, 1), num_filter=len(scale),
                       num_group=len(scale), no_bias=False)
        images.add(affine)
        g.replace(bn, affine)
