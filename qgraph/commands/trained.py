"""Freezing a network that was trained quantized: its ranges and codes are kept, whatever the target.

    simulated   the graph is written as it is
    qdq         activations get the trained ranges; weights keep their codes, a BatchNorm goes into their scales; sums
                stay in float, as in training
    fused       the same; with --fast weights (of 8 bits) are rounded again to the scales MXNet derives, and sums and
                outputs are quantized too, as its kernels want it, to ranges observed on data
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from qgraph.analysis.codes import quantizer_name
from qgraph.errors import CalibrationError, OptionError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.options import FreezeOptions
from qgraph.quant.spec import QParams, fake_quantize, per_axis, quantize
from qgraph.quant.table import CalibrationTable, Entry
from qgraph.targets.base import TARGETS, Target

_CHOSEN_IN_TRAINING = ("exclude", "granularity", "weight_bits", "act_bits", "act_signed", "passes", "int4")


def is_trained(g: Graph) -> bool:
    """Whether it comes with quantizers that have numbers."""
    return any(isinstance(n.quant, QParams) for n in g.dag)


def check_options(options: FreezeOptions) -> None:
    """OptionError for a choice that was made in training."""
    default = FreezeOptions(target=options.target)
    for name in _CHOSEN_IN_TRAINING:
        if getattr(options, name) != getattr(default, name):
            raise OptionError(f"--{name.replace('_', '-')}: this network was trained quantized; what is quantized, and "
                              "how, is chosen with qgraph.qat.convert_model")


def check_carried(g: Graph, target: Target) -> None:
    """UnsupportedError for a quantizer that the target has no codes for."""
    for fq in g.nodes("fake_quantize"):
        qp, is_weight = fq.quant, g.param(g.inputs(fq)[0]) is not None
        if not isinstance(qp, QParams):
            continue
        bits = target.weight_bits if is_weight else target.act_bits
        if qp.bits not in bits:
            others = [t.name for t in TARGETS.values() if qp.bits in (t.weight_bits if is_weight else t.act_bits)]
            raise UnsupportedError(f"{fq.name}: was trained with {qp.bits} bits, which target {target.name} cannot "
                                   f"carry; {' or '.join(others)} can")


def without_quantizers(g: Graph) -> Graph:
    """A copy that computes in float, with the values that weights have on their grid."""
    twin = g.copy()
    for fq in twin.nodes("fake_quantize"):
        source = twin.inputs(fq)[0]
        array = twin.param(source)
        if array is not None and isinstance(fq.quant, QParams):
            if not twin.has_one_use(source):
                source = Port(twin.add_param(source.node.name + "_baked", array, origin=(source.node.name,)))
            twin.params[source.node.name] = fake_quantize(array, fq.quant, "mxnet")
        twin.replace_uses(fq, source)
        twin.remove(fq)
    twin.prune()
    return twin


def in_float(executor: Callable[..., Any]) -> Callable[..., Any]:
    """The same executor for graphs whose quantizers are left out: rounding would hide what a float pass changes."""
    def run(graph: Graph, watch: Sequence[Port] | None = None) -> Any:
        twin = without_quantizers(graph)
        by_name = {n.name: n for n in twin.dag}

        def found(port: Port) -> Port:
            while port.node.op == "fake_quantize":
                port = graph.inputs(port.node)[0]
            return Port(by_name[port.node.name], port.index)

        return executor(twin, watch=[found(p) for p in (graph.heads if watch is None else watch)])

    return run


def untrained_layers(g: Graph, target: Target) -> tuple[str, ...]:
    """Names of the layers that stay in float as they trained; for MXNet's kernels those that read floats, too."""
    needed = 1 if target.flow == "fused" else 2
    return tuple(n.name for n in g.toposort() if ops.kind(n) == ops.COMPUTE
                 and not any(p.node.op == "fake_quantize" for p in g.inputs(n)[:needed]))


# ---- weights --------------------------------------------------------------------------------------------------------

Codes = Mapping[str, "tuple[np.ndarray, QParams]"]


def take_weights(g: Graph) -> dict[str, tuple[np.ndarray, QParams]]:
    """fq(w) -> w, on its grid; name of the weight -> (codes, params)."""
    taken: dict[str, tuple[np.ndarray, QParams]] = {}
    for fq in g.nodes("fake_quantize"):
        source = g.inputs(fq)[0]
        array = g.param(source)
        if array is not None and isinstance(fq.quant, QParams):
            taken[source.node.name] = quantize(array, fq.quant, "mxnet"), fq.quant
            g.params[source.node.name] = fake_quantize(array, fq.quant, "mxnet")
            g.replace_uses(fq, source)
            g.remove(fq)
    return taken


