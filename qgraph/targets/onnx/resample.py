"""Converters to ONNX: what reads windows or regions of a map, and what gives it another size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qgraph.semantics.geometry import pool_geometry, resize_output, slices
from qgraph.targets.onnx.convert import Context, converter
from qgraph.targets.onnx.nn import check_layout

# ---- pooling --------------------------------------------------------------------------------------------------------


@converter("Pooling")
def _pooling(c: Context, x: str) -> str:
    """MaxPool, AveragePool, LpPool or their global forms; a sum is the average times the size of the window."""
    check_layout(c)
    kind = c.attr("pool_type")
    kernel, pad = c.attr("kernel"), c.attr("pad")
    whole = c.knows() and tuple(kernel) == c.shape()[2:] and not any(pad)  # engines are faster at the global form
    if c.attr("global_pool") or (whole and kind in ("max", "avg")):
        return _global_pool(c, x, kind)
    if kind == "avg" and c.attr("count_include_pad") and c.attr("pooling_convention") != "valid" and any(pad):
        # MXNet counts the padding it was asked for, and not what lies beyond it
        x, more = spatial_pad(c, x, pad, pad), _more(c, (0,) * len(pad))
        return _window(c, "AveragePool", x, [0] * len(pad), more)
    more = _more(c, pad)
    if kind == "max":
        return _window(c, "MaxPool", x, pad, more)
    if kind == "lp":
        return _window(c, "LpPool", x, pad, more, p=_power(c))
    if kind == "sum":
        if more is None:
            c.shape()
        total = _window(c, "AveragePool", x, pad, more, count_include_pad=1)
        return str(c.op("Mul", total, c.const(np.float32(math.prod(kernel)))))
    counts = c.attr("count_include_pad") and any(pad)
    return _window(c, "AveragePool", x, pad, more, count_include_pad=1 if counts else None)


def _power(c: Context) -> int:
    if c.attr("p_value") != 2:
        raise c.refuse(f"found p_value {c.attr('p_value')}, want 2: of others MXNet sums signed powers")
    return 2


def _global_pool(c: Context, x: str, kind: str) -> str:
    if kind == "sum":
        return str(c.op("ReduceSum", x, c.const(list(range(2, len(c.shape()))))))
    if kind == "lp":
        return str(c.op("GlobalLpPool", x, p=_power(c)))
    return str(c.op("GlobalMaxPool" if kind == "max" else "GlobalAveragePool", x))


def _more(c: Context, pad: Sequence[int]) -> list[int] | None:
    """How far the last window of each axis reaches beyond the padding; None if heights and widths are not known.

    pad: what windows may lie in; one that lies wholly in it has no value in ONNX.
    """
    kernel, stride, convention = c.attr("kernel"), c.attr("stride"), c.attr("pooling_convention")
    if convention == "same":
        raise c.refuse("pooling_convention same is one that MXNet itself does not run")
    if convention == "valid":
        return [0] * len(kernel)
    spatial = c.shape()[2:] if c.knows() else (-1,)
    if -1 in spatial:
        if all(s + p <= k for k, s, p in zip(kernel, stride, pad)):
            return None  # ceil_mode says the same
        raise c.refuse("with pooling_convention full it needs fixed heights and widths (--input-shape)")
    own = c.attr("pad")
    starts = [(n - 1) * s for n, s in zip(pool_geometry(c.node, spatial)[3], stride)]
    if any(start >= i + 2 * own_p - p for start, i, own_p, p in zip(starts, spatial, own, pad)):
        raise c.refuse(f"its last window lies wholly outside of the map {spatial}")
    return [max(0, start + k - i - 2 * p) for start, k, i, p in zip(starts, kernel, spatial, own)]


def _window(c: Context, op: str, x: str, pad: Sequence[int], more: Sequence[int] | None, **attrs: Any) -> str:
    tail = pad if more is None else [p + m for p, m in zip(pad, more)]
    return str(c.op(op, x, kernel_shape=c.attr("kernel"), strides=c.attr("stride"), pads=[*pad, *tail],
                    ceil_mode=1 if more is None else None, **attrs))


def spatial_pad(c: Context, x: str, before: Sequence[int], after: Sequence[int]) -> str:
    """Zeros around the axes behind the channels."""
    return str(c.op("Pad", x, c.const([0, 0, *before, 0, 0, *after], "pads")))


@converter("_contrib_AdaptiveAvgPooling2D")
def _adaptive_pooling(c: Context, x: str) -> str:
    """GlobalAveragePool, AveragePool if the sizes divide, else two products with matrices that average."""
    size = resize_output(c.node, ())
    if size == (1, 1):
        return str(c.op("GlobalAveragePool", x))
    spatial = _fixed(c)
    if all(i % n == 0 for i, n in zip(spatial, size)):
        window = [i // n for i, n in zip(spatial, size)]
        return str(c.op("AveragePool", x, kernel_shape=window, strides=window))
    rows, columns = (_averages(i, n) for i, n in zip(spatial, size))
    return str(c.op("MatMul", c.op("MatMul", c.const(rows, "rows"), x), c.const(columns.T, "columns")))


def _averages(size: int, count: int) -> np.ndarray:
    """Matrix (count, size) that averages parts, which may overlap."""
    out = np.zeros((count, size), np.float32)
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        out[i, start:end] = 1 / (end - start)
    return out


def _fixed(c: Context, slot: int = 0) -> tuple[int, ...]:
    """Height and width of an input."""
    spatial = c.shape(slot)[2:]
    if -1 in spatial:
        raise c.refuse("it needs fixed heights and widths")
    return spatial


# ---- another size ---------------------------------------------------------------------------------------------------

@converter("_contrib_BilinearResize2D")
def _bilinear(c: Context, x: str, *like: str) -> str:
    """Resize (linear) to sizes of all axes: onnxruntime fails on `axes` where it moves a Transpose through."""
    place = "align_corners" if c.attr("align_corners") else "pytorch_half_pixel"
    if c.attr("mode") == "like":
        size = c.op("Shape", like[0], start=2)
    else:
        fixed = c.attr("mode") == "size" and not (c.attr("scale_height") or c.attr("scale_width"))
        size = c.const(list(resize_output(c.node, (0, 0) if fixed else _fixed(c))), "size")
    sizes = c.op("Concat", c.op("Shape", x, end=2), size, axis=0)
    return str(c.op("Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode=place))


@converter("UpSampling")
def _up_sampling(c: Context, *inputs: str) -> str:
    """Resize (nearest) and Concat; a bilinear one is ConvTranspose with its weight."""
    scale = c.attr("scale")
    if c.attr("sample_type") == "bilinear":
        return str(c.op("ConvTranspose", *inputs, kernel_shape=[2 * scale - scale % 2] * 2, strides=[scale] * 2,
                        pads=[scale // 2] * 4, group=c.attr("num_filter")))
    if c.attr("multi_input_mode") != "concat" and len(inputs) > 1:
        raise c.refuse(f"found multi_input_mode {c.attr('multi_input_mode')}, want concat")
    scales = [[scale, scale]]
    if len(inputs) > 1:
        sizes = [_fixed(c, slot) for slot in range(len(inputs))]
        scales = [[n * scale // i for n, i in zip(sizes[0], size)] for size in sizes]
    grown = [str(c.op("Resize", x, "", c.const(np.array([1, 1, *factors], np.float32), "scales"), mode="nearest",
                      coordinate_transformation_mode="asymmetric", nearest_mode="floor"))
             for x, factors in zip(inputs, scales)]
    return grown[0] if len(grown) == 1 else str(c.op("Concat", *grown, axis=1))


@converter("Crop")
def _crop(c: Context, x: str, *like: str) -> str:
    """Slice of the last two axes."""
    cut = slices(c.node, [(*c.shape(slot)[:2], *_fixed(c, slot)) for slot in range(1 + len(like))])[2:]
    starts, ends = ([getattr(part, end) for part in cut] for end in ("start", "stop"))
    return str(c.op("Slice", x, c.const(starts, "starts"), c.const(ends, "ends"), c.const([2, 3], "axes")))


@converter("Pad")
def _pad(c: Context, x: str) -> str:
    """Pad."""
    mode, width = c.attr("mode"), c.attr("pad_width")
    if mode not in ("constant", "edge", "reflect"):
        raise c.refuse(f"found mode {mode!r}, want constant, edge or reflect")
    fill = [c.const(np.float32(c.attr("constant_value")))] if mode == "constant" else []
    return str(c.op("Pad", x, c.const([*width[::2], *width[1::2]], "pads"), *fill, mode=mode))


# ---- windows at places that the data give ---------------------------------------------------------------------------

@converter("ROIPooling")
def _roi_pooling(c: Context, x: str, rois: str) -> str:
    """MaxRoiPool."""
    return str(c.op("MaxRoiPool", x, rois, pooled_shape=c.attr("pooled_size"), spatial_scale=c.attr("spatial_scale")))


@converter("_contrib_ROIAlign")
def _roi_align(c: Context, x: str, rois: str) -> str:
    """RoiAlign of the boxes; the first column of the rois is the number of the image, zeros where it is negative."""
    if c.attr("position_sensitive"):
        raise c.refuse("position_sensitive is not what ONNX's RoiAlign does")
    height, width = c.attr("pooled_size")
    image, boxes = c.op("Split", rois, c.const([1, 4], "columns"), axis=1, n_out=2)
    zero = c.const(np.float32(0))
    index = c.op("Cast", c.op("Squeeze", c.op("Max", image, zero), c.const([1], "axes")), to=7)  # INT64
    found = c.op("RoiAlign", x, boxes, index, output_height=height, output_width=width, mode="avg",
                 spatial_scale=c.attr("spatial_scale"), sampling_ratio=max(0, c.attr("sample_ratio")),
                 coordinate_transformation_mode="half_pixel" if c.attr("aligned") else "output_half_pixel")
    there = c.op("Unsqueeze", c.op("GreaterOrEqual", image, zero), c.const([2, 3], "axes"))
    return str(c.op("Where", there, found, zero))


@converter("_contrib_ModulatedDeformableConvolution")
def _modulated(c: Context, x: str, offset: str, mask: str, weight: str, *bias: str) -> str:
    """DeformConv."""
    return _deform(c, x, offset, mask, weight, *bias)


@converter("_contrib_DeformableConvolution")
def _deformable(c: Context, x: str, offset: str, weight: str, *bias: str) -> str:
    """DeformConv. MXNet reads nothing outside of [0, size) and the edge between size - 1 and size: a mask, a limit."""
    size, out, groups = _fixed(c), c.out_shape()[2:], c.attr("num_deformable_group")
    taps = np.stack(np.meshgrid(*(np.arange(k) * d for k, d in zip(c.attr("kernel"), c.attr("dilate"))), indexing="ij"))
    grid = np.stack(np.meshgrid(*(np.arange(n) * s - p for n, s, p in zip(out, c.attr("stride"), c.attr("pad"))),
                                indexing="ij"))
    count = taps[0].size  # base: where each tap of each window lies, (1, taps, y and x, height, width)
    base = (taps.reshape(2, count).T[None, :, :, None, None] + grid[None, None]).astype(np.float32)
    start = c.const(np.tile(base, (1, groups, 1, 1, 1)), "places")
    ends = np.array(size, np.float32).reshape(1, 1, 2, 1, 1)
    place = c.op("Add", c.op("Reshape", offset, c.const([0, groups * count, 2, *out], "shape")), start)
    inside = c.op("And", c.op("GreaterOrEqual", place, c.const(np.float32(0))),
                  c.op("Less", place, c.const(ends, "ends")))
    mask = c.op("ReduceMin", c.op("Cast", inside, to=1), c.const([2], "axes"), keepdims=0)  # FLOAT
    limited = c.op("Sub", c.op("Min", place, c.const(ends - 1, "last")), start)
    return _deform(c, x, c.op("Reshape", limited, c.const([0, groups * count * 2, *out], "shape")), mask, weight, *bias)


def _deform(c: Context, x: str, offset: str, mask: str, weight: str, bias: str = "") -> str:
    check_layout(c)
    pad = c.attr("pad")
    return str(c.op("DeformConv", x, weight, offset, bias, mask, kernel_shape=c.attr("kernel"),
                    strides=c.attr("stride"), dilations=c.attr("dilate"), pads=[*pad, *pad], group=c.attr("num_group"),
                    offset_group=c.attr("num_deformable_group")))
