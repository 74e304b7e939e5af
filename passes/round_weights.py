"""Round weights by what their errors do to the output, layer after layer, and take what remains out of the biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Optional

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._float_reads import FloatReads, KeptReads
from qgraph.quant.adaptive import Lattice, damped, nearest_factors, second_moment, shifted
from qgraph.quant.spec import QParams, QSpec, per_axis, quantize
from qgraph.semantics.interpreter import Executor, RunOp, Tensor
from qgraph.semantics.sampling import draw_windows, patches, window_count

_POSITIONS = 4096  # sampled output positions a layer
_WIDEST = 4608  # inputs whose errors are weighed against each other; a wider layer is cut into such parts
_FINE_BITS = 8
_DAMPING, _COARSE_DAMPING = 0.1, 0.3  # of the mean second moment
_ON_GRID = 1e-3  # of a step: weights that are nowhere further from a code stay as they are, such as trained ones
_DOUBT = 4.0  # squared standard errors that a mean error must exceed to be believed in


@register
class RoundWeights(Pass):
    """Round weights adaptively: minimize the squared error of the layer's output. Free at run time.

        conv(fq(x), fq(w), b)  ->  the same with other codes and bias, and with coarse weights another scale

    One walk along the graph: each layer is measured on what the rounded layers before it give on the sample images, see
    `qgraph.quant.adaptive`.  Neighbouring pixels are alike, so what rounding mostly finds is that the errors of a
    kernel should add up to zero.

    Weights are coarse with fewer than 8 bits, or where channels share a scale.  Their scale is then searched, and they
    are rounded so that the output is that of the float network for its own inputs, as far as that can be.

    The mean error of each output channel that is left, also that of its inputs, goes into the bias: with m the mean
    over images of the error's mean per image, and v the variance of that mean, m * max(0, 1 - 4 v / m^2), so that what
    so few images do not show for sure is left alone.

    feeds: some calibration images; without them the pass does nothing.  original: the float network, with the same
    names; without it, layers are thought to read there what they read here.
    kept_reads: what runs for other targets, on the same images, read in the float network.
    run_op: runs the ops that the reference lacks; a layer that nothing can measure stays as it is.
    """

    name = "round-weights"
    requires = ("calibrate",)
    rounding: str = "mxnet"
    feeds: Optional[Mapping[str, np.ndarray]] = None
    original: Optional[Graph] = None
    kept_reads: Optional[KeptReads] = None
    run_op: Optional[RunOp] = None

    def run(self, g: Graph) -> int:
        if self.feeds is None:
            return 0
        layers = {node: number for number, node in enumerate(n for n in g.toposort() if _concerned(g, n))}
        seeds = {node.name: number for node, number in layers.items()}
        readers: dict[Port, list[Node]] = {}
        params: dict[Node, Node] = {}  # quantizer of a weight, or bias of its own -> the layer
        for node in layers:
            readers.setdefault(g.inputs(node)[0], []).append(node)
            own = g.inputs(node)[1:3] if _has_own_bias(g, node) else g.inputs(node)[1:2]
            params.update((port.node, node) for port in own)

        def windows(node: Node, shape: tuple[int, ...]) -> np.ndarray:  # the same in both networks
            return draw_windows(node, shape, np.random.default_rng(seeds[node.name]), _POSITIONS)

        def images(node: Node, shape: tuple[int, ...], at: np.ndarray) -> np.ndarray:
            return at // (window_count(node, shape) // shape[0])

        def wanted(node: Node, value: np.ndarray) -> np.ndarray:
            at = windows(node, value.shape)
            found = patches(node, value, at)
            return found if coarse[node.name] else _image_means(found, images(node, value.shape, at))

        coarse = {node.name: _is_coarse(g.inputs(node)[1].node.quant) for node in layers}
        float_reads = None if self.original is None else FloatReads(
            self.original, {name: (seed, coarse[name]) for name, seed in seeds.items()}, self.feeds, self.run_op,
            wanted, self.kept_reads)
        read: dict[Node, _Reading] = {}
        changed: set[Node] = set()
        for source, _, outputs in Executor(g, [*map(Port, layers)], self.rounding, self.run_op).walk(self.feeds):
            for index, tensor in enumerate(outputs):
                for node in readers.get(Port(source, index), ()):
                    at = windows(node, tensor.shape)
                    x, step = _in_steps(node, tensor, at)
                    in_float = float_reads.of(node.name) if float_reads is not None else None
                    if in_float is not None and source.layout is not None:
                        in_float = in_float[:, list(source.layout)]
                    read[node] = _Reading(node, x, in_float, step, images(node, tensor.shape, at),
                                          coarse[node.name])
            if (layer := params.get(source)) is not None:
                if layer in read and _settle(g, layer, read.pop(layer)):
                    changed.add(layer)
                if layer in changed:  # later nodes read what was settled
                    outputs[0] = _param_value(g, source)
        return len(changed)


def _concerned(g: Graph, node: Node) -> bool:
    """Layers with a quantized weight of their own."""
    if node.op not in ("Convolution", "FullyConnected"):
        return False
    fq = g.inputs(node)[1]
    if not isinstance(fq.node.quant, QParams):
        return False
    source = g.inputs(fq.node)[0]
    return g.param(source) is not None and g.has_one_use(fq) and g.has_one_use(source)


def _in_steps(node: Node, tensor: Tensor, windows: np.ndarray) -> tuple[np.ndarray, float]:
    """(what the layer reads there in steps, the step); a tensor without codes is in steps of 1."""
    if not tensor.small:
        return patches(node, tensor.real, windows), 1.0
    assert tensor.qp is not None
    zero = int(tensor.qp.zero_point)
    return patches(node, tensor.kept, windows, zero).astype(np.float32) - np.float32(zero), float(tensor.qp.scale)


def _is_coarse(spec: QSpec | None) -> bool:
    return spec is not None and (spec.bits < _FINE_BITS or spec.granularity != "channel")


class _Reading:
    """What a layer reads at some positions of its output.

    x: (groups, positions, inputs), in steps of what it reads.  wanted: the same in the float network, where weights are
    coarse.  means, wanted_means: their means over each image, (groups, images, inputs).
    in_float: what the float network reads, or for fine weights the means of that; None for the same.
    images: of which image each position is.
    """

    def __init__(self, node: Node, x: np.ndarray, in_float: np.ndarray | None, step: float, images: np.ndarray,
                 coarse: bool) -> None:
        self.step = step
        self.x, self.means = _by_group(node, x), _by_group(node, _image_means(x, images))
        self.wanted, self.wanted_means = self.x, self.means
        if in_float is not None and coarse:
            self.wanted = _by_group(node, in_float) / np.float32(step)
            in_float = _image_means(in_float, images)
        if in_float is not None:
            self.wanted_means = _by_group(node, in_float) / step


def _image_means(x: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(positions, ...) -> (images that have any, ...) float64"""
    return np.stack([x[images == image].mean(axis=0, dtype=np.float64) for image in np.unique(images)])


