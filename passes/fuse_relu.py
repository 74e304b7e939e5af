"""fuse-relu: a relu, relu6 or other clip from 0 becomes part of the op in front of it.

    before   %act = Activation(%conv) {act_type=relu}      %conv = Convolution(...)
    after    %conv = Convolution(...) {act_type=relu}

    before   %act = clip(%conv) {a_min=0 a_max=6}
    after    %conv = Convolution(...) {act_type=clip a_min=0 a_max=6}

for Convolution, Deconvolution, FullyConnected and elemwise_add that nobody else reads.  The node keeps its own name;
the activation's is the last of its `origin`, under which a writer gives it back.  Other activations stay nodes.
"""

from __future__ import annotations

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import MatchFail, P, RewritePass, register


@register
class FuseRelu(RewritePass):
    """Convolution/Deconvolution/FullyConnected/elemwise_add -> relu or clip(0, x)  becomes one node with act_type."""

    name = "fuse-relu"
    pattern = P(("Activation", "clip"), P(ops.FUSING, ..., name="node", act_type=""), name="act")

    def rewrite(self, g: Graph, node: Node, act: Node) -> None:
        if act.op == "clip":
            if ops.attr(act, "a_min") != 0 or not ops.attr(act, "a_max") > 0:
                raise MatchFail(act, f"clips to {act.attrs.get('a_min')}..{act.attrs.get('a_max')}, want 0..x")
            node.attrs.update(act_type="clip", a_min=act.attrs.get("a_min", "0"), a_max=act.attrs["a_max"])
        elif ops.attr(act, "act_type") == "relu":
            node.attrs["act_type"] = "relu"
        else:
            raise MatchFail(act, f"is {ops.attr(act, 'act_type')}, want relu")
        names = (*(node.origin or (node.name,)), *act.origin)
        g.replace(act, Port(node))
        node.origin = (*dict.fromkeys(n for n in names if n != act.name), act.name)
