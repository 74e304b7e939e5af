"""Pooling, and images of another size."""

from __future__ import annotations

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, check_work, need, pool_geometry, resize_output
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel
from qgraph.semantics.linear import convolve, window


@rule("Pooling")
def _pooling_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) >= 3, "data", shapes[0], "at least 3 axes")
    size, stride, pad, spatial = pool_geometry(node, shapes[0][2:])
    check_work(node, shapes[0], [max(i + 2 * p, s * (n - 1) + k)
                                 for i, k, s, p, n in zip(shapes[0][2:], size, stride, pad, spatial)])
    return (*shapes[0][:2], *spatial)


@kernel("Pooling")
def _pooling(node: Node, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) if node.wide else x
    how, spatial = ops.attr(node, "pool_type"), x.shape[2:]
    if how not in ("max", "avg", "sum"):
        raise UnsupportedError(f"{node}: found pool_type {how!r}, want max, avg or sum")
    size, stride, pad, out = pool_geometry(node, spatial)
    if ops.attr(node, "global_pool"):
        axes = tuple(range(2, x.ndim))
        if how == "max":
            return x.max(axes, keepdims=True)
        return getattr(x, {"avg": "mean", "sum": "sum"}[how])(axes, keepdims=True, dtype=np.float64).astype(np.float32)
    # pad behind so far that the last window fits, which the "full" convention may put outside
    behind = [max(0, s * (n - 1) + k - i - p) for i, n, k, s, p in zip(spatial, out, size, stride, pad)]
    fill = np.finfo(np.float32).min if how == "max" else 0
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pad, behind)], constant_values=fill) if any((*pad, *behind)) else x
    ones, total = (1,) * len(spatial), None
    for tap in np.ndindex(*size):
        view = padded[window(tap, stride, ones, out)]
        if total is None:
            total = view.copy()
        else:
            (np.maximum if how == "max" else np.add)(total, view, out=total)
    assert total is not None
    return total / _pool_divisor(node, spatial, size, stride, pad, out) if how == "avg" else total


def _pool_divisor(node: Node, spatial: tuple, size: tuple, stride: tuple, pad: tuple, out: tuple) -> np.ndarray:
    """How many elements each window averages over: those inside the (padded) input, as MXNet counts them."""
    margin = pad if ops.attr(node, "count_include_pad") else (0,) * len(pad)
    divisor = np.ones((), np.float32)
    for i, k, s, p, m, n in zip(spatial, size, stride, pad, margin, out):
        start = np.arange(n) * s - p
        count = np.minimum(start + k, i + m) - np.maximum(start, -m)
        divisor = np.multiply.outer(divisor, np.maximum(count, 1).astype(np.float32))
    return divisor


@rule("_contrib_AdaptiveAvgPooling2D", "_contrib_BilinearResize2D")
def _resize_shape(node: Node, shapes: list[Shape]) -> Shape:
    for shape in shapes:
        need(node, len(shape) == 4, "data", shape, "4 axes")
    return (*shapes[0][:2], *resize_output(node, *(shape[2:] for shape in shapes)))


@kernel("_contrib_AdaptiveAvgPooling2D")
def _adaptive_pooling(node: Node, x: np.ndarray) -> np.ndarray:
    out = x.astype(np.float64)
    for axis, count in zip((2, 3), resize_output(node, x.shape[2:])):
        size = x.shape[axis]
        means = [out.take(range(i * size // count, -(-(i + 1) * size // count)), axis).mean(axis) for i in range(count)]
        out = np.stack(means, axis)
    return out.astype(np.float32)


@kernel("_contrib_BilinearResize2D")
def _bilinear(node: Node, x: np.ndarray, *like: np.ndarray) -> np.ndarray:
    aligned = ops.attr(node, "align_corners")
    for axis, count in zip((2, 3), resize_output(node, *(array.shape[2:] for array in (x, *like)))):
        size = x.shape[axis]
        if aligned:
            place = np.arange(count) * ((size - 1) / (count - 1) if count > 1 else 0.0)
        else:
            place = np.maximum((np.arange(count) + 0.5) * (size / count) - 0.5, 0)
        low = np.minimum(place.astype(np.int64), size - 1)
        high = np.minimum(low + 1, size - 1)
        part = (place - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


@rule("UpSampling")
def _up_sampling_shape(node: Node, shapes: list[Shape]) -> Shape:
    scale, nearest = ops.attr(node, "scale"), ops.attr(node, "sample_type") == "nearest"
    batch, _, height, width = shapes[0]
    images = shapes if nearest else shapes[:1]  # a bilinear one has a weight as its second input
    need(node, scale >= 1, "scale", scale, "at least 1")
    need(node, all((height * scale) % s[2] == 0 and (width * scale) % s[3] == 0 for s in images), "shapes", shapes,
         f"divisors of the first, times {scale}")
    return (batch, sum(s[1] for s in images), height * scale, width * scale)


@kernel("UpSampling")
def _up_sampling(node: Node, *xs: np.ndarray) -> np.ndarray:
    scale = ops.attr(node, "scale")
    if ops.attr(node, "sample_type") != "nearest":
        return _grown_by_weight(*xs, scale=scale)
    height, width = (d * scale for d in xs[0].shape[2:])
    return np.concatenate([x.repeat(height // x.shape[2], 2).repeat(width // x.shape[3], 3) for x in xs], 1)


def _grown_by_weight(x: np.ndarray, w: np.ndarray, *, scale: int) -> np.ndarray:
    """A transposed depthwise convolution, of a stride of `scale`. w: (C, 1, kernel, kernel)."""
    kernel, pad = 2 * scale - scale % 2, scale // 2
    reach = [scale * (i - 1) + kernel for i in x.shape[2:]]
    canvas = np.zeros((*x.shape[:2], *(n + kernel - 1 for n in reach)), x.dtype)
    canvas[:, :, kernel - 1:reach[0]:scale, kernel - 1:reach[1]:scale] = x
    full = convolve(canvas, w[:, :, ::-1, ::-1], (1, 1), (1, 1), len(w))
    return full[:, :, pad:reach[0] - pad, pad:reach[1] - pad]
