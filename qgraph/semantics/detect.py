"""Ops of detectors: windows at boxes, and boxes: anchors, their decoding, and the suppression of overlapping ones."""

from __future__ import annotations

import math

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, need
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel

CORNER, CENTER = "corner", "center"  # x1, y1, x2, y2, or the middle and the size


@rule("ROIPooling", "_contrib_ROIAlign")
def _roi_shape(node: Node, shapes: list[Shape]) -> Shape:
    data, rois = shapes
    need(node, len(data) == 4 and len(rois) == 2 and rois[1] == 5, "data and rois", shapes, "4 axes, and rows of 5")
    return (rois[0], data[1], *ops.attr(node, "pooled_size"))


# ---- boxes ----------------------------------------------------------------------------------------------------------

@rule("_contrib_box_decode")
def _box_decode_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) == 3 and shapes[1] == (1, *shapes[0][1:]) and shapes[0][2] == 4, "shapes", shapes,
         "(N, boxes, 4) and (1, boxes, 4)")
    return shapes[0]


@kernel("_contrib_box_decode")
def _box_decode(node: Node, offsets: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Corners: the middle moved by a part of the anchor's size, the size times an exponential."""
    moves = offsets * np.array([ops.attr(node, f"std{i}") for i in range(4)], np.float32)
    place = centers(priors) if ops.attr(node, "format") == CORNER else priors
    growth, clip = moves[..., 2:], ops.attr(node, "clip")
    growth = np.exp(np.minimum(growth, np.float32(clip)) if clip > 0 else growth)
    return corners(np.concatenate([moves[..., :2] * place[..., 2:] + place[..., :2], growth * place[..., 2:]], -1))


@rule("_contrib_box_iou")
def _box_iou_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, all(shape[-1] == 4 for shape in shapes), "shapes", shapes, "boxes of 4 numbers")
    return (*shapes[0][:-1], *shapes[1][:-1]) or (1,)


@kernel("_contrib_box_iou")
def _box_iou(node: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lists = [x if ops.attr(node, "format") == CORNER else corners(x) for x in (a, b)]
    left, right = (x.reshape(-1, 4) for x in lists)
    return overlaps(left[:, None], right[None]).reshape((*a.shape[:-1], *b.shape[:-1]) or (1,))


def corners(boxes: np.ndarray) -> np.ndarray:
    """Corners of boxes that are given by middle and size."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([middle - half, middle + half], -1)


def centers(boxes: np.ndarray) -> np.ndarray:
    """The reverse."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes that are given by corners; 0 where the corners are exchanged."""
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1)


