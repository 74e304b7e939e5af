"""The text of an MXNet symbol: JSON of every generation since 0.8 in, the JSON of 1.9.1 out, byte for byte.

This file knows bytes only; what the nodes mean is `qgraph.formats.mxnet`'s concern.

    generation   attributes of a node          inputs, heads            auxiliary inputs
    0.8          "param", and "attr" (user's)  [node, output]           left out
    0.9 - 0.12   "attr"                        [node, output, version]  written
    1.x          "attrs"                       [node, output, version]  written

Other tools read these files by line (ncnn's mxnet2ncnn, Tengine's convert_tool), so `compose` reproduces the line
layout of MXNet's own writer (dmlc-core json.h), which `json.dumps` cannot.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from qgraph.errors import FormatError
from qgraph.ir import ops

SYMBOL_SUFFIX = "-symbol.json"
SUBGRAPHS = "__subgraphs__"  # attribute of a fused oneDNN node: its subgraphs as one line of JSON
VERSION = 10901  # what we write: major * 10000 + minor * 100 + patch
_OLDEST = 800  # a file that does not say is taken for 0.8, as MXNet does
_MAX_CHARS = 1 << 28
_MAX_OUTPUT = 1 << 16  # no op has more outputs; bounds what a hostile index can make us do
_MAX_SUBGRAPH_DEPTH = 4


class JsonNode(NamedTuple):
    """One node as written. attrs: "param", "attr" and "attrs" merged. inputs: (node number, output index)."""

    op: str
    name: str
    attrs: dict[str, str]
    inputs: list[tuple[int, int]]
    subgraphs: list[JsonGraph]


class JsonGraph(NamedTuple):
    """Nodes in file order (inputs come before their readers), heads as (node number, output index), MXNet's version."""

    nodes: list[JsonNode]
    heads: list[tuple[int, int]]
    version: int = VERSION


# ---- reading --------------------------------------------------------------------------------------------------------

def parse(text: str, where: str) -> JsonGraph:
    """The symbol in `text`; `where` names it in messages. Raises FormatError for whatever is not a symbol."""
    if len(text) > _MAX_CHARS:
        raise FormatError(f"{where}: found {len(text)} characters, want at most {_MAX_CHARS} for a symbol")
    try:
        # strict=False: MXNet writes control characters as they are
        document = json.loads(text, strict=False, parse_int=_short_int)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(document, ensure_ascii=False).encode()  # refuses half a surrogate pair
        return _graph(document, where, 0)
    except RecursionError:
        raise FormatError(f"{where}: found JSON nested too deep for a symbol") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"{where}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise FormatError(f"{where}: not a symbol: {error}") from None


def _short_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _graph(value: object, where: str, depth: int) -> JsonGraph:
    if not isinstance(value, dict) or not isinstance(value.get("nodes"), list):
        raise FormatError(f'{where}: not an MXNet symbol: want a JSON object with a list "nodes"')
    if depth > _MAX_SUBGRAPH_DEPTH:
        raise FormatError(f"{where}: found subgraphs nested more than {_MAX_SUBGRAPH_DEPTH} deep")
    nodes = [_node(item, number, f"{where}: node {number}", depth) for number, item in enumerate(value["nodes"])]
    heads = _entries(value.get("heads"), len(nodes), f"{where}: heads")
    if not heads:
        raise FormatError(f"{where}: heads: found none, want at least one output")
    return JsonGraph(nodes, heads, _version(value.get("attrs"), where))


def _version(attrs: object, where: str) -> int:
    if attrs is None:
        return _OLDEST
    entry = attrs.get("mxnet_version", ["int", _OLDEST]) if isinstance(attrs, dict) else None
    if not (isinstance(entry, list) and len(entry) == 2 and type(entry[1]) is int):
        raise FormatError(f'{where}: attrs: found {_brief(attrs)}, want {{"mxnet_version": ["int", {VERSION}]}}')
    return entry[1]


