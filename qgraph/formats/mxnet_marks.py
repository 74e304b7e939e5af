"""Marks: how a trained `fake_quantize` node is written down in an MXNet symbol, and read back.

    MXNet    %q = _contrib_quantize_v2([clip](%x));  %y = _contrib_dequantize(%q) {__quantized__={...}}
             %v = _copy(%w) {__quantized__={...}}
    graph    %y = fake_quantize(%x) {u8 scale=...}
             %v = fake_quantize(%w) {s8 scale=...}

MXNet keeps attributes that it does not know when their names are of this kind.  The text is JSON, and untrusted.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from qgraph.errors import FormatError, OptionError
from qgraph.ir import Graph, Node
from qgraph.quant.spec import QParams

MARK = "__quantized__"
AS_IS = "as_is"  # the text of a multiplication by 1 that keeps MXNet from fusing, and goes when it is read
_FIELDS: dict[str, type] = {"bits": int, "signed": bool, "narrow": bool, "granularity": str, "axis": int, "groups": int}
_MAX_TEXT = 1 << 24


def mark_of(params: QParams) -> str:
    """The numbers as text, to the last bit."""
    scale = params.scale.astype(np.float64).tolist()
    return json.dumps({**{name: getattr(params, name) for name in _FIELDS}, "scale": scale})


def restore(g: Graph) -> int:
    """Marked nodes become `fake_quantize` nodes, in place; the number of them. Raises FormatError for a bad mark."""
    marked = [n for n in g.toposort() if MARK in n.attrs]
    count = 0
    for node in marked:
        if node.op == "clip":  # belongs to the quantizer that follows
            continue
        source = g.inputs(node)[0]
        if node.op == "_mul_scalar" and node.attrs[MARK] == AS_IS and node.attrs.get("scalar") == "1.0":
            g.replace_uses(node, source)
            g.remove(node)
            continue
        if node.op == "_contrib_dequantize":
            quantize = source.node
            if quantize.op != "_contrib_quantize_v2":
                raise FormatError(f"{node}: found {quantize} in front of it, want _contrib_quantize_v2")
            source = g.inputs(quantize)[0]
            if source.node.op == "clip" and MARK in source.node.attrs:
                source = g.inputs(source.node)[0]
        elif node.op not in ("_copy", "identity"):
            raise FormatError(f"{node}: found the attribute {MARK}, which this op does not have")
        params = _parse(node)
        array = g.param(source)
        if array is not None and params.granularity != "tensor" and (
                params.axis >= array.ndim or array.shape[params.axis] % params.scale.size):
            raise FormatError(f"{node}: found {params.scale.size} scales for an array of shape {array.shape}")
        node.op, node.quant = "fake_quantize", params
        node.attrs.clear()
        g.set_inputs(node, [source])
        node.origin = source.node.origin or (source.node.name,)
        count += 1
    if count:
        g.prune()
    return count


def _parse(node: Node) -> QParams:
    text = node.attrs[MARK]
    try:
        found: Any = json.loads(text) if len(text) <= _MAX_TEXT else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or set(found) != {*_FIELDS, "scale"}:
        raise FormatError(f"{node}: {MARK}: found {text[:60]!r}, want {', '.join(_FIELDS)} and scale as JSON")
    for name, kind in _FIELDS.items():
        if type(found[name]) is not kind:
            raise FormatError(f"{node}: {MARK}: {name}: found {found[name]!r:.40}, want {kind.__name__}")
    try:
        scale = np.asarray(found.pop("scale"), np.float64)
        if found["axis"] < 0 or found["groups"] < 1 or found["bits"] > 16:
            raise OptionError(f"axis {found['axis']}, groups {found['groups']}, bits {found['bits']}")
        return QParams(**found, scale=scale.astype(np.float32))
    except (OptionError, ValueError, TypeError) as error:
        raise FormatError(f"{node}: {MARK}: {str(error)[:100]}") from None
