"""Layers with weights: Convolution, Deconvolution, FullyConnected, and convolutions at places that the data give.

What floats and integers share are functions on plain arrays, without bias (`LINEAR`).  They compute in the dtype of
their arguments (float32 or float64).  On whole numbers the result is exact as long as no partial sum can leave the
dtype's exact integers, see `qgraph.semantics.interpreter.accumulate`.  Convolutions take one image at a time, in blocks
of output rows: memory is bounded and batches do not change results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Callable

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, check_work, conv_output, deconv_geometry, need, spatial_attrs
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import activate, kernel
from qgraph.semantics.tensor import BLOCK, in_blocks

# ---- plain arrays ---------------------------------------------------------------------------------------------------

def convolve(x: np.ndarray, w: np.ndarray, stride: Shape, dilate: Shape, groups: int) -> np.ndarray:
    """x (N, C, *spatial), already padded; w (O, C / groups, *kernel) -> (N, O, *out). Any number of spatial axes."""
    kernel = w.shape[2:]
    out = tuple((i - d * (k - 1) - 1) // s + 1 for i, k, s, d in zip(x.shape[2:], kernel, stride, dilate))
    if w.shape[1] == 1 and x.shape[1] == groups:
        return _depthwise(x, w, stride, dilate, out)
    result = np.empty((len(x), w.shape[0], *out), x.dtype)
    matrix = w.reshape(groups, w.shape[0] // groups, -1)
    if out == x.shape[2:]:  # a kernel of one tap that reads every place: nothing to unfold
        for image, found in zip(x, result):
            columns = image.reshape(groups, x.shape[1] // groups, -1)
            np.matmul(matrix, columns, out=found.reshape(groups, matrix.shape[1], -1))
        return result
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
    if not ops.channels_first(node):
        raise UnsupportedError(f"{node}: found layout {ops.attr(node, 'layout')}, want channels first (NCHW)")


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


# ---- ops ------------------------------------------------------------------------------------------------------------

def _check_bias(node: Node, shapes: list[Shape], count: int) -> None:
    need(node, 2 <= len(shapes) <= 3, "number of inputs", len(shapes), "data, weight and maybe bias")
    if len(shapes) == 3:
        need(node, shapes[2] == (count,), "bias", shapes[2], (count,))


@rule("Convolution", "Deconvolution")
def _convolution_shape(node: Node, shapes: list[Shape]) -> Shape:
    data, weight = shapes[:2]
    kernel, filters, groups = (ops.attr(node, key) for key in ("kernel", "num_filter", "num_group"))
    need(node, len(data) == len(kernel) + 2 and kernel, "data", data, f"{len(kernel) + 2} axes for kernel {kernel}")
    need(node, groups >= 1 and data[1] % groups == 0 and filters % groups == 0, "num_group", groups,
         f"a divisor of {data[1]} channels and {filters} filters")
    if node.op == "Convolution":
        want, spatial = (filters, data[1] // groups, *kernel), conv_output(node, data[2:])
    else:
        want, spatial = (data[1], filters // groups, *kernel), deconv_geometry(node, data[2:])[2]
    need(node, weight == want, "weight", weight, want)
    _check_bias(node, shapes, filters)
    _, stride, dilate, pad = spatial_attrs(node, len(kernel))
    check_work(node, data, [max(i, s * (i - 1) + 2 * d * k if node.op == "Deconvolution" else i + 2 * p)
                            for i, k, s, d, p in zip(data[2:], kernel, stride, dilate, pad)])
    return (data[0], filters, *spatial)


@rule("FullyConnected")
def _fully_connected_shape(node: Node, shapes: list[Shape]) -> Shape:
    data, units = shapes[0], ops.attr(node, "num_hidden")
    lead = data[:1] if ops.attr(node, "flatten") else data[:-1]
    want = (units, math.prod(data[len(lead):]))
    need(node, shapes[1] == want, "weight", shapes[1], want)
    _check_bias(node, shapes, units)
    return (*lead, units)


@kernel(*LINEAR)
def _linear(node: Node, x: np.ndarray, w: np.ndarray, *bias: np.ndarray) -> np.ndarray:
    dtype = np.dtype(np.float64 if node.wide else np.float32)
    weight = w.astype(dtype, copy=False)

    def run(images: slice) -> np.ndarray:
        out = LINEAR[node.op](node, x[images].astype(dtype, copy=False), weight)
        if bias:
            out += along_channels(node, bias[0], out.ndim)
        return activate(node, out.astype(np.float32, copy=False))

    return run(slice(None)) if node.op == "FullyConnected" else in_blocks(run, x.shape)


@rule("_contrib_DeformableConvolution", "_contrib_ModulatedDeformableConvolution")
def _deformable_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) == 4, "data", shapes[0], "4 axes")
    return (shapes[0][0], ops.attr(node, "num_filter"), *conv_output(node, shapes[0][2:]))


@kernel("_contrib_DeformableConvolution")
def _deformable(node: Node, x: np.ndarray, offset: np.ndarray, w: np.ndarray, *bias: np.ndarray) -> np.ndarray:
    """MXNet reads nothing outside of [0, size), and the edge between size - 1 and size."""
    size = np.array(x.shape[2:], np.float32).reshape(2, 1, 1)
    place = _places(node, x, offset)
    inside = ((place >= 0) & (place < size)).all(3)
    return _at_places(node, x, np.minimum(place, size - 1), inside.astype(np.float32), w, *bias)


@kernel("_contrib_ModulatedDeformableConvolution")
def _modulated(node: Node, x: np.ndarray, offset: np.ndarray, mask: np.ndarray, w: np.ndarray, *bias: np.ndarray
               ) -> np.ndarray:
    place = _places(node, x, offset)
    return _at_places(node, x, place, mask.reshape(*place.shape[:3], *place.shape[4:]), w, *bias)


def _places(node: Node, x: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Where each tap of each window lies: (N, deformable groups, taps, y and x, height, width)."""
    kernel, stride, dilate, pad = spatial_attrs(node, 2)
    out = conv_output(node, x.shape[2:])
    taps, windows = (np.stack(np.meshgrid(*(np.arange(n) * step - start for n, step, start in axes), indexing="ij"))
                     for axes in (zip(kernel, dilate, (0, 0)), zip(out, stride, pad)))
    base = taps.reshape(2, -1).T[:, :, None, None] + windows
    return offset.reshape(len(x), ops.attr(node, "num_deformable_group"), *base.shape) + base.astype(np.float32)


