"""`qgraph.convert`: an MXNet model of any generation as ONNX, for ncnn or Tengine, or as newest MXNet files, in float.

What comes out is run on random batches and compared with the model that went in.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from qgraph import engines
from qgraph.arrays import Array
from qgraph.commands import floatcheck
from qgraph.commands.carried import refusal
from qgraph.commands.open_model import Opened, end_at, find_symbol, open_model
from qgraph.errors import OptionError, QGraphError, UnsupportedError
from qgraph.files import check_output, write_files
from qgraph.formats.mxnet_marks import is_quantized_op
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.options import block_shapes, parse_shapes
from qgraph.passes import PIPELINES
from qgraph.semantics import interpreter
from qgraph.semantics.inputs import hinted_shapes, inputs_of
from qgraph.semantics.kernels import KERNELS
from qgraph.targets.base import Executor, Model, Shapes, Target
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.registry import formats, get_target

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
            outputs: Sequence[str] = (), input_shape: Sequence[str] = (), runtime: str = "auto") -> Converted:
    """Convert a float model.

    model: path of a symbol JSON (or its prefix), a `Graph`, or a Gluon block.  to: a target.
    outputs: what the result gives back instead of the model's outputs: a node's name, ``name:index``, or MXNet's
        ``name_output``.
    input_shape: ``data:1,3,224,224``, one per input, where the file does not say it.
    runtime: what runs the model to compare with, of `qgraph.engines`; onnxruntime stands for the NumPy reference.
    """
    target = _format(to)
    outputs, input_shape = _several(outputs), _several(input_shape)
    opened = open_model(model, params, epoch, block_shapes(input_shape))
    g = opened.as_graph("converting")
    _refuse_frozen(opened, target)
    before = MxnetModel(g).op_counts
    end_at(g, outputs)
    if target.rewrites:
        source = g.copy()
        PassManager(PIPELINES[target.float_passes]).run(g)
        names = inputs_of(g)
        shapes = {**hinted_shapes(g), **parse_shapes(input_shape, names)}
        try:
            converted = target.convert(g, shapes)
        except UnsupportedError:
            if refused := target.refused(g, shapes, integer=False):
                raise refusal(source, refused) from None
            raise
        difference, engine = _compare(source, g, converted, {n: shapes[n] for n in names if n in shapes}, target,
                                      runtime)
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
    # heads that MXNet wants a label for, or that hide differences, are compared in front of their softmax, too
    squashed = [q.node.name == p.node.name and bool(ops.head(p.node)) for p, q in zip(source.heads, g.heads)]
    logits = [key if head else None for key, head in zip(model.logits(g), squashed)]
    watch = [source.inputs(p.node)[0] if ops.head(p.node) else p for p in source.heads]
    engine, theirs, batches = _engine(source, watch, name)
    keys = [key for key in logits if key is not None]
    ours = model.executor([*model.heads, *keys], precise=True)
    worst = 0.0
    fixed = {shape[0] for shape in model.inputs.values() if shape and shape[0]}
    for batch in fixed or batches:
        feeds = floatcheck.random_feeds({i: (batch, *shapes[i][1:]) for i in model.inputs}, seed=0)
        values = ours.run(feeds)
        if theirs is None:
            continue
        rest = iter(values[len(g.heads):])
        for q, value, want, key, head in zip(g.heads, values, theirs.run(feeds), logits, squashed):
            if want.ndim < model.least_axes and value.size == want.size:
                value = value.reshape(want.shape)
            if key is not None:
                worst = max(worst, _difference(want, next(rest), _shown(key), engine, target.name))
            if head:  # MXNet's own would want a label
                want = interpreter.evaluate(q.node, [interpreter.Tensor(want)])[0].real
            worst = max(worst, _difference(want, value, q.key, engine, target.name))
    return (worst if theirs is not None else None), engine


def _shown(key: Hashable) -> str:
    return key.key if isinstance(key, Port) else str(key)


def _engine(source: Graph, watch: Sequence[Port], name: str) -> tuple[str, Executor | None, tuple[int, ...]]:
    """(what runs the source, its Executor or None, batch sizes)"""
    engine = engines.runtime("comparing", name)
    if engine.name == MxnetModel.float_engine:
        try:
            return MXNET, engine(source, watch), (2, 1)
        except RuntimeError as error:  # MXNetError: an op that this MXNet does not have
            log.info("MXNet cannot run this model: %s", str(error).strip().splitlines()[-1])
    reference = interpreter.Executor(source, watch)
    if without := sorted({n.op for n in reference.order if n.op != "null" and n.op not in KERNELS}):
        log.warning("the model was run, but there is nothing to compare it with: the NumPy reference has no "
                    "kernel for %s, and MXNet is not there or cannot run it", ", ".join(without))
        return "", None, (2, 1)
    log.info("comparing with %s, which takes its time for a large network", REFERENCE)
    return REFERENCE, reference, (1,)


def _difference(want: Array, value: Array, name: str, engine: str, to: str) -> float:
    error = floatcheck.relative_error(want, value)
    if error > floatcheck.TOLERANCE:
        what = (f"has shape {value.shape} in {to}, {want.shape} with {engine}" if want.shape != value.shape else
                f"differs by {error:.2g} of its size from {engine}, want below {floatcheck.TOLERANCE}")
        raise QGraphError(f"the {to} model is wrong: {name} {what}. This is a bug of qgraph; nothing was written. "
                          "--outputs NAME with names further up tells where it begins")
    return error
