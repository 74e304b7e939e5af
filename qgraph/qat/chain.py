"""The arithmetic of fake quantization in MXNet's ops: the same numbers as `qgraph.quant.spec`, and a gradient.

    step  = range / qmax                                  as `with_range`, to the last bit
    codes = min(max(x * (1 / step), qmin), qmax) + M - M  M = 1.5 * 2**23 rounds to whole numbers, ties to even
    fq(x) = codes * step

At inference the layers multiply codes, and steps behind them (`channel_steps`): sums of whole numbers are exact, so
that what is frozen can compute the same.  In training fq(x) is cut off at its inputs by BlockGrad (of a cut at its
output zeros would still be propagated), and the gradient goes around it, because multiplying by a tensor of one element
has a slow one:

    straight through   y = x + (fq(x') - x')                              x' = BlockGrad(x)
    clipping aware     y = x inside + (fq(x') - x' inside)                inside is 1 for what was not clipped
    learned range      and + h * (range - BlockGrad(range))               h is what dy/drange shall be

There fq is MXNet's quantize and dequantize where they can be had (`in_two_passes`): two passes for seven.  They read
x' in MXNet's own layout, or they would take longer than the seven.

Every function takes `F` (`mx.nd` or `mx.sym`), so a block works hybridized and not.  Tensors of one shape are added
by `F.elemwise_add`: `+` is broadcast_add on arrays but elemwise_add on symbols, and these add up in different orders.
"""

from __future__ import annotations

import functools

import numpy as np

from qgraph.qat.statistic import amp_is_on, mx
from qgraph.qat.types import Ops, Parameter, T
from qgraph.quant.spec import ROUNDER, QSpec

_TINY = float(np.finfo(np.float32).tiny)
_TWO_PASSES_PAY = 2**14  # values: for fewer, quantize and dequantize take longer to start than seven passes


def step_of(F: Ops[T], high: T, spec: QSpec) -> tuple[T, T]:
    """(step, its reciprocal) for a range that ends at `high`; as MXNet's quantize and dequantize compute them."""
    radius = 127.5 if spec.signed else 255.5
    step = F.maximum(high / spec.qmax, _TINY) * radius / radius
    return step, radius / (step * radius)


def _codes(F: Ops[T], scaled: T, spec: QSpec) -> T:
    low = F.maximum(scaled, spec.qmin) if spec.qmin else F.Activation(scaled, act_type="relu")
    return F.minimum(low, spec.qmax) + ROUNDER - ROUNDER


@functools.cache
def _rounds_by_onednn() -> bool:
    """Whether quantize rounds ties to even, and a range of 255.5 is a step of 1 for dequantize."""
    with mx.autograd.pause():
        x, zero = mx.nd.array([0.5, 1.5, 2.5, 300], ctx=mx.cpu()), mx.nd.zeros(1, ctx=mx.cpu())
        codes = mx.nd.contrib.quantize(x, zero, zero + 255, out_type="uint8")[0]
        return bool(mx.nd.contrib.dequantize(codes, zero, zero + 255.5).asnumpy().tolist() == [0, 2, 2, 255])


def in_two_passes(parameter: Parameter) -> bool:
    """Whether a block with this parameter can use `_two_passes`: MXNet with oneDNN, on CPUs, in float32."""
    if amp_is_on():
        return False
    contexts = [] if parameter._data is None else parameter.list_ctx()
    return all(context.device_type == "cpu" for context in contexts) and _rounds_by_onednn()


def cut(F: Ops[T], x: T, two_passes: bool) -> T:
    """x without its gradient; for `_two_passes` a copy in MXNet's own layout.

    BlockGrad alone writes where it reads: what is in a layout of oneDNN's it brings into MXNet's and back.
    """
    return F.BlockGrad(F.slice(x, begin=(None,), end=(None,)) if two_passes else x)


def _two_passes(F: Ops[T], fixed: T, high: T, spec: QSpec) -> T:
    """As `fake_quantize`, by quantize (a range of 255 steps, or 127) and dequantize (255.5, or 127.5).

    The reciprocal of the step is 255 / (255 step) there: its last bit may differ, and with it the side to which what is
    within that of a tie goes.
    """
    step = F.maximum(high / spec.qmax, _TINY)
    whole, top = (127, 127.5) if spec.signed else (255, 255.5)
    sign = -1 if spec.signed else 0
    flat = F.reshape(fixed, shape=(0, -1))  # images would be transposed, and back
    codes = F.contrib.quantize(flat, step * (sign * whole), step * whole,
                               out_type="int8" if spec.signed else "uint8")[0]
    if spec.bits < 8:
        codes = F.minimum(codes, spec.qmax)
        codes = F.maximum(codes, spec.qmin) if spec.signed else codes
    return F.reshape_like(F.contrib.dequantize(codes, step * (sign * top), step * top), fixed)


