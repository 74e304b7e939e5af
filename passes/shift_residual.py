"""Make the signed operand of a residual sum unsigned, which MXNet's fused kernel needs."""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph import ops
from qgraph.ir import Graph, Node, Port
from qgraph.quant.spec import QParams
from qgraph.rewrite import Pass, register


@register
class ShiftResidual(Pass):
    """relu(conv1 + fq{s8 step s}(conv2))  ->  relu((conv1 - 128 s) + fq{u8 step s}(relu(conv2 + 128 s))).

    MXNet's kernel writes such a sum in the type of its operand, so a signed operand cuts it at half its range.  Moving
    both biases by 128 steps turns the codes -128..127 into 0..255: the same grid and the same saturation, so nothing
    is lost.  Refused where another node reads the operand.
    """

    name = "shift-residual"
    requires = ("calibrate",)

    def run(self, g: Graph) -> int:
        count = 0
        for add in g.nodes("elemwise_add"):
            pair = self._match(g, add)
            if pair is None:
                continue
            main, fq = pair
            qp = fq.quant
            assert isinstance(qp, QParams)
            branch = g.inputs(fq)[0].node
            shift = np.float32(128) * qp.scale
            _move_bias(g, main, -shift)
            _move_bias(g, branch, shift)
            branch.attrs["act_type"] = "relu"
            fq.quant = dataclasses.replace(qp, signed=False)
            count += 1
        return count

    def _match(self, g: Graph, add: Node) -> tuple[Node, Node] | None:
        """(the convolution that is summed in float, the fake_quantize of the other operand), or None."""
        if ops.attr(add, "act_type") not in ("relu", "clip"):
            return None
        nodes = [p.node for p in g.inputs(add)]
        for main, fq in (nodes, nodes[::-1]):
            if main.op == "Convolution" and g.has_one_use(main) and fq.op == "fake_quantize" and g.has_one_use(fq):
                branch, qp = g.inputs(fq)[0].node, fq.quant
                if (isinstance(qp, QParams) and qp.signed and qp.bits == 8 and branch.op == "Convolution"
                        and g.has_one_use(branch) and not ops.attr(branch, "act_type")
                        and _can_move(g, main) and _can_move(g, branch)):
                    return main, fq
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
