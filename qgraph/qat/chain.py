"""The arithmetic of fake quantization in MXNet's ops: the same numbers as `qgraph.quant.spec`, and a gradient.

    step  = range / qmax                                  as `with_range`, to the last bit
    codes = min(max(x * (1 / step), qmin), qmax) + M - M  M = 1.5 * 2**23 rounds to whole numbers, ties to even
    y     = codes * step

Every function takes `F` (`mx.nd` or `mx.sym`), so a block works hybridized and not.  Multiplying by a tensor of one
element has a slow gradient in MXNet, so the chain is cut off, and the gradient goes around it:

    straight through   y = BlockGrad(y) + (x - BlockGrad(x))          the last term is exactly zero
    clipping aware     the same with x * inside, where inside is 1 for what was not clipped
    learned range      + h * (range - BlockGrad(range)), where h is what dy/drange shall be
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qgraph.quant.spec import QSpec

ROUNDER = 12582912.0
_TINY = float(np.finfo(np.float32).tiny)


def step_of(F: Any, high: Any, spec: QSpec) -> tuple[Any, Any]:
    """(step, its reciprocal) for a range that ends at `high`; as MXNet's quantize and dequantize compute them."""
    radius = 127.5 if spec.signed else 255.5
    step = F.maximum(high / spec.qmax, _TINY) * radius / radius
    return step, radius / (step * radius)


def _codes(F: Any, scaled: Any, spec: QSpec) -> Any:
    low = F.maximum(scaled, spec.qmin) if spec.qmin else F.Activation(scaled, act_type="relu")
    return F.minimum(low, spec.qmax) + ROUNDER - ROUNDER


def _around(F: Any, value: Any, through: Any) -> Any:
    """`value`, with the gradient of `through`."""
    return F.BlockGrad(value) + (through - F.BlockGrad(through))


def fake_quantize(F: Any, x: Any, high: Any, spec: QSpec, clip_gradient: bool = False, learn: str = "") -> Any:
    """x -> the nearest values that have a code. high: (1,), where the range ends.

    learn: "lsq" (arXiv 1902.08153: the step has a gradient, scaled by 1/sqrt(values * qmax)) or "pact" (arXiv
    1805.06085: the range has the gradient of what it clips).  Both are clipping aware.
    """
    fixed = F.BlockGrad(high)
    step, inverse = step_of(F, fixed, spec)
    scaled = F.broadcast_mul(x, inverse)
    codes = _codes(F, scaled, spec)
    value = F.broadcast_mul(codes, step)
    if not clip_gradient and not learn:
        return _around(F, value, x)
    inside = F.BlockGrad((scaled >= spec.qmin) * (scaled <= spec.qmax))
    y = _around(F, value, x * inside)
    if not learn:
        return y
    slope = codes - scaled * inside if learn == "lsq" else (codes / spec.qmax) * (1 - inside)
    return y + _through_range(F, F.BlockGrad(slope), high, x, spec, learn)


def _through_range(F: Any, slope: Any, high: Any, x: Any, spec: QSpec, learn: str) -> Any:
    """Zeros, whose gradient with respect to `high` is the sum of slope * dy. As a matrix product it is fast."""
    zero = high - F.BlockGrad(high)
    if learn == "lsq":  # of the step, as the paper scales it; one image's values count
        values = F.cast(F.size_array(F.BlockGrad(F.slice_axis(x, axis=0, begin=0, end=1))), dtype="float32")
        zero = zero * F.BlockGrad((spec.qmax / values) ** 0.5)
    product = F.dot(F.reshape(slope, shape=(-1, 1)), F.reshape(zero, shape=(1, 1)))
    return F.reshape_like(product, x)


def _spread(F: Any, per_group: Any, rows: int, rank: int) -> Any:
    """(groups,) -> (groups * rows, 1, ...), against a weight of `rank` axes. Weights themselves are never reshaped:
    MXNet cannot reshape what its convolution has brought into a layout of its own."""
    return F.reshape(F.repeat(per_group, repeats=rows, axis=0), shape=(-1,) + (1,) * (rank - 1))


def weight_range(F: Any, weight: Any, spec: QSpec, shape: tuple[int, ...]) -> Any:
    """Largest magnitude per tensor, convolution group or channel, as it broadcasts against the weight."""
    size = F.abs(weight)
    if spec.granularity == "channel":
        return F.max(size, axis=spec.axis, exclude=True, keepdims=True)
    if spec.granularity == "tensor":
        return F.reshape(F.max(size), shape=(1,))
    grouped = F.reshape(F.max(size, axis=0, exclude=True), shape=(spec.groups, -1))
    return _spread(F, F.max(grouped, axis=1), shape[0] // spec.groups, len(shape))


def fake_quantize_weight(F: Any, weight: Any, spec: QSpec, shape: tuple[int, ...], learned: Any = None) -> Any:
    """weight -> the nearest values that have a code, in the smallest range that covers it, or in the `learned` one.

    learned: (1,) per tensor, (groups,) per group, as it broadcasts per channel; it has the gradient of LSQ.
    """
    if learned is None:
        step, inverse = step_of(F, F.BlockGrad(weight_range(F, weight, spec, shape)), spec)
        value = F.broadcast_mul(_codes(F, F.broadcast_mul(weight, inverse), spec), step)
        return _around(F, value, weight)
    if spec.granularity == "group":
        learned = _spread(F, learned, shape[0] // spec.groups, len(shape))
    step, inverse = step_of(F, F.BlockGrad(learned), spec)
    scaled = F.BlockGrad(F.broadcast_mul(weight, inverse))
    codes = _codes(F, scaled, spec)
    inside = (scaled >= spec.qmin) * (scaled <= spec.qmax)
    slowed = (learned - F.BlockGrad(learned)) * float(np.sqrt(spec.qmax / np.prod(shape)))
    slope = F.broadcast_mul(F.BlockGrad(codes - scaled * inside), slowed)
    return _around(F, F.broadcast_mul(codes, step), weight * inside) + slope


def batch_range(F: Any, x: Any, spec: QSpec, rank: int) -> Any:
    """(1,): mean over the images of the batch of the largest value (magnitude, for signed codes) of each.

    rank: x is (N, C, and so many more), where MXNet's pooling is eight times as fast as its `max`; 0 if not known.
    """
    x = F.BlockGrad(x)
    size = F.abs(x) if spec.signed else x
    if rank:
        size = F.Pooling(size, global_pool=True, pool_type="max", kernel=(1,) * rank)
    return F.maximum(F.reshape(F.mean(F.max(size, axis=0, exclude=True)), shape=(1,)), 0)
