"""Writes MXNet checkpoints, or makes a symbol of MXNet's own. The bytes are written by `mxnet_json` and `ndarray`."""

from __future__ import annotations

import os
from typing import Any, Union

import numpy as np

from qgraph.errors import MissingDependencyError, UnsupportedError
from qgraph.files import Content, write_files
from qgraph.formats.mxnet_json import SUBGRAPHS, SYMBOL_SUFFIX, JsonGraph, JsonNode, compose, unpack_subgraphs
from qgraph.formats.ndarray import dump_params
from qgraph.ir import attributes, ops
from qgraph.ir.graph import Graph, Node, collector_paused

PathLike = Union[str, "os.PathLike[str]"]


@collector_paused()
def lower_float(g: Graph) -> Graph:
    """A copy of `g` in MXNet's own ops: an activation that a node carries becomes a node behind it.

    The new node takes the name of the activation it once was (the last of `origin`), or ``<name>_act``.
    Raises UnsupportedError for a graph with fake_quantize nodes.
    """
    for node in g.dag:
        if node.op == "fake_quantize":
            raise UnsupportedError(f"{node}: simulated quantization is no op of MXNet; freeze the graph for a target "
                                   "first (mxnet, mxnet-sim)")
    twin = g.copy()
    if not any(n.fused for n in twin.dag):
        return twin
    names = {n.name for n in twin.dag}
    for node in twin.toposort():
        if node.fused is None:
            continue
        act, node.fused = node.fused, None
        name = node.origin[-1] if node.origin and node.origin[-1] not in names else f"{node.name}_act"
        if act.act == "clip":
            new = twin.insert_after(node, "clip", name, a_min=act.low, a_max=act.high)
        else:
            new = twin.insert_after(node, "Activation", name, act_type=act.act)
        names.add(new.name)
    return twin


@collector_paused()
def to_json(g: Graph) -> str:
    """The symbol JSON of MXNet 1.9.1, in topological order: what `mx.sym.load_json(...).tojson()` would write."""
    g = lower_float(g)
    order = g.toposort()
    number = {node: i for i, node in enumerate(order)}
    cast = {port.node for node in order if node.op == "Cast" for port in g.inputs(node)}
    nodes = []
    for node in order:
        attrs = {**node.attrs, **attributes.written(node)}
        array = g.param(node)
        if node.op == "null" and node in cast:  # bind and SymbolBlock do not infer types behind casts
            attrs.setdefault("__dtype__", "0")
        if array is not None:  # nor shapes behind ops that broadcast
            attrs = {"__shape__": str(np.atleast_1d(array).shape), **({"__dtype__": "0"} if node in cast else {})}
            if array.dtype != np.float32:
                attrs["__dtype__"] = _dtype_flag(node, array)
        packed = attrs.pop(SUBGRAPHS, None)
        nodes.append(JsonNode(node.op, node.name, attrs, [(number[p.node], p.index) for p in g.inputs(node)],
                              unpack_subgraphs(packed, str(node)) if packed is not None else []))
    return compose(JsonGraph(nodes, [(number[h.node], h.index) for h in g.heads]))


def _dtype_flag(node: Node, array: np.ndarray) -> str:
    flags = {"float64": "1", "float16": "2", "uint8": "3", "int32": "4", "int8": "5", "int64": "6", "bool": "7"}
    if array.dtype.name not in flags:
        raise UnsupportedError(f"{node}: found data of type {array.dtype}, which MXNet cannot hold")
    return flags[array.dtype.name]


def split_params(g: Graph) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(arg_params, aux_params): the arrays that the heads need, auxiliary states apart, in topological order."""
    order = g.toposort()
    auxiliary: set[Node] = set()
    for node in order:
        slots = _aux_slots(node)
        if slots:
            auxiliary.update(port.node for slot, port in enumerate(g.inputs(node)) if slot in slots)
    arg: dict[str, np.ndarray] = {}
    aux: dict[str, np.ndarray] = {}
    for node in order:
        if g.is_param(node):
            (aux if node in auxiliary else arg)[node.name] = g.params[node.name]
    return arg, aux


def _aux_slots(node: Node) -> set[int]:
    """Input slots that MXNet lists as auxiliary states; a fused node's are those of its subgraph's variables."""
    if SUBGRAPHS in node.attrs:
        found: set[int] = set()
        for graph in unpack_subgraphs(node.attrs[SUBGRAPHS], str(node))[:1]:
            variables = [number for number, item in enumerate(graph.nodes) if item.op == "null"]
            inner = {item.inputs[slot][0] for item in graph.nodes for slot in _row_aux_slots(item.op)
                     if slot < len(item.inputs)}
            found.update(slot for slot, number in enumerate(variables) if number in inner)
        return found
    return _row_aux_slots(node.op)


def _row_aux_slots(op: str) -> set[int]:
    row = ops.info(ops.ALIASES.get(op, op))
    return {row.inputs.index(name) for name in row.aux}


def checkpoint_files(g: Graph, prefix: PathLike, epoch: int = 0) -> dict[str, Content]:
    """Path -> content of the two files of a checkpoint, for `qgraph.files.write_files`."""
    g.verify()
    arg, aux = split_params(g)
    arrays = {**{f"arg:{k}": v for k, v in arg.items()}, **{f"aux:{k}": v for k, v in aux.items()}}
    base = os.fspath(prefix)
    return {f"{base}{SYMBOL_SUFFIX}": to_json(g),
            f"{base}-{epoch:04d}.params": lambda stream: dump_params(stream, arrays)}


def save(g: Graph, prefix: PathLike, epoch: int = 0) -> tuple[str, str]:
    """Write ``<prefix>-symbol.json`` and ``<prefix>-<epoch, 4 digits>.params``; returns their paths.

    `mx.model.load_checkpoint`, `mx.mod.Module.load` and `gluon.SymbolBlock.imports` read them.
    """
    write_files(files := checkpoint_files(g, prefix, epoch))
    symbol_path, params_path = files
    return symbol_path, params_path


def to_mxnet(g: Graph) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(symbol, arg_params, aux_params) as `mx.model.load_checkpoint` returns them. Needs MXNet."""
    try:
        import mxnet as mx
    except ImportError as error:
        raise MissingDependencyError("mxnet", "to_mxnet", "mxnet") from error
    g.verify()
    arg, aux = ({k: mx.nd.array(np.atleast_1d(v), dtype=v.dtype) for k, v in part.items()} for part in split_params(g))
    return mx.sym.load_json(to_json(g)), arg, aux
