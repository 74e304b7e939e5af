"""The inputs of a graph: their names, and what the file and the weights tell of their shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from qgraph.ir import ops
from qgraph.ir.graph import Graph
from qgraph.semantics.infer import value_nodes

_SIZES = ((224, 256), (256, 288))  # for dimensions that are left open; multiples of the strides of most networks


def inputs_of(g: Graph) -> list[str]:
    """Names of the inputs that the outputs depend on; labels of the training do not count."""
    reached = value_nodes(g)
    return [n.name for n in g.data_inputs() if n in reached]


def hinted_shapes(g: Graph) -> dict[str, tuple[int, ...]]:
    """Shapes that the file gives for inputs (``__shape__``), if they are whole. The batch size is that of training."""
    found = {}
    for node in g.data_inputs():
        shape = ops.parse_tuple(node.attrs.get("__shape__", ""))
        if len(shape) > 1 and all(isinstance(d, int) and d > 0 for d in shape[1:]):
            found[node.name] = (max(int(shape[0]), 1), *shape[1:])
    return found


def closed(shape: Sequence[int], choice: int = 0) -> tuple[int, ...]:
    """A shape with numbers for the sizes that are left open (0): one of two choices, which differ in each of them."""
    sizes = itertools.cycle(_SIZES[choice])
    return tuple(d if d or axis == 0 else next(sizes) for axis, d in enumerate(shape))


def known_channels(g: Graph) -> dict[str, tuple[int, ...]]:
    """Input name -> (0, C, 0, 0) where (2-D) convolutions read it directly, else (): all that the weights tell."""
    found: dict[str, tuple[int, ...]] = {}
    for node in g.data_inputs():
        found[node.name] = ()
        for reader, slot in g.uses(node):
            if reader.op == "Convolution" and slot == 0:
                weight = g.param(g.inputs(reader)[1])
                if weight is not None and weight.ndim > 2:
                    found[node.name] = (0, weight.shape[1] * ops.attr(reader, "num_group"), *[0] * (weight.ndim - 2))
    return found
