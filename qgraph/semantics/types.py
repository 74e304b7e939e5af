"""Types of values: what MXNet computes in, where that is not float32."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port

_FLAGS = {"1": "float64", "2": "float16", "3": "uint8", "4": "int32", "5": "int8", "6": "int64"}
_TYPED = frozenset({"Cast", "argsort", "one_hot", "topk"})  # they have a type of their own
_FIRST = {"where": 1, "Embedding": 1}  # op -> the input whose type the output has, if not the first


def type_of(g: Graph, port: Port) -> str:
    """The type of a value by MXNet's rules: types follow the first input, up to what has a type of its own."""
    while True:
        node, inputs = port.node, g.inputs(port.node)
        if node.op in ("shape_array", "size_array"):
            return "int64"
        array = g.param(port)
        if array is not None:
            return "float32" if array.dtype.kind == "f" else str(np.dtype(array.dtype))
        if node.op == "null":
            return _FLAGS.get(node.attrs.get("__dtype__", ""), "float32")
        values = node.op == "topk" and port.index == 0 and ops.attr(node, "ret_typ") in ("value", "both")
        if not inputs or node.op in _TYPED and not values:
            found = node.attrs.get("dtype", "float32")
            return "float32" if found == "None" else found
        port = inputs[_FIRST.get(node.op, 0)]
