"""Converters to ONNX of the decoding of detectors: anchors, boxes, and the suppression of overlapping ones.

MXNet gives a fixed number of rows, those that are suppressed as -1; NonMaxSuppression of ONNX gives the indices of what
is kept.  So every converter here marks that in a mask over the rows, and puts the rows in order by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qgraph.semantics.detect import CENTER, CORNER, anchors, at_least, base_anchors
from qgraph.targets.onnx.convert import Context, converter
from qgraph.targets.onnx.math import INT64, scalar, to_float
from qgraph.targets.onnx.shape import dims

LOWEST = float(np.finfo(np.float32).min)  # the score of a row that does not count


# ---- parts of rows --------------------------------------------------------------------------------------------------

def _columns(c: Context, rows: str, start: int, count: int = 1) -> str:
    """Some numbers of every row; the last axis stays."""
    ends = (c.const([n], "slice") for n in (start, start + count, -1))
    return c.op("Slice", rows, *ends)


def _halves(c: Context, boxes: str) -> list[str]:
    return c.op("Split", boxes, n_out=2, axis=-1, num_outputs=2)


def _corners(c: Context, boxes: str) -> str:
    middle, size = _halves(c, boxes)
    half = c.op("Mul", size, scalar(c, 0.5))
    return c.op("Concat", c.op("Sub", middle, half), c.op("Add", middle, half), axis=-1)


def _centers(c: Context, boxes: str) -> str:
    low, high = _halves(c, boxes)
    return c.op("Concat", c.op("Mul", c.op("Add", low, high), scalar(c, 0.5)), c.op("Sub", high, low), axis=-1)


def _flat(c: Context, column: str) -> str:
    """(N, rows, 1) -> (N, rows)"""
    return c.op("Squeeze", column, c.const([-1], "axis"))


def _column(c: Context, values: str) -> str:
    """(N, rows) -> (N, rows, 1)"""
    return c.op("Unsqueeze", values, c.const([-1], "axis"))


def _rows(c: Context, table: str, index: str) -> str:
    """Rows of each image in another order. index: (N, rows), int64."""
    return c.op("GatherND", table, _column(c, index), batch_dims=1)


# ---- suppression ----------------------------------------------------------------------------------------------------

@dataclass
class _Ranked:
    """The best rows of each image, by score. rows: (N, count, ...).  scores: (N, count), `LOWEST` where none counts."""

    rows: str
    scores: str
    count: int


def _ranked(c: Context, rows: str, scores: str, count: int) -> _Ranked:
    found, index = c.op("TopK", scores, c.const([count], "k"), n_out=2, axis=1, largest=1, sorted=1)
    return _Ranked(_rows(c, rows, index), found, count)


def _counts(c: Context, scores: str) -> str:
    return c.op("Greater", scores, scalar(c, LOWEST))


def _kept(c: Context, ranked: _Ranked, boxes: str, ids: str | None, threshold: float) -> str:
    """(N, count) bool: it counts, and overlaps no better box that is kept, and of the same id, by more than that.

    boxes: corners, (N, count, 4).  ids: (N, count); ONNX suppresses class by class, so each id is a class.
    """
    low, high = _halves(c, boxes)
    boxes = c.op("Concat", low, c.op("Max", low, high), axis=-1)  # a box without an area stays one: ONNX would turn it
    scores = c.op("Unsqueeze", ranked.scores, c.const([1], "axis"))
    if ids is not None:
        classes = c.op("Unsqueeze", c.op("Unique", ids, sorted=1), c.const([0, 2], "axes"))
        mine = c.op("Equal", c.op("Unsqueeze", ids, c.const([1], "axis")), classes)
        scores = c.op("Where", mine, scores, scalar(c, LOWEST))
    bounds = (c.const(np.float32(value), "bound") for value in (min(max(threshold, 0.0), 1.0), LOWEST))
    found = c.op("NonMaxSuppression", boxes, scores, c.const([ranked.count], "count"), *bounds)
    places = c.op("Gather", found, c.const([0, 2], "columns"), axis=1)
    ones = c.op("Expand", scalar(c, 1), dims(c, places, 0, 1))
    return c.op("Greater", c.op("ScatterND", c.op("Mul", ranked.scores, scalar(c, 0)), places, ones), scalar(c, 0))


def _first(c: Context, mask: str, count: int) -> tuple[str, str]:
    """(rows for which the mask holds, in order and before the others, (N, count) int64; how long it holds, bool)"""
    falling = c.const(np.arange(count, 0, -1, dtype=np.float32), "falling")
    key, index = c.op("TopK", c.op("Mul", to_float(c, mask), falling), c.const([count], "k"), n_out=2, axis=1,
                      largest=1, sorted=1)
    return index, c.op("Greater", key, scalar(c, 0))


def _only(c: Context, mask: str, rows: str) -> str:
    """The rows for which the mask holds, -1 in the others."""
    return c.op("Where", _column(c, mask), rows, scalar(c, -1))


def _padded(c: Context, rows: str, count: int, total: int) -> str:
    """With rows of -1 behind them."""
    if count == total:
        return rows
    return c.op("Pad", rows, c.const([0, 0, 0, 0, total - count, 0], "pads"), scalar(c, -1))


@converter("_contrib_box_nms")
def _box_nms(c: Context, x: str) -> str:
    if c.attr("topk") == 0:
        return c.op("Identity", x)
    *_, total, width = shape = c.shape()
    if -1 in (total, width):
        raise c.refuse("the number of its boxes depends on the batch size")
    rows = x if len(shape) == 3 else c.reshape(x, (-1, total, width))
    scores = _flat(c, _columns(c, rows, c.attr("score_index")))
    valid = c.op("Greater", scores, scalar(c, c.attr("valid_thresh")))
    by_id = c.attr("id_index") >= 0
    if by_id:
        background = c.op("Equal", _flat(c, _columns(c, rows, c.attr("id_index"))), scalar(c, c.attr("background_id")))
        valid = c.op("And", valid, c.op("Not", background))
    count = min(c.attr("topk"), total) if c.attr("topk") > 0 else total
    best = _ranked(c, rows, c.op("Where", valid, scores, scalar(c, LOWEST)), count)
    boxes = _columns(c, best.rows, c.attr("coord_start"), 4)
    given, wanted = c.attr("in_format"), c.attr("out_format")
    ids = _flat(c, _columns(c, best.rows, c.attr("id_index"))) if by_id and not c.attr("force_suppress") else None
    keep = _kept(c, best, _corners(c, boxes) if given == CENTER else boxes, ids, c.attr("overlap_thresh"))
    index, mask = _first(c, keep, count)
    found = _padded(c, _only(c, mask, _rows(c, best.rows, index)), count, total)
    if given != wanted:
        start, change = c.attr("coord_start"), _corners if wanted == CORNER else _centers
        parts = [_columns(c, found, 0, start)] if start else []
        boxes = _columns(c, found, start, 4)
        below = c.op("Less", _columns(c, found, start), scalar(c, 0))  # MXNet leaves such a box as it is
        parts.append(c.op("Where", below, boxes, change(c, boxes)))
        parts += [_columns(c, found, start + 4, width - start - 4)] if start + 4 < width else []
        found = c.op("Concat", *parts, axis=-1)
    return found if len(shape) == 3 else c.reshape(found, shape)


# ---- single shot detectors ------------------------------------------------------------------------------------------

@converter("_contrib_MultiBoxPrior")
def _prior(c: Context, x: str) -> str:
    height, width = c.shape()[2:]
    if -1 in (height, width):
        raise c.refuse("the size of its feature map is not known")
    return c.const(anchors(c.node, height, width), "anchors")


@converter("_contrib_MultiBoxDetection")
def _detection(c: Context, scores: str, offsets: str, priors: str) -> str:
    """See the kernel in `qgraph.semantics.detect` for the order of the rows."""
    _, classes, total = c.shape()
    moves = c.op("Mul", c.reshape(offsets, (-1, total, 4)), c.const(np.array(c.attr("variances"), np.float32)))
    (shift, growth), (middle, size) = _halves(c, moves), _halves(c, _centers(c, priors))
    boxes = _corners(c, c.op("Concat", c.op("Add", c.op("Mul", shift, size), middle),
                             c.op("Mul", c.op("Exp", growth), size), axis=-1))
    if c.attr("clip"):
        boxes = c.op("Clip", boxes, scalar(c, 0), scalar(c, 1))
    own = c.op("Slice", scores, *(c.const([n], "slice") for n in (1, classes, 1)))
    score = c.op("ReduceMax", own, c.const([1], "axis"), keepdims=0)
    label = to_float(c, c.op("ArgMax", own, axis=1, keepdims=0))
    valid = c.op("GreaterOrEqual", score, scalar(c, c.attr("threshold")))
    rows = c.op("Concat", _column(c, label), _column(c, score), boxes, axis=-1)
    index, mask = _first(c, valid, total)
    plain = _only(c, mask, _rows(c, rows, index))
    threshold, topk = c.attr("nms_threshold"), c.attr("nms_topk")
    if not 0 < threshold <= 1:
        return plain
    best = _ranked(c, rows, c.op("Where", valid, score, scalar(c, LOWEST)), min(topk, total) if topk > 0 else total)
    ids = None if c.attr("force_suppress") else _flat(c, _columns(c, best.rows, 0))
    keep = _kept(c, best, _columns(c, best.rows, 2, 4), ids, at_least(threshold))
    named = c.op("Concat", _only(c, keep, _columns(c, best.rows, 0)), _columns(c, best.rows, 1, 5), axis=-1)
    found = _only(c, _counts(c, best.scores), named)
    if best.count == total:
        return found
    rest = c.op("Slice", plain, *(c.const([n], "slice") for n in (best.count, total, 1)))
    nameless = c.op("Expand", scalar(c, -1), c.op("Concat", dims(c, rest, 0, 2), c.const([1], "one"), axis=0))
    return c.op("Concat", found, c.op("Concat", nameless, _columns(c, rest, 1, 5), axis=-1), axis=1)


@converter("_contrib_box_iou")
def _box_iou(c: Context, a: str, b: str) -> str:
    out = (*c.shape(0)[:-1], *c.shape(1)[:-1]) or (1,)
    lists = [c.reshape(x, (-1, 4)) for x in (a, b)]
    if c.attr("format") == CENTER:
        lists = [_corners(c, x) for x in lists]
    (low, high), (low2, high2) = (
        _halves(c, c.op("Unsqueeze", x, c.const([axis], "axis"))) for axis, x in zip((1, 0), lists))
    zero = scalar(c, 0)

    def area(first: str, last: str) -> str:
        return str(c.op("ReduceProd", c.op("Max", c.op("Sub", last, first), zero), c.const([-1], "axis"), keepdims=0))

    common = area(c.op("Max", low, low2), c.op("Min", high, high2))
    union = c.op("Sub", c.op("Add", area(low, high), area(low2, high2)), common)
    some = c.op("Greater", union, zero)
    found = c.op("Where", some, c.op("Div", common, c.op("Where", some, union, scalar(c, 1))), zero)
    return c.reshape(found, out)


# ---- region proposals -----------------------------------------------------------------------------------------------

def _places(c: Context, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(anchors (1, places, 4), row and column of the map for each of them (1, places, 2)), the anchors of a place last.
    """
    base, stride = base_anchors(c.node), c.attr("feature_stride")
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    shift = np.stack([columns, rows] * 2, -1)[:, :, None] * stride
    cells = np.broadcast_to(np.stack([rows, columns], -1)[:, :, None], (height, width, len(base), 2))
    return (shift + base).reshape(1, -1, 4).astype(np.float32), cells.reshape(1, -1, 2).astype(np.float32)


