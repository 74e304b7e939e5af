"""`qgraph.convert`: an MXNet model of any generation as ONNX, for ncnn or Tengine, or as newest MXNet files, in float.

What comes out is run on random batches and compared with the model that went in.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qgraph import engines
from qgraph.arrays import Array
from qgraph.commands import floatcheck
from qgraph.commands.carried import refusal, takers
from qgraph.commands.open_model import (
    Opened,
    end_at,
    find_symbol,
    open_model,
    refuse_channels_last,
    refuse_random,
)
from qgraph.commands.ties import behind_equal_values, fed_in_front_of_jumps
from qgraph.errors import DataError, GraphError, OptionError, QGraphError, UnsupportedError
from qgraph.files import check_output, write_files
from qgraph.formats.mxnet_marks import is_quantized_op
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.options import block_shapes, parse_shapes
from qgraph.passes import PIPELINES
from qgraph.semantics import interpreter
from qgraph.semantics.inputs import closed, hinted_shapes, inputs_of
from qgraph.semantics.kernels import KERNELS
from qgraph.targets.base import Executor, Feeds, Model, Shapes, Target
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.registry import formats, get_target, no_open_sizes

log = logging.getLogger("qgraph")

MXNET, REFERENCE = "MXNet", "the NumPy reference"


@dataclass
class Converted:
    """A converted model. report: plain data: to, inputs, outputs, ops, difference, compared_with, size.

    difference: of the largest output, None if it was not compared.  source: the files that the model came from.
    """

    model: Model
    report: dict[str, Any]
    source: tuple[str, ...] = ()

    def save(self, prefix: str | os.PathLike[str]) -> list[str]:
        """Write PREFIX.onnx, or .param and .bin, or .tmfile, or -symbol.json and -0000.params; the paths."""
        files = self.model.files(os.fspath(prefix))
        check_output(os.fspath(prefix), list(files), self.source)
        write_files(files)
        return list(files)


def convert(model: Any, to: str = "onnx", *, params: str | None = None, epoch: int | None = None,
            outputs: Sequence[str] = (), input_shape: Sequence[str] = (), runtime: str = "auto",
            float_check: bool = True) -> Converted:
    """Convert a float model.

    model: path of a symbol JSON (or its prefix), a `Graph`, or a Gluon block.  to: a target.
    outputs: what the result gives back instead of the model's outputs: a node's name, ``name:index``, or MXNet's
        ``name_output``.
    input_shape: ``data:1,3,224,224``, one per input, where the file does not say it.
    runtime: what runs the model to compare with, of `qgraph.engines`; onnxruntime stands for the NumPy reference.
    float_check: False compares nothing.
    Raises UnsupportedError for an op that the target lacks, OptionError for what the caller can mend, QGraphError
    where the outputs differ.
    """
    target = _format(to)
    outputs, input_shape = _several(outputs), _several(input_shape)
    opened = open_model(model, params, epoch, block_shapes(input_shape))
    g = opened.as_graph("converting")
    _refuse_frozen(opened, target)
    before = MxnetModel(g).op_counts
    end_at(g, outputs)
    if target.rewrites:
        refuse_random(g)
        refuse_channels_last(g)
        source = g.copy()
        PassManager(PIPELINES[target.float_passes]).run(g)
        names = inputs_of(g)
        shapes = {**hinted_shapes(g), **parse_shapes(input_shape, names, no_open_sizes(target))}
        try:
            converted = target.convert(g, shapes)
        except UnsupportedError:
            whole = all(0 not in shape for shape in shapes.values())  # else the sizes may be what is refused
            if whole and (refused := target.refused(g, shapes, integer=False)):
                raise refusal(source, refused, lambda: takers(g, shapes, integer=False)) from None
            raise
        difference, engine = None, ""
        if float_check:
            known = {n: shapes[n] for n in names if n in shapes}
            difference, engine = _compare(source, g, converted, known, target, runtime)
        else:
            log.warning(floatcheck.UNCHECKED, "the converted model was not compared with the original")
    else:
        if input_shape and opened.files:
            others = ", ".join(name for name in formats() if get_target(name).rewrites)
            raise OptionError(f"--input-shape: is for --to {others}; MXNet's own files are converted without it")
        converted, difference, engine = target.convert(g, {}), None, ""
    report = {
        "to": target.name,
        "inputs": converted.known_shapes,
        "outputs": converted.outputs,
        "ops": {"before": before, "after": converted.op_counts},
        "difference": difference, "compared_with": engine or None,
        "size": {"before": opened.size, "after": Opened(converted).size},
    }
    return Converted(converted, report, opened.files)


def _format(text: str) -> Target:
    """The target of that name. Raises OptionError for one that has no float models."""
    if text not in (names := formats()):
        raise OptionError(f"--to {text}: want {', '.join(names[:-1])} or {names[-1]}")
    return get_target(text)


def destination(model: Any, to: str, output: str | None = None) -> str:
    """Prefix of the files to write, before any work. Raises OptionError where they cannot be written."""
    symbol, prefix = find_symbol(model)
    target = _format(to)
    default = prefix if target.rewrites else f"{prefix}-converted"
    output = default if output is None else output.removesuffix(target.suffix)
    check_output(output, [output + target.suffix], [symbol])
    return output


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _refuse_frozen(opened: Opened, target: Target) -> None:
    """A quantization that is simulated in float (mxnet-sim) stays exact where its ops are carried as they are."""
    if not target.keeps_simulation:
        opened.refuse_frozen()
    for node in opened.as_graph("converting").toposort():
        if is_quantized_op(node):
            raise OptionError(f"{opened.name}: is frozen for MXNet's own integer operators ({node}), want the float "
                              "model; qgraph freeze --target onnx makes an integer ONNX model of it")


# ---- comparing ------------------------------------------------------------------------------------------------------

def _compare(source: Graph, g: Graph, model: Model, shapes: Shapes, target: Target,
             name: str) -> tuple[float | None, str]:
    """(largest difference of an output as a part of its size, what it was compared with); None: not compared.

    g: `source` in the form from which `model` was made.  Raises QGraphError where they differ.
    """
    engines.runtime("comparing", name)  # refuses an unknown name, and MXNet where it is asked for and not there
    if why := model.absent():
        log.warning("the %s model was not run: %s", target.name, why)
        return None, ""
    if unknown := [i for i in model.inputs if i not in shapes]:
        log.warning("the %s model was not run: the shape of input %r is not known; --input-shape %s:1,3,224,224 "
                    "(with the right numbers) tells it", target.name, unknown[0], unknown[0])
        return None, ""
    def random(batch: int, choice: int) -> Feeds:
        """choice: of the sizes that are open."""
        return floatcheck.random_feeds(
            g, {i: (batch, *closed(shapes[i], choice)[1:]) for i in model.inputs}, seed=0)

    feeds = [random(1, 1)]
    with contextlib.suppress(GraphError):  # a batch of one may be fixed inside the network
        feeds.insert(0, random(2, 0))
    truth, theirs, batches = _truth(source, g, model, feeds, name)
    ours = _Ours(g, model, truth)
    worst = 0.0
    for batch, wanted in zip(batches, theirs):
        values = ours.values(batch)
        if wanted is not None:
            worst = max(worst, _judged(truth, ours, wanted, values, batch, target))
    return (worst if None not in theirs else None), truth.engine


class _Truth:
    """What the source gives: its outputs, and what goes into the softmax of a head.

    A head that MXNet wants a label for, or that hides differences, is compared in front of its softmax, too.
    make: (graph, what to watch) -> Executor.  fed: further inputs of `source`, see `_choosing_alike`.
    """

    def __init__(self, engine: str, make: Callable[..., Executor], source: Graph, g: Graph,
                 logits: Sequence[Hashable | None]) -> None:
        self.engine, self.make, self.source = engine, make, source
        self.squashed = [q.node.name == p.node.name and bool(ops.head(p.node)) for p, q in zip(source.heads, g.heads)]
        self.logits = [key if head else None for key, head in zip(logits, self.squashed)]
        self.watch = [source.inputs(p.node)[0] if ops.head(p.node) else p for p in source.heads]
        self._heads = g.heads
        self.fed: Mapping[str, Array] = {}

    def run(self, feeds: Feeds, source: Graph | None = None) -> list[Array]:
        """Arrays, in the order of `_Ours.values`, then of what is fed. source: with the same nodes."""
        graph, feeds = source or self.source, {**self.fed, **feeds}
        twin = {n.name: n for n in graph.dag}
        watch = [Port(twin[p.node.name], p.index) for p in self.watch]
        found = []
        values = self.make(graph, watch).run(feeds)
        for q, want, key, head in zip(self._heads, values, self.logits, self.squashed):
            if key is not None:
                found.append(want)
            if head:  # MXNet's own would want a label
                want = interpreter.evaluate(q.node, [interpreter.Tensor(want)])[0].real
            found.append(want)
        return found + values[len(self._heads):]

    def open_order(self) -> list[str]:
        """The outputs that are not compared: they depend on the order of values that are exactly equal."""
        nodes, first = behind_equal_values(self.source, self.fed)
        names = [q.key for p, q in zip(self.source.heads, self._heads) if p.node in nodes]
        if names:
            log.warning("WARNING: not compared: %s; %s orders values that are exactly equal, for which %s has an order "
                        "of its own", ", ".join(names), first, self.engine)
        return names

    def bounds(self, want: Sequence[Array], feeds: Feeds) -> list[float]:
        """What engines may disagree by, as `floatcheck.rounding_bounds`."""
        moved = [self.run(moved_feeds, graph) for graph, moved_feeds in floatcheck.rounded_anew(self.source, feeds)]
        return [floatcheck.bound(array, others) for array, *others in zip(want, *moved)]


class _Ours:
    """What the written model gives in the same order. names: of its arrays."""

    def __init__(self, g: Graph, model: Model, truth: _Truth) -> None:
        self.model, self._truth, self._count = model, truth, len(g.heads)
        keys = [key for key in truth.logits if key is not None]
        self._executor = model.executor([*model.heads, *keys], precise=True)
        self.names = [name for q, key in zip(g.heads, truth.logits)
                      for name in ([] if key is None else [key.key if isinstance(key, Port) else str(key)]) + [q.key]]

    def values(self, feeds: Feeds) -> list[Array]:
        values = self._executor.run(feeds)
        rest = iter(values[self._count:])
        return [value for head, key in zip(values, self._truth.logits)
                for value in ([] if key is None else [next(rest)]) + [head]]


def _truth(source: Graph, g: Graph, model: Model, feeds: Sequence[Feeds],
           name: str) -> tuple[_Truth, Sequence[list[Array] | None], Sequence[Feeds]]:
    """(what runs the source, its arrays for every batch (None: nothing runs it), the batches)"""
    logits = model.logits(g)
    engine = engines.runtime("comparing", name)
    if engine.name == MxnetModel.float_engine:
        truth = _Truth(MXNET, engine, source, g, logits)
        for batches in (feeds[start:] for start in range(len(feeds))):  # a batch of one may be fixed
            try:
                return truth, [truth.run(batch) for batch in batches], batches
            except (DataError, UnsupportedError) as error:  # an op that this MXNet does not have, or cannot run
                why = error
        log.info("MXNet cannot run this model: %s", why)
    truth = _Truth(REFERENCE, interpreter.Executor, source, g, logits)
    reference = interpreter.Executor(source, truth.watch)
    if without := sorted({n.op for n in reference.order if n.op != "null" and n.op not in KERNELS}):
        log.warning("the model was run, but there is nothing to compare it with: the NumPy reference has no "
                    "kernel for %s, and MXNet is not there or cannot run it", ", ".join(without))
        truth.engine = ""
        return truth, [None] * len(feeds), feeds
    log.info("comparing with %s, which takes its time for a large network", REFERENCE)
    return truth, [truth.run(batch) for batch in feeds[-1:]], feeds[-1:]


def _judged(truth: _Truth, ours: _Ours, wanted: list[Array], values: list[Array], feeds: Feeds,
            target: Target) -> float:
    """The largest difference. Raises QGraphError where one is more than rounding explains."""
    values = [value.reshape(want.shape) if want.ndim < ours.model.least_axes and value.size == want.size else value
              for want, value in zip(wanted, values)]
    names = ours.names
    worst = max((floatcheck.relative_error(want, value) for want, value in zip(wanted, values)), default=0.0)
    if worst <= floatcheck.TOLERANCE:
        return worst
    with contextlib.suppress(DataError, GraphError, UnsupportedError):  # an engine may refuse a network that is cut up
        alike, more = _choosing_alike(truth, ours.model, feeds)
        wanted, values, names = alike.run(feeds), [*values, *alike.fed.values()], [*names, *more]
        truth = alike
    open_order = truth.open_order()
    for name, want, value, bound in zip(names, wanted, values, truth.bounds(wanted, feeds)):
        error = floatcheck.relative_error(want, value)
        if error <= bound or name in open_order:
            continue
        what = (f"has shape {value.shape} in {target.name}, {want.shape} with {truth.engine}"
                if want.shape != value.shape else
                f"differs by {error:.2g} of its size from {truth.engine}, want below {bound:.2g}"
                + _first_departure(truth, ours.model, feeds))
        raise QGraphError(f"the {target.name} model is wrong: {name} {what}. This is a bug of qgraph; nothing was "
                          "written. --outputs NAME, of a node before that, leaves it out; --no-float-check writes the "
                          "model all the same")
    if not open_order:
        log.warning("warning: the %s model differs by %.1e of its outputs' size from %s, which is what rounding alone "
                    "does to them", target.name, worst, truth.engine)
    return worst


def _choosing_alike(truth: _Truth, model: Model, feeds: Feeds) -> tuple[_Truth, list[str]]:
    """The truth where its choices are between the numbers of the model, which it then gives too; and their names.

    Raises UnsupportedError where the model does not tell its numbers.
    """
    tensors = model.tensors()
    source, sources = fed_in_front_of_jumps(truth.source, lambda node: tensors.has(node.name))
    names = [node.name for node in sources.values()]
    nodes = {node.name: node for node in source.dag}
    alike = copy.copy(truth)
    alike.source, alike.fed = source, dict(zip(sources, _reals(model, names, feeds) if names else []))
    alike.watch = [*(Port(nodes[port.node.name], port.index) for port in truth.watch), *(Port(nodes[n]) for n in names)]
    return alike, names


def _reals(model: Model, names: Sequence[str], feeds: Feeds) -> list[Array]:
    """The values of tensors of a model, by the user's names."""
    tensors = model.tensors()
    values = model.executor(tensors.watch(names), precise=True).run(feeds)[len(model.outputs):]
    return [*tensors.reals(names, values)]


def _first_departure(truth: _Truth, model: Model, feeds: Feeds) -> str:
    """The op whose output departs first, in the words of a message; "" where the model does not tell."""
    try:
        tensors = model.tensors()
    except UnsupportedError:
        return ""
    names = [n.name for n in truth.source.toposort()
             if n.op != "null" and n.n_out == 1 and not ops.head(n) and tensors.has(n.name)]
    nodes = {n.name: n for n in truth.source.dag}

    def found(part: Sequence[str]) -> list[Array]:
        return _reals(model, part, feeds)

    def want(part: Sequence[str]) -> list[Array]:
        return list(truth.make(truth.source, [Port(nodes[name]) for name in part]).run({**feeds, **truth.fed}))

    def bounds(part: Sequence[str]) -> list[float]:
        return floatcheck.rounding_bounds(truth.source, [Port(nodes[name]) for name in part], {**feeds, **truth.fed},
                                          truth.make, truth.fed)

    first = floatcheck.first_departure(names, want, found, bounds)
    return "" if first is None else f", first at {nodes[names[first]]}"
