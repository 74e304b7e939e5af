"""Compute once what depends on parameters alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from qgraph.errors import GraphError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.semantics.infer import Shape, infer, value_inputs
from qgraph.semantics.interpreter import Executor
from qgraph.semantics.kernels import KERNELS

_LARGEST = 1 << 20  # elements of a constant that takes more room than what it is made of
_FLOAT = (None, "None", "float32")
_KEPT = frozenset({"shape_array", "size_array", *ops.IDENTITIES})  # whole numbers; Dropout of every run


@register
class Constants(Pass):
    """reshape(w), exp(w), w1 + w2, _arange(), _zeros()  ->  a parameter of that name.

    Left as they are: outputs of the model, ops without a kernel in the reference (random numbers are among them),
    other types than float32, large constants made of little, and what depends on the shape of an input.
    """

    name = "constants"
    preserves_float = True

    def run(self, g: Graph) -> int:
        constant = _constant_nodes(g)
        wanted = [n for n in constant if not _is_output(g, n) and any(v not in constant for v in g.readers(n))]
        if not wanted:
            return 0
        count = 0
        ports = [Port(node, index) for node in wanted for index in range(node.n_out)]
        known = Executor(g, ports, run_op=_refuse).known_tensors({})
        for node in wanted:
            found = [known.get(Port(node, index)) for index in range(node.n_out)]
            arrays = [tensor.real for tensor in found if tensor is not None]
            if len(arrays) == node.n_out:
                _replace(g, node, arrays)
                count += 1
        g.prune()
        return count


def _constant_nodes(g: Graph) -> dict[Node, None]:
    """Nodes whose values depend on parameters alone, and can be computed and stored, in order."""
    try:
        shapes: Mapping[Port, Shape] = infer(g, {})
    except GraphError:  # whoever needs the shapes says it better
        return {}
    found: dict[Node, None] = {}
    for node in g.toposort():
        if node.op not in KERNELS or node.op in _KEPT or node.attrs.get("dtype") not in _FLOAT:
            continue
        ports = value_inputs(g, node)
        sizes = [math.prod(shapes.get(Port(node, index), ())) for index in range(node.n_out)]
        room = max(_LARGEST, sum(math.prod(shapes.get(port, ())) for port in ports))
        if (all(port.node in found or _is_float(g.param(port)) for port in ports)
                and Port(node) in shapes and sum(sizes) <= room):
            found[node] = None
    return found


def _is_float(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype == np.float32


def _is_output(g: Graph, node: Node) -> bool:
    return any(g.is_head(Port(node, index)) for index in range(node.n_out))


def _refuse(*_: object) -> list[np.ndarray]:
    raise UnsupportedError("left as it is")


def _replace(g: Graph, node: Node, arrays: list[np.ndarray]) -> None:
    origin = node.origin or (node.name,)
    params = [g.add_param(f"{node.name}_{index}", array, origin) for index, array in enumerate(arrays)]
    for index, param in enumerate(params):
        g.replace_uses(Port(node, index), param)
    name = node.name
    g.remove(node)
    if len(params) == 1:
        g.rename(params[0], name)