def _moved(c: Context, moves: str, places: np.ndarray) -> str:
    """Boxes in whole pixels, whose last one counts: where the anchors are moved to."""
    if c.attr("iou_loss"):
        return str(c.op("Add", moves, c.const(places, "anchors")))
    size = places[..., 2:] - places[..., :2] + 1
    middle = places[..., :2] + (size - 1) / 2
    shift, growth = _halves(c, moves)
    middles = c.op("Add", c.op("Mul", shift, c.const(size, "size")), c.const(middle, "middle"))
    reach = c.op("Sub", c.op("Mul", c.op("Exp", growth), c.const(size, "size")), scalar(c, 1))
    half = c.op("Mul", reach, scalar(c, 0.5))
    return str(c.op("Concat", c.op("Sub", middles, half), c.op("Add", middles, half), axis=-1))


@converter("_contrib_Proposal", "_contrib_MultiProposal")
def _proposal(c: Context, scores: str, offsets: str, info: str) -> str | list[str]:
    """The best boxes of each image; where fewer are kept than wanted they are repeated in turn."""
    _, twice, height, width = c.shape()
    each = twice // 2
    places, cells = _places(c, height, width)
    total = len(places[0])
    fore = c.op("Slice", scores, *(c.const([n], "slice") for n in (each, twice, 1)))
    score = c.reshape(c.op("Transpose", fore, perm=[0, 2, 3, 1]), (-1, total))
    moves = c.op("Transpose", c.reshape(offsets, (-1, each, 4, height, width)), perm=[0, 3, 4, 1, 2])
    boxes = _moved(c, c.reshape(moves, (-1, total, 4)), places)

    facts = c.op("Unsqueeze", info, c.const([1], "axis"))  # height, width, scale: (N, 1, 3)
    size, least = _columns(c, facts, 0, 2), c.op("Mul", _columns(c, facts, 2), scalar(c, c.attr("rpn_min_size")))
    ends = c.op("Sub", c.op("Gather", size, c.const([1, 0, 1, 0], "order"), axis=2), scalar(c, 1))
    boxes = c.op("Max", c.op("Min", boxes, ends), scalar(c, 0))
    low, high = _halves(c, boxes)
    sides = c.op("Add", c.op("Sub", high, low), scalar(c, 1))
    small = c.op("Less", c.op("ReduceMin", sides, c.const([-1], "axis"), keepdims=1), least)
    grown = c.op("Mul", least, c.const(np.array([-0.5, -0.5, 0.5, 0.5], np.float32), "grown"))
    boxes = c.op("Where", small, c.op("Add", boxes, grown), boxes)
    inside = c.op("Floor", c.op("Div", size, scalar(c, c.attr("feature_stride"))))
    beyond = c.op("ReduceMax", to_float(c, c.op("GreaterOrEqual", c.const(cells, "cells"), inside)),
                  c.const([-1], "axis"), keepdims=0)
    out = c.op("Or", _flat(c, small), c.op("Greater", beyond, scalar(c, 0)))
    first, wanted = c.attr("rpn_pre_nms_top_n"), c.attr("rpn_post_nms_top_n")
    best = _ranked(c, boxes, c.op("Where", out, scalar(c, -1), score), min(first, total) if first > 0 else total)

    edges = c.op("Add", best.rows, c.const(np.array([0, 0, 1, 1], np.float32), "last"))
    index, mask = _first(c, _kept(c, best, edges, None, c.attr("threshold")), best.count)
    found = c.op("ReduceSum", c.op("Cast", mask, to=INT64), c.const([1], "axis"), keepdims=1)
    found = c.op("Min", found, c.const(np.int64(wanted), "wanted"))
    turn = c.op("Mod", c.const(np.arange(wanted)[None], "turn"), found)
    index = c.op("GatherElements", index, turn, axis=1)
    ones = c.op("Mul", to_float(c, _column(c, index)), scalar(c, 0))
    images = c.op("CumSum", c.op("Add", ones, scalar(c, 1)), c.const(np.int64(0), "axis"), exclusive=1)
    rois = c.reshape(c.op("Concat", images, _rows(c, best.rows, index), axis=-1), (-1, 5))
    if not c.attr("output_score"):
        return rois
    return [rois, c.reshape(c.op("GatherElements", best.scores, index, axis=1), (-1, 1))]
