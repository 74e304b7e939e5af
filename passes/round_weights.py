"""Round weights by what their errors do to the output, not one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import Pass, register
from qgraph.quant.spec import QParams, quantize
from qgraph.semantics.interpreter import Executor, RunOp
from qgraph.semantics.saturation import patches

_SWEEPS = 8
_POSITIONS = 4096  # sampled output positions a layer
_BLOCK = 1024  # inputs whose errors are weighed against each other; a wider layer is cut into such blocks
_DAMPING = 0.01  # of the mean second moment, against what a small sample does not show


@register
class RoundWeights(Pass):
    """Round weights adaptively (AdaRound's aim): minimize the squared error of the layer's output. Free at run time.

        fq(w)  ->  the same with other codes

    With e the rounding errors of one output channel and R = mean(x x^T) over what it reads on the sample images, the
    error is e R e^T.  Coordinate descent moves codes to their other neighbour, from the nearest ones, while that
    lowers it (the aim of AdaRound, arXiv 2004.10568, at a size where it can be computed exactly).  Neighbouring pixels
    are alike, so what it mostly finds is that the errors of a kernel should add up to zero.

    feeds: some calibration images; without them the pass does nothing.
    run_op: runs the ops that the reference lacks; a layer that nothing can measure stays as it is.
    """

    name = "round-weights"
    requires = ("calibrate",)
    rounding: str = "mxnet"
    feeds: Optional[Mapping[str, np.ndarray]] = None
    run_op: Optional[RunOp] = None

    def run(self, g: Graph) -> int:
        if self.feeds is None:
            return 0
        layers = [n for n in g.toposort() if _concerned(g, n)]
        ports = [g.inputs(n)[0] for n in layers]
        known = Executor(g, ports, self.rounding, self.run_op).known_tensors(self.feeds) if layers else {}
        rng = np.random.default_rng(0)
        count = 0
        for node, port in zip(layers, ports):
            if (tensor := known.get(port)) is None:
                continue
            weight_fq = g.inputs(node)[1].node
            source = g.inputs(weight_fq)[0].node
            qp, weight = weight_fq.quant, g.params[source.name]
            assert isinstance(qp, QParams)
            x = tensor.centered if tensor.qp is not None else tensor.real
            codes = best_codes(weight, qp, patches(node, x, rng, _POSITIONS))
            rounded = (codes * qp.scale.reshape([-1] + [1] * (weight.ndim - 1))).astype(np.float32)
            if not np.array_equal(rounded, weight):
                g.params[source.name] = rounded
                count += 1
        return count


def _concerned(g: Graph, node: Node) -> bool:
    """Layers with one weight scale per output channel, dense or with one channel per group, and own weights."""
    if node.op not in ("Convolution", "FullyConnected"):
        return False
    inputs = g.inputs(node)
    qp = inputs[1].node.quant
    if not isinstance(qp, QParams) or qp.granularity != "channel":
        return False
    source = g.inputs(inputs[1].node)[0]
    weight = g.param(source)
    if weight is None or not g.has_one_use(inputs[1]) or not g.has_one_use(source):
        return False
    groups = 1 if node.op == "FullyConnected" else ops.attr(node, "num_group")
    return node.op == "FullyConnected" or weight.ndim == 4 and (groups == 1 or groups == len(weight))


def best_codes(weight: np.ndarray, qp: QParams, x: np.ndarray) -> np.ndarray:
    """weight (O, C or 1, ...), x (positions, C, taps) codes or reals -> int32 codes, each one of the two nearest.

    With one weight channel and C == O > 1 the layer is depthwise, and every channel is weighed by what it alone reads.
    """
    rows = weight.reshape(len(weight), -1)
    codes = quantize(weight, qp).reshape(rows.shape).astype(np.float32)
    exact = rows / qp.scale[:, None]
    if rows.shape[1] == x.shape[2] and x.shape[1] == len(rows) > 1:
        own = x.transpose(1, 2, 0)
        _descend(codes, exact, np.matmul(own, own.transpose(0, 2, 1)) / len(x), qp)
    else:
        flat = x.reshape(len(x), -1)
        for start in range(0, flat.shape[1], _BLOCK):
            part = slice(start, start + _BLOCK)
            _descend(codes[:, part], exact[:, part], (flat[:, part].T @ flat[:, part] / len(x))[None], qp)
    return codes.astype(np.int32).reshape(weight.shape)


def _descend(codes: np.ndarray, exact: np.ndarray, moment: np.ndarray, qp: QParams) -> None:
    """Move `codes` (O, inputs) in place. moment: (O or 1, inputs, inputs)."""
    diagonal = np.einsum("oii->oi", moment)
    diagonal += _DAMPING * np.maximum(diagonal.mean(axis=1, keepdims=True), 1e-12)
    error = codes - exact
    gradient = np.einsum("oi,oij->oj", error, moment) if len(moment) > 1 else error @ moment[0]
    for _ in range(_SWEEPS):
        moved = False
        for j in range(error.shape[1]):
            move = -np.sign(error[:, j])
            to = codes[:, j] + move
            better = ((np.abs(error[:, j]) > 1e-4) & (to >= qp.qmin) & (to <= qp.qmax)
                      & (np.abs(error[:, j] + move) < 1) & (2 * move * gradient[:, j] + diagonal[:, j] < 0))
            rows = np.flatnonzero(better)
            if len(rows):
                moved = True
                codes[rows, j] = to[rows]
                error[rows, j] += move[rows]
                gradient[rows] += move[rows, None] * (moment[rows, j] if len(moment) > 1 else moment[0, j])
        if not moved:
            break
