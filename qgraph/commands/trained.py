"""How a network that was trained quantized goes through the line of `qgraph.freeze`: its ranges and codes are kept.

What a target keeps (`Target.trained`):

    graph    the graph is written as it is
    codes    activations get the trained ranges; weights keep their codes, a BatchNorm goes into their scales; sums stay
             in float, as in training
    ranges   weights are rounded again to scales that the target derives, and what training left in float is quantized
             too, to ranges observed on images

A range clips what it quantizes, so a clip takes the place of a quantizer that the target does not have.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.analysis.codes import nonnegative, quantizer_name
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

log = logging.getLogger("qgraph")

LEAST = 30.0  # dB of the network in offline mode; codes of 8 bits give more
_CHOSEN_IN_TRAINING = ("exclude", "granularity", "weight_bits", "act_bits", "act_signed", "passes")
_CHANGES_VALUES = frozenset({"quantize-between", "share-scales", "signed-residual", "round-weights"})
"""Passes that quantize what training left in float, and what moves weights and biases that training has found."""


def is_trained(g: Graph) -> bool:
    """Whether it comes with quantizers that have numbers."""
    return any(isinstance(n.quant, QParams) for n in g.dag)


class TrainedNetwork(FloatNetwork):
    """A network that comes with quantizers which have numbers.

    Raises OptionError for a choice that was made in training, UnsupportedError for codes that the target has not.
    """

    shares_float = False  # what is kept of the training depends on the target
    agreement_with = {"with": "the network as it trained"}

    def __init__(self, source: Graph, options: FreezeOptions, target: Target) -> None:
        target.check_network(trained=True)
        _check_options(options)
        _check_carried(source, target)
        self.source, self.options, self.target = source, options, target
        self.reasons = float_layers(source, target)
        self.float_steps, self.quantizing = split(pipeline(dataclasses.replace(options, exclude=tuple(self.reasons))))
        self.entries: dict[str, Entry] = {}
        self.missing: list[str] = []

    @property
    def _as_it_is(self) -> bool:
        return self.target.trained == KEEP_GRAPH

    def bare(self) -> Graph:
        bare = without_quantizers(self.source)
        Canonicalize().run(bare)
        return bare

    def truth(self, engine: Engine) -> Executor:
        """The network in offline mode: with the quantizers that it trained with."""
        trained = self.source.copy()
        Canonicalize().run(trained)
        return engine.exact(trained)

    def reads_images(self, prefix: str, data: Any) -> bool:
        """A graph that is written as it is needs none; with some, the written files are judged."""
        return (not self._as_it_is or data is not None or bool(self.options.calib_data)
                or os.path.isfile(f"{prefix}-calib.npz"))

    def need(self, images: CalibrationImages | None) -> None:
        if images is None:
            raise CalibrationError(f"target {self.target.name} quantizes {len(self.missing)} tensors that training "
                                   f"does not ({', '.join(self.missing[:3])}, ...): give --calib-data PATH, some "
                                   "images")

    def warn_of(self, agreement: Mapping[str, Any] | None) -> None:
        """Of files that are further from the network in offline mode than codes of 8 bits need be."""
        if agreement is None or agreement["sqnr_db"] is None or agreement["sqnr_db"] >= LEAST:
            return
        finer = sum(not _known(fq).signed for fq in _trained(self.source)) if self.target.spec.act.signed else 0
        why = [f"{self.target.name} has 127 codes for {finer} tensors that have 255 in training"] if finer else []
        if self.target.trained not in (KEEP_GRAPH, KEEP_CODES):
            why.append(f"{self.target.name} rounds weights and what training left in float once more")
        log.warning("WARNING: %s: %.1f dB of the network as it trained, want %g; %s", agreement["worst"],
                    agreement["sqnr_db"], LEAST, "; ".join([*why, "another target may keep more of it"]))

    def fold(self, feeds: Feeds, engine: Engine, dump_dir: str, records: list[PassRecord],
             known: Mapping[str, Any]) -> tuple[Graph, Graph]:
        """As of a float network; its channels are not scaled, since their ranges were chosen in training."""
        g = self.source.copy()
        if self._as_it_is:
            PassManager((Canonicalize(),), dump_dir, records).run(g)
            self.quantizing = ()
            return without_quantizers(g), g
        cut_below_zero(g)
        codes = take_weights(g)
        floatcheck.run_checked(self.float_steps, g, feeds, in_float(engine), dump_dir, records,
                               self.options.float_check)
        float_graph = without_quantizers(g)
        if self.target.trained == KEEP_CODES:
            self.quantizing = self._without_changes(g)
            self.entries = respecify(g, self.target)
            give_weights(g, codes, self.reasons)
        else:
            self.entries = take_ranges(g, self.target, self.reasons)
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
        return {n.name: self.reasons.get(n.name, "")
                for n in self.source.toposort() if ops.kind(n) == ops.COMPUTE}

    def ranges(self, g: Graph, float_graph: Graph, given: CalibrationTable | None,
               observe: Callable[[], CalibrationTable]) -> CalibrationTable | None:
        if self._as_it_is:
            return None
        self.missing = missing_ranges(g, self.entries)
        base = given
        if self.missing and (given is None or not given.images):  # that of a target without missing ranges
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


def float_layers(g: Graph, target: Target) -> dict[str, str]:
    """Layer -> why it stays in float: as it trained so, or reads floats and the target's kernels do not, or refuses."""
    needed, found = 2 if target.float_inputs else 1, {}
    for node in g.toposort():
        if ops.kind(node) == ops.COMPUTE and not any(p.node.op == "fake_quantize" for p in g.inputs(node)[:needed]):
            found[node.name] = "was not quantized in training"
    if not target.float_inputs:
        bare = without_quantizers(g)  # weights are parameters there
        refused = {n.name: target.refuse(bare, n) for n in bare.toposort() if ops.kind(n) == ops.COMPUTE}
        found.update({name: why for name, why in refused.items() if why and name not in found})
    return found


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


