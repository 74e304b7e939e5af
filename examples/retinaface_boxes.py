"""RetinaFace's anchors and decoding: boxes out of its raw heads, for ``--decode``.

    qgraph eval frozen --reference model --data images.npz --decode retinaface_boxes:boxes

RetinaFace, as many detectors, ends before its decoding: for each anchor at every place of a grid, the probability of a
face, and how far the anchor is to be moved and stretched.  Here two anchors, of 128 and 64 pixels, lie 16 pixels apart;
a network with several strides has such heads for each of them, whose boxes are concatenated before the suppression.
"""

from __future__ import annotations

import numpy as np

from qgraph.semantics.detect import corners, kept

STRIDE, SIZES = 16, np.array([128.0, 64.0])  # pixels
SCORE, OVERLAP = 0.05, 0.4  # the least score, and the overlap from which a box is suppressed by a better one


def boxes(outputs: list[np.ndarray], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Rows of class 0, score, x0, y0, x1, y1. outputs: probabilities (N, 2 x anchors, H, W), background first, and
    moves (N, 4 x anchors, H, W)."""
    scores, moves = (output.astype(np.float64).transpose(0, 2, 3, 1) for output in outputs)
    count, height, width, _ = scores.shape
    scores = scores[..., len(SIZES):].reshape(count, -1)
    moves = moves.reshape(count, height, width, len(SIZES), 4)
    y, x, size = np.meshgrid(np.arange(height) * STRIDE, np.arange(width) * STRIDE, SIZES, indexing="ij")
    middle = np.stack([x, y], -1) + (STRIDE - 1) / 2 + moves[..., :2] * size[..., None]
    placed = corners(np.concatenate([middle, np.exp(moves[..., 2:]) * size[..., None]], -1)).reshape(count, -1, 4)
    rows, columns = next(iter(feeds.values())).shape[2:]
    return [_suppressed(*image) for image in zip(scores, np.clip(placed, 0, (columns, rows, columns, rows)))]


def _suppressed(scores: np.ndarray, placed: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")[:(scores > SCORE).sum()]
    order = order[kept(placed[order], None, OVERLAP)]
    return np.column_stack([np.zeros(len(order)), scores[order], placed[order]])
