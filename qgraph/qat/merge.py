"""`merge_bn`: fold BatchNorms into the weights for good."""

from __future__ import annotations

from typing import cast

from qgraph.qat.converters import bypass_bn, nn
from qgraph.qat.fake_bn import PairedBN, folded, scale_of, shifted_bias
from qgraph.qat.network import examine
from qgraph.qat.statistic import mx, register
from qgraph.qat.types import BatchNorm, Block, Layer


def merge_bn(net: Block) -> dict[str, str]:
    """conv(x, w, b), BatchNorm  ->  conv(x, w s, beta + (b - mean) s), with s = gamma / sqrt(var + eps), in place.

    Works on a float network.  Returns name of a convolution -> why no BatchNorm was merged into it.
    """
    network = examine(net)
    blocks: list[Block] = []
    net.apply(blocks.append)
    norms = {b.gamma.name: b for b in blocks if isinstance(b, nn.BatchNorm)}
    reasons: dict[str, str] = {}
    convolutions = {id(b): cast(Layer, b) for b in blocks if hasattr(b, "_op_name")}
    for block in convolutions.values():
        gamma, why = network.bn_behind(block)
        if gamma in norms:
            _merge(block, norms[gamma])
        else:
            reasons[block.name] = why or "its BatchNorm is no block of the network"
    net.apply(lambda b: b._clear_cached_op() if hasattr(b, "_clear_cached_op") else None)
    return reasons


def _merge(conv: Layer, bn: BatchNorm) -> None:
    pair = PairedBN(bn, conv)
    own = conv.bias
    if own is None:
        conv._kwargs["no_bias"] = False
        del conv.bias  # the attribute None; a parameter takes its place
        own = mx.gluon.Parameter(conv.params.prefix + "bias", shape=(conv._channels,), init="zeros")
        own = register(conv, "bias", own)
    weight, bias = conv.weight.data(conv.weight.list_ctx()[0]), own.data(own.list_ctx()[0])
    gamma, beta, mean, var = pair.arrays(weight)
    scale = scale_of(mx.nd, gamma, var, pair.eps)
    conv.weight.set_data(folded(mx.nd, weight, scale, pair))
    own.set_data(shifted_bias(bias, beta, mean, scale))
    bypass_bn(bn)
