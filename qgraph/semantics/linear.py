"""Convolution, Deconvolution and FullyConnected on plain arrays, without bias: what floats and integers share.

The functions compute in the dtype of their arguments (float32 or float64).  On whole numbers the result is exact as
long as no partial sum can leave the dtype's exact integers, see `qgraph.semantics.interpreter.accumulate`.
Convolutions take one image at a time, in blocks of output rows: memory is bounded and batches do not change results.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, deconv_geometry, spatial_attrs

BLOCK = 1 << 20  # elements of one unfolded block: small enough for the second-level caches


def convolve(x: np.ndarray, w: np.ndarray, stride: Shape, dilate: Shape, groups: int) -> np.ndarray:
    """x (N, C, *spatial), already padded; w (O, C / groups, *kernel) -> (N, O, *out). Any number of spatial axes."""
    kernel = w.shape[2:]
    out = tuple((i - d * (k - 1) - 1) // s + 1 for i, k, s, d in zip(x.shape[2:], kernel, stride, dilate))
    if w.shape[1] == 1 and x.shape[1] == groups:
        return _depthwise(x, w, stride, dilate, out)
    result = np.empty((len(x), w.shape[0], *out), x.dtype)
    matrix = w.reshape(groups, w.shape[0] // groups, -1)
    # unfolded: every tap of every window as a view, (N, C, *kernel, *out)
    inner = x.strides[2:]
    steps = (*(t * d for t, d in zip(inner, dilate)), *(t * s for t, s in zip(inner, stride)))
    unfolded = np.lib.stride_tricks.as_strided(x, (*x.shape[:2], *kernel, *out), (*x.strides[:2], *steps),
                                               writeable=False)
    depth, row = x.shape[1] * int(np.prod(kernel)), int(np.prod(out[1:]))
    rows = max(1, BLOCK // (depth * row))
    ahead: tuple[Any, ...] = (slice(None),) * (1 + len(kernel))
    for image in range(len(x)):
        flat = result[image].reshape(groups, matrix.shape[1], out[0], row)
        for top in range(0, out[0], rows):
            block = unfolded[image][ahead + (slice(top, top + rows),)]
            columns = block.reshape(groups, depth // groups, -1)
            flat[:, :, top:top + rows] = np.matmul(matrix, columns).reshape(groups, matrix.shape[1], -1, row)
    return result


def _depthwise(x: np.ndarray, w: np.ndarray, stride: Shape, dilate: Shape, out: Shape) -> np.ndarray:
    """One input channel per group: a sum of shifted inputs, without unfolding."""
    if w.shape[0] != x.shape[1]:  # several filters per channel
        x = np.repeat(x, w.shape[0] // x.shape[1], axis=1)
    result = np.empty((len(x), w.shape[0], *out), x.dtype)
    term = np.empty_like(result[0])
    for image, total in zip(x, result):
        for count, tap in enumerate(np.ndindex(*w.shape[2:])):
            view = image[window(tap, stride, dilate, out)]
            factor = w[:, 0][behind(tap)].reshape(-1, *(1,) * len(out))
            if count:
                total += np.multiply(view, factor, out=term)
            else:
                np.multiply(view, factor, out=total)
    return result


def behind(spatial: Iterable[Any]) -> tuple[Any, ...]:
    """Index of the last axes: one entry per spatial axis, everything before them."""
    return (Ellipsis, *spatial)


def window(tap: Shape, stride: Shape, dilate: Shape, out: Shape) -> tuple[Any, ...]:
    """Index of what one kernel tap sees of a padded input, over all windows."""
    return behind(slice(t * d, t * d + s * (n - 1) + 1, s) for t, s, d, n in zip(tap, stride, dilate, out))


def _check_layout(node: Node) -> None:
    layout = ops.attr(node, "layout")
    if layout not in ("None", "", "NCW", "NCHW", "NCDHW"):
        raise UnsupportedError(f"{node}: found layout {layout}, want channels first (NCHW)")


def convolution(node: Node, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Convolution without bias: x (N, C, *spatial), w (O, C / groups, *kernel)."""
    _check_layout(node)
    _, stride, dilate, pad = spatial_attrs(node, x.ndim - 2)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)]) if any(pad) else x
    return convolve(padded, w, stride, dilate, ops.attr(node, "num_group"))


def deconvolution(node: Node, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Deconvolution without bias: x (N, C, *spatial), w (C, O / groups, *kernel).

    A convolution, with the kernel flipped, of the input spread out by `stride` zeros and padded to full overlap.
    """
    _check_layout(node)
    rank = x.ndim - 2
    kernel, stride, dilate, _ = spatial_attrs(node, rank)
    pad, _, out = deconv_geometry(node, x.shape[2:])
    groups = ops.attr(node, "num_group")
    # the canvas of full overlap, cut to what the `out` windows see
    reach = tuple(d * (k - 1) for k, d in zip(kernel, dilate))
    size = tuple(max(r + s * (i - 1) + 1 + r, p + o + r) for r, s, i, p, o in zip(reach, stride, x.shape[2:], pad, out))
    canvas = np.zeros((*x.shape[:2], *size), x.dtype)
    canvas[behind(slice(r, r + s * (i - 1) + 1, s) for r, s, i in zip(reach, stride, x.shape[2:]))] = x
    seen = canvas[behind(slice(p, p + o + r) for p, o, r in zip(pad, out, reach))]
    flipped = w[behind((slice(None, None, -1),) * rank)]
    per_group = flipped.reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2)
    return convolve(seen, per_group.reshape(-1, w.shape[0] // groups, *kernel), (1,) * rank, dilate, groups)


def fully_connected(node: Node, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """FullyConnected without bias: w (units, inputs)."""
    if ops.attr(node, "flatten"):
        x = x.reshape(len(x), -1)
    return np.matmul(x, w.T)


LINEAR: dict[str, Callable[[Node, np.ndarray, np.ndarray], np.ndarray]] = {
    "Convolution": convolution, "Deconvolution": deconvolution, "FullyConnected": fully_connected}


def out_channel_axis(node: Node, rank: int) -> int:
    """Axis of the op's output that runs over output channels."""
    return rank - 1 if node.op == "FullyConnected" else 1


def along_channels(node: Node, values: np.ndarray, rank: int) -> np.ndarray:
    """(channels,) values, shaped to broadcast against the op's output of `rank` axes."""
    axis = out_channel_axis(node, rank)
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])
