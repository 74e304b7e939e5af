"""Find the model that the user means: a path, a prefix, a Graph, a Gluon block, or something frozen."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qgraph.errors import OptionError, UnsupportedError, suggest
from qgraph.formats.mxnet import load
from qgraph.formats.mxnet_json import SYMBOL_SUFFIX
from qgraph.formats.mxnet_marks import is_frozen_op
from qgraph.formats.paths import close_paths, find_params, missing_file
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.semantics.infer import value_nodes
from qgraph.targets import registry
from qgraph.targets.base import Model, Target, model_of
from qgraph.targets.mxnet.model import MxnetModel

_BESIDE = {  # what lies beside a model -> what it is, and what to give instead
    ".params": f"these are parameters, want the MODEL{SYMBOL_SUFFIX} that goes with them (and --params)",
    ".calib.json": f"this is a table of ranges (for --calib-table), give a MODEL{SYMBOL_SUFFIX}",
    ".report.json": f"this is the report of an earlier run, give a MODEL{SYMBOL_SUFFIX}",
    **dict.fromkeys((".rec", ".npz", ".npy"), f"these are data, not a model, give a MODEL{SYMBOL_SUFFIX}"),
}


@dataclass
class Opened:
    """A model that qgraph may change. prefix: of its files, without ``-symbol.json``, or ""."""

    model: Model
    prefix: str = ""
    files: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its files, or of its parameters."""
        if self.files or self.model.ir is None:
            return sum(os.path.getsize(f) for f in self.files) or self.model.size
        return sum(a.nbytes for a in self.model.ir.params.values())

    @property
    def name(self) -> str:
        """For messages."""
        return self.prefix or "model"

    def as_graph(self, what_for: str) -> Graph:
        """Return the graph of MXNet's ops. Raises OptionError for a model of another engine, which has no graph."""
        if self.model.ir is None:
            raise OptionError(f"{self.files[0] if self.files else 'the model'}: {what_for} wants an MXNet model "
                              f"(MODEL{SYMBOL_SUFFIX}), found {self.model.kind}, which is converted already; give the "
                              "checkpoint that it was made from")
        return self.model.ir

    def float_graph(self, what_for: str, outputs: Sequence[str]) -> Graph:
        """A copy that ends at these outputs. Raises OptionError, UnsupportedError where it cannot be quantized."""
        g = self.as_graph(what_for).copy()
        self.refuse_frozen()
        end_at(g, outputs)
        refuse_random(g)
        refuse_channels_last(g)
        return g

    def refuse_frozen(self) -> None:
        """Raise OptionError for a model that is quantized already."""
        for node in self.as_graph("quantizing").dag:
            if is_frozen_op(node):
                raise OptionError(f"{self.name}: is quantized already ({node}), want the float model")


def refuse_channels_last(g: Graph) -> None:
    """Raise UnsupportedError for a layer of layout NHWC, or of another layout with the channels last."""
    for node in g.toposort():
        if "layout" in ops.info(node.op).defaults and not ops.channels_first(node):
            raise UnsupportedError(f"{node}: found layout {ops.attr(node, 'layout')}, want channels in axis 1: build "
                                   "the network with layout NCHW, move axis -1 of the weights to axis 1, and "
                                   "export it again")


def refuse_random(g: Graph) -> None:
    """Raise UnsupportedError for a model whose outputs are drawn at random, which nothing can be compared with."""
    reached = value_nodes(g)
    for node in g.toposort():
        if node in reached and (why := ops.randomness(node)):
            before = next((p.node.name for p in g.inputs(node) if p.node.op != "null"), "NAME")
            instead = ('give the node "mode": "training" in the symbol file, which leaves it out at inference, or '
                       if node.op == "Dropout" else "")
            raise UnsupportedError(f"{node}: {why}, so its outputs are random: {instead}--outputs {before} ends the "
                                   "model before it")


