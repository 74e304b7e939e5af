"""Layers that read signed codes, which CPUs without VNNI compute with 7-bit weights or wrongly."""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph import ops
from qgraph.integers import quantizers_behind
from qgraph.ir import Graph, Node, Port
from qgraph.passes.calibrate import weight_params
from qgraph.quant.spec import QParams, fake_quantize
from qgraph.rewrite import Pass, register

_MOST_CHANNELS = 4


@register
class SignedInput(Pass):
    """Case 1, the network's input: a small float convolution E moves the codes -128..127 to 0..255.

        conv(fq{s8 step s}(x), fq(w), b)  ->  conv(fq{u8 step s}(E(x)), fq(w'), b - 128 s sum(w))

    E copies channel c to channel 2c, adds 128 s, and pads, so that the padding is 128 s too; the odd channels are zero,
    as are their weights in w'.  So no two products are added in 16 bits (`qgraph.saturation`), and the weights can have
    all 8 bits on every CPU.

    Case 2, FullyConnected: MXNet's kernel saturates with signed codes, so the layer is computed in float.

    Other layers keep the limit on their weights that `calibrate` set.
    """

    name = "signed-input"
    requires = ("calibrate",)

    def run(self, g: Graph) -> int:
        count = 0
        for node in g.nodes():
            if node.op not in ("Convolution", "FullyConnected") or g.inputs(node)[1].node.op != "fake_quantize":
                continue
            quantizers = quantizers_behind(g, g.inputs(node)[0])
            if not quantizers or not isinstance(quantizers[0].quant, QParams) or not quantizers[0].quant.signed:
                continue
            if node.op == "FullyConnected":
                _to_float(g, node)
                count += 1
            elif _is_input_layer(g, node):
                _embed(g, node)
                count += 1
        if count:
            g.prune()
        return count


def _to_float(g: Graph, dense: Node) -> None:
    for slot, port in enumerate(g.inputs(dense)):
        if port.node.op == "fake_quantize":
            source = g.inputs(port.node)[0]
            if g.param(source) is not None or g.has_one_use(port):
                g.set_input(dense, slot, source)


def _is_input_layer(g: Graph, conv: Node) -> bool:
    fq, weight = (p.node for p in g.inputs(conv)[:2])
    if fq.op != "fake_quantize" or not g.has_one_use(fq) or not g.has_one_use(weight):
        return False
    source, array = g.inputs(fq)[0], g.param(g.inputs(weight)[0])
    bias = g.inputs(conv)[2:]
    return (source.node.op == "null" and array is not None and g.has_one_use(g.inputs(weight)[0])
            and array.ndim == 4 and array.shape[1] <= _MOST_CHANNELS and ops.attr(conv, "num_group") == 1
            and all(g.param(p) is not None for p in bias))


def _embed(g: Graph, conv: Node) -> None:
    """Case 1."""
    fq, weight_fq, *bias_nodes = (p.node for p in g.inputs(conv))
    qp, spec = fq.quant, weight_fq.quant
    assert isinstance(qp, QParams) and isinstance(spec, QParams)
    weight_node = g.inputs(weight_fq)[0].node
    weight = g.params[weight_node.name]
    weight_qp = weight_params(weight_fq, weight, dataclasses.replace(spec.spec, limit=0))
    shift = np.float32(128) * qp.scale

    channels, wide = weight.shape[1], 2 * weight.shape[1] - 1
    copy = np.zeros((wide, channels, 1, 1), np.float32)
    copy[::2, :, 0, 0] = np.eye(channels)
    spread = np.zeros((weight.shape[0], wide, *weight.shape[2:]), np.float32)
    spread[:, ::2] = weight
    offset = np.where(np.arange(wide) % 2, 0, shift).astype(np.float32)
    total = fake_quantize(weight, weight_qp).astype(np.float64).sum(axis=(1, 2, 3))
    bias = g.params[bias_nodes[0].name] if bias_nodes else 0.0

    source = g.inputs(fq)[0]
    origin = (source.node.name,)
    embed = g.add("Convolution", [source, g.add_param(f"{source.node.name}_copy", copy, origin),
                                  g.add_param(f"{source.node.name}_shift", offset, origin)],
                  f"{source.node.name}_embed", origin=origin, kernel="(1, 1)", num_filter=wide,
                  pad=conv.attrs.get("pad", "(0, 0)"))
    g.set_input(fq, 0, Port(embed))
    fq.quant = dataclasses.replace(qp, signed=False)
    weight_fq.quant = weight_qp
    g.params[weight_node.name] = spread
    moved = (bias - float(shift) * total).astype(np.float32)
    name = bias_nodes[0].name if bias_nodes else f"{conv.name}_bias"
    g.set_input(conv, 2, Port(g.add_param(name, moved, origin=(conv.name,))))
    conv.attrs.update(no_bias="False", pad="(0, 0)")


