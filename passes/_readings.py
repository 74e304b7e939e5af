"""What layers read on a sample of images, and what quantization does to what they make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.analysis.channels import channel_ends
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.passes._affine import own_weights, per_input, scale_outputs
from qgraph.quant.spec import QSpec, fake_quantize, with_range
from qgraph.quant.weights import weight_params
from qgraph.semantics.interpreter import Executor, RunOp
from qgraph.semantics.sampling import patches, window_count

HALVES = CHOOSING, JUDGING = 0, 1
_POSITIONS = 512  # sampled output positions of a layer, for each half of the images
_VALUES = 1 << 18  # of the sample; wide layers are sampled at fewer positions


@dataclass(eq=False)
class Reading:
    """A layer with weights and what it reads.

    x: (positions, columns, taps) of each half of the images; a column is an input channel, of a dense layer one input.
    ranges: (halves, 2, columns), the lowest and the highest value of each column in each half of the calibration.
    peaks: (halves, columns), the largest magnitudes.
    weight: as the layer has it.  act, spec: how its input and its weight are quantized.
    """

    node: Node
    x: tuple[np.ndarray, np.ndarray]
    ranges: np.ndarray
    weight: np.ndarray
    act: QSpec
    spec: QSpec

    def __post_init__(self) -> None:
        self._y = [self._times(x, self.weight) for x in self.x]
        self._power = [float(np.square(y, dtype=np.float64).sum()) or 1.0 for y in self._y]

        self.peaks = np.abs(self.ranges).max(axis=1)

    @property
    def columns(self) -> int:
        return self.peaks.shape[1]

    def noise(self, half: int, factors: np.ndarray, out: np.ndarray) -> float:
        """Noise over signal of the output, for ranges of the half that is chosen on.

        factors: of the columns.  out: of the output channels.
        """
        ends = self.ranges[CHOOSING] * factors
        low, high = ends.min(initial=0), ends.max(initial=0)
        scaled = self.x[half] * factors[:, None].astype(np.float32)
        error = self._times(fake_quantize(scaled, with_range(self.act, low, high)), self._rounded(factors, out))
        error -= self._y[half]
        return float(np.square(error, dtype=np.float64).sum()) / self._power[half]

    def weight_noise(self, half: int, factors: np.ndarray, out: np.ndarray) -> np.ndarray:
        """(output channels,) mean square of the error that rounding the weight makes."""
        lost = self._rounded(factors, out) * per_input(self.node, self.weight, factors) - self.weight
        squares = np.square(self._times(self.x[half], lost), dtype=np.float64).mean(axis=1)
        return squares.reshape(len(out), -1).mean(axis=1)

    def from_inputs(self, half: int, squares: np.ndarray) -> float:
        """Noise over signal of the output that independent errors of the columns make. squares: their mean squares."""
        gain = np.square(self.weight) * per_input(self.node, self.weight, squares)
        return float(gain.sum()) * len(self.x[half]) / self._power[half]

    def _rounded(self, factors: np.ndarray, out: np.ndarray) -> np.ndarray:
        """The weight for inputs times `factors`, rounded as that of outputs times `out`."""
        weight = scale_outputs(self.node, self.weight * per_input(self.node, self.weight, 1 / factors), out)
        params = weight_params(self.node.name, weight, self.spec)
        return scale_outputs(self.node, fake_quantize(weight, params).astype(np.float64), 1 / out)

    def _times(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(groups, positions, output channels of the group); those of a transposed convolution once for each tap."""
        groups = 1 if self.node.op == "FullyConnected" else ops.attr(self.node, "num_group")
        rows = weight.astype(np.float32).reshape(groups, len(weight) // groups, -1)
        if self.node.op != "Deconvolution":
            rows = rows.transpose(0, 2, 1)
        return np.matmul(x.reshape(len(x), groups, -1).transpose(1, 0, 2), rows)


Piece = tuple[int, int, Mapping[Port, np.ndarray]]
"""(number of the first image, how many, the values of tensors as far as they are known)"""


class Look:
    """What layers read in some images, and the ranges of channels in all: one sweep, piece by piece.

    ports: the tensors whose ranges are taken.  sampled: how many images, the first ones, are sampled for `layers`.
    """

    def __init__(self, g: Graph, layers: Iterable[Node], ports: Sequence[Port], sampled: int) -> None:
        self.ranges: dict[Port, np.ndarray] = {}
        self._ports, self._readers = ports, [(node, g.inputs(node)[0]) for node in layers]
        self._draws = {node: [_Draw(node, (sampled + 1 - half) // 2, (number, half)) for half in HALVES]
                       for number, (node, _) in enumerate(self._readers)}

    def add(self, piece: Piece) -> None:
        """Numbers of images ascend without a gap."""
        first, count, values = piece
        self.widen({port: channel_ends(values[port], count, first) for port in self._ports if port in values})
        for node, port in self._readers:
            if (value := values.get(port)) is None:
                continue
            for half, draw in zip(HALVES, self._draws[node]):
                skipped = (half - first) % 2
                if len(value) == count:
                    draw.add(value[skipped::2], (first + skipped) // 2)
                elif first == 0:  # images in another axis
                    draw.all_of(value[half::2])

    def widen(self, ranges: Mapping[Port, np.ndarray]) -> None:
        """Take in the ranges of other images, each as of `channel_ends`."""
        for port, seen in ranges.items():
            before = self.ranges.get(port)
            self.ranges[port] = seen if before is None else np.stack(
                [np.minimum(before[:, 0], seen[:, 0]), np.maximum(before[:, 1], seen[:, 1])], axis=1)

    def read(self, node: Node) -> tuple[np.ndarray, np.ndarray] | None:
        """(positions, columns, taps) of each half, None if there are none."""
        choosing, judging = (draw.found for draw in self._draws[node])
        return (choosing, judging) if len(choosing) and len(judging) else None


class _Draw:
    """What a layer reads at positions drawn from so many images."""

    def __init__(self, node: Node, images: int, seed: tuple[int, ...]) -> None:
        self._node, self._images, self._seed = node, images, seed
        self._windows: np.ndarray | None = None
        self._parts: list[np.ndarray] = []

    @property
    def found(self) -> np.ndarray:
        return np.concatenate(self._parts) if self._parts else np.empty(0, np.float32)

    def all_of(self, value: np.ndarray) -> None:
        """Draw from this tensor alone."""
        self._images = len(value)
        self.add(value, 0)

    def add(self, value: np.ndarray, first: int) -> None:
        """first: the number of its first image."""
        value = value[:max(0, self._images - first)]
        if not len(value):
            return
        each = _window_count(self._node, (1, *value.shape[1:]))
        if self._windows is None:
            rng, windows = np.random.default_rng(self._seed), each * self._images
            wanted = min(_positions(value.shape[1] * _taps(self._node)), windows)
            self._windows = np.sort(rng.choice(windows, wanted, replace=False))
        low, high = np.searchsorted(self._windows, [first * each, (first + len(value)) * each])
        self._parts.append(_columns(self._node, value, self._windows[low:high] - first * each))


def read_sample(g: Graph, layers: Mapping[Node, QSpec], act: QSpec, look: Look, signed_limit: int
                ) -> dict[Node, Reading]:
    """Layer -> what it reads, without those whose input is unknown. layers: with how their weights are quantized.

    signed_limit: largest code of a weight whose layer reads signed codes; 0 sets no limit.
    """
    found: dict[Node, Reading] = {}
    for node, spec in layers.items():
        x, bounds = look.read(node), look.ranges.get(g.inputs(node)[0])
        if x is None or bounds is None or not np.isfinite(bounds).all():
            continue
        weight, _ = own_weights(g, node)
        columns = x[0].shape[1]
        if signed_limit and bounds.min() < 0:
            spec = dataclasses.replace(spec, limit=min(spec.qmax, signed_limit))
        found[node] = Reading(node, x, np.repeat(bounds, columns // bounds.shape[2], axis=2), weight, act, spec)
    return found


def _taps(node: Node) -> int:
    return int(np.prod(ops.attr(node, "kernel"))) if node.op == "Convolution" else 1


def _window_count(node: Node, shape: tuple[int, ...]) -> int:
    """A transposed convolution reads single pixels."""
    return int(np.prod((shape[0], *shape[2:]))) if node.op == "Deconvolution" else window_count(node, shape)


def _columns(node: Node, value: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """(positions, columns, taps) of what a layer reads at these positions."""
    if node.op == "Deconvolution":
        return np.moveaxis(value, 1, -1).reshape(-1, value.shape[1], 1)[windows]
    return patches(node, value, windows)


def _positions(width: int) -> int:
    return max(1, min(_POSITIONS, _VALUES // width))


def on_the_reference(g: Graph, ports: Sequence[Port], feeds: Mapping[str, np.ndarray], run_op: RunOp | None) -> Piece:
    """All images in one piece, by the reference."""
    known = Executor(g, ports, run_op=run_op).known_tensors(feeds)
    return 0, min(map(len, feeds.values())), {port: tensor.real for port, tensor in known.items()}
