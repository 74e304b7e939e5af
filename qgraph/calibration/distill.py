"""Calibration images without data: distilled from the statistics that the network's own BatchNorms keep.

After ZeroQ (Cai et al., arXiv 2001.00281): a batch of noise is changed by gradient descent until the mean and variance
of the tensor that each BatchNorm reads match its moving mean and variance.  Ranges seen on such images are near those
on real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.errors import CalibrationError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.targets.mxnet.runtime import import_mxnet, subgraph_backend

BATCH = 16  # images distilled together: enough to share out what one image cannot show, and little memory
_RATE, _BETA1, _BETA2 = 0.1, 0.9, 0.99  # Adam on values of about unit variance, falling to 0 along a cosine
_BOUND = 2.5  # largest |x| in units of the input's scale: pixels are bounded, normalized ones lie within about 2.6


def need_mxnet() -> Any:
    """The mxnet module, whose gradients are followed."""
    return import_mxnet("there are no calibration data, and distilling images from the network",
                        "give --calib-data PATH (.rec, image folder, .npz or .npy), or ")


def distill(g: Graph, input_shapes: Mapping[str, Sequence[int]], count: int = 64, seed: int = 0, steps: int = 25,
            progress: Callable[[int, int], object] | None = None) -> dict[str, np.ndarray]:
    """Input name -> count x ... float32 that reproduces the statistics of the BatchNorms of `g`. Needs MXNet.

    g: the float graph before BatchNorms are folded; it is not changed.
    input_shapes: input -> shape with the batch axis, whose length is ignored. An input that feeds no BatchNorm gets the
        prior below; names that are no input of `g` are left out.
    steps: of gradient descent per batch.  progress: called as ``progress(steps done, steps in all)``.
    The same arguments give the same images; each batch has its own seed.  Memory is that of training on 16 images.

    The loss compares, per channel, two normal distributions: the Kullback-Leibler divergence of the batch's from the
    stored one, averaged over the C channels of a BatchNorm and summed over BatchNorms,

        L = sum_bn 1/C sum_c (d^2 + r - 1 - log r) / 2,   d = (mean - moving_mean) / s,   r = (var + eps) / s^2,
        s^2 = moving_var + eps

    d and r have no unit, so layers and channels of any scale count alike; the curvature is 1 in d and 1/2 in r at the
    optimum d = 0, r = 1; and eps, which is the network's own, keeps a channel without variance finite.  ZeroQ's squared
    differences of mean and std are in the units of each layer instead, and let the largest one rule.

    The prior: an image is pink noise (amplitude falls as 1/frequency, as in photographs), descended in the whitened
    space where all frequencies learn at one rate: that needs about half the steps of white noise.  Its values are
    bounded, as pixels are, and its scale is the power of two that fits the BatchNorms best before descent.

    Raises CalibrationError for a network without BatchNorm, or one whose inputs have no shape.
    """
    if count < 1 or steps < 1:
        raise CalibrationError(f"distill: found count={count}, steps={steps}, want at least 1 each")
    batches = math.ceil(count / BATCH)
    size = math.ceil(count / batches)  # equal batches, so that one executor does; a surplus of a few is cut off
    shapes = {n.name: (size, *input_shapes[n.name][1:]) for n in g.data_inputs() if n.name in input_shapes}
    match = _Match(g, shapes)
    colours = {name: _colour(shape[2:]) for name, shape in shapes.items()}
    scale = 0.0
    found: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for batch in range(batches):
        rng = np.random.default_rng([seed, batch])
        z = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        scale = scale or _best_scale(match, z, colours)
        for step in _descend(match, z, colours, scale, steps):
            if progress is not None:
                progress(batch * steps + step, batches * steps)
        for name, x in _images(z, colours, scale)[0].items():
            found[name].append(x)
    return {name: np.concatenate(parts)[:count] for name, parts in found.items()}


def _descend(match: _Match, z: dict[str, np.ndarray], colours: Mapping[str, np.ndarray | None], scale: float,
             steps: int) -> Iterator[int]:
    """Adam on the whitened images `z`, in place; yields the number of every step done."""
    first = {name: np.zeros_like(v) for name, v in z.items()}
    second = {name: np.zeros_like(v) for name, v in z.items()}
    for step in range(1, steps + 1):
        images, slopes = _images(z, colours, scale)
        gradients = match.gradient(images)
        rate = _RATE * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        for name in gradients:
            value = z[name]
            grad = np.nan_to_num(_filter(gradients[name] * slopes[name], colours[name]), posinf=0.0, neginf=0.0)
            grad /= np.abs(grad).max() or 1.0  # Adam does not see the scale; the squares below must not underflow
            first[name] += (1 - _BETA1) * (grad - first[name])
            second[name] += (1 - _BETA2) * (grad * grad - second[name])
            value -= rate * (first[name] / (1 - _BETA1**step)) / (np.sqrt(second[name] / (1 - _BETA2**step)) + 1e-12)
        yield step


# ---- the images: whitened values -> coloured and bounded ------------------------------------------------------------

def _colour(sides: Sequence[int]) -> np.ndarray | None:
    """Amplitudes of pink noise of unit variance, over `numpy.fft.rfftn` of an array of these sides; None for none."""
    if not sides:
        return None
    steps = np.meshgrid(*(np.arange(n) for n in (*sides[:-1], sides[-1] // 2 + 1)), indexing="ij")
    radius = np.sqrt(np.sum([(np.minimum(k, n - k) / n) ** 2 for k, n in zip(steps, sides)], axis=0))
    amplitude = np.maximum(radius, 1 / max(sides)) ** (-len(sides) / 2)
    twice = np.full(amplitude.shape[-1], 2.0)  # rfftn leaves out the mirror image of every column but these
    twice[0] = 1.0
    if sides[-1] % 2 == 0:
        twice[-1] = 1.0
    return (amplitude / np.sqrt((amplitude**2 * twice).sum() / math.prod(sides))).astype(np.float32)


def _filter(x: np.ndarray, colour: np.ndarray | None) -> np.ndarray:
    """N x C x ... filtered; the filter is symmetric, so this is its own transpose in the chain rule."""
    if colour is None:
        return x
    axes = tuple(range(2, x.ndim))
    return np.fft.irfftn(np.fft.rfftn(x, axes=axes) * colour, x.shape[2:], axes).astype(np.float32)


def _images(z: Mapping[str, np.ndarray], colours: Mapping[str, np.ndarray | None],
            scale: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(images, their slope by the filtered values)"""
    bounded = {name: np.tanh(_filter(value, colours[name]) / _BOUND) for name, value in z.items()}
    return ({name: (scale * _BOUND) * b for name, b in bounded.items()},
            {name: scale * (1 - b * b) for name, b in bounded.items()})


