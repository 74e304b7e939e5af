"""How a network that was trained quantized goes through the line of `qgraph.freeze`: its ranges and codes are kept.

What a target keeps (`Target.trained`):

    graph    the graph is written as it is
    codes    activations get the trained ranges; weights keep their codes, a BatchNorm goes into their scales; sums stay
             in float, as in training
    ranges   weights are rounded again to scales that the target derives, and what training left in float is quantized
             too, to ranges observed on images
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.analysis.codes import drop_quantizers, quantizer_name
from qgraph.analysis.observed import wanted_ranges
from qgraph.arrays import Array
from qgraph.calibration.images import CalibrationImages
from qgraph.commands import floatcheck
from qgraph.commands.line import pipeline, split
from qgraph.commands.network import FloatNetwork
from qgraph.engines import Engine
from qgraph.errors import CalibrationError, OptionError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, PassManager, PassRecord
from qgraph.options import FreezeOptions
from qgraph.passes.canonicalize import Canonicalize
from qgraph.quant.spec import QParams, fake_quantize, per_axis, quantize
from qgraph.quant.table import CalibrationTable, Entry
from qgraph.targets.base import KEEP_CODES, KEEP_GRAPH, Executor, Feeds, Target
from qgraph.targets.registry import all_classes

_CHOSEN_IN_TRAINING = ("exclude", "granularity", "weight_bits", "act_bits", "act_signed", "passes")
_CHANGES_VALUES = frozenset({"quantize-between", "share-scales", "signed-residual"})
"""Passes that quantize what training left in float."""


def is_trained(g: Graph) -> bool:
    """Whether it comes with quantizers that have numbers."""
    return any(isinstance(n.quant, QParams) for n in g.dag)


class TrainedNetwork(FloatNetwork):
    """A network that comes with quantizers which have numbers.

    Raises OptionError for a choice that was made in training, UnsupportedError for codes that the target has not.
    """

    def __init__(self, source: Graph, options: FreezeOptions, target: Target) -> None:
        target.check_network(trained=True)
        _check_options(options)
        _check_carried(source, target)
        self.source, self.options, self.target = source, options, target
        self.untrained = untrained_layers(source, target)
        self.float_steps, self.quantizing = split(pipeline(dataclasses.replace(options, exclude=self.untrained)))
        self.entries: dict[str, Entry] = {}
        self.missing: list[str] = []

    @property
    def _as_it_is(self) -> bool:
        return self.target.trained == KEEP_GRAPH

    def bare(self) -> Graph:
        bare = without_quantizers(self.source)
        Canonicalize().run(bare)
        return bare

    def reads_images(self, prefix: str, data: Any) -> bool:
        """A graph that is written as it is needs none; with some, the written files are judged."""
        return (not self._as_it_is or data is not None or bool(self.options.calib_data)
                or os.path.isfile(f"{prefix}-calib.npz"))

    def need(self, images: CalibrationImages | None) -> None:
        if images is None:
            raise CalibrationError(f"target {self.target.name} quantizes {len(self.missing)} tensors that training "
                                   f"does not ({', '.join(self.missing[:3])}, ...): give --calib-data PATH, some "
                                   "images")

    def fold(self, feeds: Feeds, engine: Engine, dump_dir: str, records: list[PassRecord]) -> tuple[Graph, Graph]:
        g = self.source.copy()
        if self._as_it_is:
            PassManager((Canonicalize(),), dump_dir, records).run(g)
            self.quantizing = ()
            return without_quantizers(g), g
        codes = take_weights(g)
        floatcheck.run_checked(self.float_steps, g, feeds, in_float(engine), dump_dir, records)
        float_graph = without_quantizers(g)
        if self.target.parts_shortcuts:
            part_shortcuts(g)
        self.entries = trained_ranges(g)
        if self.target.trained == KEEP_CODES:
            self.quantizing = self._without_changes(g)
            respecify(g, self.target)
            give_weights(g, codes, self.untrained)
        else:
            drop_quantizers(g)
        return float_graph, g

    def _without_changes(self, g: Graph) -> tuple[Pass, ...]:
        """The quantizing passes without those that change what was trained.

        Codes of biases are as coarse as those of data and weights together, too coarse below 8 bits.
        """
        narrow = any(isinstance(n.quant, QParams) and n.quant.bits < 8 for n in g.dag)
        left_out = _CHANGES_VALUES | ({"quantize-bias"} if narrow else set())
        return tuple(step.with_fields(exact=True) if "exact" in step.fields() else step
                     for step in self.quantizing if step.name not in left_out)

    def verdicts(self, float_graph: Graph) -> dict[str, str]:
        return {n.name: "was not quantized in training" if n.name in self.untrained else ""
                for n in self.source.toposort() if ops.kind(n) == ops.COMPUTE}

    def ranges(self, g: Graph, float_graph: Graph, given: CalibrationTable | None,
               observe: Callable[[], CalibrationTable]) -> CalibrationTable | None:
        if self._as_it_is:
            return None
        self.missing = missing_ranges(g, self.entries)
        base = given
        if self.missing and given is None:
            base = observe()
        elif self.missing and given is not None:
            given.check(float_graph.digest())
        return joined(base, self.entries, float_graph)


def _check_options(options: FreezeOptions) -> None:
    default = FreezeOptions(target=options.target)
    for name in _CHOSEN_IN_TRAINING:
        if getattr(options, name) != getattr(default, name):
            raise OptionError(f"--{name.replace('_', '-')}: this network was trained quantized; what is quantized, and "
                              "how, is chosen with qgraph.qat.convert_model")


def _check_carried(g: Graph, target: Target) -> None:
    for fq in g.nodes("fake_quantize"):
        qp, is_weight = fq.quant, g.param(g.inputs(fq)[0]) is not None
        if not isinstance(qp, QParams):
            continue
        kind = "weight_bits" if is_weight else "act_bits"
        if qp.bits not in getattr(target.spec, kind):
            others = [t.name for t in all_classes() if qp.bits in getattr(t.spec, kind)]
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


def in_float(engine: Engine) -> Callable[..., Executor]:
    """The same engine for graphs whose quantizers are left out: rounding would hide what a float pass changes."""
    def run(graph: Graph, watch: Sequence[Port] | None = None) -> Executor:
        twin = without_quantizers(graph)
        by_name = {n.name: n for n in twin.dag}

        def found(port: Port) -> Port:
            while port.node.op == "fake_quantize":
                port = graph.inputs(port.node)[0]
            return Port(by_name[port.node.name], port.index)

        return engine(twin, watch=[found(p) for p in (graph.heads if watch is None else watch)])

    return run


def untrained_layers(g: Graph, target: Target) -> tuple[str, ...]:
    """Names of the layers that stay in float as they trained; for MXNet's kernels those that read floats, too."""
    needed = 2 if target.float_inputs else 1
    return tuple(n.name for n in g.toposort() if ops.kind(n) == ops.COMPUTE
                 and not any(p.node.op == "fake_quantize" for p in g.inputs(n)[:needed]))


# ---- weights --------------------------------------------------------------------------------------------------------

Codes = Mapping[str, "tuple[Array, QParams]"]


def take_weights(g: Graph) -> dict[str, tuple[Array, QParams]]:
    """fq(w) -> w, on its grid; name of the weight -> (codes, params)."""
    taken: dict[str, tuple[Array, QParams]] = {}
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


def _rescaled(array: Array, codes: Array, params: QParams, axis: int) -> QParams:
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
            act = target.spec.act
            fq.quant = dataclasses.replace(act, bits=qp.bits, signed=qp.signed if act.signed is None else act.signed)


def missing_ranges(g: Graph, entries: Mapping[str, Entry]) -> list[str]:
    """Tensors that have a quantizer and no trained range."""
    return [name for name in wanted_ranges(g) if name not in entries]


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
