"""What targets of int8 with one form of codes share: which layers they take, and how they carry other choices."""

from __future__ import annotations

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.quant.spec import QParams, shown_granularity
from qgraph.quant.table import CalibrationTable

_LEVELS = ("kl", "mse")  # methods whose ranges depend on the number of codes


def is_dense_or_depthwise(g: Graph, conv: Node) -> bool:
    """One group, or one input and one output channel in each."""
    groups, weight = ops.attr(conv, "num_group"), g.param(g.inputs(conv)[1])
    return bool(groups == 1 or (groups == ops.attr(conv, "num_filter") and weight is not None and weight.shape[1] == 1))


def quantized_weights(g: Graph) -> list[QParams]:
    """How the weights of a quantized graph are stored; biases, which have 32 bits, are left out."""
    return [n.quant for n in g.nodes("fake_quantize")
            if isinstance(n.quant, QParams) and n.quant.bits != 32 and g.param(g.inputs(n)[0]) is not None]


def equivalents(g: Graph, table: CalibrationTable | None, target: str) -> list[str]:
    """For the report: which choices of the user an engine with signed int8 codes has in another form."""
    found = []
    if table is not None and table.signed is None and table.method in _LEVELS:
        found.append(f"the ranges were chosen by {table.method} for unsigned codes where nothing is negative: "
                     f"calibrated for {target} alone they suit its codes better")
    weights = quantized_weights(g)
    if bits := sorted({q.bits for q in weights if q.bits < 8}):
        found.append(f"weights of {', '.join(map(str, bits))} bits are stored in 8")
    if coarse := sorted({q.granularity for q in weights} - {"channel"}):
        found.append(f"one scale per {' and '.join(map(shown_granularity, coarse))} is repeated for each output "
                     "channel")
    return found