def _best_scale(match: _Match, z: Mapping[str, np.ndarray], colours: Mapping[str, np.ndarray | None]) -> float:
    """The power of two of least loss: away from 1 in steps of 4 as long as it falls, then one of 2."""
    seen: dict[float, float] = {}

    def at(scale: float) -> float:
        if scale not in seen:
            value = match.loss(_images(z, colours, scale)[0])
            seen[scale] = value if math.isfinite(value) else math.inf
        return seen[scale]

    best = 1.0
    for factor in (4.0, 0.25):
        while at(best * factor) < at(best) and 1e-4 < best < 1e4:
            best *= factor
    return min((best, best / 2, best * 2), key=at)


# ---- the statistics -------------------------------------------------------------------------------------------------

class _Target:
    """What one BatchNorm wants of the tensor it reads. s2: moving_var + eps; weight: 0 for channels that are broken."""

    def __init__(self, g: Graph, bn: Node) -> None:
        mean, var = (g.param(port) for port in g.inputs(bn)[3:5])
        if mean is None or var is None:
            raise CalibrationError(f"{bn}: its moving mean and variance are no parameters; give --calib-data")
        self.axis = ops.attr(bn, "axis")
        self.eps = max(float(ops.attr(bn, "eps")), 1e-12)
        usable = np.isfinite(mean) & np.isfinite(var)
        self.mean = np.where(usable, mean, 0.0).astype(np.float64)
        self.s2 = np.where(usable, np.maximum(var, 0.0), 0.0).astype(np.float64) + self.eps
        self.weight = usable / len(mean)

    def compare(self, mean: np.ndarray, var_eps: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """(loss, its derivative by the batch's mean, by the batch's variance); var_eps: the variance + eps."""
        d, r = (mean - self.mean) / np.sqrt(self.s2), var_eps / self.s2
        good = self.weight * (np.isfinite(d) & np.isfinite(r))
        d, r = np.where(good > 0, d, 0.0), np.where(good > 0, r, 1.0)
        loss = float((good * (d * d + r - 1 - np.log(r)) / 2).sum())
        return loss, good * d / np.sqrt(self.s2), good * (1 - 1 / r) / (2 * self.s2)


class _Match:
    """The network up to its BatchNorms, and how far their inputs are from what they want.

    MXNet's BatchNorm also computes the statistics (training mode) and applies the gradient of a mean and a variance,
    which is an affine function per channel (inference mode). It is several times as fast as `mean` and `square`.
    """

    def __init__(self, g: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        twin = g.copy()
        norms = []
        for node in twin.toposort():
            op = ops.ALIASES.get(node.op, node.op)
            if op in ops.IDENTITIES:  # BlockGrad stops the gradient, Dropout draws random numbers
                twin.replace_uses(node, twin.inputs(node)[0])
            elif op == "BatchNorm":
                node.attrs["use_global_stats"] = "True"  # so that forward is what inference computes
                norms.append(node)
        if not norms:
            raise CalibrationError("this network has no BatchNorm to distill calibration images from; "
                                   "give real ones with --calib-data")
        readers = {twin.inputs(n)[0]: n for n in norms if twin.param(twin.inputs(n)[0]) is None}
        self._targets = [_Target(twin, n) for n in readers.values()]
        twin.heads = list(readers)
        twin.prune()
        self.shapes = {n.name: tuple(shapes.get(n.name, ())) for n in twin.data_inputs()}
        missing = [name for name, shape in self.shapes.items() if not shape or min(shape) < 1]
        if missing:
            raise CalibrationError(f"distill: no shape for the input {', '.join(missing)}; give --input-shape")
        self._bind(twin)

    def _bind(self, twin: Graph) -> None:
        from qgraph.formats.mxnet_writer import to_mxnet

        mx = self._mx = need_mxnet()
        # a head that is an input itself needs an op, or MXNet gives it no gradient
        twin.heads = [Port(twin.add("_copy", [h])) if h.node.op == "null" else h for h in twin.heads]
        symbol, args, aux = to_mxnet(twin)
        self._data = {name: mx.nd.zeros(shape) for name, shape in self.shapes.items()}
        self._grads = {name: mx.nd.zeros(shape) for name, shape in self.shapes.items()}
        try:
            with subgraph_backend("default"):  # fuses nothing, as "NONE" does, which logs a line
                self._executor = symbol.bind(
                    mx.cpu(), {**args, **self._data}, args_grad=self._grads, aux_states=aux,
                    grad_req={name: "write" if name in self._data else "null" for name in symbol.list_arguments()})
        except mx.MXNetError as error:
            raise CalibrationError(f"distill: MXNet cannot run this model on inputs of shape {self.shapes}: "
                                   f"{str(error).splitlines()[0]}") from error

    def loss(self, images: Mapping[str, np.ndarray]) -> float:
        """Sum over BatchNorms."""
        return sum(loss for loss, *_ in self._compare(images)[1])

    def gradient(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of the loss, by each input."""
        tensors, compared = self._compare(images)
        heads = []
        for target, x, (mean, _), (_, by_mean, by_var) in zip(self._targets, tensors, self._stats, compared):
            n = x.size // len(by_mean)
            heads.append(self._norm(x, target, gamma=by_var * 2 / n, beta=by_mean / n, mean=mean,
                                    var=np.ones_like(mean), eps=1e-12))
        self._executor.backward(heads)
        return {name: grad.asnumpy() for name, grad in self._grads.items()}

    def _compare(self, images: Mapping[str, np.ndarray]) -> tuple[list[Any],
                                                                  list[tuple[float, np.ndarray, np.ndarray]]]:
        for name, array in self._data.items():
            array[:] = images[name]
        tensors = self._executor.forward(is_train=True)
        pending = []
        for x, target in zip(tensors, self._targets):
            zero = np.zeros_like(target.mean)
            with self._mx.autograd.train_mode():
                pending.append(self._norm(x, target, gamma=zero + 1, beta=zero, mean=zero, var=zero + 1,
                                          eps=target.eps, output_mean_var=True)[1:])
        # the third output is 1 / sqrt(var + eps)
        self._stats = [(mean.asnumpy().astype(np.float64), inverse.asnumpy().astype(np.float64) ** -2.0)
                       for mean, inverse in pending]
        return tensors, [target.compare(*stats) for target, stats in zip(self._targets, self._stats)]

    def _norm(self, x: Any, target: _Target, *, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray,
              **options: object) -> Any:
        arrays = [self._mx.nd.array(v, dtype="float32") for v in (gamma, beta, mean, var)]
        return self._mx.nd.BatchNorm(x, *arrays, fix_gamma=False, axis=target.axis, **options)
