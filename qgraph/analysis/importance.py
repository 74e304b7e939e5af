"""How much the error of each channel of a tensor counts in the outputs of the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port

# ops that mix no channels: an error of one is an error of the same one, about as large
_CHANNELWISE = frozenset({"Activation", "relu", "clip", "sigmoid", "hard_sigmoid", "LeakyReLU", "Pooling",
                          "_contrib_AdaptiveAvgPooling2D", "_contrib_BilinearResize2D", "UpSampling", "Dropout", "Pad",
                          "Crop", "slice_like", "Flatten", "_mul_scalar", "_plus_scalar", "_div_scalar",
                          "_minus_scalar", "fake_quantize"})

Shapes = Mapping[Port, Sequence[int]]


def channel_importance(g: Graph, shapes: Shapes) -> dict[Port, Array]:
    """Tensor -> the weight of the squared error of each of its channels (axis 1), float64 (channels,), largest 1.

    An error e[c] of channel c that is not correlated with those of others adds to the outputs of a layer

        sum over o of  importance[o] * sum over taps of w[o, c, tap]^2  *  mean(e[c]^2)

    importance[o]: of its own output for a depthwise layer, which mixes no channels; else 1.  What passes channels on
    passes on their importance, and several readers, each with the mean 1, are added up.  A tensor that an unknown op
    reads, or that is an output, has 1 from it; one whose channels cannot be told is left out.
    shapes: of the tensors, where they are known.  The sums are NumPy's own, no BLAS: the same bits for any threads.
    """
    found: dict[Port, Array] = {}
    for node in reversed(g.toposort()):
        for index in range(node.n_out):
            port = Port(node, index)
            shape = shapes.get(port, ())
            if len(shape) < 2 or g.is_param(node):
                continue
            parts = [part for reader, slot in g.uses(port) if (part := _of_reader(g, reader, slot, shape[1], found,
                                                                                  shapes)) is not None]
            if g.is_head(port) or not parts:
                parts.append(np.ones(shape[1]))
            found[port] = sum(part / max(part.mean(), 1e-300) for part in parts) / len(parts)
    return {port: value / max(value.max(), 1e-300) for port, value in found.items()}


def _of_reader(g: Graph, reader: Node, slot: int, channels: int, found: Mapping[Port, Array],
               shapes: Shapes) -> Array | None:
    """What one reader makes of the channels of its input in this slot; None where it reads the shape alone."""
    inputs, own = g.inputs(reader), found.get(Port(reader))
    if slot in ops.SHAPE_ONLY.get(reader.op, ()):
        return None
    weight = g.param(inputs[1]) if ops.kind(reader) == ops.COMPUTE and slot == 0 else None
    if weight is not None:
        part = _of_layer(reader, np.square(weight.astype(np.float64)), channels, own)
        return part if len(part) == channels else np.ones(channels)  # channels in another axis
    if own is None:
        return np.ones(channels)
    if reader.op == "Concat" and ops.attr(reader, "dim") == 1:
        sizes = [(*shapes.get(port, ()), 0, 0)[1] for port in inputs]
        start = sum(sizes[:slot])
        return own[start:start + channels] if all(sizes) else np.ones(channels)
    if reader.op in _CHANNELWISE or ops.info(reader.op).combines:
        if len(own) == channels:
            return own
        if reader.op == "Flatten" and len(own) % channels == 0:
            return np.asarray(own.reshape(channels, -1).sum(axis=1))
    return np.ones(channels)


def _of_layer(layer: Node, squares: Array, channels: int, own: Array | None) -> Array:
    """squares: of the weight, shaped as it is."""
    if layer.op == "FullyConnected":
        columns = squares.sum(axis=0)
        fits = ops.attr(layer, "flatten") and len(columns) % channels == 0
        return np.asarray(columns.reshape(channels, -1).sum(axis=1)) if fits else np.ones(channels)
    taps = squares.reshape(*squares.shape[:2], -1).sum(axis=2)
    groups = ops.attr(layer, "num_group")
    if layer.op == "Deconvolution":
        return np.asarray(taps.sum(axis=1))
    if groups == channels == len(taps) and own is not None:
        return np.asarray(taps[:, 0] * own)
    return np.asarray(taps.reshape(groups, -1, taps.shape[1]).sum(axis=1).ravel())