def _node(value: object, number: int, where: str, depth: int) -> JsonNode:
    if not isinstance(value, dict):
        raise FormatError(f"{where}: found {_brief(value)}, want an object")
    op, name = value.get("op"), value.get("name")
    if not (isinstance(op, str) and op and isinstance(name, str)):
        raise FormatError(f"{where}: found op {_brief(op)} and name {_brief(name)}, want two strings")
    where = f"{where} ({name[:60]})"
    attrs: dict[str, str] = {}
    for key in ("param", "attr", "attrs"):
        found = value.get(key, {})
        if not isinstance(found, dict):
            raise FormatError(f"{where}: {key}: found {_brief(found)}, want an object")
        for k, v in found.items():
            if not isinstance(v, str):
                raise FormatError(f"{where}: {key}: {k[:60]}: found {_brief(v)}, want a string")
        attrs.update(found)
    subgraphs = value.get("subgraphs", [])
    if not isinstance(subgraphs, list):
        raise FormatError(f"{where}: subgraphs: found {_brief(subgraphs)}, want a list")
    return JsonNode(op, name, attrs, _entries(value.get("inputs", []), number, f"{where}: inputs"),
                    [_graph(item, f"{where}: subgraph", depth + 1) for item in subgraphs])


def _entries(value: object, limit: int, where: str) -> list[tuple[int, int]]:
    """``[[node, output], ...]`` or ``[[node, output, version], ...]`` with every node below `limit`."""
    if not isinstance(value, list):
        raise FormatError(f"{where}: found {_brief(value)}, want a list")
    entries = []
    for item in value:
        if not (isinstance(item, list) and len(item) in (2, 3) and type(item[0]) is int and type(item[1]) is int):
            raise FormatError(f"{where}: found {_brief(item)}, want [node, output] or [node, output, version]")
        if not 0 <= item[0] < limit:
            raise FormatError(f"{where}: found node {item[0]}, want 0 to {limit - 1} (nodes come before their readers)")
        if not 0 <= item[1] < _MAX_OUTPUT:
            raise FormatError(f"{where}: found output {item[1]}, want 0 to {_MAX_OUTPUT - 1}")
        entries.append((item[0], item[1]))
    return entries


