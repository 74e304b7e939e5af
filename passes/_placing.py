"""What the passes that place quantizers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from qgraph.analysis.codes import quantizer_name
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QSpec

KERNEL_BITS = 8
"""No engine has kernels that run on wider codes; a tensor that has them is read in float."""


def activation_spec(g: Graph) -> QSpec | None:
    """How `insert-fake-quantize` quantizes what kernels of integers read, of the widest; None where it quantized none.
    """
    specs = [fq.quant for fq in g.nodes("fake_quantize") if g.param(g.inputs(fq)[0]) is None and fq.quant is not None
             and fq.quant.bits <= KERNEL_BITS]
    return dataclasses.replace(max(specs, key=lambda spec: spec.bits), source=()) if specs else None


def quantizer_of(g: Graph, port: Port) -> Node | None:
    """The fake_quantize that reads a port, or None."""
    return next((reader for reader, _ in g.uses(port) if reader.op == "fake_quantize"), None)


def ensure_quantizer(g: Graph, port: Port, spec: QSpec) -> tuple[Node, int]:
    """The fake_quantize of a port, read by all its readers, a new one if there is none; and how much that changed."""
    fq = quantizer_of(g, port)
    if fq is None:
        fq = g.insert_after(port, "fake_quantize", quantizer_name(port), quant=spec)
        fq.scales = port.node.scales
        return fq, 1
    return fq, g.replace_uses(port, fq, keep=[fq])


def share_range(quantizers: Collection[Node], source: tuple[str, ...]) -> int:
    """Give quantizers one range, of these tensors, and whole if one of them wants that; how many changed."""
    whole, count = any(fq.quant.whole for fq in quantizers if fq.quant is not None), 0
    for fq in quantizers:
        assert fq.quant is not None
        if (fq.quant.source, fq.quant.whole) != (source, whole):
            fq.quant = dataclasses.replace(fq.quant, source=source, whole=whole)
            count += 1
    return count
