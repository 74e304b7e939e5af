"""Quantization-aware training of Gluon networks (arXiv 1712.05877).

    convert_model(net, exclude=[net.features[0]])
    qparams_init(net)
    with autograd.record():
        loss = loss_func(net(X), y)
    loss.backward()
    net.update_ema()
    trainer.step(batch_size)
    ...
    qgraph.freeze(net, qgraph.FreezeOptions(target="mxnet-sim", input_shape="data:1,3,32,32")).save("net-int8")

Needs MXNet.
"""

from __future__ import annotations

from qgraph.qat.convert import convert_model
from qgraph.qat.converters import (
    bypass_bn,
    convert_relu_to_relu6,
    gen_act_converter,
    gen_conv2d_converter,
    gen_dense_converter,
)
from qgraph.qat.initialize import qparams_init
from qgraph.qat.merge import merge_bn

__all__ = ["bypass_bn", "convert_model", "convert_relu_to_relu6", "gen_act_converter", "gen_conv2d_converter",
           "gen_dense_converter", "merge_bn", "qparams_init"]
