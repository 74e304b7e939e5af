"""A network whose quantization can be tried in variants, on a few images: what `explain` and the budget measure on.

Weights are rounded to the nearest codes and sums are exact, as for mxnet-sim with ``--effort fast``: what a change of
one layer gives is seen without minutes of work, and without what kernels add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from qgraph.analysis.budget import Budget, costs_of, judged_ports, noise_of, with_noise_inputs
from qgraph.analysis.codes import drop_quantizers
from qgraph.arrays import Array
from qgraph.commands.line import collect_table, pipeline, split
from qgraph.data.open import Data
from qgraph.engines import Engine
from qgraph.errors import OptionError
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import run_pass
from qgraph.options import FreezeOptions, Progress
from qgraph.passes.calibrate import Calibrate
from qgraph.quant.spec import QParams, with_range
from qgraph.quant.table import CalibrationTable
from qgraph.quant.weights import weight_params
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.semantics.interpreter import Tensor

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
        run_pass(quantizing[0], self.quantized)
        if not self.quantized.nodes("fake_quantize"):
            raise OptionError("nothing is quantized: every layer is excluded or stays in float")
        self.table = table if table is not None and table.graph_hash == self.float_graph.digest() else \
            collect_table(self.float_graph, data, self.options, None, progress, ())
        run_pass(Calibrate(table=self.table), self.quantized)
        self.feeds: Mapping[str, Array] = _first(data, images)
        self.images = len(next(iter(self.feeds.values())))

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

    def noise(self, g: Graph) -> tuple[float, ...]:
        """Of each output of a variant of the quantized graph, in exact arithmetic."""
        found = Reference(g, judged_ports(g), run_op=self.engine.run_op).run(self.feeds)
        return tuple(noise_of(a, b) for a, b in zip(self.want, found))

    @cached_property
    def measured(self) -> tuple[float, ...]:
        """The noise of each output, all layers quantized."""
        return self.noise(self.quantized)

    @cached_property
    def local(self) -> dict[str, Array]:
        """Layer -> the error that it adds to its output where all that it reads is exact but for its own rounding."""
        values, errors = self._float_values[0], {}
        for node, _, outputs in Reference(self.quantized, run_op=self.engine.run_op).walk(self.feeds):
            if node.name in values and outputs:
                errors[node.name] = outputs[0].real - values[node.name]
                outputs[:] = [Tensor(values[node.name])]
        return errors

    def budget(self, layers: Sequence[str] | None = None) -> Budget:
        """The costs of these layers, of all without."""
        asked = [layer for layer in layers or self.layers if layer in self.local]
        twin, inputs = with_noise_inputs(self.float_graph, asked)
        run = self.engine(twin, watch=judged_ports(twin))
        silent = {name: np.zeros_like(self.local[layer]) for layer, name in inputs.items()}
        found = {}
        for number, layer in enumerate(asked):
            found[layer] = run.run({**self.feeds, **silent, inputs[layer]: self.local[layer]})
            if self.progress:
                self.progress("measuring sensitivities", number + 1, len(asked))
        values = self._float_values[0]
        noises = {layer: noise_of(values[layer], values[layer] + self.local[layer]) for layer in asked}
        return Budget(costs_of(asked, noises, self.want, found), self.measured)

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
        low, high = self.range_of(layer)
        return self._with_input(g, node, low, high, bits)

    def with_range(self, layer: str, low: float, high: float) -> Graph:
        """The input of this layer in another range, for this reader alone."""
        g, node = self._copy(layer)
        return self._with_input(g, node, low, high, None)

    def range_of(self, layer: str) -> tuple[float, float]:
        """The chosen range of what this layer reads."""
        _, node = self._copy(layer)
        entry = self.table.entries[self.input_of(layer)]
        return entry.low, entry.high

    def input_of(self, layer: str) -> str:
        """The tensor that this layer reads in codes."""
        g = self.quantized
        node = next(n for n in g.toposort() if n.name == layer)
        return g.inputs(g.inputs(node)[0].node)[0].key

    def _with_input(self, g: Graph, node: Node, low: float, high: float, bits: int | None) -> Graph:
        fq = g.inputs(node)[0].node
        spec = _spec(fq) if bits is None else dataclasses.replace(_spec(fq), bits=bits)
        own = g.add("fake_quantize", [g.inputs(fq)[0]], f"{fq.name}_{node.name}", quant=with_range(spec, low, high))
        g.set_input(node, 0, own)
        g.prune()
        return g

    def _copy(self, layer: str) -> tuple[Graph, Node]:
        g = self.quantized.copy()
        return g, next(node for node in g.toposort() if node.name == layer)


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
