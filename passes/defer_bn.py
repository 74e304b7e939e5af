"""defer-bn: a BatchNorm behind a layer is marked, for a writer to fold it into the weights when these are rounded.

    before   %bn = BatchNorm(%conv, ...)                        %conv = Convolution(fq(%x), fq(%w))
    after    %bn = BatchNorm(%conv, ...) {__deferred__=1}       the same conv

The weights are rounded without the BatchNorm, which is why it is left apart, and the reference computes it so.  A
simulation in float may multiply the *rounded* weights by gamma / sqrt(var + eps): the same linear map, but for the
rounding of floats, in half the time (`qgraph.formats.mxnet_sim`).  Networks that were trained quantized never come
here: they are written bit for bit as they are.
"""

from __future__ import annotations

from qgraph import ops
from qgraph.ir import Graph, Node
from qgraph.passes.fold_bn import FoldBN
from qgraph.rewrite import Pass, register


@register
class DeferBN(Pass):
    """Mark BatchNorms right behind a Convolution, Deconvolution or FullyConnected."""

    name = "defer-bn"
    requires = ("bake-weights",)

    def run(self, g: Graph) -> int:
        found = [bn for bn in g.nodes("BatchNorm") if ops.DEFERRED not in bn.attrs and _is_behind_layer(g, bn)]
        for bn in found:
            bn.attrs[ops.DEFERRED] = "1"
        return len(found)


def fold_deferred(g: Graph) -> int:
    """Fold as fold-bn, in place, if BatchNorms are marked; those that cannot be folded lose their marks."""
    marked = [bn for bn in g.nodes("BatchNorm") if ops.DEFERRED in bn.attrs]
    count = FoldBN().run(g) if marked else 0
    for bn in g.nodes("BatchNorm"):
        bn.attrs.pop(ops.DEFERRED, None)
    return count


def _is_behind_layer(g: Graph, bn: Node) -> bool:
    return ops.kind(g.inputs(bn)[0].node) == ops.COMPUTE
