"""What an x86 CPU without VNNI does to u8 x s8 products, and how often: a model of `vpmaddubsw`.

That instruction adds the products of two neighbouring input channels, 2k and 2k + 1, at the same tap of the kernel, and
saturates the sum to int16, silently.  oneDNN uses it for dense convolutions and fully connected layers that read
unsigned codes; depthwise convolutions are exact, and a layer that reads signed codes gets weights small enough to be.
onnxruntime (MLAS) uses it alike, for convolutions with groups too, on inputs in the order (tap, channel): the same
pairs, but where the number of channels is odd they cross taps ("tap-major").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams, quantize
from qgraph.semantics.interpreter import Executor, RunOp, Tensor
from qgraph.semantics.sampling import draw_windows, patches

_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
IMAGES, POSITIONS = 16, 1024  # sampled: images, and output positions of a layer
WIDEST = 8  # bits that kernels of integers read


@dataclass
class Layer:
    """A dense layer that reads unsigned codes, with a sample of what it reads.

    x: codes (positions, C, taps), uint8 if they fit.  w: codes (O, C, taps).  unit: of the accumulator, in codes of the
    (O,): s_x s_w / s_y, where s_y is the step of what is written (of 8 bits over the sample, if that is in float).
    rows: which output channels these are, of how many; all but for a convolution with groups.  top: the largest code
    that it can read.  tap_major: how neighbours are counted, see `pairs`.
    """

    node: Node
    x: np.ndarray
    w: np.ndarray
    unit: np.ndarray
    rows: slice = field(default_factory=lambda: slice(None))
    top: int = 255
    tap_major: bool = False

    def excess(self, order: np.ndarray | None = None) -> np.ndarray:
        """(positions, O): how much saturation takes away, in codes of the output. order: of the input channels."""
        x, w = (self.x, self.w) if order is None else (self.x[:, order], self.w[:, order])
        return pair_excess(pairs(x, self.tap_major), pairs(w, self.tap_major)) * self.unit

    def missed(self, order: np.ndarray | None = None) -> float:
        """Part of the outputs that saturation moves by more than one code."""
        return float((np.abs(self.excess(order)) > 1).mean())


def pairs(codes: np.ndarray, tap_major: bool = False) -> np.ndarray:
    """(N, C, taps) -> (N, C / 2 * taps, 2), an odd last channel paired with zeros.

    tap_major: neighbours in the order (tap, channel), so that an odd last channel meets the first one of the next tap.
    """
    n, channels, taps = codes.shape
    if tap_major:
        flat = codes.transpose(0, 2, 1).reshape(n, channels * taps)
        return np.pad(flat, [(0, 0), (0, channels * taps % 2)]).reshape(n, -1, 2)
    if channels % 2:
        codes = np.concatenate([codes, np.zeros((n, 1, taps), codes.dtype)], axis=1)
    half = codes.shape[1] // 2
    return codes.reshape(n, half, 2, taps).transpose(0, 1, 3, 2).reshape(n, half * taps, 2)


def can_saturate(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Whether a sum from `low` to `high` can leave int16."""
    return np.asarray((high > _HIGH) | (low < _LOW))


def beyond(sums: np.ndarray) -> np.ndarray:
    """What saturation to int16 takes from sums of pairs."""
    lost: np.ndarray = sums - np.minimum(np.maximum(sums, _LOW), _HIGH)
    return lost


