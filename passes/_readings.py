"""What layers read on a sample of images, and what quantization does to what they make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.analysis.channels import channel_ends
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.passes._affine import own_weights, per_input, scale_outputs
from qgraph.quant.spec import QSpec, fake_quantize, with_range
from qgraph.quant.weights import weight_params
from qgraph.semantics.interpreter import Executor, RunOp
from qgraph.semantics.sampling import draw_windows, patches

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


def read_sample(g: Graph, layers: Mapping[Node, QSpec], act: QSpec, feeds: Mapping[str, np.ndarray],
                ranges: Mapping[Port, np.ndarray], signed_limit: int, run_op: RunOp | None) -> dict[Node, Reading]:
    """Layer -> what it reads, without those whose input is unknown. layers: with how their weights are quantized.

    ranges: tensor -> (halves, 2, channels), lowest and highest values.  signed_limit: largest code of a weight whose
    layer reads signed codes; 0 sets no limit.
    """
    readers: dict[Port, list[Node]] = {}
    for node in layers:
        readers.setdefault(g.inputs(node)[0], []).append(node)
    rng = np.random.default_rng(0)
    found: dict[Node, Reading] = {}
    for source, _, outputs in Executor(g, list(readers), run_op=run_op).walk(feeds):
        for index, tensor in enumerate(outputs):
            port = Port(source, index)
            for node in readers.get(port, ()):
                bounds = ranges.get(port)
                if bounds is None or not np.isfinite(bounds).all():
                    continue
                weight, _ = own_weights(g, node)
                x = [_columns(node, tensor.real[half::2], rng) for half in HALVES]
                columns, spec = x[0].shape[1], layers[node]
                if signed_limit and bounds.min() < 0:
                    spec = dataclasses.replace(spec, limit=min(spec.qmax, signed_limit))
                found[node] = Reading(node, (x[0], x[1]), np.repeat(bounds, columns // bounds.shape[2], axis=2),
                                      weight, act, spec)
    return found


def _columns(node: Node, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(positions, columns, taps) of what a layer reads; a transposed convolution reads single pixels."""
    if node.op == "Deconvolution":
        pixels = np.moveaxis(value, 1, -1).reshape(-1, value.shape[1], 1)
        count = _positions(pixels.shape[1])
        return pixels[np.sort(rng.choice(len(pixels), min(count, len(pixels)), replace=False))]
    taps = int(np.prod(ops.attr(node, "kernel"))) if node.op == "Convolution" else 1
    return patches(node, value, draw_windows(node, value.shape, rng, _positions(value.shape[1] * taps)))


def _positions(width: int) -> int:
    return max(1, min(_POSITIONS, _VALUES // width))


def sample_ranges(g: Graph, ports: Sequence[Port], feeds: Mapping[str, np.ndarray],
                  run_op: RunOp | None) -> dict[Port, np.ndarray]:
    """The ranges of these tensors' channels in the sample itself, of those that are known."""
    known = Executor(g, ports, run_op=run_op).known_tensors(feeds)
    return {port: channel_ends(tensor.real, len(tensor.real)) for port, tensor in known.items()}