def _brief(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


# ---- subgraphs as an attribute --------------------------------------------------------------------------------------

def pack_subgraphs(graphs: list[JsonGraph]) -> str:
    """Subgraphs as one compact line of JSON, the form in which a `Node` keeps them."""
    return json.dumps([_plain(graph) for graph in graphs], separators=(",", ":"), ensure_ascii=False)


def unpack_subgraphs(text: str, where: str) -> list[JsonGraph]:
    """What `pack_subgraphs` wrote. Raises FormatError."""
    try:
        return [_graph(item, where, 1) for item in json.loads(text, strict=False, parse_int=_short_int)]
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{where}: __subgraphs__ is not a JSON list of graphs: {error}") from None


def _plain(graph: JsonGraph) -> dict[str, object]:
    def node(n: JsonNode) -> dict[str, object]:
        plain: dict[str, object] = {"op": n.op, "name": n.name, "inputs": n.inputs}
        if n.attrs:
            plain["attrs"] = dict(sorted(n.attrs.items()))
        if n.subgraphs:
            plain["subgraphs"] = [_plain(g) for g in n.subgraphs]
        return plain

    return {"nodes": [node(n) for n in graph.nodes], "heads": graph.heads}


# ---- writing --------------------------------------------------------------------------------------------------------

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def compose(graph: JsonGraph) -> str:
    """The JSON text of `graph` exactly as MXNet 1.9.1 writes it (it ends without a newline)."""
    return _compose(graph, 0, top=True)


def _compose(graph: JsonGraph, indent: int, top: bool = False) -> str:
    ends, end = ["0"], 0
    for node in graph.nodes:
        end += num_outputs(node)
        ends.append(str(end))
    variables = [str(number) for number, node in enumerate(graph.nodes) if node.op == "null"]
    fields = [("nodes", _array([_compose_node(n, indent + 4) for n in graph.nodes], indent + 2, multi_line=True)),
              ("arg_nodes", _array(variables, indent + 2)),
              ("node_row_ptr", _array(ends, indent + 2)),
              ("heads", _array(_triples(graph.heads), indent + 2))]
    if top:
        fields.append(("attrs", f'{{"mxnet_version": ["int", {VERSION}]}}'))
    return _object(fields, indent)


def _compose_node(node: JsonNode, indent: int) -> str:
    fields = [("op", _string(node.op)), ("name", _string(node.name))]
    if node.attrs:
        pairs = [(k, _string(node.attrs[k])) for k in sorted(node.attrs)]
        fields.append(("attrs", _object(pairs, indent + 2, multi_line=len(pairs) > 1)))
    fields.append(("inputs", _array(_triples(node.inputs), indent + 2)))
    if node.subgraphs:
        graphs = [_compose(graph, indent + 4) for graph in node.subgraphs]
        fields.append(("subgraphs", _array(graphs, indent + 2, multi_line=True)))
    return _object(fields, indent)


def _triples(entries: list[tuple[int, int]]) -> list[str]:
    return [f"[{node}, {output}, 0]" for node, output in entries]


def _string(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def _array(items: list[str], indent: int, multi_line: bool = False) -> str:
    if not multi_line and len(items) <= 10:  # dmlc breaks longer arrays of numbers
        return f"[{', '.join(items)}]"
    return _lines("[", items, "]", indent)


def _object(pairs: list[tuple[str, str]], indent: int, multi_line: bool = True) -> str:
    items = [f"{_string(key)}: {value}" for key, value in pairs]
    return _lines("{", items, "}", indent) if multi_line else f"{{{', '.join(items)}}}"


def _lines(start: str, items: list[str], end: str, indent: int) -> str:
    inner = "\n" + " " * (indent + 2)
    return f"{start}{inner}{(', ' + inner).join(items)}\n{' ' * indent}{end}" if items else start + end


def num_outputs(node: JsonNode) -> int:
    """How many outputs MXNet 1.9.1 (x86, oneDNN) gives a node, hidden ones included: "node_row_ptr" counts them.

    Readers of the file recompute it, so an op that is not listed here is counted as one.
    """
    op, attrs = node.op, node.attrs
    if op in ("SliceChannel", "split"):
        return int(attrs["num_outputs"]) if attrs.get("num_outputs", "").isdecimal() else 1
    if op == "Pooling":  # oneDNN keeps a workspace for max pooling
        rank = len([part for part in attrs.get("kernel", "").strip("()[] ").split(",") if part.strip()])
        planar = attrs.get("layout", "None") in ("None", *ops.CHANNEL_FIRST)
        return 2 if attrs.get("pool_type", "max") == "max" and 1 <= rank <= 3 and planar else 1
    if op == "RNN":
        states = attrs.get("state_outputs", "").lower() in ("true", "1")
        return (3 if attrs.get("mode") == "lstm" else 2) if states else 1
    if op == "LeakyReLU":
        return 2 if attrs.get("act_type") == "rrelu" else 1
    if op.startswith("_sg_mkldnn_"):
        def on(key: str) -> bool:
            return attrs.get(key, "").lower() in ("true", "1")

        return 3 if on("quantized") and not on("enable_float_output") else 1
    return _OUTPUTS.get(op, 1)


_OUTPUTS = {"Dropout": 2, "LRN": 2, "L2Normalization": 2, "moments": 2, "_contrib_box_nms": 2,
            "_contrib_BatchNormWithReLU": 4,
            **dict.fromkeys(("BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm", "InstanceNorm", "LayerNorm",
                             "GroupNorm", "_contrib_quantize", "_contrib_quantize_v2", "_contrib_requantize",
                             "_contrib_quantized_conv", "_contrib_quantized_fully_connected",
                             "_contrib_quantized_pooling", "_contrib_quantized_flatten", "_contrib_quantized_act",
                             "_contrib_quantized_concat", "_contrib_quantized_elemwise_add",
                             "_contrib_quantized_elemwise_mul", "_contrib_quantized_batch_norm",
                             "_contrib_quantized_embedding"), 3)}