def straight_through(F: Ops[T], x: T, fixed: T, high: T, spec: QSpec) -> tuple[T, T]:
    """(`fake_quantize` of x in training, in two passes; the error of rounding)"""
    error = F.elemwise_sub(_two_passes(F, fixed, F.BlockGrad(high), spec), fixed)
    return F.elemwise_add(x, error), error


def read_again(F: Ops[T], high: T, error: T) -> T:
    """Return `high`, (1,), with a data dependency on `error`: MXNet's memory planner then does not overwrite `error`.

    Else the sum of `straight_through` would be written over it, in MXNet's own layout, and the convolutions bring that
    into oneDNN's, forward and backward.
    """
    return F.reshape_like(high, F.slice_axis(F.reshape(error, shape=(-1,)), axis=0, begin=0, end=1))


def _inside(F: Ops[T], scaled: T, spec: QSpec) -> T:
    return F.elemwise_mul(scaled >= spec.qmin, scaled <= spec.qmax)


def fake_quantize(F: Ops[T], x: T, fixed: T, high: T, spec: QSpec, training: bool = False,
                  clip_gradient: bool = False, learn: str = "") -> T:
    """x -> the nearest values that have a code. fixed: `cut` x.  high: (1,), where the range ends.

    learn: "lsq" (arXiv 1902.08153: the step has a gradient, scaled by sqrt(1 / (values * qmax))) or "pact" (arXiv
    1805.06085: the range has the gradient of what it clips).  Both are clipping aware.
    """
    step, inverse = step_of(F, F.BlockGrad(high), spec)
    scaled = F.broadcast_mul(fixed, inverse)
    codes = _codes(F, scaled, spec)
    value = F.broadcast_mul(codes, step)
    if not training:
        return value
    if not clip_gradient and not learn:
        return F.elemwise_add(x, F.elemwise_sub(value, fixed))
    inside = _inside(F, scaled, spec)
    y = F.elemwise_add(F.elemwise_mul(x, inside), F.elemwise_sub(value, F.elemwise_mul(fixed, inside)))
    if not learn:
        return y
    slope = (F.elemwise_sub(codes, F.elemwise_mul(scaled, inside)) if learn == "lsq"
             else F.elemwise_mul(codes / spec.qmax, 1 - inside))
    zero = high - F.BlockGrad(high)
    if learn == "lsq":  # one image's values count
        values = F.cast(F.size_array(F.slice_axis(fixed, axis=0, begin=0, end=1)), dtype="float32")
        zero = zero * F.BlockGrad((spec.qmax / values) ** 0.5) / spec.qmax
    # zeros, with the gradient sum(slope * dy); as a matrix product it is fast
    product = F.dot(F.reshape(slope, shape=(-1, 1)), F.reshape(zero, shape=(1, 1)))
    return F.elemwise_add(y, F.reshape_like(product, fixed))


