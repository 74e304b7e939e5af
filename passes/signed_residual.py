"""Sums with a signed operand, whose result MXNet's fused kernel cuts at half its range."""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Fused, Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.quant.spec import QParams


@register
class SignedResidual(Pass):
    """relu(conv1 + fq{s8 step s}(y)): MXNet writes such a sum in the type of its operand, so it ends at code 127.

    Case 1, shift: y is a convolution that nobody else reads, with no pooling in between.  Moving both biases by 128
    steps turns the codes -128..127 of the operand into 0..255: the same grid, the same saturation, nothing lost.  The
    nodes remember it (`Node.shift`), so that their outputs can be compared with the user's model.

        relu(conv1 + fq{s8}(conv2))  ->  relu((conv1 - 128 s) + fq{u8}(relu(conv2 + 128 s)))

    Case 2, halve: otherwise the result is quantized with steps twice as long, to codes 0..127.
    """

    name = "signed-residual"
    requires = ("calibrate",)

    def run(self, g: Graph) -> int:
        count = 0
        for add in g.nodes("elemwise_add"):
            found = _match(g, add)
            if found is None:
                continue
            main, fq, result = found
            branch = g.inputs(fq)[0].node
            if (g.has_one_use(fq) and g.readers(fq) == [add] and branch.op == "Convolution" and g.has_one_use(branch)
                    and branch.fused is None and _can_move(g, main) and _can_move(g, branch)):
                assert isinstance(fq.quant, QParams)
                shift = np.float32(128 * float(fq.quant.scale))
                _move_bias(g, main, -shift)
                _move_bias(g, branch, shift)
                branch.fused = Fused("relu")
                branch.shift = fq.shift = float(shift)
                fq.quant = dataclasses.replace(fq.quant, signed=False)
                count += 1
            elif result.quant.limit == 0:  # type: ignore[union-attr]
                qp = result.quant
                assert isinstance(qp, QParams)
                scale = (qp.scale * np.float32(qp.qmax / 127)).astype(np.float32)
                result.quant = dataclasses.replace(qp, limit=127, scale=scale)
                count += 1
        return count


def _match(g: Graph, add: Node) -> tuple[Node, Node, Node] | None:
    """(convolution accumulated in float, quantizer of the signed operand, quantizer of the result), or None."""
    readers = [v for v, _ in g.uses(add)]
    if add.fused is None or add.fused.act not in ("relu", "clip") or len(readers) != 1 or not isinstance(
            readers[0].quant, QParams):
        return None
    nodes = [p.node for p in g.inputs(add)]
    for main, operand in (nodes, nodes[::-1]):
        if main.op == "Convolution" and g.has_one_use(main):
            fq = operand
            while fq.op != "fake_quantize" and g.inputs(fq):
                fq = g.inputs(fq)[0].node
            if isinstance(fq.quant, QParams) and fq.quant.signed and fq.quant.bits == 8:
                return main, fq, readers[0]
    return None


def _can_move(g: Graph, conv: Node) -> bool:
    inputs = g.inputs(conv)
    return len(inputs) < 3 or (g.param(inputs[2]) is not None and g.has_one_use(inputs[2]))


def _move_bias(g: Graph, conv: Node, by: np.float32) -> None:
    inputs = g.inputs(conv)
    if len(inputs) < 3:
        bias = g.add_param(f"{conv.name}_bias", np.full(ops.attr(conv, "num_filter"), by, np.float32))
        g.set_input(conv, 2, Port(bias))
        conv.attrs["no_bias"] = "False"
    else:
        name = inputs[2].node.name
        g.params[name] = (g.params[name] + by).astype(np.float32)
