"""Batch normalization folded into the weights while training (arXiv 1712.05877, section 3.2).

    y0   = conv(x, w) + b                     once for the statistics of the batch
    s    = gamma / sqrt(var + eps)            var, mean per channel of y0
    y    = conv(x, fq(w s)) + beta + (b - mean) s

What is quantized is what will be folded at inference, which has the running statistics in place of the batch's.
In training y is computed as

    y    = BatchNorm(y0) + conv(x, fq(w s) - w s)

which is the same number, as conv(x, w s) + beta + (b - mean) s is BatchNorm(y0), and has the same gradient (straight
through the rounding, and through the statistics) for half the work; MXNet's BatchNorm moves the running statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, overload

from qgraph.qat.compute import compute
from qgraph.qat.types import Array, BatchNorm, Context, Layer, Ops, Parameter, Symbol, T


@dataclass
class PairedBN:
    """The BatchNorm block of a convolution. fixed: the running statistics are used."""

    block: BatchNorm
    conv: Layer
    fixed: bool = False

    @property
    def out_axis(self) -> int:
        """Of the output channels in the weight: a transposed convolution has them behind the inputs, per group."""
        return int(self.conv._op_name == "Deconvolution")

    @property
    def groups(self) -> int:
        return int(self.conv._kwargs["num_group"])

    @property
    def rank(self) -> int:
        return len(self.conv.weight.shape)

    @property
    def inputs(self) -> int:
        return int(self.conv.weight.shape[0])

    @property
    def eps(self) -> float:
        return float(self.block._kwargs["eps"])

    @overload
    def parameter(self, parameter: Parameter, like: Array) -> Array: ...
    @overload
    def parameter(self, parameter: Parameter, like: Symbol) -> Symbol: ...
    def parameter(self, parameter: Parameter, like: Array | Symbol) -> Array | Symbol:
        """A symbol, or the array where `like` is."""
        context: Context | None = getattr(like, "context", None)
        return parameter.var() if context is None else parameter.data(context)

    def arrays(self, like: T) -> tuple[T | None, T, T, T]:
        """gamma (or None), beta, mean and variance."""
        bn = self.block
        gamma, beta, mean, var = (self.parameter(p, like) for p in (bn.gamma, bn.beta, bn.running_mean, bn.running_var))
        return None if bn._kwargs["fix_gamma"] else gamma, beta, mean, var


def scale_of(F: Ops[T], gamma: T | None, var: T, eps: float) -> T:
    """gamma / sqrt(var + eps), (C,)."""
    root = F.sqrt(var + eps)
    return 1 / root if gamma is None else gamma / root


def shifted_bias(bias: T | None, beta: T, mean: T, scale: T) -> T:
    return beta + ((0 - mean) if bias is None else (bias - mean)) * scale


def folded(F: Ops[T], weight: T, scale: T, bn: PairedBN) -> T:
    """weight * scale per output channel. A transposed convolution has them on axis 1, per group of axis 0."""
    ones: tuple[int, ...] = (1,) * (bn.rank - 2)
    if bn.out_axis == 0:
        return F.broadcast_mul(weight, F.reshape(scale, shape=(-1, 1, *ones)))
    rows = F.repeat(F.reshape(scale, shape=(bn.groups, -1)), repeats=bn.inputs // bn.groups, axis=0)
    return F.broadcast_mul(weight, F.reshape(rows, shape=(0, 0, *ones)))


def running(F: Ops[T], bn: PairedBN, weight: T, bias: T | None) -> tuple[T, T]:
    """(weight, bias) of the one convolution with the running statistics."""
    gamma, beta, mean, var = bn.arrays(weight)
    scale = scale_of(F, gamma, F.BlockGrad(var), bn.eps)
    return folded(F, weight, scale, bn), shifted_bias(bias, beta, F.BlockGrad(mean), scale)


def trained(F: Ops[T], bn: PairedBN, x: T, weight: T, bias: T | None, quantized: Callable[[T], T] | None) -> T:
    """The layer with the statistics of the batch. quantized: folded weight -> what stands for its codes."""
    _, beta, mean, var = bn.arrays(weight)
    gamma = bn.parameter(bn.block.gamma, weight)
    y = compute(bn.conv, F, x, weight, bias)
    out, _, inverse = F.BatchNorm(y, gamma, beta, mean, var, output_mean_var=True, **bn.block._kwargs)
    if quantized is None:
        return out
    scale = F.BlockGrad(inverse if bn.block._kwargs["fix_gamma"] else inverse * gamma)
    exact = folded(F, F.BlockGrad(weight), scale, bn)
    return F.elemwise_add(out, compute(bn.conv, F, x, F.elemwise_sub(quantized(exact), exact), None))
