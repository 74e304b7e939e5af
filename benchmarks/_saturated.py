"""Which wrong codes of a frozen model are those of `vpmaddubsw`, the 16-bit sums of CPUs without VNNI.

Every wrong code is computed again from what its layer read: pairs of products saturate in the order of the engine
(`qgraph.semantics.saturation`), and the code that comes out is the kernel's, or it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qgraph import engines
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.quant.spec import QParams, quantize
from qgraph.semantics.geometry import spatial_attrs
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.semantics.interpreter import Tensor
from qgraph.semantics.saturation import pairs
from qgraph.targets.base import Target

LOW, HIGH = -(1 << 15), (1 << 15) - 1
MOST = 2000  # wrong codes of a tensor that are computed again
FUSED = {"Activation", "clip", "elemwise_add", "LeakyReLU"}


def wrong_codes(frozen: Any, feeds: Mapping[str, np.ndarray], target: Target, tap_major: bool,
                least: float) -> dict[str, dict[str, int]]:
    """Tensor with less than `least` % of its codes within one -> how many codes are wrong, of how many, and what part
    of those that are computed again saturation explains, in percent.

    tap_major: as onnxruntime pairs them.
    """
    g, model, engine = frozen.graph, frozen.model, engines.runtime("judging")
    carriers = model.codes
    ports = list(dict.fromkeys(carriers.values()))
    kernels = dict(zip(ports, engines.executor(model, "judging", watch=ports).run(feeds)))
    read: dict[Node, Tensor] = {}
    found: dict[str, dict[str, int]] = {}
    for node, inputs, outputs in Reference(g, rounding=target.spec.rounding, run_op=engine.run_op).walk(feeds):
        if ops.kind(node) == ops.COMPUTE and inputs:
            read[node] = inputs[0]
        if node not in carriers or not isinstance(node.quant, QParams) or not outputs:
            continue
        kernel, exact = kernels[carriers[node]].astype(np.int64), outputs[0].codes
        if kernel.shape != exact.shape:
            continue
        outputs[:] = [Tensor(codes=kernel.astype(np.int32), qp=node.quant)]
        wrong = np.abs(kernel - exact) > 1
        if 100 * wrong.mean() <= 100 - least:
            continue
        at = tuple(axis[:MOST] for axis in np.nonzero(wrong))
        layer = _layer(g, node)
        told = 0.0
        if layer is not None and layer in read and read[layer].qp is not None and not read[layer].qp.signed:
            moved = _taken(g, layer, read[layer], at, tap_major) / float(node.quant.scale)
            again = np.clip(exact[at] - moved, node.quant.qmin, node.quant.qmax)
            told = float((np.abs(again - kernel[at]) <= 2).mean())
        found[g.inputs(node)[0].key] = {"wrong": int(wrong.sum()), "of": wrong.size, "percent": int(100 * told)}
    return found


def _layer(g: Graph, fq: Node) -> Node | None:
    """The layer whose sums a quantizer rounds."""
    pending = [g.inputs(fq)[0].node]
    while pending:
        node = pending.pop(0)
        if ops.kind(node) == ops.COMPUTE:
            return node
        if node.op in FUSED:
            pending += [port.node for port in g.inputs(node)]
    return None


def _taken(g: Graph, layer: Node, data: Tensor, at: tuple[np.ndarray, ...], tap_major: bool) -> np.ndarray:
    """What saturation takes from the outputs at these places, in reals. at: an array per axis of the output."""
    quantizer = g.inputs(layer)[1].node
    assert isinstance(quantizer.quant, QParams) and data.qp is not None
    weight = quantize(g.params[g.inputs(quantizer)[0].node.name], quantizer.quant).astype(np.int64)
    codes = data.codes.astype(np.int64)
    if layer.op == "FullyConnected":
        rows = codes.reshape(len(codes), -1) if ops.attr(layer, "flatten") else codes
        x, w, channel = rows[at[:-1]][:, :, None], weight[:, :, None], at[-1]
    else:
        kernel, stride, dilate, pad = spatial_attrs(layer, codes.ndim - 2)
        padded = np.pad(codes, [(0, 0), (0, 0), *((p, p) for p in pad)], constant_values=int(data.qp.zero_point))
        image, channel, *places = at
        group = channel // (len(weight) // ops.attr(layer, "num_group"))
        inputs = group[:, None] * weight.shape[1] + np.arange(weight.shape[1])
        x = np.stack([padded[(image[:, None], inputs, *((place * s + t * d)[:, None] for place, s, t, d in
                                                        zip(places, stride, tap, dilate)))]
                      for tap in np.ndindex(*kernel)], axis=2)
        w = weight.reshape(*weight.shape[:2], -1)
    sums = (pairs(x, tap_major) * pairs(w, tap_major)[channel]).sum(axis=2)
    unit = float(data.qp.scale) * np.broadcast_to(np.ravel(quantizer.quant.scale), len(weight))[channel]
    return np.asarray((sums - np.clip(sums, LOW, HIGH)).sum(axis=1) * unit)
