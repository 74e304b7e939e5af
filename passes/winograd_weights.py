"""Weights that are quantized in the domain of Winograd's fast convolution."""

from __future__ import annotations

import numpy as np

from qgraph.errors import CalibrationError, OptionError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Rounded
from qgraph.ir.rewrite import Pass, register
from qgraph.quant.spec import QSpec, fake_quantize
from qgraph.quant.weights import weight_params

# G of F(m, 3): U = G g G^T is what a filter g is multiplied as (Lavin and Gray, arXiv 1509.09308, sections 4.1 to 4.3).
# Points 0, 1, -1; the same and 2, -2; the same and 1/2, -1/2; and infinity.
DOMAINS: dict[str, np.ndarray] = {
    "F23": np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    "F43": np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
                     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]),
    "F63": np.array([[1, 0, 0], [-2 / 9, -2 / 9, -2 / 9], [-2 / 9, 2 / 9, -2 / 9], [1 / 90, 1 / 45, 2 / 45],
                     [1 / 90, -1 / 45, 2 / 45], [32 / 45, 16 / 45, 8 / 45], [32 / 45, -16 / 45, 8 / 45], [0, 0, 1]]),
}
NONE = "none"


def check_domain(name: str) -> None:
    """OptionError for what is no domain."""
    if name not in (NONE, *DOMAINS):
        raise OptionError(f"--winograd is {name!r}, want one of {NONE}, {', '.join(DOMAINS)}")


@register
class WinogradWeights(Pass):
    """conv(x, fq(w))  ->  conv(x, w')  with  w' = G+ fq(G w G^T) (G+)^T,  for 3 x 3 convolutions of stride 1.

    G+ is the pseudo-inverse of G.  w' is computed with as it is: its values have codes in the domain, not outside.
    The scales are per tensor, group or channel as those of w would be; other layers keep their own.

    domain: a key of DOMAINS, or none.
    """

    name = "winograd-weights"
    requires = ("insert-fake-quantize",)
    domain: str = NONE
    rounding: str = "half-even"

    def __post_init__(self) -> None:
        check_domain(self.domain)

    def run(self, g: Graph) -> int:
        if self.domain == NONE:
            return 0
        layers = [node for node in g.nodes("Convolution") if _is_concerned(g, node)]
        for node in layers:
            fq = g.inputs(node)[1].node
            source, spec = g.inputs(fq)[0], fq.quant
            weight = g.param(source)
            assert weight is not None and spec is not None
            if not np.isfinite(weight).all():
                raise CalibrationError(f"{node.name}: found NaN or Inf among the weights")
            quantized = in_domain(weight, spec, DOMAINS[self.domain], self.rounding)
            name = f"{source.node.name}_{self.domain}"
            node.rounded = Rounded(f"{spec.dtype} {self.domain}", spec.granularity)
            g.set_input(node, 1, g.add_param(name, quantized, origin=source.node.origin or (source.node.name,)))
            if not g.uses(fq):
                g.remove(fq)
        return len(layers)


def in_domain(weight: np.ndarray, spec: QSpec, transform: np.ndarray, rounding: str) -> np.ndarray:
    """(out, in, 3, 3), float32, after having been quantized as `transform` weight transform^T."""
    inverse = np.linalg.pinv(transform)
    u = (transform @ weight.astype(np.float64) @ transform.T).astype(np.float32)
    u = fake_quantize(u, weight_params("", u, spec), rounding)
    return (inverse @ u.astype(np.float64) @ inverse.T).astype(np.float32)


def _is_concerned(g: Graph, node: Node) -> bool:
    _, weight = g.inputs(node)[:2]
    return (weight.node.op == "fake_quantize" and g.param(g.inputs(weight.node)[0]) is not None
            and ops.attr(node, "kernel") == (3, 3)
            and all(step == 1 for name in ("stride", "dilate") for step in ops.attr(node, name)))
