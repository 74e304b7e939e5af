"""Marks: how a trained `fake_quantize` node is written down in an MXNet symbol, and read back.

    MXNet    %y = BatchNorm(...(%x)) {__quantized__={...}}      the last op of those that compute codes from %x
             %v = _copy(%w) {__quantized__={...}}               %w holds values, or codes where the mark says so
             %z = BatchNorm(%conv, ...) {__quantized__=as_is}   what only turns codes into values
             %b = BatchNorm(%z, ones, %bias, ...) {__quantized__=bias}
    graph    %y = fake_quantize(%x) {u8 scale=...}
             %v = fake_quantize(%w) {s8 scale=...}
             %conv with its bias

MXNet keeps attributes that it does not know when their names are of this kind.  The text is JSON, and untrusted.
"""

from __future__ import annotations

import json

import numpy as np

from qgraph.errors import FormatError, OptionError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.quant.spec import QParams, dequantize

MARK = "__quantized__"
AS_IS = "as_is"  # marks helper nodes that `restore` removes
BIAS = "bias"  # marks an addition that `restore` makes the bias of its layer
SUMS, CODES_ENDING, BIAS_ENDING = "_sums", "_codes", "_biased_shift"  # of names, see `targets.mxnet.sim`
CODES = "codes"  # marks nodes that compute codes in a frozen model; `restore` leaves them
_MARKED = frozenset({"_copy", "identity", "BatchNorm", "_contrib_BatchNormWithReLU", "_maximum_scalar"})
_FIELDS: dict[str, type] = {"bits": int, "signed": bool, "narrow": bool, "granularity": str, "axis": int, "groups": int}
_MAX_TEXT = 1 << 24


def is_quantized_op(node: Node) -> bool:
    """It reads or writes MXNet's integer tensors."""
    return node.op.startswith("_sg_mkldnn") or ("quantize" in node.op and node.op != "fake_quantize")


def is_frozen_op(node: Node) -> bool:
    """An op of a frozen model: one with integers, or one that computes codes in float."""
    return is_quantized_op(node) or node.attrs.get(MARK) == CODES


def mark_of(params: QParams, codes: bool = False) -> str:
    """The numbers as text, to the last bit. codes: what is marked reads codes."""
    scale = params.scale.astype(np.float64).tolist()
    return json.dumps({**{name: getattr(params, name) for name in _FIELDS}, "scale": scale,
                       **({CODES: True} if codes else {})})


def restore(g: Graph) -> int:
    """Marked nodes become `fake_quantize` nodes, in place; the number of them. Raises FormatError for a bad mark."""
    marked = [n for n in g.toposort() if n.attrs.get(MARK, CODES) != CODES]
    renamed: list[Node] = []
    for node in marked:
        text = node.attrs.pop(MARK)
        if not g.inputs(node):
            raise FormatError(f"{node}: found the attribute {MARK}, which this op does not have")
        if text == AS_IS:
            g.replace_uses(node, g.inputs(node)[0])
            g.remove(node)
        elif text == BIAS:
            renamed += _restore_bias(g, node)
        else:
            renamed += _restore_quantizer(g, node, text)
    if marked:
        g.prune()
        _restore_names(g, renamed)
    return sum(node in g for node in marked)


def _restore_names(g: Graph, nodes: list[Node]) -> None:
    """Layers and their parameters are called as before they were written."""
    names = {n.name for n in g.dag}
    for node in nodes:
        for ending in (SUMS,) if ops.kind(node) == ops.COMPUTE else (CODES_ENDING, BIAS_ENDING):
            own = node.name[:-len(ending)] + ("_bias" if ending == BIAS_ENDING else "")
            if node.name.endswith(ending) and own not in names:
                g.rename(node, own)
                names.add(own)


def _restore_bias(g: Graph, add: Node) -> list[Node]:
    """Returns what `_restore_names` looks at; so does `_restore_quantizer`."""
    read = g.inputs(add)
    layer, array = read[0].node, g.param(read[2]) if len(read) == 5 else None
    if add.op != "BatchNorm" or array is None or ops.kind(layer) != ops.COMPUTE or len(g.inputs(layer)) != 2 \
            or not g.has_one_use(layer):
        raise FormatError(f"{add}: found {', '.join(str(port.node) for port in read)}, want a layer without bias that "
                          "nobody else reads, and a parameter")
    bias = read[2].node
    g.params[bias.name] = array.reshape(-1)
    g.set_input(layer, 2, bias)
    layer.attrs["no_bias"] = "False"
    g.replace_uses(add, layer)
    g.remove(add)
    return [layer, bias]


def _restore_quantizer(g: Graph, node: Node, text: str) -> list[Node]:
    source = g.inputs(node)[0]
    if node.op not in _MARKED:
        raise FormatError(f"{node}: found the attribute {MARK}, which this op does not have")
    params, of_codes = _parse(node, text)
    array = g.param(source)
    if array is not None and params.granularity != "tensor" and (
            params.axis >= array.ndim or array.shape[params.axis] % params.scale.size):
        raise FormatError(f"{node}: found {params.scale.size} scales for an array of shape {array.shape}")
    if of_codes:
        if array is None or not g.has_one_use(source):
            raise FormatError(f"{node}: found {source.node} in front of it, want a parameter of its own")
        g.params[source.node.name] = dequantize(array, params)
    node.op, node.quant = "fake_quantize", params
    node.attrs.clear()
    g.set_inputs(node, [source])
    node.origin = source.node.origin or (source.node.name,)
    return [source.node, *(n for n in g.readers(node) if ops.kind(n) == ops.COMPUTE)] if of_codes else []


def _parse(node: Node, text: str) -> tuple[QParams, bool]:
    try:
        found: object = json.loads(text) if len(text) <= _MAX_TEXT else None
    except (ValueError, RecursionError):
        found = None
    of_codes = isinstance(found, dict) and found.pop(CODES, False) is True
    if not isinstance(found, dict) or set(found) != {*_FIELDS, "scale"}:
        raise FormatError(f"{node}: {MARK}: found {text[:60]!r}, want {', '.join(_FIELDS)} and scale as JSON")
    for name, kind in _FIELDS.items():
        if type(found[name]) is not kind:
            raise FormatError(f"{node}: {MARK}: {name}: found {found[name]!r:.40}, want {kind.__name__}")
    try:
        scale = np.asarray(found.pop("scale"), np.float64)
        if found["axis"] < 0 or found["groups"] < 1 or found["bits"] > 16:
            raise OptionError(f"axis {found['axis']}, groups {found['groups']}, bits {found['bits']}")
        return QParams(**found, scale=scale.astype(np.float32)), of_codes
    except (OptionError, ValueError, TypeError) as error:
        raise FormatError(f"{node}: {MARK}: {str(error)[:100]}") from None
