"""`qgraph explain`: what became of one layer or tensor, and what it costs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.analysis.budget import decibels
from qgraph.analysis.importance import channel_importance
from qgraph.commands.history import carriers, history, told
from qgraph.commands.line import bound, pipeline, range_spec, split
from qgraph.commands.open_model import open_model
from qgraph.commands.report import quantized_layers
from qgraph.commands.trial import Trial, open_trial
from qgraph.errors import GraphError, OptionError, suggest
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.options import FreezeOptions, Progress, block_shapes
from qgraph.passes.insert_fake_quantize import layer_verdicts
from qgraph.quant.observers import Histogram
from qgraph.quant.ranges import METHODS, choose_range, method
from qgraph.quant.spec import QParams
from qgraph.quant.table import CalibrationTable
from qgraph.semantics.infer import infer
from qgraph.targets.registry import get_target

IMAGES = 32  # that ranges are taken from where --num-calib says nothing
JUDGED = 4  # on which outputs are measured
ALIKE = 1e-3  # two ranges whose ends differ by less, as a part of them, are one


def explain(model: Any, name: str, data: Any = None, *, tensor: bool = False, options: FreezeOptions | None = None,
            progress: Progress | None = None) -> dict[str, Any]:
    """{"name", "op", "target", "passes", "became", "reads", "ranges", "budget", "what_if", "images"}.

    name: of a node of the user's, or with `tensor` of what calibration has a range of.
    data: [default: the options', MODEL-calib.npz].  options.calib_table: the ranges of an earlier run.
    passes: [{"pass", "what"}].  became: [{"name", "op", "arithmetic"}].  reads: the tensor that it reads in codes: its
    range, the image that set it, its readers.  ranges: [{"methods", "low", "high", "sqnr_db"}] of the outputs with
    another range for this tensor.  budget: {"sqnr_db" of the outputs, "own": its part of their noise, "before": {layer:
    its part}, "at_output_db", "own_at_output": its part of the noise at its own output}.  what_if: [{"change",
    "sqnr_db"}].  What is not known is None or empty.
    Raises OptionError for a name that is none, with the close ones, CalibrationError without images.
    """
    options = options or FreezeOptions()
    options = dataclasses.replace(options, num_calib=options.num_calib or IMAGES, effort="fast")
    opened = open_model(model, options.params, options.epoch, block_shapes(options.input_shape))
    source = opened.float_graph("an explanation", options.outputs)
    asked = None if tensor else _find(source, name)
    table = None if options.calib_table is None else CalibrationTable.load(os.fspath(options.calib_table))
    trial = open_trial(opened, source, options, "explain", data, table, progress, JUDGED)
    label = _tensor(trial, name) if asked is None else asked.name
    final, steps = _through_the_line(source, trial, options, label)
    layer = next((node.name for node in carriers(final, label) if node.name in trial.layers), "")
    read = trial.input_of(layer) if layer and not tensor else label
    read = read if read in trial.table.entries else ""
    found = {"name": label, "op": "" if asked is None else asked.op, "target": options.target,
             "images": trial.images, "passes": steps,
             "became": [] if tensor else _became(final, carriers(final, label), trial, options),
             "reads": _range(trial, final, read) if read else None,
             "ranges": _other_ranges(trial, read) if read else [],
             "budget": _budget(trial, layer) if layer and not tensor else None, "what_if": []}
    if layer and not tensor:
        found["what_if"] = [
            {"change": f"--exclude {layer}", "sqnr_db": decibels(trial.noise(trial.without(layer)))},
            {"change": "16 bits for its weight and its input",
             "sqnr_db": decibels(trial.noise(trial.with_bits(layer, 16)))}]
    return {**found, "sqnr_db": decibels(trial.measured)}


def _find(g: Graph, text: str) -> Node:
    """The node that the user calls so: by its name, or by the end of it. Raises OptionError with close names."""
    nodes = {node.name: node for node in g.toposort() if node.op != "null"}
    if text in nodes:
        return nodes[text]
    ends = [node for name, node in nodes.items() if name.removesuffix("_fwd").endswith(text)]
    if len(ends) == 1:
        return ends[0]
    for node in nodes.values():
        if any(port.node.name == text for port in g.inputs(node)):
            what = "a parameter" if any(port.node.name == text and g.param(port) is not None
                                        for port in g.inputs(node)) else "an input"
            raise OptionError(f"{text}: this is {what} of {node.name}; ask for {node.name}"
                              + (f", or --tensor {text}" if what == "an input" else ""))
    if len(ends) > 1:
        raise OptionError(f"{text}: could be {', '.join(node.name for node in ends[:6])}; write the whole name")
    names = dict.fromkeys([*nodes, *(name.removesuffix("_fwd") for name in nodes)])
    hint = suggest(text, [*names], count=3, cutoff=0.5)
    raise OptionError(f"{text}: no node is called so; {hint or 'qgraph inspect MODEL lists the layers'}")


def _tensor(trial: Trial, text: str) -> str:
    if text in trial.table.entries:
        return text
    hint = suggest(text, trial.table.entries, count=3, cutoff=0.5)
    raise OptionError(f"--tensor {text}: calibration has no such tensor; "
                      f"{hint or 'they are ' + ', '.join([*trial.table.entries][:6]) + ', ...'}")


def _through_the_line(source: Graph, trial: Trial, options: FreezeOptions,
                      name: str) -> tuple[Graph, list[dict[str, str]]]:
    """(the graph behind the passes of the target, what they did to the node)"""
    float_steps, quantizing = split(pipeline(options))
    g = source.copy()
    steps = [bound(step, table=trial.table) for step in (*float_steps, *quantizing)]
    return g, told(history(g, steps, name))


def _became(g: Graph, nodes: Sequence[Node], trial: Trial, options: FreezeOptions) -> list[dict[str, str]]:
    types = {row["name"]: f"{row['data']} x {row['weight']} per {row['granularity']}" for row in quantized_layers(g)}
    target = get_target(options.target)
    reasons = {**{node.name: why for node, why in target.doubts(trial.float_graph).items()},
               **{node.name: why for node, why in layer_verdicts(trial.float_graph, target, options.exclude,
                                                                       options.layers).items() if why}}
    return [{"name": node.name, "op": node.op, "arithmetic": types.get(node.name) or (
                f"float: {reasons.get(node.name, 'a later pass left it so')}" if ops.kind(node) == ops.COMPUTE else "")}
            for node in nodes]


def _range(trial: Trial, final: Graph, tensor: str) -> dict[str, Any]:
    """The range of a tensor, and who reads it in codes."""
    entry = trial.table.entries[tensor]
    found: dict[str, Any] = {"tensor": tensor, "low": entry.low, "high": entry.high, "observed": [entry.min, entry.max],
                             "method": entry.method, "image": entry.sample, "dtype": "", "scale": None, "readers": []}
    for fq in final.nodes("fake_quantize"):
        if final.inputs(fq)[0].key == tensor and isinstance(fq.quant, QParams) and fq.quant.granularity == "tensor":
            found.update(dtype=fq.quant.dtype, scale=float(fq.quant.scale))
            found["readers"] += [node.name for node in final.readers(fq)]
            found["shared_with"] = [name for name in fq.quant.source if name != tensor]
    return found


def _other_ranges(trial: Trial, tensor: str) -> list[dict[str, Any]]:
    """What the methods would choose, and the outputs' SQNR with it; the chosen range comes first.

    Methods of one range are one row: "kl, mse".
    """
    low, high = trial.range_of(tensor)
    rows: list[dict[str, Any]] = [{"methods": [trial.table.entries[tensor].method], "low": low, "high": high,
                                   "sqnr_db": decibels(trial.measured)}]
    for name, (other_low, other_high) in _ranges(trial, tensor).items():
        same = next((row for row in rows if abs(other_high - row["high"]) + abs(other_low - row["low"])
                     <= ALIKE * (row["high"] - row["low"])), None)
        if same is None:
            noise = trial.noise(trial.with_range(tensor, other_low, other_high))
            rows.append({"methods": [name], "low": other_low, "high": other_high, "sqnr_db": decibels(noise)})
        elif name not in same["methods"]:
            same["methods"].append(name)
    return rows


def _ranges(trial: Trial, tensor: str) -> Mapping[str, tuple[float, float]]:
    """Method -> range, of the images of the trial."""
    g = trial.float_graph
    port = next(Port(node, index) for node in g.toposort() for index in range(node.n_out)
                if Port(node, index).key == tensor)
    run = trial.engine(g, watch=[port])
    seen = [(batch.ids, values[0]) for batch, values in run.stream(trial.data) if len(values[0]) == len(batch)]
    spec = range_spec(trial.options)
    try:
        shapes = infer(g, {name: x.shape for name, x in trial.feeds.items()})
    except GraphError:
        shapes = {}
    importance = channel_importance(g, shapes).get(port)
    found = {}
    for name in METHODS:
        how = method(name)
        stats: Any = how.first(tensor)
        for ids, value in seen:
            stats.update(value, ids)
        if how.sweeps == 2:
            stats = Histogram.after(stats, importance=importance if how.weighs_channels else None)
            for ids, value in seen:
                stats.update(value, ids)
        found[name] = choose_range(name, stats, spec)
    return found


def _budget(trial: Trial, layer: str) -> dict[str, Any]:
    before = trial.before(layer)
    budget = trial.budget([layer, *before])
    costs = {cost.layer: cost for cost in budget.costs}
    shares = {name: float(f"{budget.share(cost):.4g}") for name, cost in costs.items()}
    at_layer = trial.at_layer(layer)
    return {"sqnr_db": decibels(budget.noise), "own": shares[layer], "before": {name: shares[name] for name in before},
            "at_output_db": decibels(at_layer),
            "own_at_output": float(f"{min(1.0, costs[layer].noise / (at_layer or 1.0)):.4g}")}
