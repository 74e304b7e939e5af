"""fuse-relu: a relu, relu6 or other clip from 0 becomes part of the op in front of it.

    before   %act = Activation(%conv) {act_type=relu}      %conv = Convolution(...)
    after    %conv = Convolution(...) {act_type=relu}

    before   %act = clip(%conv) {a_min=0 a_max=6}
    after    %conv = Convolution(...) {act_type=clip a_min=0 a_max=6}

for Convolution, Deconvolution, FullyConnected and elemwise_add that nobody else reads.  The node keeps its own name;
the activation's is the last of its `origin`, under which a writer gives it back.  Other activations stay nodes.
"""

from __future__ import annotations

from qgraph.ir import attributes, ops
from qgraph.ir.graph import Fused, Graph, Node, Port
from qgraph.ir.rewrite import MatchFail, P, RewritePass, register


@register
class FuseRelu(RewritePass):
    """Convolution/Deconvolution/FullyConnected/elemwise_add -> relu or clip(0, x)  becomes one node."""

    name = "fuse-relu"
    pattern = P(("Activation", "clip"), P(ops.FUSING, ..., name="node"), name="act")

    def rewrite(self, g: Graph, node: Node, act: Node) -> None:
        if node.fused is not None:
            raise MatchFail(node, f"has a fused {node.fused.act}")
        if act.op == "clip":
            if ops.attr(act, "a_min") != 0 or not ops.attr(act, "a_max") > 0:
                raise MatchFail(act, f"clips to {act.attrs.get('a_min')}..{act.attrs.get('a_max')}, want 0..x")
            node.fused = attributes.fused({"act_type": "clip", **act.attrs})
        elif ops.attr(act, "act_type") == "relu":
            node.fused = Fused("relu")
        else:
            raise MatchFail(act, f"is {ops.attr(act, 'act_type')}, want relu")
        names = (*(node.origin or (node.name,)), *act.origin)
        g.replace(act, Port(node))
        node.origin = (*dict.fromkeys(n for n in names if n != act.name), act.name)