def give_weights(g: Graph, taken: Codes, untrained: Sequence[str]) -> None:
    """w -> fq(w) with the codes it had, in the scales that the float passes have made of it. untrained: stay."""
    for layer in g.toposort():
        if ops.kind(layer) != ops.COMPUTE or layer.name in untrained:
            continue
        source = g.inputs(layer)[1]
        array = g.param(source)
        if array is None or source.node.name not in taken:
            continue
        params = _rescaled(array, *taken[source.node.name], axis=ops.info(layer.op).out_axis)
        g.set_input(layer, 1, g.add("fake_quantize", [source], quantizer_name(source), quant=params,
                                    origin=(source.node.name,)))


def _rescaled(array: np.ndarray, codes: np.ndarray, params: QParams, axis: int) -> QParams:
    """Params with which `array` has these codes, some channels negated: per channel unless it still has its own."""
    if np.allclose(codes * per_axis(params.scale, params, codes.shape), array, rtol=1e-5, atol=0):
        return params
    rows, flat = (np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1).astype(np.float64) for a in (codes, array))
    energy = (rows * rows).sum(axis=1)
    scale = np.abs((rows * flat).sum(axis=1)) / np.where(energy > 0, energy, 1.0)
    scale = np.where(scale > 0, scale, 1.0)
    spec = dataclasses.replace(params.spec, granularity="channel", axis=axis, groups=1)
    return spec.with_numbers(scale.astype(np.float32))


# ---- activations ----------------------------------------------------------------------------------------------------

def trained_ranges(g: Graph) -> dict[str, Entry]:
    """Tensor -> the range that its trained codes cover; of several the widest."""
    found: dict[str, Entry] = {}
    for fq in g.nodes("fake_quantize"):
        source, qp = g.inputs(fq)[0], fq.quant
        if g.param(source) is None and isinstance(qp, QParams):
            low, high = (float(qp.scale) * q for q in (qp.qmin, qp.qmax))
            if source.key in found:
                low, high = min(low, found[source.key].low), max(high, found[source.key].high)
            found[source.key] = Entry(low, high, low, high, "naive")
    return found


def respecify(g: Graph, target: Target) -> None:
    """Activation quantizers in the target's own form, of the trained width; their numbers come from the table.

    Those of one tensor become one.
    """
    first: dict[Port, Node] = {}
    for fq in g.nodes("fake_quantize"):
        qp, source = fq.quant, g.inputs(fq)[0]
        if g.param(source) is None and isinstance(qp, QParams):
            if source in first:
                g.replace_uses(fq, first[source])
                g.remove(fq)
                continue
            first[source] = fq
            signed = qp.signed if target.act.signed is None else target.act.signed
            fq.quant = dataclasses.replace(target.act, bits=qp.bits, signed=signed)


def missing_ranges(g: Graph, entries: Mapping[str, Entry]) -> list[str]:
    """Tensors that have a quantizer and no trained range."""
    wanted: dict[str, None] = {}
    for fq in g.nodes("fake_quantize"):
        if fq.quant is not None and not isinstance(fq.quant, QParams) and g.param(g.inputs(fq)[0]) is None:
            wanted.update(dict.fromkeys(fq.quant.source or (g.inputs(fq)[0].key,)))
    return [name for name in wanted if name not in entries]


def part_shortcuts(g: Graph) -> None:
    """fq(x), and x read by others  ->  fq(clip(x)), in place: a tensor of its own for the range that was trained.

    What goes past the layer in float was not clipped in training, and gets the range that is observed.
    """
    for fq in g.nodes("fake_quantize"):
        source, qp = g.inputs(fq)[0], fq.quant
        if g.param(source) is not None or not isinstance(qp, QParams):
            continue
        if any(v.op not in ("fake_quantize", "clip") for v, _ in g.uses(source)) or g.is_head(source):
            low, high = (float(qp.scale) * q for q in (qp.qmin, qp.qmax))
            g.set_input(fq, 0, g.add("clip", [source], f"{fq.name}_clip", a_min=low, a_max=high))


def joined(base: CalibrationTable | None, entries: Mapping[str, Entry], float_graph: Graph) -> CalibrationTable:
    """The table with the trained ranges in place of observed ones."""
    if base is None:
        base = CalibrationTable("naive", 8, None, float_graph.digest(), 0, data="trained ranges")
    return dataclasses.replace(base, entries={**base.entries, **entries}, data=f"{base.data}, and trained ranges"
                               if base.images else base.data)


def has_data(prefix: str, options: FreezeOptions, calib_data: Any) -> bool:
    return calib_data is not None or bool(options.calib_data) or os.path.isfile(f"{prefix}-calib.npz")


def need(data: Any, missing: Sequence[str], target: Target) -> None:
    if data is None:
        raise CalibrationError(f"target {target.name} quantizes {len(missing)} tensors that training does not "
                               f"({', '.join(missing[:3])}, ...): give --calib-data PATH, some images")


def verdicts(g: Graph, untrained: Sequence[str]) -> dict[str, str]:
    """Every layer -> "" or why it stays in float."""
    return {n.name: "was not quantized in training" if n.name in untrained else "" for n in g.toposort()
            if ops.kind(n) == ops.COMPUTE}
