"""What rounding costs the outputs, tensor by tensor and weight by weight, and the order in which raising layers pays.

Each error is measured alone, to first order: the float network is run with the rounding error of one tensor, or of one
layer's weights, added where it arises.  What arrives at the outputs is its noise, of the worst output; noises add up.
A tensor is rounded as long as a layer reads it in codes, and, where the target quantizes between layers, as long as a
layer of integers writes it.  So it may take several layers at once to get rid of a noise: a move raises a layer, or all
that keep a tensor rounded, by one rung.

Kept in a file, which a later run on the same network and images goes on with.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from qgraph.analysis.budget import judged_ports, noise_of, with_noise_inputs
from qgraph.analysis.codes import quantizer_name
from qgraph.arrays import Array
from qgraph.commands.ladder import ACT_BITS, FLOAT_BITS, Costs, Rung
from qgraph.commands.trial import Trial, nearest_layers
from qgraph.commands.tune_bench import Bench
from qgraph.errors import FormatError
from qgraph.files import read_at_most, write_files
from qgraph.ir.graph import Graph, Port
from qgraph.quant.recipe import IN_FLOAT, LayerChoice, Recipe
from qgraph.quant.spec import QParams, fake_quantize

log = logging.getLogger("qgraph")

FORMAT = "qgraph-sensitivity"
MAX_BYTES = 16 << 20
IMAGES = 8  # on which it is measured
_FLOOR = 0.25  # of the mean cost of a layer: what costs less is not preferred for that


class Step(NamedTuple):
    """Layers that go up together, by one rung each. noise: that it takes away.  extra: what it costs."""

    layers: tuple[str, ...]
    noise: float
    extra: float


class Reading(NamedTuple):
    """Of a tensor that is rounded: the layers that read it, and those whose values it holds."""

    readers: tuple[str, ...]
    writers: tuple[str, ...]


@dataclass
class Sensitivity:
    """weights: bits -> layer -> noise.  tensors: tensor -> noise, in `ACT_BITS`.  readings: by tensor."""

    about: dict[str, Any]
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    tensors: dict[str, float] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)

    def noise(self, chosen: Mapping[str, Rung], between: bool) -> float:
        """Of the outputs, as predicted. between: the target quantizes between layers."""
        return sum(self._of_weight(layer, rung) for layer, rung in chosen.items()) + sum(
            noise for tensor, noise in self.tensors.items() if self._keepers(tensor, chosen, between))

    def _of_weight(self, layer: str, rung: Rung) -> float:
        return self.weights.get(str(rung.weight_bits), {}).get(layer, 0.0)

    def _keepers(self, tensor: str, chosen: Mapping[str, Rung], between: bool) -> list[str]:
        """The layers for which a tensor is rounded."""
        found = self.readings[tensor]
        return [*(layer for layer in found.readers if layer in chosen and chosen[layer].act_bits != IN_FLOAT),
                *(layer for layer in found.writers if between and layer in chosen and chosen[layer].integers)]

    def steps(self, rungs: Sequence[Rung], costs: Costs, minimize: str, between: bool) -> list[Step]:
        """All steps from the cheapest rung to the dearest, in the order of noise by cost, each behind those before."""
        top = len(rungs) - 1
        level = dict.fromkeys(costs.weights, 0)
        touched = {layer: [tensor for tensor, found in self.readings.items() if layer in found.readers + found.writers]
                   for layer in level}
        ends = [costs.of(minimize, dict.fromkeys(level, rungs[at])) for at in (0, top)]
        floor = max(_FLOOR * abs(ends[1] - ends[0]) / max(len(level), 1), 1e-9)
        chosen = {layer: rungs[0] for layer in level}
        found: list[Step] = []

        def moves() -> Iterator[tuple[str, ...]]:
            yield from ((layer,) for layer in level if level[layer] < top)
            for tensor in self.readings:
                keepers = tuple(dict.fromkeys(layer for layer in self._keepers(tensor, chosen, between)
                                              if level[layer] < top))
                if len(keepers) > 1:
                    yield keepers

        def judged(move: tuple[str, ...]) -> Step:
            near = {tensor for layer in move for tensor in touched[layer]}
            after = {**chosen, **{layer: rungs[level[layer] + 1] for layer in move}}
            noise = sum(self._of_weight(layer, chosen[layer]) - self._of_weight(layer, after[layer]) for layer in move)
            noise += sum(self.tensors[tensor] * (bool(self._keepers(tensor, chosen, between))
                                                 - bool(self._keepers(tensor, after, between))) for tensor in near)
            return Step(move, noise, sum(costs.extra(minimize, layer, chosen[layer], after[layer]) for layer in move))

        while any(value < top for value in level.values()):
            best = max(map(judged, moves()), key=lambda step: step.noise / max(step.extra, floor))
            found.append(best)
            for layer in best.layers:
                level[layer] += 1
                chosen[layer] = rungs[level[layer]]
        return found

    def to_json(self) -> str:
        flow = {tensor: found._asdict() for tensor, found in self.readings.items()}
        return json.dumps({"format": FORMAT, "about": self.about, "weights": self.weights, "tensors": self.tensors,
                           "flow": flow}, indent=1) + "\n"


def sensitivity(bench: Bench, rungs: Sequence[Rung], path: str) -> Sensitivity:
    """Of all tensors, and of the weights in the bits of each rung; from the file of an earlier run if there is one."""
    about = {"model": bench.source.digest(), "target": str(bench.target), "exclude": list(bench.options.exclude),
             "images": [bench.calibration.name, bench.calibration.fingerprint()]}
    found = _kept(path, about)
    if not found.tensors:
        trial = _trial(bench, LayerChoice())
        found.readings = flow_of(trial.quantized, bench.layers)
        found.tensors = _arriving(trial, _tensor_errors(trial, found.readings), bench, "noise of tensors")
        write_files({path: found.to_json()})
    for bits in sorted({rung.weight_bits for rung in rungs} - {FLOAT_BITS}):
        if str(bits) not in found.weights:
            trial = _trial(bench, LayerChoice(bits, IN_FLOAT))
            found.weights[str(bits)] = _arriving(trial, trial.local, bench, f"noise of {bits}-bit weights")
            write_files({path: found.to_json()})
    return found


def _trial(bench: Bench, choice: LayerChoice) -> Trial:
    """The network with this choice for all layers."""
    return Trial(bench.source, bench.calibration, bench.with_recipe(Recipe(layers=(("*", choice),))), bench.engine,
                 images=IMAGES)


def flow_of(g: Graph, layers: Mapping[str, int]) -> dict[str, Reading]:
    """Of every rounded tensor in a graph that rounds what layers read."""
    found: dict[str, Reading] = {}
    for fq in g.nodes("fake_quantize"):
        source = g.inputs(fq)[0]
        if g.param(source) is None and source.index == 0:
            readers = tuple(node.name for node in g.readers(fq) if node.name in layers)
            found[source.key] = Reading(readers, tuple(nearest_layers(g, [source.node], layers)))
    return found


def _tensor_errors(trial: Trial, flow: Mapping[str, Reading]) -> dict[str, Array]:
    """Tensor -> its rounding error on the images."""
    quantizers = {node.name: node.quant for node in trial.quantized.nodes("fake_quantize")}
    nodes = {node.name: node for node in trial.float_graph.toposort() if node.name in flow}
    values = trial.engine(trial.float_graph, watch=[Port(node) for node in nodes.values()]).run(trial.feeds)
    errors: dict[str, Array] = {}
    for (name, node), value in zip(nodes.items(), values):
        quant = quantizers[quantizer_name(Port(node))]
        assert isinstance(quant, QParams) and quant.bits == ACT_BITS
        errors[name] = fake_quantize(value, quant, trial.spec.rounding) - value
    return errors


def _arriving(trial: Trial, errors: Mapping[str, Array], bench: Bench, what: str) -> dict[str, float]:
    """Node -> noise of the worst output when its error alone is added to its output."""
    twin, inputs = with_noise_inputs(trial.float_graph, list(errors))
    run = trial.engine(twin, watch=judged_ports(twin))
    silent = {inputs[name]: np.zeros_like(error) for name, error in errors.items()}
    found: dict[str, float] = {}
    for name, error in errors.items():
        outputs = run.run({**trial.feeds, **silent, inputs[name]: error})
        found[name] = float(f"{max(noise_of(a, b) for a, b in zip(trial.want, outputs)):.5g}")
        if bench.progress:
            bench.progress(what, len(found), len(errors))
    return found


def _kept(path: str, about: Mapping[str, Any]) -> Sensitivity:
    """What an earlier run has measured of the same; nothing of another network or of other images."""
    fresh = Sensitivity(dict(about))
    if not os.path.isfile(path):
        return fresh
    try:
        body = json.loads(read_at_most(path, MAX_BYTES).decode("utf-8"))
        if body["format"] != FORMAT:
            raise ValueError(f"format is {body['format']!r:.40}")
        weights = {str(bits): _numbers(row) for bits, row in body["weights"].items()}
        flow = {str(tensor): Reading(*(tuple(map(str, said[name])) for name in Reading._fields))
                for tensor, said in body["flow"].items()}
        tensors = _numbers(body["tensors"])
        if tensors.keys() != flow.keys():
            raise ValueError("flow and tensors differ")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: not the sensitivities of qgraph tune ({error}); remove the file") from None
    if body.get("about") != fresh.about:
        log.info("%s is of another network or of other images: measured again", path)
        return fresh
    return Sensitivity(fresh.about, weights, tensors, flow)


def _numbers(body: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in body.items()}
