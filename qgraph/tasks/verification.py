"""Verification: do two images show the same? Which pairs are asked, and how good the answers are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from qgraph.analysis.exact import products
from qgraph.arrays import Array
from qgraph.errors import DataError

THRESHOLDS = np.arange(0, 4, 0.01)  # of squared distances between vectors of length 1, as InsightFace tries them
FOLDS = 10
FARS = (1000, 100)  # one false accept in so many pairs; the second is asked where there are too few for the first
MOST_PAIRS = 1 << 19  # of which those of 1,024 images are all
_SEED = 0
_BLOCK = 1 << 16  # values that are worked on at a time: they stay in the cache


def distances(vectors: Array, pairs: Array) -> Array:
    """Squared distances of pairs of vectors that are scaled to length 1, float64.

    vectors: (images, size).  pairs: int64 (pairs, 2 or more), the first two are numbers of images.
    """
    scaled, apart, rows = unit(vectors), np.zeros(len(pairs)), max(1, _BLOCK // vectors.shape[1])
    for start in range(0, len(pairs), rows):
        part = pairs[start : start + rows]
        difference = scaled[part[:, 0]]
        difference -= scaled[part[:, 1]]
        apart[start : start + rows] = products(difference, difference)
    return apart


def unit(vectors: Array) -> Array:
    """float64 rows of length 1; what is not finite, and what has no length, becomes 0."""
    rows = np.ascontiguousarray(vectors, np.float64)
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    length = np.sqrt(products(rows, rows))[:, None]
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def accuracy(apart: Array, same: Array) -> Fraction | None:
    """The mean share of right answers over `FOLDS` folds, each with the threshold that is best for all other folds.

    apart: distances of pairs, below the threshold means "the same".  same: bool.  The folds are runs of pairs in their
    order, the first of several best thresholds is taken, all as InsightFace does.  None for less than two pairs.
    """
    folds = min(FOLDS, len(apart))
    if folds < 2:
        return None
    right = np.array([_right(apart[part], same[part]) for part in np.array_split(np.arange(len(apart)), folds)])
    best = (right.sum(0) - right).argmax(1)
    sizes = [len(part) for part in np.array_split(np.arange(len(apart)), folds)]
    return sum((Fraction(int(row[at]), size) for row, at, size in zip(right, best, sizes)), Fraction(0)) / folds


def _right(apart: Array, same: Array) -> Array:
    """How many answers are right at each threshold."""
    reached = np.searchsorted(THRESHOLDS, apart, side="right")  # the first threshold above a distance
    genuine, impostors = (np.bincount(reached[kind], minlength=len(THRESHOLDS) + 1)[:-1] for kind in (same, ~same))
    right: Array = genuine.cumsum() + int((~same).sum()) - impostors.cumsum()
    return right


def tar_at_far(apart: Array, same: Array) -> Fraction | None:
    """The share of pairs of the same that are accepted, where at most one of 1,000 other pairs is; or of 100.

    The threshold is the largest that keeps to it.  None for less than 100 other pairs, or without pairs of the same.
    """
    genuine, impostors = apart[same], np.sort(apart[~same])
    for far in FARS:
        if len(impostors) >= far and len(genuine):
            return Fraction(int((genuine < impostors[len(impostors) // far]).sum()), len(genuine))
    return None


# ---- pairs of identities --------------------------------------------------------------------------------------------

def pairs_of(identities: Array, where: str) -> Array:
    """All pairs of images: (number, number, 1 where the identity is the same), int64.

    Of more than `MOST_PAIRS` pairs about as many are drawn, with a fixed seed: half of them of the same identity, or
    all of these where they are fewer.  Raises DataError where there are not both kinds. where: for its message.
    """
    images, (names, counts) = len(identities), np.unique(identities, return_counts=True)
    if len(names) < 2:
        raise DataError(f"{where}: all {images} images have the identity {identities[0]}, want two identities or more, "
                        "lest no pair is of two")
    if counts.max() < 2:
        raise DataError(f"{where}: each of the {images} images has an identity of its own, want two images of some, "
                        "lest no pair is of one")
    if images * (images - 1) // 2 <= MOST_PAIRS:
        rows = np.stack(np.triu_indices(images, 1), axis=1)
    else:
        rows = np.concatenate(_drawn(identities))
    return np.column_stack([rows, identities[rows[:, 0]] == identities[rows[:, 1]]]).astype(np.int64)


def _drawn(identities: Array) -> tuple[Array, Array]:
    """Some pairs of the same identity, and some of two."""
    order = np.argsort(identities, kind="stable")
    ordered = identities[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    ends = np.searchsorted(ordered, ordered, side="right")
    here, rng, most = np.arange(len(order)), np.random.default_rng(_SEED), MOST_PAIRS // 2
    if (ends - here - 1).sum() <= most:
        later = np.concatenate([np.column_stack([here, here + step])[here + step < ends]
                                for step in range(1, int((ends - starts).max()))])
        same = order[later]
    else:
        first, number = _draw(rng, ends - starts - 1, most)
        same = order[np.column_stack([first, starts[first] + (first - starts[first] + 1 + number)
                                      % (ends - starts)[first]])]
    first, number = _draw(rng, len(order) - (ends - starts), most)
    other = order[np.column_stack([first, (ends[first] + number) % len(order)])]
    return _distinct(same), _distinct(other)


def _draw(rng: np.random.Generator, partners: Array, count: int) -> tuple[Array, Array]:
    """(image, number of one of its partners), each pair as likely as another. partners: how many each image has."""
    upto = np.cumsum(partners)
    drawn = rng.integers(upto[-1], size=count)
    first = np.searchsorted(upto, drawn, side="right")
    return first, drawn - (upto[first] - partners[first])


def _distinct(rows: Array) -> Array:
    rows = np.unique(np.sort(rows, axis=1), axis=0)
    return rows


def balanced(pairs: Array) -> Array:
    """The numbers of as many pairs of the same as of others, drawn with a fixed seed, in an order drawn as well.

    So are the sets of pairs that InsightFace judges by, and an accuracy says little where most pairs are of others.
    """
    rng = np.random.default_rng(_SEED)
    kinds = [np.flatnonzero(pairs[:, 2] == flag) for flag in (0, 1)]
    count = min(len(kind) for kind in kinds)
    return rng.permutation(np.concatenate([rng.permutation(kind)[:count] for kind in kinds]))


def check_pairs(pairs: Array, images: int, names: Sequence[str]) -> None:
    """Raises DataError for pairs of images that are not there. names: of the images, for the message."""
    outside = (pairs[:, :2] < 0) | (pairs[:, :2] >= images)
    if outside.any():
        row = int(outside.any(axis=1).argmax())
        raise DataError(f"pair {row} is of the images {pairs[row, 0]} and {pairs[row, 1]}, but {images} images were "
                        f"judged ({names[0]} to {names[-1]}): judge them all, or leave out the pair")
