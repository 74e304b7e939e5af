"""The layer's own op on other weights than its own."""

from __future__ import annotations

from typing import Any


def compute(block: Any, F: Any, x: Any, weight: Any, bias: Any, training: bool = True) -> Any:
    """Convolution or Deconvolution, without the block's activation.

    MXNet 1.9.1 leaves the gradient of a Deconvolution's weight in a layout that only parameters can take, so computed
    weights get theirs from the same op in float64, which has another kernel; the value stays that of float32.
    """
    kwargs = {**block._kwargs, "no_bias": bias is None}
    inputs = [x, weight] if bias is None else [x, weight, bias]
    if block._op_name != "Deconvolution" or not training:
        return getattr(F, block._op_name)(*inputs, name="fwd", **kwargs)
    y = F.Deconvolution(*[F.BlockGrad(array) for array in inputs], name="fwd", **kwargs)
    double = F.Deconvolution(*[F.cast(array, dtype="float64") for array in inputs], **kwargs)
    through = F.cast(double, dtype="float32")
    return F.elemwise_add(through, F.BlockGrad(y - through))