def _broadcasting(F: Ops[T], high: T, spec: QSpec, shape: tuple[int, ...]) -> T:
    """A range per group, (groups,), as it broadcasts against a weight of the shape; others do so as they are.

    Weights themselves are never reshaped: MXNet cannot reshape what its convolution has brought into a layout of its
    own.
    """
    if spec.granularity != "group":
        return high
    rows = F.repeat(high, repeats=shape[0] // spec.groups, axis=0)
    return F.reshape(rows, shape=(-1,) + (1,) * (len(shape) - 1))


def weight_range(F: Ops[T], weight: T, spec: QSpec, shape: tuple[int, ...]) -> T:
    """Largest magnitude per tensor, convolution group or channel, as it broadcasts against the weight."""
    size = F.abs(weight)
    row = int(np.prod(shape[1:]))
    if spec.axis == 0 and shape[0] % 8 == 0 and row % 64 == 0:  # pooling is six times as fast as `max`
        size = F.Pooling(F.reshape(size, shape=(1, shape[0], -1, 8)), global_pool=True, pool_type="max", kernel=(1, 1))
        size = F.reshape(size, shape=(-1,) + (1,) * (len(shape) - 1))
    if spec.granularity == "channel":
        return F.max(size, axis=spec.axis, exclude=True, keepdims=True)
    if spec.granularity == "tensor":
        return F.reshape(F.max(size), shape=(1,))
    grouped = F.reshape(F.max(size, axis=0, exclude=True), shape=(spec.groups, -1))
    return _broadcasting(F, F.max(grouped, axis=1), spec, shape)


def data_codes(F: Ops[T], x: T, high: T, spec: QSpec) -> tuple[T, T]:
    """(codes, (1,) step)"""
    step, inverse = step_of(F, high, spec)
    return _codes(F, F.broadcast_mul(x, inverse), spec), step


def weight_codes(F: Ops[T], weight: T, spec: QSpec, shape: tuple[int, ...], learned: T | None = None) -> tuple[T, T]:
    """(codes, step as it broadcasts against the weight). learned: see `fake_quantize_weight`."""
    high = (weight_range(F, weight, spec, shape) if learned is None
            else _broadcasting(F, learned, spec, shape))
    step, inverse = step_of(F, high, spec)
    return _codes(F, F.broadcast_mul(weight, inverse), spec), step


def channel_steps(F: Ops[T], step: T, spec: QSpec, shape: tuple[int, ...], transposed_groups: int = 0) -> T:
    """The step of a weight for each output channel, (channels,) or (1,). shape: of the weight.

    transposed_groups: of a transposed convolution, whose output channels lie on axis 1, those of each group alike.
    """
    if not transposed_groups or spec.granularity == "tensor":
        return F.reshape(step, shape=(-1,))
    if spec.granularity == "channel":
        return F.tile(F.reshape(step, shape=(-1,)), reps=(transposed_groups,))
    first = F.slice_axis(F.reshape(step, shape=(transposed_groups, -1)), axis=1, begin=0, end=1)
    return F.reshape(F.repeat(first, repeats=shape[1], axis=1), shape=(-1,))


def weight_values(F: Ops[T], weight: T, spec: QSpec, shape: tuple[int, ...], high: T | None = None,
                  two_passes: bool = False) -> T:
    """weight -> the nearest values that have a code, in the smallest range that covers it or up to `high`.

    two_passes: whether `_two_passes` can be had, in MXNet's own layout and without a gradient.
    """
    if two_passes and spec.granularity == "tensor" and high is None and np.prod(shape) >= _TWO_PASSES_PAY:
        return _two_passes(F, weight, weight_range(F, weight, spec, shape), spec)
    step, inverse = step_of(F, weight_range(F, weight, spec, shape) if high is None else high, spec)
    scaled = F.broadcast_mul(weight, inverse)
    codes = scaled + ROUNDER - ROUNDER if high is None else _codes(F, scaled, spec)  # a range that covers clips nothing
    return F.broadcast_mul(codes, step)


def fake_quantize_weight(F: Ops[T], weight: T, spec: QSpec, shape: tuple[int, ...], learned: T | None = None,
                         training: bool = False, two_passes: bool = False) -> T:
    """`weight_values` with a gradient. learned: a range with that of LSQ, (1,) per tensor, (groups,) per group, per
    channel as it broadcasts."""
    fixed = F.BlockGrad(weight) if training else weight
    if learned is None:
        value = weight_values(F, fixed, spec, shape, two_passes=training and two_passes)
        # elemwise_add would meet a layout of oneDNN's
        return F.broadcast_add(weight, F.elemwise_sub(value, fixed)) if training else value
    learned = _broadcasting(F, learned, spec, shape)
    high = F.BlockGrad(learned)
    value = weight_values(F, fixed, spec, shape, high)
    if not training:
        return value
    step, inverse = step_of(F, high, spec)
    scaled = F.broadcast_mul(fixed, inverse)
    inside = _inside(F, scaled, spec)
    slowed = (learned - high) * float(1 / np.sqrt(spec.qmax * np.prod(shape)))
    slope = F.broadcast_mul(F.broadcast_div(value, step) - scaled * inside, slowed)
    return F.broadcast_add(F.broadcast_mul(weight, inside), F.elemwise_add(value - fixed * inside, slope))


def batch_range(F: Ops[T], x: T, spec: QSpec, rank: int) -> tuple[T, T]:
    """((1,) mean over the images of the batch of the largest value (magnitude, for signed codes) of each, (N,) these).

    x: behind a BlockGrad.  rank: x is (N, C, and so many more), where MXNet's pooling is eight times as fast as its
    `max`; 0 if not known.
    """
    size = F.abs(x) if spec.signed else x
    if rank:
        size = F.Pooling(size, global_pool=True, pool_type="max", kernel=(1,) * rank)
    each = F.maximum(F.max(size, axis=0, exclude=True), 0)
    return F.reshape(F.mean(each), shape=(1,)), each