def _by_group(node: Node, x: np.ndarray) -> np.ndarray:
    """(positions, C, taps) -> (groups, positions, inputs)"""
    groups = 1 if node.op == "FullyConnected" else ops.attr(node, "num_group")
    return np.ascontiguousarray(x.reshape(len(x), groups, -1).swapaxes(0, 1))


def _settle(g: Graph, node: Node, read: _Reading) -> bool:
    """Round the weight, choose its scale and correct the bias; whether anything changed."""
    fq = g.inputs(node)[1].node
    name, qp = g.inputs(fq)[0].node.name, fq.quant
    assert isinstance(qp, QParams)
    weight = g.params[name]
    shape = (len(read.x), -1, read.x.shape[2])
    exact = (weight / _steps(qp, weight)).reshape(shape)
    if np.abs(exact - np.rint(exact)).max(initial=0) < _ON_GRID:
        return False
    coarse = _is_coarse(qp)
    if coarse:
        diagonal = np.square(read.x).mean(axis=1)
        qp = _rescaled(qp, nearest_factors(exact, diagonal, qp.scale.size, qp.qmin, qp.qmax))
        exact = (weight / _steps(qp, weight)).reshape(shape)
    codes = np.empty_like(exact)
    for start in range(0, shape[2], _WIDEST):
        part = slice(start, start + _WIDEST)
        x, own = read.x[:, :, part], exact[:, :, part]
        lattice = Lattice(damped(second_moment(x, x), _COARSE_DAMPING if coarse else _DAMPING))
        if coarse:
            own = shifted(own, lattice, second_moment(read.wanted[:, :, part] - x, x))
            if start == 0 and qp.granularity == "channel":  # of a wider layer, the first part chooses the scale
                factors = lattice.best_factors(own, qp.qmin, qp.qmax)
                qp = _rescaled(qp, factors)
                exact /= factors.reshape(shape[0], -1, 1)
                own = own / factors.reshape(shape[0], -1, 1)
        codes[:, :, part] = lattice.round(own, qp.qmin, qp.qmax)
    rounded = (codes.reshape(weight.shape) * _steps(qp, weight)).astype(np.float32)
    fq.quant, g.params[name] = qp, rounded
    if _has_own_bias(g, node):
        lacking = np.matmul(read.wanted_means, exact.swapaxes(1, 2)) - np.matmul(read.means, codes.swapaxes(1, 2))
        added = _sure_part(lacking.swapaxes(1, 2).reshape(len(weight), -1).T
                           * (_steps(qp, weight).reshape(len(weight), -1)[:, 0] * read.step))
        bias = g.inputs(node)[2].node.name
        g.params[bias] = g.params[bias] + added
    return True


def _rescaled(qp: QParams, factors: np.ndarray) -> QParams:
    """factors: (scales,)"""
    return dataclasses.replace(qp, scale=(qp.scale.ravel() * factors).astype(np.float32).reshape(qp.scale.shape))


def _steps(qp: QParams, weight: np.ndarray) -> np.ndarray:
    """The scale of each weight."""
    return np.broadcast_to(per_axis(qp.scale, qp, weight.shape), weight.shape)


def _has_own_bias(g: Graph, node: Node) -> bool:
    inputs = g.inputs(node)
    return len(inputs) > 2 and g.param(inputs[2]) is not None and g.has_one_use(inputs[2])


def _param_value(g: Graph, source: Node) -> Tensor:
    """Of a parameter, or of the quantizer behind one."""
    qp = source.quant
    if not isinstance(qp, QParams):
        return Tensor(np.asarray(g.params[source.name], np.float32))
    weight = g.params[g.inputs(source)[0].node.name]
    return Tensor(codes=quantize(weight, qp), qp=qp)


def _sure_part(errors: np.ndarray) -> np.ndarray:
    """(images, channels) -> (channels,) float32: their mean, less what it may owe to the choice of the images."""
    mean = errors.mean(axis=0)
    variance = errors.var(axis=0, ddof=1) / len(errors) if len(errors) > 1 else np.square(mean)
    part = np.maximum(0, 1 - _DOUBT * variance / np.maximum(np.square(mean), 1e-300))
    return np.asarray(mean * part, np.float32)
