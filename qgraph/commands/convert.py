"""`qgraph.convert`: an MXNet model of any generation as ONNX, for ncnn or Tengine, or as newest MXNet files, in float.

What comes out is run on random batches and compared with the model that went in.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qgraph.commands import floatcheck
from qgraph.commands.freeze import model_files, refuse_frozen
from qgraph.commands.open_model import Model, find_symbol, open_model
from qgraph.commands.report import count_ops
from qgraph.engines import runtime
from qgraph.errors import OptionError, QGraphError, suggest
from qgraph.files import check_output, write_files
from qgraph.formats.mxnet_marks import is_quantized_op
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.options import block_shapes, parse_shapes
from qgraph.passes import PIPELINES
from qgraph.passes.canonicalize import Canonicalize
from qgraph.semantics import interpreter as reference
from qgraph.semantics.inputs import hinted_shapes, inputs_of
from qgraph.semantics.kernels import KERNELS
from qgraph.targets.base import get_target
from qgraph.targets.mxnet import runtime as mxnet
from qgraph.targets.ncnn import runtime as ncnn
from qgraph.targets.ncnn.emit import to_ncnn
from qgraph.targets.ncnn.model import NcnnModel
from qgraph.targets.onnx import runtime as onnxruntime
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.model import OnnxModel
from qgraph.targets.tengine import runtime as tengine
from qgraph.targets.tengine.emit import to_tengine
from qgraph.targets.tengine.model import TengineModel, with_export

log = logging.getLogger("qgraph")

FORMATS = ("onnx", "ncnn", "tengine", "mxnet")
MXNET, REFERENCE = "MXNet", "the NumPy reference"

Shapes = Mapping[str, Sequence[int]]


@dataclass
class Converted:
    """A converted model. report: plain data: to, inputs, outputs, ops, difference, compared_with, size.

    difference: of the largest output, None if it was not compared.  source: the files that the model came from.
    """

    model: Graph | OnnxModel | NcnnModel | TengineModel
    report: dict[str, Any]
    source: tuple[str, ...] = ()

    def save(self, prefix: str | os.PathLike[str]) -> list[str]:
        """Write PREFIX.onnx, or .param and .bin, or .tmfile, or -symbol.json and -0000.params; the paths."""
        files = model_files(self.model, os.fspath(prefix))
        check_output(os.fspath(prefix), list(files), self.source)
        write_files(files)
        return list(files)


def convert(model: Any, to: str = "onnx", *, params: str | None = None, epoch: int | None = None,
            outputs: Sequence[str] = (), input_shape: Sequence[str] = (), runtime: str = "auto") -> Converted:
    """Convert a float model.

    model: path of a symbol JSON (or its prefix), a `Graph`, or a Gluon block.
    outputs: what the result gives back instead of the model's outputs: a node's name, ``name:index``, or MXNet's
        ``name_output``.
    input_shape: ``data:1,3,224,224``, one per input, where the file does not say it.
    runtime: what runs the model to compare with, of `qgraph.engines`; onnxruntime stands for the NumPy reference.
    """
    if to not in FORMATS:
        raise OptionError(f"--to {to}: want {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    outputs, input_shape = _several(outputs), _several(input_shape)
    opened = open_model(model, params, epoch, block_shapes(input_shape))
    g = opened.as_graph("converting")
    _refuse_frozen(opened, to)
    before = count_ops(g)
    if outputs:
        g.heads = [find_output(g, text) for text in dict.fromkeys(outputs)]
        g.prune()
    source = g.copy()
    found: Graph | OnnxModel | NcnnModel | TengineModel = g
    difference, engine = None, ""
    if to != "mxnet":
        Canonicalize().run(g)
        names = inputs_of(g)
        shapes = {**hinted_shapes(g), **parse_shapes(input_shape, names)}
        known = {n: shapes[n] for n in names if n in shapes}
        if to == "onnx":
            found = to_onnx(g, shapes)
            difference, engine = _check_onnx(source, g, found, known, runtime)
        elif to == "tengine":
            PassManager(PIPELINES["float"]).run(g)
            found = with_export(to_tengine(g, shapes), g, shapes)
            difference, engine = _check_tengine(source, g, found, known, runtime)
        else:
            PassManager(PIPELINES["float"]).run(g)
            found = to_ncnn(g, shapes)
            difference, engine = _check_ncnn(source, g, found, known, runtime)
    elif input_shape and opened.files:
        raise OptionError("--input-shape: is for --to onnx, ncnn, tengine; MXNet's own files are converted without it")
    report = {
        "to": to,
        "inputs": _inputs(found),
        "outputs": [h.key for h in found.heads] if isinstance(found, Graph) else found.outputs,
        "ops": {"before": before, "after": count_ops(found)},
        "difference": difference, "compared_with": engine or None,
        "size": {"before": opened.size, "after": Model(found).size},
    }
    return Converted(found, report, opened.files)


def destination(model: Any, to: str, output: str | None = None) -> str:
    """Prefix of the files to write, before any work. Raises OptionError where they cannot be written."""
    symbol, prefix = find_symbol(model)
    suffix = get_target(to).suffix
    default = f"{prefix}-converted" if to == "mxnet" else prefix
    output = default if output is None else output.removesuffix(suffix)
    check_output(output, [output + suffix], [symbol])
    return output


def find_output(g: Graph, text: str) -> Port:
    """The tensor that the user calls so: a node's name, ``name:index``, ``name_output`` or ``name_output<index>``.

    Raises OptionError, with names that are close, for what is no operator's output.
    """
    nodes = {n.name: n for n in g.toposort() if n.op != "null"}
    if text in nodes:
        return Port(nodes[text])
    match = re.fullmatch(r"(.+?)(?::|_output)(\d*)", text)
    if match and match[1] in nodes:
        node, index = nodes[match[1]], int(match[2] or 0)
        if index >= node.n_out:
            raise OptionError(f"--outputs {text}: {node} has no output {index}, want 0 to {node.n_out - 1}")
        return Port(node, index)
    if any(n.name == text for n in g.dag):
        raise OptionError(f"--outputs {text}: this is an input or a parameter, want the name of an operator")
    hint = (suggest(match[1] if match else text, nodes, count=3, cutoff=0.5)
            or f"the last ones are {', '.join([*nodes][-3:])}")
    raise OptionError(f"--outputs {text}: no operator is called so; {hint}")


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _refuse_frozen(opened: Model, to: str) -> None:
    """A quantization that is simulated in float (mxnet-sim) stays exact in ONNX and MXNet, and only there."""
    if to in ("ncnn", "tengine"):
        refuse_frozen(opened)
    for node in opened.graph.toposort():
        if is_quantized_op(node):
            raise OptionError(f"{opened.prefix or 'model'}: is frozen for MXNet's own integer operators ({node}), want "
                              "the float model; qgraph freeze --target onnx makes an integer ONNX model of it")


def _inputs(model: Graph | OnnxModel | NcnnModel | TengineModel) -> dict[str, list[int] | None]:
    """Name -> shape, 0 for what may vary, None where nothing is known."""
    if isinstance(model, (NcnnModel, TengineModel)):
        return {name: [1, *shape[1:]] if shape else None for name, shape in model.inputs.items()}
    if isinstance(model, OnnxModel):
        return {name: list(shape) or None for name, shape in model.inputs.items()}
    shapes = hinted_shapes(model)
    return {name: list(shapes[name]) if name in shapes else None for name in inputs_of(model)}


# ---- comparing ------------------------------------------------------------------------------------------------------

@dataclass
class _Comparison:
    """What is run for comparing, and on which shapes.

    open: names of more tensors to watch -> an Executor of the written model.  logits: for each output the tensor in
    front of its softmax, "" is none.  squashed: outputs that MXNet would want a label for.
    """

    to: str
    inputs: Sequence[str]
    open: Callable[[list[str]], Any]
    logits: list[str]
    squashed: list[bool]


def _check_onnx(source: Graph, g: Graph, model: OnnxModel, shapes: Shapes, name: str) -> tuple[float | None, str]:
    """(largest difference of an output as a part of its size, what it was compared with); None: not compared.

    g: `source` in the form from which `model` was made.  Raises QGraphError where they differ.
    """
    made = {output for node in model.proto.graph.node for output in node.output}
    squashed = [q.node.name == p.node.name and bool(ops.head(p.node)) for p, q in zip(source.heads, g.heads)]
    logits = [g.inputs(q.node)[0].key if head else "" for q, head in zip(g.heads, squashed)]

    def run(names: list[str]) -> Any:
        return onnxruntime.Executor(model, watch=[*model.outputs, *names])

    return _compare(source, g, shapes, name, _Comparison(
        "ONNX", list(model.inputs), run, [key if key in made else "" for key in logits], squashed))


def _check_ncnn(source: Graph, g: Graph, model: NcnnModel, shapes: Shapes, name: str) -> tuple[float | None, str]:
    """The same of an ncnn model, where the package ncnn is installed."""
    if not ncnn.is_installed():
        runtime("comparing", name)
        log.warning('the ncnn model was not run: the package ncnn is not installed (pip install "qgraph[ncnn]")')
        return None, ""
    made = {blob: layer for layer in model.layers for blob in layer.outputs}
    logits = [made[blob].inputs[0] if made[blob].type == "Softmax" and ops.head(p.node) else ""
              for blob, p in zip(model.outputs, source.heads)]
    squashed = [bool(ops.head(p.node) and ops.head(q.node)) for p, q in zip(source.heads, g.heads)]

    def run(names: list[str]) -> Any:
        return ncnn.Executor(model, [*model.outputs, *names], half=False)

    return _compare(source, g, shapes, name, _Comparison("ncnn", list(model.inputs), run, logits, squashed))


def _check_tengine(source: Graph, g: Graph, model: TengineModel, shapes: Shapes, name: str) -> tuple[float | None, str]:
    """The same of a Tengine model, which the NumPy reference runs as it reads back."""
    squashed = [bool(ops.head(p.node) and ops.head(q.node)) for p, q in zip(source.heads, g.heads)]
    logits = [model.graph.inputs(p.node)[0].key if ops.head(p.node) else "" for p in model.graph.heads]

    def run(names: list[str]) -> Any:
        ports = [Port(model.graph.find(key)) for key in names]
        return tengine.Executor(model, [*model.graph.heads, *ports])

    return _compare(source, g, shapes, name, _Comparison("tengine", list(model.inputs), run, logits, squashed))


def _compare(source: Graph, g: Graph, shapes: Shapes, name: str, of: _Comparison) -> tuple[float | None, str]:
    runtime("comparing", name)  # refuses a name that is none, and MXNet where it is asked for and not there
    if unknown := [i for i in of.inputs if i not in shapes]:
        log.warning("the %s model was not run: the shape of input %r is not known; --input-shape %s:1,3,224,224 "
                    "(with the right numbers) tells it", of.to, unknown[0], unknown[0])
        return None, ""
    watch = [source.inputs(p.node)[0] if ops.head(p.node) else p for p in source.heads]
    engine, theirs, batches = _engine(source, watch, name)
    names = [key for key in of.logits if key]
    ours = of.open(names)
    worst = 0.0
    for batch in batches:
        feeds = floatcheck.random_feeds({i: (batch, *shapes[i][1:]) for i in of.inputs}, seed=0)
        values = ours.run(feeds)
        if theirs is None:
            continue
        found = dict(zip(names, values[len(g.heads):]))
        for q, value, want, logits, squashed in zip(g.heads, values, theirs.run(feeds), of.logits, of.squashed):
            if of.to == "ncnn" and want.ndim == 1 and value.size == want.size:  # its blobs have one axis at least
                value = value.reshape(want.shape)
            if logits:
                worst = max(worst, _difference(want, found[logits], logits, engine, of.to))
            if squashed:  # MXNet's own would want a label
                want = reference.evaluate(q.node, [reference.Tensor(want)])[0].real
            worst = max(worst, _difference(want, value, q.key, engine, of.to))
    return (worst if theirs is not None else None), engine


def _engine(source: Graph, watch: Sequence[Port], name: str) -> tuple[str, Any, tuple[int, ...]]:
    """(what runs the source, its Executor or None, batch sizes)"""
    if runtime("comparing", name) is mxnet.Executor:
        try:
            return MXNET, mxnet.Executor(source, watch), (2, 1)
        except RuntimeError as error:  # MXNetError: an op that this MXNet does not have
            log.info("MXNet cannot run this model: %s", str(error).strip().splitlines()[-1])
    without = sorted({n.op for n in reference.Executor(source, watch).order if n.op != "null" and n.op not in KERNELS})
    if without:
        log.warning("the model was run, but there is nothing to compare it with: the NumPy reference has no "
                    "kernel for %s, and MXNet is not there or cannot run it", ", ".join(without))
        return "", None, (2, 1)
    log.info("comparing with %s, which takes its time for a large network", REFERENCE)
    return REFERENCE, reference.Executor(source, watch), (1,)


def _difference(want: np.ndarray, found: np.ndarray, name: str, engine: str, to: str) -> float:
    error = floatcheck.relative_error(want, found)
    if error > floatcheck.TOLERANCE:
        what = (f"has shape {found.shape} in {to}, {want.shape} with {engine}" if want.shape != found.shape else
                f"differs by {error:.2g} of its size from {engine}, want below {floatcheck.TOLERANCE}")
        raise QGraphError(f"the {to} model is wrong: {name} {what}. This is a bug of qgraph; nothing was written. "
                          "--outputs NAME with names further up tells where it begins")
    return error
