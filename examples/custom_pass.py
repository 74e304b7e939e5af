"""A pass of one's own: one pattern, one rewrite.  Runs without MXNet.

    python examples/custom_pass.py

Exported networks often end in ``mean`` over height and width, for which int8 engines have no kernel.  A global average
pooling is the same thing, and for that they have one.  The same pass in a freeze, from the folder of this file:

    qgraph freeze model-symbol.json --pass custom_pass:MeanToPooling@canonicalize
"""

from __future__ import annotations

from qgraph import Graph, MatchFail, Node, P, PassManager, RewritePass, register
from qgraph.ir.rewrite import insert_after
from qgraph.passes import PIPELINES

NETWORK = """
%data = input
%conv_weight = param float32 (8, 3, 3, 3)
%conv = Convolution(%data, %conv_weight) {kernel=(3, 3) no_bias=True num_filter=8 pad=(1, 1)}
%bn_gamma = param float32 (8)
%bn_beta = param float32 (8)
%bn_mean = param float32 (8)
%bn_var = param float32 (8)
%bn = BatchNorm(%conv, %bn_gamma, %bn_beta, %bn_mean, %bn_var) {fix_gamma=False}
%relu = Activation(%bn) {act_type=relu}
%pool = mean(%relu) {axis=(2, 3)}
%fc_weight = param float32 (4, 8)
%fc_bias = param float32 (4)
%fc = FullyConnected(%pool, %fc_weight, %fc_bias) {num_hidden=4}
return %fc
"""


@register
class MeanToPooling(RewritePass):
    """mean(x, axis=(2, 3)) -> Flatten(Pooling(x, avg, global)), if x is known to have four axes."""

    name = "mean-to-pooling"
    pattern = P("mean", P(("Activation", "Convolution"), ..., name="before", shared=True), name="mean", axis="(2, 3)")

    def rewrite(self, g: Graph, before: Node, mean: Node) -> None:  # type: ignore[override]
        if mean.attrs.get("keepdims", "False") not in ("False", "0"):
            raise MatchFail(mean, "keeps its axes")  # a refusal has a reason; `-v` shows it
        pool = g.add("Pooling", [before], global_pool="True", pool_type="avg", kernel="(1, 1)")
        g.replace(mean, g.add("Flatten", [pool]))


def show(title: str, g: Graph) -> None:
    print(f"# {title}: {len(g)} nodes")
    print("\n".join(line for line in g.text().splitlines() if " = param " not in line), end="\n\n")


def main() -> None:
    g = Graph.parse(NETWORK)
    show("before", g)
    steps = insert_after(PIPELINES["float"], MeanToPooling(), after="canonicalize")
    manager = PassManager(steps)  # verifies the graph behind every pass
    manager.run(g)
    show("after", g)
    for number, record in enumerate(manager.records, 1):
        print(f"{number:02d} {record.name:<16} {record.changed} changed")


if __name__ == "__main__":
    main()