def open_model(model: Any, params: str | None = None, epoch: int | None = None,
               shapes: Mapping[str, Sequence[int]] | None = None) -> Opened:
    """model: path of a symbol JSON or its prefix, or of a file that a target reads (.onnx, .param, .tmfile), a Graph
    (copied), a Gluon block, a `qgraph.targets.base.Model`, or what has one as ``model`` (`Frozen`, `Converted`).

    params: path; without, ``<prefix>-<epoch>.params``; without an epoch the highest there is.
    shapes: of a Gluon block's inputs.  Raises OptionError for files that are not there, and what `load` raises.
    """
    if isinstance(model, Opened):
        return model
    if (found := model_of(model)) is not None:
        return Opened(found if found.ir is None else MxnetModel(found.ir.copy()))
    if isinstance(model, Graph):
        return Opened(MxnetModel(model.copy()))
    if hasattr(model, "hybridize"):
        from qgraph.formats.gluon import from_gluon

        return Opened(MxnetModel(from_gluon(model, *([dict(shapes)] if shapes else []))))
    if not isinstance(model, (str, os.PathLike)):
        raise OptionError(f"found a {type(model).__name__}, want a path, a qgraph.Graph or a Gluon HybridBlock")
    path = os.fspath(model)
    for cls in registry.all_classes():
        if cls.suffix != SYMBOL_SUFFIX and path.endswith(cls.suffix):
            return _open_written(registry.get_target(cls.name), path, params)
    symbol, prefix = find_symbol(path)
    arrays = params or find_params(prefix, epoch)
    if not os.path.isfile(arrays):
        raise OptionError(f"{arrays}: {missing_file(arrays)}; --params FILE names the parameters of {symbol}")
    return Opened(MxnetModel(load(symbol, arrays)), prefix, (symbol, arrays))


def _open_written(target: Target, path: str, params: str | None) -> Opened:
    if not target.reads:
        return Opened(target.open(path))  # which says that it only writes
    if params:
        raise OptionError(f"--params {params}: {target.reads} has its parameters {target.holds}")
    if not os.path.isfile(path):
        raise OptionError(f"{path}: {missing_file(path)}, want {target.reads}"
                          + close_paths(path, os.path.splitext(path)[1]))
    prefix = path.removesuffix(target.suffix)
    return Opened(target.open(path), prefix, (path, *(prefix + suffix for suffix in target.beside)))


def find_symbol(model: str | os.PathLike[str]) -> tuple[str, str]:
    """(path of the symbol JSON, prefix)"""
    path = os.fspath(model)
    if not path.endswith(".json") and os.path.isfile(path + SYMBOL_SUFFIX):
        return path + SYMBOL_SUFFIX, path
    if not os.path.isfile(path):
        if not os.path.splitext(path)[1]:
            for cls in registry.all_classes():
                if cls.reads and os.path.isfile(path + cls.suffix):
                    raise OptionError(f"{path}: there is no {path}{SYMBOL_SUFFIX}, but {path}{cls.suffix}: give its "
                                      "whole name")
        raise OptionError(f"{path}: {missing_file(path)}, want a MODEL{SYMBOL_SUFFIX} (or its prefix)"
                          f"{close_paths(path)}")
    _refuse_companion(path)
    return path, path[: -len(SYMBOL_SUFFIX)] if path.endswith(SYMBOL_SUFFIX) else os.path.splitext(path)[0]


def _refuse_companion(path: str) -> None:
    """Raise OptionError for a file that only lies beside a model."""
    for suffix, what in _BESIDE.items():
        if path.endswith(suffix):
            raise OptionError(f"{path}: {what}")
    for cls in registry.all_classes():
        for suffix, what in cls.companions.items():
            if path.endswith(suffix):
                raise OptionError(f"{path}: these are {what}, give its {cls.suffix}, or a MODEL{SYMBOL_SUFFIX}")


def default_prefix(model: Any) -> str:
    """Where `freeze` writes when nothing is said."""
    return find_symbol(model)[1] + "-quantized"


def end_at(g: Graph, outputs: Sequence[str]) -> Graph:
    """End the network, in place, at the tensors that the user calls so; without any it stays. Gives back `g`.

    Inputs that no such tensor depends on, labels among them, fall away.  Raises OptionError as `find_output`.
    """
    if outputs:
        g.heads = [find_output(g, text) for text in dict.fromkeys(outputs)]
        g.prune()
    return g


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