def _at_places(node: Node, x: np.ndarray, place: np.ndarray, mask: np.ndarray, w: np.ndarray, *bias: np.ndarray
               ) -> np.ndarray:
    """The convolution of what lies at these places, between four elements each, 0 outside, times the mask."""
    _check_layout(node)
    groups, deformable = ops.attr(node, "num_group"), place.shape[1]
    low = np.floor(place)
    part = place - low
    flat = x.reshape(len(x), deformable, -1, x.shape[2] * x.shape[3])
    read = np.zeros((*flat.shape[:3], *place.shape[2:3], *place.shape[4:]), np.float32)
    for corner in np.ndindex(2, 2):
        at = low + np.array(corner).reshape(2, 1, 1)
        weight = np.abs(1 - np.array(corner).reshape(2, 1, 1) - part).prod(3) * mask
        weight *= ((at >= 0) & (at < np.array(x.shape[2:]).reshape(2, 1, 1))).all(3)
        y, z = (np.clip(at[:, :, :, i], 0, x.shape[2 + i] - 1).astype(np.int64) for i in range(2))
        index = (y * x.shape[3] + z).reshape(*place.shape[:2], 1, -1)
        read += np.take_along_axis(flat, index, 3).reshape(read.shape) * weight[:, :, None]
    columns = read.reshape(len(x), groups, x.shape[1] // groups * read.shape[3], -1)
    out = np.matmul(w.reshape(groups, len(w) // groups, -1), columns).reshape(len(x), len(w), *read.shape[4:])
    return out + along_channels(node, bias[0], 4) if bias else out
