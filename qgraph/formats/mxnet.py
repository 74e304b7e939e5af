"""Reads MXNet checkpoints: symbol JSON and params, with or without MXNet installed.

The bytes are read by `mxnet_json` and `ndarray`; this file knows what the nodes mean.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Union

import numpy as np

from qgraph.errors import FormatError, GraphError, UnsupportedError
from qgraph.formats.mxnet_json import SUBGRAPHS, JsonGraph, JsonNode, num_outputs, pack_subgraphs, parse
from qgraph.formats.mxnet_marks import MARK, restore
from qgraph.formats.ndarray import read_params
from qgraph.formats.numpy_ops import as_older_op
from qgraph.ir import attributes, ops
from qgraph.ir.graph import Graph, Node, Port, collector_paused

log = logging.getLogger("qgraph")

PathLike = Union[str, "os.PathLike[str]"]

_FUSED = "_sg_mkldnn_"
_CONTROL_FLOW = frozenset({"_foreach", "_while_loop", "_cond"})
_SPARSE = {"1": "row_sparse", "2": "csr"}
_HIDDEN = ("ctx_group", "lr_mult", "wd_mult", "force_mirroring", "mirror_stage")  # as MXNet's legacy_json_util.cc
_PARAM_SLOTS = frozenset({"weight", "bias", "gamma", "beta", "moving_mean", "moving_var"})
_MAY_CARRY_ACT = (*ops.FUSING, "broadcast_add")  # as which `targets.mxnet.runtime` runs sums that stay alone


# ---- reading --------------------------------------------------------------------------------------------------------

@collector_paused()
def load(symbol: object, params: object = None) -> Graph:
    """The graph of an MXNet symbol of any generation since 0.8, with its parameters.

    symbol: path of a ``-symbol.json``, its text, the parsed dict, or an `mx.sym.Symbol`.
    params: path of a ``.params`` file, or arrays by name (NumPy or `mx.nd.NDArray`, with or without ``arg:``/``aux:``);
        None gives a graph whose variables are all inputs. Floating arrays become float32, integers stay.
    What was trained in float16 becomes float32 throughout: arrays, casts and what is made.
    Auxiliary inputs (0.8 leaves them out) and labels are filled in, duplicate op names get a number, variables of one
    name become one; what no head needs is dropped. Attributes of training (``lr_mult``, ``__init__``) are left out; an
    input keeps ``__shape__`` as a hint, which may hold the batch size of the training.
    Raises FormatError for damaged files and missing arrays, UnsupportedError for control flow, sparse and the like.
    """
    text, where = _symbol_text(symbol)
    g = _build(parse(text, where), where)
    g.prune()
    if params is not None:
        arrays, source = read_arrays(params)
        _attach(g, arrays, source)
    restore(g)
    g.verify()
    return g


def _symbol_text(symbol: object) -> tuple[str, str]:
    """(JSON text, what to call it in messages)"""
    if hasattr(symbol, "tojson"):
        return symbol.tojson(), "symbol"
    if isinstance(symbol, Mapping):
        try:
            return json.dumps(symbol), "symbol"
        except (TypeError, ValueError, RecursionError) as error:
            raise FormatError(f"symbol: not a symbol's dict: {error}") from None
    if isinstance(symbol, str) and symbol.lstrip()[:1] == "{":
        return symbol, "symbol"
    if not isinstance(symbol, (str, os.PathLike)):
        raise FormatError(f"symbol: found a {type(symbol).__name__}, want a path, JSON text, a dict or an mx Symbol")
    path = Path(symbol)
    try:
        if not path.is_file():
            raise FormatError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        return path.read_bytes().decode("utf-8-sig"), str(path)
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: byte {error.start}: not UTF-8, want the JSON of an MXNet symbol") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise FormatError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _build(doc: JsonGraph, where: str) -> Graph:
    """Nodes and edges, without arrays."""
    g = Graph()
    read = [1] * len(doc.nodes)  # outputs that somebody reads, at least one
    for entries in (doc.heads, *(n.inputs for n in doc.nodes)):
        for number, output in entries:
            read[number] = max(read[number], output + 1)
    variables: dict[str, Node] = {}
    taken = {n.name for n in doc.nodes}
    variable_names = {n.name for n in doc.nodes if n.op == "null"}
    used = set(variable_names)
    suffix: dict[str, int] = {}
    nodes: list[Node] = []

    def variable(name: str, attrs: dict[str, str]) -> Node:
        """Variables of one name are one variable."""
        if name not in variables:
            variables[name] = g.add("null", name=name)
            variables[name].attrs.update(attrs)
        return variables[name]

    def op_name(item: JsonNode) -> str:
        """The name in the file; further nodes of that name get a number that makes them unlike any other."""
        name = base = item.name or item.op.lower()
        if base in used or (not item.name and base in taken):
            while name in taken:
                suffix[base] = suffix.get(base, 0) + 1
                name = f"{base}_{suffix[base]}"
        used.add(name)
        taken.add(name)
        return name

    for number, item in enumerate(map(as_older_op, doc.nodes)):
        here = f"{where}: node {number} ({item.name[:60]}:{item.op[:60]})"
        _refuse(item, here)
        if item.op == "null":
            if item.inputs or not item.name or read[number] > 1:
                raise FormatError(f"{here}: a variable must have a name, one output and no inputs")
            nodes.append(variable(item.name, _variable_attrs(item.attrs)))
            continue
        attrs = _op_attrs(item, doc.version, here)
        probe = Node(ops.ALIASES.get(item.op, item.op), item.name, attrs)
        inputs = [Port(nodes[i], output) for i, output in item.inputs]
        _check_ranges(probe, here)
        for slot in _missing_slots(probe, len(inputs), doc.version, here):
            name = f"{item.name}_{slot}" if item.name else slot
            if name in used and name not in variable_names:
                raise FormatError(f"{here}: its input {slot} is left out and the name {name} is taken by an op")
            variable_names.add(name)
            used.add(name)
            taken.add(name)
            inputs.append(Port(variable(name, {})))
        n_out = num_outputs(JsonNode("SliceChannel", "", attrs, [], [])) if probe.op == "SliceChannel" else 1
        if n_out > 1 << 16:
            raise FormatError(f"{here}: found num_outputs={n_out}, want at most {1 << 16}")
        if read[number] > 1 and ops.info(probe.op).kind == ops.COMPUTE:
            raise FormatError(f"{here}: its output {read[number] - 1} is read, but it has one")
        node = g.add(item.op, inputs, op_name(item), n_out=max(n_out, read[number]))
        node.attrs.update(attrs)
        attributes.take(node, attributes.IN_FILES)
        nodes.append(node)
    g.heads = [Port(nodes[i], output) for i, output in doc.heads]
    return g


def _refuse(item: JsonNode, here: str) -> None:
    """Raise UnsupportedError for what the graph cannot represent."""
    if item.op in _CONTROL_FLOW:
        raise UnsupportedError(f"{here}: control flow ({item.op}) cannot be represented; unroll it before exporting")
    if item.subgraphs and not item.op.startswith(_FUSED):
        raise UnsupportedError(f"{here}: a subgraph of this op cannot be represented; export the model without "
                               "a subgraph backend")
    sparse = _SPARSE.get(item.attrs.get("__storage_type__", ""))
    if sparse or item.op == "cast_storage":
        raise UnsupportedError(f"{here}: sparse storage ({sparse or item.op}) cannot be represented; "
                               "store the model densely")
    if item.op == "fake_quantize":
        raise UnsupportedError(f"{here}: fake_quantize is qgraph's own and no op of MXNet")
    if item.op in _MAY_CARRY_ACT and "act_type" in item.attrs:
        raise FormatError(f"{here}: found the attribute act_type, which the op does not have")


def _is_hidden(key: str) -> bool:
    """Attributes for the training and the executor: ``lr_mult``, ``weight_lr_mult``, ``__init__``."""
    return (key.startswith("__") and key.endswith("__")) or key.endswith(tuple("_" + h for h in _HIDDEN)) \
        or key in _HIDDEN


def _variable_attrs(attrs: Mapping[str, str]) -> dict[str, str]:
    """What matters of a variable's attributes: its shape and a dtype that is not floating.

    Old files copy the attributes of ops to their variables and write shapes as Python 2 does: ``(8L, 3L)``.
    """
    kept = {}
    try:
        shape = ops.parse_tuple(attrs.get("__shape__", ""))
        if shape and len(shape) <= 32 and all(isinstance(d, int) for d in shape):
            kept["__shape__"] = str(shape)
    except ValueError:
        pass  # a hint only
    if attrs.get("__dtype__") in ("3", "4", "5", "6"):
        kept["__dtype__"] = attrs["__dtype__"]
    return kept


def _op_attrs(item: JsonNode, version: int, here: str) -> dict[str, str]:
    attrs = {k: v for k, v in item.attrs.items() if not _is_hidden(k) or k in (*attributes.IN_FILES, MARK)}
    if attrs.get("dtype") in ("float16", "bfloat16"):
        attrs["dtype"] = "float32"  # as the parameters
    if version < 905 and item.op in ("argmax", "argmin") and attrs.get("axis") == "-1":
        del attrs["axis"]  # meant "all axes" then
    if item.subgraphs:
        try:
            attrs[SUBGRAPHS] = pack_subgraphs(item.subgraphs)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{here}: subgraphs: {error}") from None
    return attrs


def _check_ranges(node: Node, here: str) -> None:
    """Calibrated ranges are numbers: refused where the file is still known."""
    try:
        for key in ops.CALIBRATED:
            ops.number(node, key)
    except FormatError as error:
        raise FormatError(f"{here}: {error}") from None


def _missing_slots(node: Node, found: int, version: int, here: str) -> list[str]:
    """Names of the inputs that a file leaves out. Up to 0.8 any may be, since 0.9 auxiliary ones and labels at most."""
    row = ops.info(node.op)
    wanted = [s for s in row.inputs if s != "*"]
    try:
        if "bias" in wanted and "no_bias" in row.defaults and ops.attr(node, "no_bias"):
            wanted.remove("bias")
        if node.op == "LeakyReLU" and ops.attr(node, "act_type") != "prelu":
            wanted.remove("gamma")
    except GraphError as error:
        raise FormatError(f"{here}: {error}") from None
    missing = wanted[found:]
    if found > len(wanted) and _PARAM_SLOTS & set(row.inputs) or \
            (version >= 900 and not set(missing) <= {*row.aux, "label"}):
        raise FormatError(f"{here}: found {found} inputs, want {len(wanted)} ({', '.join(wanted)})")
    return missing


def read_arrays(params: object) -> tuple[dict[str, np.ndarray], str]:
    """(arrays by bare name, what to call them in messages)"""
    if not isinstance(params, Mapping):
        if not isinstance(params, (str, bytes, os.PathLike)):
            raise FormatError(f"params: found a {type(params).__name__}, want a path or a dict of arrays")
        source = "params" if isinstance(params, bytes) else str(params)
        params = read_params(params)
    else:
        source = "params"
    arrays: dict[str, np.ndarray] = {}
    for key, value in params.items():
        if not isinstance(key, str):
            raise FormatError(f"{source}: found the key {key!r}, want a name")
        name = key[4:] if key[:4] in ("arg:", "aux:") else key
        array = np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
        if array.dtype.kind not in "fiub":
            raise FormatError(f"{source}: {key}: found data of type {array.dtype}, want numbers")
        if name in arrays:
            raise FormatError(f"{source}: found {name!r} twice, as an argument and as an auxiliary state")
        with np.errstate(over="ignore"):
            arrays[name] = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
    return arrays, source


def _attach(g: Graph, arrays: dict[str, np.ndarray], source: str) -> None:
    """Give the variables their arrays. Raises FormatError for parameters without one."""
    missing, unused = unmatched(g, arrays)
    for node in g.toposort():
        if node.op == "null" and node.name in arrays:
            g.params[node.name] = arrays[node.name]
            node.attrs.clear()  # the array says it all
    if missing:
        hint = ""
        if not g.params and arrays:
            hint = f"; the file's names are of another kind ({', '.join(sorted(arrays)[:2])}): " \
                   "files of Gluon's save_parameters need export(), or belong to another symbol"
        shown = [f"{name[:60]} ({slot})" for name, slot in missing.items()]
        listed = ", ".join(shown[:5]) + (", ..." if len(missing) > 5 else "")
        raise FormatError(f"{source}: no array for {len(missing)} of the symbol's parameters: {listed}{hint}")
    if unused:
        log.info("%s: %d arrays are not used by the symbol: %s%s", source, len(unused), ", ".join(unused[:5]),
                 ", ..." if len(unused) > 5 else "")


def unmatched(g: Graph, names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """(parameter of the symbol without an array -> "weight of conv0", names of arrays that it does not use)"""
    order = g.toposort()
    unused = set(names).difference(node.name for node in order if node.op == "null")
    missing: dict[str, str] = {}
    for node in order:
        for slot, port in zip(_slot_names(node), g.inputs(node)):
            if slot in _PARAM_SLOTS and port.node.op == "null" and port.node.name not in names:
                missing.setdefault(port.node.name, f"{slot} of {node.name[:60]}")
    return missing, sorted(unused)


def _slot_names(node: Node) -> tuple[str, ...]:
    return ops.info(ops.ALIASES.get(node.op, node.op)).inputs