def common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The area that boxes, which broadcast, have in common."""
    return areas(np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], -1))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes that broadcast; 0 where one has no area."""
    shared = common(a, b)
    union = areas(a) + areas(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


# ---- suppression ----------------------------------------------------------------------------------------------------

def kept(boxes: np.ndarray, ids: np.ndarray | None, threshold: float) -> np.ndarray:
    """Which boxes, the best one first, overlap no better one that is kept, and of the same id, by more than that."""
    keep = np.ones(len(boxes), bool)
    for i in range(len(boxes)):
        if keep[i]:
            over = overlaps(boxes[i], boxes[i + 1:]) > np.float32(threshold)
            keep[i + 1:] &= ~(over if ids is None else over & (ids[i + 1:] == ids[i]))
    return keep


def at_least(threshold: float) -> float:
    """The bound that is exceeded by what is at least `threshold`, in float32."""
    return float(np.nextafter(np.float32(threshold), np.float32(-1)))


@rule("_contrib_box_nms")
def _box_nms_shape(node: Node, shapes: list[Shape]) -> Shape:
    (shape,) = shapes
    last = max(ops.attr(node, "coord_start") + 3, ops.attr(node, "score_index"), ops.attr(node, "id_index"))
    need(node, len(shape) > 1 and last < shape[-1], "data", shape, f"2 axes or more, rows of {last + 1} or more")
    return shape


@kernel("_contrib_box_nms")
def _box_nms(node: Node, x: np.ndarray) -> np.ndarray:
    """Rows that are kept, by score, and -1 in the rest; a topk of 0 keeps all. Boxes below 0 keep their format, too."""
    at, id_at = ops.attr(node, "coord_start"), ops.attr(node, "id_index")
    given, wanted = ops.attr(node, "in_format"), ops.attr(node, "out_format")
    if ops.attr(node, "topk") == 0:
        return x
    out = np.full((math.prod(x.shape[:-2]), *x.shape[-2:]), -1, np.float32)
    for rows, found in zip(x.reshape(out.shape), out):
        scores = rows[:, ops.attr(node, "score_index")]
        valid = scores > np.float32(ops.attr(node, "valid_thresh"))
        if id_at >= 0:
            valid &= rows[:, id_at] != ops.attr(node, "background_id")
        order = np.argsort(-scores, kind="stable")
        order = order[valid[order]][:ops.attr(node, "topk") if ops.attr(node, "topk") > 0 else None]
        best = rows[order]
        boxes = best[:, at:at + 4]
        ids = None if id_at < 0 or ops.attr(node, "force_suppress") else best[:, id_at]
        best = best[kept(corners(boxes) if given == CENTER else boxes, ids, ops.attr(node, "overlap_thresh"))]
        found[:len(best)] = best
    if given != wanted:
        boxes = out[..., at:at + 4]
        out[..., at:at + 4] = np.where(boxes[..., :1] < 0, boxes, (corners if wanted == CORNER else centers)(boxes))
    return out.reshape(x.shape)


# ---- single shot detectors ------------------------------------------------------------------------------------------

@rule("_contrib_MultiBoxPrior")
def _prior_shape(node: Node, shapes: list[Shape]) -> Shape:
    need(node, len(shapes[0]) == 4, "data", shapes[0], "4 axes")
    each = len(ops.attr(node, "sizes")) + len(ops.attr(node, "ratios")) - 1
    return (1, shapes[0][2] * shapes[0][3] * each, 4)


@kernel("_contrib_MultiBoxPrior")
def _prior(node: Node, x: np.ndarray) -> np.ndarray:
    return anchors(node, x.shape[2], x.shape[3])


def anchors(node: Node, height: int, width: int) -> np.ndarray:
    """The boxes of a MultiBoxPrior: at every place the sizes with the first ratio, then the first size with the others.
    """
    sizes, ratios = (np.array(ops.attr(node, key), np.float32) for key in ("sizes", "ratios"))
    roots = np.sqrt(np.concatenate([np.full(len(sizes), ratios[0]), ratios[1:]]), dtype=np.float32)
    lengths = np.concatenate([sizes, np.full(len(ratios) - 1, sizes[0], np.float32)])
    half = np.stack([lengths * np.float32(height) / np.float32(width) * roots / 2, lengths / roots / 2], -1)
    axes = []
    for count, step, offset in zip((height, width), ops.attr(node, "steps"), ops.attr(node, "offsets")):
        step = np.float32(step) if step > 0 else np.float32(1) / np.float32(count)
        axes.append((np.arange(count, dtype=np.float32) + np.float32(offset)) * step)
    y, x = np.meshgrid(*axes, indexing="ij")
    middle = np.stack([x, y], -1)[:, :, None]
    boxes = np.concatenate([middle - half, middle + half], -1).reshape(1, -1, 4)
    return np.clip(boxes, 0, 1) if ops.attr(node, "clip") else boxes


@rule("_contrib_MultiBoxDetection")
def _detection_shape(node: Node, shapes: list[Shape]) -> Shape:
    scores, offsets, boxes = shapes
    need(node, len(scores) == 3 and offsets == (scores[0], 4 * scores[2]) and boxes == (1, scores[2], 4), "shapes",
         shapes, "(N, classes, boxes), (N, 4 boxes) and (1, boxes, 4)")
    return (scores[0], scores[2], 6)


@kernel("_contrib_MultiBoxDetection")
def _detection(node: Node, scores: np.ndarray, offsets: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Rows of id, score and box, by score; the id of those that are suppressed is -1, and all of what has no class.

    Beyond `nms_topk` the rows are not sorted, nor without suppression.
    """
    variances = np.array(ops.attr(node, "variances"), np.float32)
    place = centers(priors)
    moves = offsets.reshape(len(scores), -1, 4) * variances
    middle = moves[..., :2] * place[..., 2:] + place[..., :2]
    boxes = corners(np.concatenate([middle, np.exp(moves[..., 2:]) * place[..., 2:]], -1))
    boxes = np.clip(boxes, 0, 1) if ops.attr(node, "clip") else boxes
    threshold, topk = ops.attr(node, "nms_threshold"), ops.attr(node, "nms_topk")
    out = np.full((*boxes.shape[:2], 6), -1, np.float32)
    best, ids = scores[:, 1:].max(1), scores[:, 1:].argmax(1)
    for image, found in enumerate(out):
        valid = np.flatnonzero(best[image] >= np.float32(ops.attr(node, "threshold")))
        rows = np.column_stack([ids[image], best[image], boxes[image]]).astype(np.float32)[valid]
        if 0 < threshold <= 1:
            order = np.argsort(-rows[:, 1], kind="stable")[:topk if topk > 0 else None]
            first = rows[order]
            keep = kept(first[:, 2:], None if ops.attr(node, "force_suppress") else first[:, 0], at_least(threshold))
            first[~keep, 0] = -1
            rows[len(first):, 0] = -1
            rows[:len(first)] = first
        found[:len(rows)] = rows
    return out


# ---- region proposals -----------------------------------------------------------------------------------------------

@rule("_contrib_Proposal", "_contrib_MultiProposal")
def _proposal_shape(node: Node, shapes: list[Shape]) -> Shape | list[Shape]:
    scores, offsets, info = shapes
    each = len(ops.attr(node, "scales")) * len(ops.attr(node, "ratios"))
    images, _, *size = scores
    fit = len(size) == 2 and scores[1] == 2 * each and offsets == (images, 4 * each, *size) and info == (images, 3)
    need(node, fit, "shapes", shapes, f"(N, {2 * each}, H, W), (N, {4 * each}, H, W) and (N, 3)")
    count = images * ops.attr(node, "rpn_post_nms_top_n")
    return [(count, 5), (count, 1)] if node.n_out > 1 else (count, 5)


def base_anchors(node: Node) -> np.ndarray:
    """The anchors of a Proposal at the first place, in pixels: each ratio with each scale."""
    stride = ops.attr(node, "feature_stride")
    middle = (stride - 1) / 2
    found = []
    for ratio in ops.attr(node, "ratios"):
        width = math.floor(math.sqrt(math.floor(stride * stride / ratio)) + 0.5)
        height = math.floor(width * ratio + 0.5)
        for scale in ops.attr(node, "scales"):
            half = np.array([width * scale - 1, height * scale - 1]) / 2
            found.append(np.concatenate([middle - half, middle + half]))
    return np.array(found, np.float32)
