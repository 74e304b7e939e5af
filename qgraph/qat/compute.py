"""The layer's own op on other weights than its own."""

from __future__ import annotations

from collections.abc import Callable

from qgraph.qat.types import Layer, Ops, T


def compute(block: Layer, F: Ops[T], x: T, weight: T, bias: T | None, training: bool = True) -> T:
    """Convolution or Deconvolution, without the block's activation.

    MXNet 1.9.1 leaves the gradient of a Deconvolution's weight in a layout that only parameters can take, so computed
    weights get theirs from the same op in float64, which has another kernel; the value stays that of float32.
    """
    kwargs = {**block._kwargs, "no_bias": bias is None}
    inputs = [x, weight] if bias is None else [x, weight, bias]
    if block._op_name != "Deconvolution" or not training:
        op: Callable[..., T] = getattr(F, block._op_name)
        return op(*inputs, name="fwd", **kwargs)
    y = F.Deconvolution(*[F.BlockGrad(array) for array in inputs], name="fwd", **kwargs)
    double = F.Deconvolution(*[F.cast(array, dtype="float64") for array in inputs], **kwargs)
    through = F.cast(double, dtype="float32")
    return F.elemwise_add(through, F.BlockGrad(y - through))
