"""What a layer reads at sampled positions of its output."""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import conv_output, spatial_attrs


def window_count(node: Node, shape: tuple[int, ...]) -> int:
    """The number of output positions of a Convolution or FullyConnected that reads a tensor of this shape."""
    if node.op == "FullyConnected":
        return shape[0] if ops.attr(node, "flatten") else int(np.prod(shape[:-1]))
    return shape[0] * int(np.prod(conv_output(node, shape[2:])))


def draw_windows(node: Node, shape: tuple[int, ...], rng: np.random.Generator, count: int) -> np.ndarray:
    """At most so many positions, in ascending order, image by image."""
    windows = window_count(node, shape)
    return np.sort(rng.choice(windows, min(count, windows), replace=False))


def patches(node: Node, value: np.ndarray, windows: np.ndarray, zero: int = 0) -> np.ndarray:
    """(windows, C, taps) of what a layer reads there; of a dense layer C are its inputs. zero: what padding reads."""
    if node.op == "FullyConnected":
        rows = value.reshape(len(value), -1) if ops.attr(node, "flatten") else value.reshape(-1, value.shape[-1])
        return rows[windows, :, None]
    kernel, stride, dilate, pad = spatial_attrs(node, value.ndim - 2)
    image, *at = np.unravel_index(windows, (len(value), *conv_output(node, value.shape[2:])))
    found = np.empty((len(windows), value.shape[1], int(np.prod(kernel))), value.dtype)
    for number in np.unique(image):  # one image is padded at a time
        here = image == number
        padded = value[number]
        if any(pad):
            padded = np.pad(padded, [(0, 0), *((p, p) for p in pad)], constant_values=zero)
        first = np.ravel_multi_index([place[here] * s for place, s in zip(at, stride)], padded.shape[1:])
        for column, tap in enumerate(np.ndindex(*kernel)):
            beyond = np.ravel_multi_index([t * d for t, d in zip(tap, dilate)], padded.shape[1:])
            found[here, :, column] = padded.reshape(len(padded), -1)[:, first + beyond].T
    return found
