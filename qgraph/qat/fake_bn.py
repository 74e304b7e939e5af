"""Batch normalization folded into the weights while training (arXiv 1712.05877, section 3.2).

    y0   = conv(x, w) + b                     once for the statistics of the batch
    mean, var per channel of y0               of the batch in training; the running ones at inference and once frozen
    s    = gamma / sqrt(var + eps)
    y    = conv(x, fq(w s)) + beta + (b - mean) s

What is quantized is what will be folded at inference.  Gradients go through the statistics, as through a BatchNorm.

Whether a graph runs in training is known inside of it only, by Dropout, which changes ones in training alone.  The
first convolution gets ``b - running_mean`` as its bias, so that E[y0^2] - E[y0]^2 does not cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qgraph.qat.compute import compute
from qgraph.qat.statistic import Statistic


@dataclass
class PairedBN:
    """The BatchNorm block of a convolution. fixed: the running statistics are used."""

    block: Any
    conv: Any
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

    @property
    def momentum(self) -> float:
        return float(self.block._kwargs["momentum"])

    @property
    def statistics(self) -> tuple[Any, Any]:
        return self.block.running_mean, self.block.running_var

    def adopt(self) -> None:
        """The running statistics become parameters that get the batch's through their gradient."""
        for parameter in self.statistics:
            Statistic.adopt(parameter)
        self.fixed = self.fixed or bool(self.block._kwargs["use_global_stats"])

    def arrays(self, F: Any, like: Any) -> tuple[Any, Any, Any, Any]:
        """gamma (or None), beta, mean and variance, as symbols or as arrays where `like` is."""
        bn = self.block
        found = [p.var() if hasattr(like, "list_arguments") else p.data(like.context)
                 for p in (bn.gamma, bn.beta, bn.running_mean, bn.running_var)]
        return (None if bn._kwargs["fix_gamma"] else found[0], *found[1:])  # type: ignore[return-value]


def scale_of(F: Any, gamma: Any, var: Any, eps: float) -> Any:
    """gamma / sqrt(var + eps), (C,)."""
    root = F.sqrt(var + eps)
    return 1 / root if gamma is None else gamma / root


def shifted_bias(bias: Any, beta: Any, mean: Any, scale: Any) -> Any:
    return beta + ((0 - mean) if bias is None else (bias - mean)) * scale


def folded(F: Any, weight: Any, scale: Any, bn: PairedBN) -> Any:
    """weight * scale per output channel. A transposed convolution has them on axis 1, per group of axis 0."""
    ones = (1,) * (bn.rank - 2)
    if bn.out_axis == 0:
        return F.broadcast_mul(weight, F.reshape(scale, shape=(-1, 1, *ones)))
    rows = F.repeat(F.reshape(scale, shape=(bn.groups, -1)), repeats=bn.inputs // bn.groups, axis=0)
    return F.broadcast_mul(weight, F.reshape(rows, shape=(0, 0, *ones)))


def normalized_by(layer: Any, F: Any, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, list[tuple[Any, Any]]]:
    """(scale of the weight, bias of the second convolution, what to send out: (parameter, statistic of the batch))"""
    bn: PairedBN = layer.qat.bn
    gamma, beta, mean, var = bn.arrays(F, weight)
    running_mean, running_var = F.BlockGrad(mean), F.BlockGrad(var)
    if bn.fixed:
        scale = scale_of(F, gamma, running_var, bn.eps)
        return scale, shifted_bias(bias, beta, running_mean, scale), []
    start = (0 - running_mean) if bias is None else (bias - running_mean)
    y = compute(layer, F, x, weight, start)
    off = _channel_mean(F, y, bn.rank)
    batch_mean = off + running_mean
    batch_var = F.maximum(_channel_mean(F, F.square(y), bn.rank) - F.square(off), 0)
    training = F.Dropout(F.ones_like(running_mean), p=0.5) != 1
    scale = scale_of(F, gamma, F.where(training, batch_var, running_var), bn.eps)
    shift = shifted_bias(bias, beta, F.where(training, batch_mean, running_mean), scale)
    return scale, shift, [(mean, batch_mean), (var, batch_var)]


def _channel_mean(F: Any, y: Any, rank: int) -> Any:
    """(N, C, ...) -> (C,). Pooling is ten times as fast as MXNet's `mean`, forward and backward."""
    pooled = F.Pooling(y, global_pool=True, pool_type="avg", kernel=(1,) * (rank - 2))
    return F.mean(F.reshape(pooled, shape=(0, -1)), axis=0)