def give_weights(g: Graph, taken: Codes, in_float: Container[str]) -> None:
    """w -> fq(w) with the codes it had, in the scales that the float passes have made of it. in_float: stay."""
    for layer in g.toposort():
        if ops.kind(layer) != ops.COMPUTE or layer.name in in_float:
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

def cut_below_zero(g: Graph) -> None:
    """fq{unsigned}(x)  ->  fq{unsigned}(relu(x)) where x may be negative: the same codes for any target."""
    positive = nonnegative(g)
    made: dict[Port, Node] = {}
    for fq in _trained(g):
        source = g.inputs(fq)[0]
        if not _known(fq).signed and source not in positive:
            if source not in made:
                made[source] = g.add("Activation", [source], f"{fq.name}_relu", act_type="relu")
            g.set_input(fq, 0, made[source])


def respecify(g: Graph, target: Target) -> dict[str, Entry]:
    """Activation quantizers in the target's own form, of the trained width; (tensor -> the range to take).

    Those of one tensor become one, if they have one range; else the tensor is clipped to each.
    """
    entries: dict[str, Entry] = {}
    first: dict[Port, Node] = {}
    several = _several(g)
    for fq in _trained(g):
        qp, source = _known(fq), g.inputs(fq)[0]
        if source in several:
            source = _clip(g, fq)
            g.set_input(fq, 0, source)
        if source in first:
            g.replace_uses(fq, first[source])
            g.remove(fq)
            continue
        first[source] = fq
        entries[source.key] = _entry(qp)
        act = target.spec.act
        fq.quant = dataclasses.replace(act, bits=qp.bits, signed=qp.signed if act.signed is None else act.signed)
    return entries


def take_ranges(g: Graph, target: Target, in_float: Container[str]) -> dict[str, Entry]:
    """fq(x)  ->  x, and the ranges of what layers read: tensor -> the range to take.

    A clip stays where the target puts no quantizer, or one that others share: in front of other ops and of layers in
    float, for several ranges of one tensor, and, where shortcuts are parted, for a tensor that is read in float, too.
    """
    entries: dict[str, Entry] = {}
    several = _several(g)
    for fq in _trained(g):
        source, readers = g.inputs(fq)[0], g.readers(fq)
        ours = [n for n in readers if ops.kind(n) == ops.COMPUTE and n.name not in in_float and not target.refuse(g, n)]
        shared = target.parts_shortcuts and (g.is_head(source) or any(
            n.op not in ("fake_quantize", "clip") for n, _ in g.uses(source)))
        kept = source if len(ours) == len(readers) and not (
            shared or source in several or g.is_head(fq)) else _clip(g, fq)
        if ours:
            entries[kept.key] = _entry(_known(fq))
        g.replace_uses(fq, kept)
        g.remove(fq)
    return entries


def _trained(g: Graph) -> list[Node]:
    """The quantizers of activations that have numbers, in order."""
    return [n for n in g.toposort() if n.op == "fake_quantize" and isinstance(n.quant, QParams)
            and g.param(g.inputs(n)[0]) is None]


def _known(fq: Node) -> QParams:
    assert isinstance(fq.quant, QParams)
    return fq.quant


def _several(g: Graph) -> set[Port]:
    """Tensors that were quantized to more than one range."""
    ranges: dict[Port, set[tuple[float, float]]] = {}
    for fq in _trained(g):
        ranges.setdefault(g.inputs(fq)[0], set()).add(_ends(_known(fq)))
    return {port for port, found in ranges.items() if len(found) > 1}


def _ends(qp: QParams) -> tuple[float, float]:
    return float(qp.scale) * qp.qmin, float(qp.scale) * qp.qmax


def _entry(qp: QParams) -> Entry:
    low, high = _ends(qp)
    return Entry(low, high, low, high, "naive")


def _clip(g: Graph, fq: Node) -> Port:
    """What it quantizes, clipped to its range."""
    low, high = _ends(_known(fq))
    return Port(g.add("clip", [g.inputs(fq)[0]], f"{fq.name}_clip", a_min=low, a_max=high))


def missing_ranges(g: Graph, entries: Mapping[str, Entry]) -> list[str]:
    """Tensors that have a quantizer and no trained range."""
    return [name for name in wanted_ranges(g) if name not in entries]


def joined(base: CalibrationTable | None, entries: Mapping[str, Entry], float_graph: Graph) -> CalibrationTable:
    """The table with the trained ranges in place of observed ones."""
    if base is None:
        base = CalibrationTable("naive", 8, None, float_graph.digest(), 0, data="trained ranges")
    return dataclasses.replace(base, entries={**base.entries, **entries}, data=f"{base.data}, and trained ranges"
                               if base.images else base.data)
