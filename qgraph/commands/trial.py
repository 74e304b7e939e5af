"""A network whose quantization can be tried in variants, on a few images: what `explain` and the budget measure on.

Weights are rounded to the nearest codes and sums are exact, as for mxnet-sim with ``--effort fast``, but for the layers
that the user's target leaves in float: what a change of one layer gives is seen without minutes of work, and without
what kernels add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from qgraph import engines
from qgraph.analysis.budget import Account, Budget, judged_ports, noise_of, with_noise_inputs
from qgraph.arrays import Array
from qgraph.calibration.images import find_images
from qgraph.commands.line import bound, collect_table, pipeline, range_spec, split
from qgraph.commands.open_model import Opened
from qgraph.commands.trained import is_trained
from qgraph.data.open import Data
from qgraph.engines import Engine
from qgraph.errors import CalibrationError, OptionError
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import run_pass
from qgraph.options import FreezeOptions, Progress
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.canonicalize import Canonicalize
from qgraph.passes.insert_fake_quantize import layer_verdicts
from qgraph.quant.spec import QParams, with_range
from qgraph.quant.table import CalibrationTable
from qgraph.quant.weights import weight_params
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.semantics.interpreter import Tensor
from qgraph.targets.registry import get_target
from qgraph.targets.spec import Spec

TARGET = "mxnet-sim"
IMAGES = 8  # on which outputs are judged


class Trial:
    """float_graph: behind the float passes.  quantized: with scales.  want: the float values of what is judged.

    source: a float network that is not frozen.  data: calibration images.  images: so many of them are judged.
    table: the ranges, where they are known already.
    """

    def __init__(self, source: Graph, data: Data, options: FreezeOptions, engine: Engine,
                 table: CalibrationTable | None = None, progress: Progress | None = None,
                 images: int = IMAGES) -> None:
        self.engine, self.data, self.progress = engine, data, progress
        self.options = dataclasses.replace(options, target=TARGET, effort="fast", passes=None, user_passes=())
        float_steps, quantizing = split(pipeline(self.options))
        self.float_graph = source.copy()
        for step in float_steps:
            run_pass(step, self.float_graph)
        self.quantized = self.float_graph.copy()
        verdicts = layer_verdicts(self.float_graph, get_target(options.target), options.exclude,
                                  options.layers)
        left = [node.name for node, why in verdicts.items() if why]  # by the target that the user means
        run_pass(bound(quantizing[0], exclude=(*options.exclude, *left)), self.quantized)
        if not self.quantized.nodes("fake_quantize"):
            raise OptionError("nothing is quantized: every layer is excluded or stays in float")
        self.table = table if table is not None and table.graph_hash == self.float_graph.digest() else \
            collect_table(self.float_graph, data, self.options, progress, ())
        run_pass(bound(Calibrate(), table=self.table), self.quantized)
        self.feeds: Mapping[str, Array] = _first(data, images)
        self.images = len(next(iter(self.feeds.values())))

    @property
    def spec(self) -> Spec:
        """What the simulated target can carry."""
        return get_target(TARGET).spec

    @cached_property
    def layers(self) -> list[str]:
        """The quantized layers, in order."""
        return [node.name for node in self.quantized.toposort() if _weight_quantizer(self.quantized, node) is not None]

    @cached_property
    def _float_values(self) -> tuple[dict[str, Array], list[Array]]:
        """(values of the layers, values of what is judged)"""
        named = {node.name: node for node in self.float_graph.toposort()}
        watch = [Port(named[layer]) for layer in self.layers]
        values = self.engine(self.float_graph, watch=[*watch, *judged_ports(self.float_graph)]).run(self.feeds)
        return dict(zip(self.layers, values)), values[len(watch):]

    @property
    def want(self) -> list[Array]:
        return self._float_values[1]

    def outputs(self, g: Graph) -> list[Array]:
        """What is judged of a variant of the quantized graph, in exact arithmetic."""
        return Reference(g, judged_ports(g), run_op=self.engine.run_op).run(self.feeds)

    def noise(self, g: Graph) -> float:
        """The mean noise of the outputs of a variant."""
        return float(np.mean([noise_of(a, b) for a, b in zip(self.want, self.outputs(g))]))

    @property
    def whole(self) -> list[Array]:
        """The outputs with all layers quantized."""
        return self._walked[0]

    @cached_property
    def measured(self) -> float:
        """Their mean noise."""
        return float(np.mean([noise_of(a, b) for a, b in zip(self.want, self.whole)]))

    @property
    def local(self) -> dict[str, Array]:
        """Layer -> the error that it adds to its output: that of rounding what it reads, as it is in the quantized
        network, and its weight."""
        return self._walked[1]

    @cached_property
    def _walked(self) -> tuple[list[Array], dict[str, Array]]:
        """(outputs, errors of the layers)"""
        g, layers = self.quantized, {*self.layers}
        judged = judged_ports(g)
        reference = Reference(g, judged, run_op=self.engine.run_op)
        given: dict[Node, Tensor] = {}  # what quantizers round
        found, errors = dict[Port, Array](), dict[str, Array]()
        for node, inputs, outputs in reference.walk(self.feeds):
            if node.op == "fake_quantize" and inputs:
                given[node] = inputs[0]
            elif node.name in layers and outputs:
                exact = [given.get(port.node, value) for port, value in zip(g.inputs(node), inputs)]
                errors[node.name] = outputs[0].real - reference.evaluate(node, exact)[0].real
            found.update((port, outputs[port.index].real) for port in judged if port.node is node and outputs)
        return [found[port] for port in judged], errors

    def budget(self, layers: Sequence[str] | None = None) -> Budget:
        """The costs of these layers, of all without."""
        asked = [layer for layer in layers or self.layers if layer in self.local]
        twin, inputs = with_noise_inputs(self.float_graph, [*self.local])
        run = self.engine(twin, watch=judged_ports(twin))
        errors = {name: self.local[layer] for layer, name in inputs.items()}
        values = self._float_values[0]
        account = Account(self.want, self.whole)
        for number, layer in enumerate(asked):
            without = run.run({**self.feeds, **errors, inputs[layer]: np.zeros_like(self.local[layer])})
            account.add(layer, noise_of(values[layer], values[layer] + self.local[layer]), without)
            if self.progress:
                self.progress("measuring sensitivities", number + 1, len(asked))
        return account.budget()

    # ---- variants ----

    def without(self, layer: str) -> Graph:
        """This layer in float, as with ``--exclude``."""
        g, node = self._copy(layer)
        for slot in (0, 1):
            fq = g.inputs(node)[slot].node
            if fq.op == "fake_quantize":
                g.set_input(node, slot, g.inputs(fq)[0])
        g.prune()
        return g

    def with_bits(self, layer: str, bits: int) -> Graph:
        """Weight and input of this layer in so many bits, the input for this reader alone."""
        g, node = self._copy(layer)
        weight = _weight_quantizer(g, node)
        assert weight is not None and weight.quant is not None
        array = g.param(g.inputs(weight)[0])
        assert array is not None
        weight.quant = weight_params(weight.name, array, dataclasses.replace(_spec(weight), bits=bits))
        fq = g.inputs(node)[0].node
        if fq.op == "fake_quantize":
            spec = dataclasses.replace(_spec(fq), bits=bits)
            own = g.add("fake_quantize", [g.inputs(fq)[0]], f"{fq.name}_{node.name}",
                        quant=with_range(spec, *self.range_of(g.inputs(fq)[0].key)))
            g.set_input(node, 0, own)
            g.prune()
        return g

    def with_range(self, tensor: str, low: float, high: float) -> Graph:
        """A tensor in another range, for all its readers."""
        g = self.quantized.copy()
        codes = range_spec(self.options)
        for fq in g.nodes("fake_quantize"):
            if g.inputs(fq)[0].key == tensor:
                fq.quant = with_range(dataclasses.replace(_spec(fq), signed=codes.signed, symmetric=codes.symmetric),
                                      low, high)
        return g

    def range_of(self, tensor: str) -> tuple[float, float]:
        """As it was chosen."""
        entry = self.table.entries[tensor]
        return entry.low, entry.high

    def input_of(self, layer: str) -> str:
        """The tensor that this layer reads in codes, "" if it reads floats."""
        g, node = self._copy(layer)
        fq = g.inputs(node)[0].node
        return g.inputs(fq)[0].key if fq.op == "fake_quantize" else ""

    def before(self, layer: str) -> list[str]:
        """The quantized layers whose outputs this one reads, past ops that have no weights."""
        g, node = self._copy(layer)
        return nearest_layers(g, [port.node for port in g.inputs(node)], set(self.layers))

    def at_layer(self, layer: str) -> float:
        """The noise of its output, all layers quantized: its own and what arrives."""
        g, node = self._copy(layer)
        found = Reference(g, [Port(node)], run_op=self.engine.run_op).run(self.feeds)[0]
        return noise_of(self._float_values[0][layer], found)

    def _copy(self, layer: str) -> tuple[Graph, Node]:
        g = self.quantized.copy()
        return g, next(node for node in g.toposort() if node.name == layer)


def nearest_layers(g: Graph, ends: Sequence[Node], layers: Container[str]) -> list[str]:
    """Those of these layers that are at the ends, or nearest in front of them, past ops that are no layers."""
    pending, seen, found = [*ends], {*ends}, list[str]()
    while pending:
        node = pending.pop()
        if node.name in layers:
            found.append(node.name)
            continue
        fresh = [port.node for port in g.inputs(node) if port.node not in seen]
        seen.update(fresh)
        pending += fresh
    return found


def open_trial(opened: Opened, source: Graph, options: FreezeOptions, what_for: str, data: Any = None,
               table: CalibrationTable | None = None, progress: Progress | None = None, images: int = IMAGES) -> Trial:
    """The trial of an opened model. source: its float graph.  what_for: the command that measures.

    data: [default: the options', MODEL-calib.npz].  Raises CalibrationError without images, OptionError for a network
    that was trained with quantizers.
    """
    if is_trained(source):
        raise OptionError(f"{opened.name}: was trained with a quantization of its own; qgraph inspect shows it")
    bare = source.copy()
    Canonicalize().run(bare)
    found, _ = find_images(opened.prefix, bare, options, data, needed=False, progress=progress)
    if found is None:
        raise CalibrationError(f"{what_for} measures on images: give --data PATH, or put {opened.prefix or 'MODEL'}"
                               "-calib.npz beside the model")
    engine = engines.runtime("measuring", options.runtime)
    return Trial(source, found.data, options, engine, table, progress, images)


def _first(data: Data, count: int) -> dict[str, Array]:
    parts: dict[str, list[Array]] = {}
    for batch in data:
        for name, x in batch.feeds.items():
            parts.setdefault(name, []).append(x)
        if sum(map(len, next(iter(parts.values())))) >= count:
            break
    return {name: np.concatenate(arrays)[:count] for name, arrays in parts.items()}


def _spec(fq: Node) -> Any:
    assert isinstance(fq.quant, QParams)
    return fq.quant.spec


def _weight_quantizer(g: Graph, node: Node) -> Node | None:
    inputs = g.inputs(node)
    found = inputs[1].node if len(inputs) > 1 else None
    return found if found is not None and found.op == "fake_quantize" and g.param(g.inputs(found)[0]) is not None \
        else None
