"""fold-input-norm: arithmetic on a data input goes into the convolutions that read its result.

    before   %m = _minus_scalar(%data) {scalar=127.5}     %n = _mul_scalar(%m) {scalar=0.0078125}
             %conv = Convolution(%n, %w, %b)
    after    %conv = Convolution(%data, %w', %b')

Each step is ``y = s * x + t``, scalar or per channel (a broadcast_* with a parameter of shape (1, C, 1, 1)); as in
fold-bn-forward  W' = W * s,  b' = b + sum of W * t.  Steps are folded from the convolutions back to the data; a shift
before a convolution that pads is not exact and stops there, so ``(x - mean) / std`` keeps only its subtraction.
All readers of the last step must be convolutions with weights of their own.  A broadcast with C values is taken to read
C channels.
"""

from __future__ import annotations

import logging

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import MatchFail, Pass, register
from qgraph.passes._affine import absorb, absorb_input_affine, own_weights, set_weights

log = logging.getLogger("qgraph")

# op -> (scale, shift) of y = scale * x + shift, made from the other operand
STEPS = {
    "_plus_scalar": lambda v: (np.ones(1), v), "broadcast_add": lambda v: (np.ones(1), v),
    "_minus_scalar": lambda v: (np.ones(1), -v), "broadcast_sub": lambda v: (np.ones(1), -v),
    "_rminus_scalar": lambda v: (-np.ones(1), v),
    "_mul_scalar": lambda v: (v, np.zeros(1)), "broadcast_mul": lambda v: (v, np.zeros(1)),
    "_div_scalar": lambda v: (1 / v, np.zeros(1)), "broadcast_div": lambda v: (1 / v, np.zeros(1)),
}
COMMUTES = ("broadcast_add", "broadcast_mul")


def _other_operand(g: Graph, node: Node, port: Port) -> np.ndarray | None:
    """What the step combines `port` with, or None if this is no such step."""
    if node.op not in STEPS:
        return None
    ports = g.inputs(node)
    if len(ports) == 1:
        return np.array([ops.attr(node, "scalar")], np.float64)
    slot = ports.index(port)
    value = g.param(ports[1 - slot])
    return None if value is None or (slot == 1 and node.op not in COMMUTES) else np.asarray(value, np.float64)


def _step(node: Node, operand: np.ndarray, conv: Node) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) of a step, each of one value or one per channel of what `conv` reads."""
    rank = len(ops.attr(conv, "kernel")) + 2
    shape = (1,) * (rank - operand.ndim) + operand.shape
    if operand.size != 1 and (len(shape) != rank or operand.size != shape[1]):
        raise MatchFail(node, f"has a parameter of shape {operand.shape}, want one value or one per channel")
    with np.errstate(divide="ignore"):
        scale, shift = STEPS[node.op](operand.reshape(-1))
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise MatchFail(node, "its scale or shift is not finite")
    return scale, shift


@register
class FoldInputNorm(Pass):
    """scalar or per-channel arithmetic on data -> Convolution  becomes a Convolution with other weights."""

    name = "fold-input-norm"
    preserves_float = True

    def run(self, g: Graph) -> int:
        count = 0
        for data in g.data_inputs():
            for reader in g.readers(data):
                try:
                    count += self._fold(g, Port(data), reader)
                except MatchFail as miss:
                    log.debug("%s: %s", self.name, miss)
        if count:
            g.prune()
        return count

    def _fold(self, g: Graph, source: Port, reader: Node) -> int:
        chain: list[tuple[Node, Port, np.ndarray]] = []  # step, what it reads, what it combines it with
        operand = _other_operand(g, reader, source)
        convs: list[Node] = []
        while operand is not None:
            chain.append((reader, source, operand))
            source = Port(reader)
            uses = g.uses(source)
            if g.is_head(source):
                raise MatchFail(reader, "is a head")
            if all(node.op == "Convolution" and slot == 0 for node, slot in uses):
                convs = [node for node, _ in uses]
                break
            if len(uses) > 1:
                raise MatchFail(reader, "has readers that are not convolutions")
            reader = uses[0][0]
            operand = _other_operand(g, reader, source)
        if not convs:
            return 0
        for conv in convs:
            if not ops.channels_first(conv):
                raise MatchFail(conv, f"has layout {conv.attrs['layout']}, want channels first")
        weights = [own_weights(g, conv) for conv in convs]
        folded: list[Node] = []
        for step, source, operand in reversed(chain):
            try:
                weights = [absorb_input_affine(conv, *pair, *_step(step, operand, conv))
                           for conv, pair in zip(convs, weights)]
            except MatchFail as miss:
                log.debug("%s: %s: %s", self.name, step, miss)
                break
            folded.append(step)
            target = source
        for conv, pair in zip(convs, weights) if folded else ():
            set_weights(g, conv, *pair)
            absorb(g, conv, *reversed(folded))
            g.set_input(conv, 0, target)
        return len(folded)
