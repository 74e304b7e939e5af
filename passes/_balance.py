"""Factors of channels with which the weights that write a channel are as large as those that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qgraph.analysis.channels import Order
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.passes._affine import per_input, scale_outputs

MOST = 256.0  # of a factor, against channels that hardly anything is known of
_SWEEPS = 20  # layers depend on each other
_STEPS = 8  # factors are powers of 2 ** (1 / 8), so that a last bit of a range is not seen in them

Places = Sequence[tuple[Node, tuple[slice, int]]]
"""(a reader, (the columns of its weight that are these channels, how many belong to each))"""


def columns_of(node: Node, weight: np.ndarray) -> int:
    """Input channels of a convolution, inputs of a dense layer."""
    if node.op == "Convolution":
        return int(weight.shape[1] * ops.attr(node, "num_group"))
    return int(weight.shape[0 if node.op == "Deconvolution" else 1])


def places_of(g: Graph, order: Order, columns: Mapping[Node, int]) -> Places:
    """Where the readers of an order have its channels. columns: as of `columns_of`."""
    totals = {node: total for node, _, total in order.nodes}
    found = []
    for node, start in order.readers:
        repeats = columns[node] // totals[g.inputs(node)[0].node]
        found.append((node, (slice(start * repeats, (start + order.count) * repeats), repeats)))
    return found


def balanced(places: Mapping[Order, Places], weights: Mapping[Node, np.ndarray]) -> dict[Order, np.ndarray]:
    """s = sqrt(largest of the reader's column / largest of the writer's row), for all layers together.

    DFQ, arXiv 1906.04721, section 4.1.  weights: of all writers and readers.
    """
    sizes = {node: _without_taps(np.abs(weight)) for node, weight in weights.items()}
    columns = {node: columns_of(node, weight) for node, weight in weights.items()}
    total = {order: np.ones(order.count) for order in places}
    for _ in range(_SWEEPS):
        for order, readers in places.items():
            written = np.max([_largest_written(node, sizes[node]) for node in order.writers], axis=0)
            read = np.max([_largest_read(node, sizes[node])[part].reshape(order.count, repeats).max(axis=1)
                           for node, (part, repeats) in readers], axis=0)
            live = (written > 0) & (read > 0)
            step = np.sqrt(np.where(live, read, 1) / np.where(live, written, 1))
            step = np.clip(total[order] * step, 1 / MOST, MOST) / total[order]
            total[order] = total[order] * step
            for node in order.writers:
                sizes[node] = scale_outputs(node, sizes[node], step)
            for node, (part, repeats) in readers:
                inverse = np.ones(columns[node])
                inverse[part] = 1 / np.repeat(step, repeats)
                sizes[node] = sizes[node] * per_input(node, sizes[node], inverse)
    return total


def on_grid(factors: np.ndarray) -> np.ndarray:
    """The next powers of 2 ** (1 / 8), to four digits."""
    return np.array([float(f"{2 ** (k / _STEPS):.4g}") for k in np.rint(np.log2(factors) * _STEPS)])


def _without_taps(sizes: np.ndarray) -> np.ndarray:
    return sizes if sizes.ndim == 2 else sizes.max(axis=tuple(range(2, sizes.ndim)))


def _largest_written(node: Node, sizes: np.ndarray) -> np.ndarray:
    """(output channels,) of (rows, columns)"""
    if node.op != "Deconvolution":
        return np.asarray(sizes.max(axis=1))
    groups = ops.attr(node, "num_group")
    return np.asarray(sizes.reshape(groups, -1, sizes.shape[1]).max(axis=1).ravel())


def _largest_read(node: Node, sizes: np.ndarray) -> np.ndarray:
    """(input channels,) of (rows, columns)"""
    if node.op == "Deconvolution":
        return np.asarray(sizes.max(axis=1))
    groups = 1 if node.op == "FullyConnected" else ops.attr(node, "num_group")
    return np.asarray(sizes.reshape(groups, -1, sizes.shape[1]).max(axis=1).ravel())