def pair_excess(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x (P, M, 2) unsigned, w (O, M, 2) signed -> (P, O): sum over M of the pair sum minus its int16 saturation.

    Pairs that cannot saturate with the largest x of the sample are skipped.
    """
    out = np.zeros((len(x), len(w)), np.float32)
    top = x.max(axis=0, initial=0).astype(np.float32)
    w = w.astype(np.float32)
    risky = can_saturate((np.maximum(w, 0) * top).sum(axis=2), (np.minimum(w, 0) * top).sum(axis=2))
    x = x.astype(np.float32)
    for pair in np.flatnonzero(risky.any(axis=0)):
        rows = np.flatnonzero(risky[:, pair])
        total = x[:, pair] @ w[rows, pair].T
        out[:, rows] += beyond(total)
    return out


def can_overflow(weights: np.ndarray, top: int) -> np.ndarray:
    """(O, M, 2) signed -> (O,): whether some pair of products with codes of 0 to `top` leaves int16."""
    w = weights.astype(np.int64)
    high, low = np.maximum(w, 0).sum(axis=2) * top, np.minimum(w, 0).sum(axis=2) * top
    return np.asarray(can_saturate(high, low).any(axis=1))


def sample_layers(g: Graph, feeds: Mapping[str, np.ndarray], rounding: str, seed: int = 0,
                  mlas: bool = False, run_op: RunOp | None = None) -> list[Layer]:
    """Every layer of a graph with scales that `vpmaddubsw` can saturate, with what it reads on these images.

    feeds: of which the first `IMAGES` are looked at.
    mlas: as onnxruntime does it; a convolution with groups is one layer per group then.
    run_op: see `qgraph.semantics.interpreter`; a layer whose input is unknown is left out.
    """
    numbers = {node: number for number, node in enumerate(n for n in g.toposort() if _can_saturate(g, n, mlas))}
    readers: dict[Port, list[Node]] = {}
    for node in numbers:
        readers.setdefault(g.inputs(node)[0], []).append(node)
    found: dict[Node, list[Layer]] = {}
    few = {name: x[:IMAGES] for name, x in feeds.items()}
    for source, _, outputs in Executor(g, list(readers), rounding, run_op).walk(few):
        for index, tensor in enumerate(outputs):
            for node in readers.get(Port(source, index), ()):
                if tensor.qp is not None and not tensor.qp.signed and tensor.qp.bits <= WIDEST:
                    rng = np.random.default_rng((seed, numbers[node]))
                    found[node] = _layers_of(g, node, tensor, tensor.qp, rng, mlas)
    return [layer for node in numbers for layer in found.get(node, ())]


def _layers_of(g: Graph, node: Node, tensor: Tensor, act: QParams, rng: np.random.Generator, mlas: bool) -> list[Layer]:
    """A layer that reads this tensor, or one for each of its groups."""
    weight = g.inputs(node)[1].node
    qp = weight.quant
    assert isinstance(qp, QParams)
    w = quantize(g.params[g.inputs(weight)[0].node.name], qp)
    w = w.reshape(len(w), -1, 1) if node.op == "FullyConnected" else w.reshape(*w.shape[:2], -1)
    windows = draw_windows(node, tensor.shape, rng, POSITIONS)
    x = patches(node, tensor.kept, windows, int(act.zero_point))
    unit = float(act.scale) * np.repeat(np.ravel(qp.scale), len(w) // qp.scale.size).astype(np.float64)
    groups = 1 if node.op == "FullyConnected" else ops.attr(node, "num_group")
    step = _output_step(g, node, x, w, unit) if groups == 1 else None
    layers = []
    for group in range(groups):
        rows = slice(group * len(w) // groups, (group + 1) * len(w) // groups)
        read = x[:, group * w.shape[1]:(group + 1) * w.shape[1]]
        own = step or _output_step(g, node, read, w[rows], unit[rows])
        layers.append(Layer(node, read, w[rows], unit[rows] / own, rows, act.qmax, mlas))
    return layers


def _can_saturate(g: Graph, node: Node, grouped: bool) -> bool:
    inputs = g.inputs(node)
    if node.op not in ("Convolution", "FullyConnected") or not isinstance(inputs[1].node.quant, QParams):
        return False
    if node.op == "FullyConnected" or ops.attr(node, "num_group") == 1:
        return True
    weight = g.param(g.inputs(inputs[1].node)[0])
    depthwise = weight is not None and weight.shape[1] == 1 and ops.attr(node, "num_group") == len(weight)
    return grouped and not depthwise


def _output_step(g: Graph, node: Node, x: np.ndarray, w: np.ndarray, unit: np.ndarray) -> float:
    """The step of the codes that this layer's result is written in, past a sum that it is fused into."""
    while True:
        uses = g.uses(node)
        if len(uses) != 1:
            break
        node = uses[0][0]
        if isinstance(node.quant, QParams):
            return float(node.quant.scale)
        if node.op != "elemwise_add":
            break
    real = np.einsum("pct,oct->po", x[:32].astype(np.float32), w.astype(np.float32)) * unit
    return max(float(np.abs(real).max(initial=0.0)) / 255, 1e-30)
