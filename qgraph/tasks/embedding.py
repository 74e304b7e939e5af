"""Vectors that tell who or what it is by their direction: faces, features of a network cut at its pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qgraph.analysis.exact import products, total
from qgraph.arrays import Array
from qgraph.errors import DataError
from qgraph.tasks import verification
from qgraph.tasks.base import Claim, Head, Labels, Metric, Outputs, Result, Tally, Task
from qgraph.tasks.verification import unit

MOST_ASKED = 10_000  # images whose nearest neighbour is looked for; of more images these are spread evenly
TIE = 1e-9  # cosines that are no farther apart are alike, and the image with the lowest number is the nearest
_BLOCK = 1 << 22  # cosines that are held at a time

_MOVES = ("Flatten", "Reshape", "_copy", "squeeze", "expand_dims", "Dropout")
_POOLS = ("Pooling", "mean", "_contrib_AdaptiveAvgPooling2D")
_ACTIVATIONS = ("Activation", "LeakyReLU", "clip")
_NORMED = {"FullyConnected": 0.85, "Convolution": 0.7}  # ops in front of a last BatchNorm
_FEATURES = ("BatchNorm", "elemwise_add", "broadcast_add", "elemwise_mul", "broadcast_mul")  # at the end of a block
_POOLED = {**dict.fromkeys((*_FEATURES, "Concat"), 0.75), "Convolution": 0.4}  # ops in front of a last pooling
_FLATTENED = dict.fromkeys(_FEATURES, 0.6)


class Embedding(Task):
    """A vector for each image. Only directions count, so lengths are left out.

    Ruined below a mean cosine of 0.98, where the vectors are turned by 11 degrees.
    """

    name, help = "embedding", "a vector per image whose direction counts: faces, features in front of a classifier"
    metrics = {
        "cosine_mean": Metric("", "cosine of the two vectors of an image, mean over images"),
        "cosine_least": Metric("", "the lowest of these cosines"),
        "neighbours": Metric("%", f"images whose nearest image (by cosine, among the others) stays the same, of "
                                  f"{MOST_ASKED} at most"),
        "accuracy": Metric("%", "verification: right answers on as many pairs of the same as of others, over 10 folds"),
        "tar_at_far": Metric("%", "pairs of the same accepted where one of 1000 others is (of 100, for few pairs)"),
    }
    main, ruined, best = "cosine_mean", 0.98, 1.0
    labels = "an identity (a whole number) per image"

    @classmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        return [Claim((number,), _sure(head)) for number, head in enumerate(heads) if _sure(head)]

    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        return Likeness(((first, _rows(want[0]), _rows(found[0])),))

    def score(self, found: Outputs, labels: Labels, where: Sequence[str], first: int) -> Tally:
        """labels: an identity per image, or (number of its pair, 1 where the pair shows the same), as a .bin has."""
        return Verification((self._part(found, labels, where, first),))

    def verify(self, found: Outputs, pairs: Array, where: Sequence[str], first: int) -> Tally:
        """Against given pairs. pairs: int64 (pairs, 3): the numbers of two images, and 1 where they show the same."""
        return Verification((self._part(found, np.zeros(len(where), np.int64), where, first),), pairs)

    def _part(self, found: Outputs, labels: Labels, where: Sequence[str], first: int) -> _Part:
        vectors = _rows(found[0])
        if len(vectors) != len(where):
            raise DataError(f"{where[0]}: the output {self.heads[0].name} has {len(vectors)} rows for {len(where)} "
                            "images, want a vector per image")
        return _Part(first, vectors, _identities(labels, where), (where[0], where[-1]))


# ---- without labels -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Likeness(Tally):
    """parts: (number of the first image, vectors of one model, of the other): float32 (images, size)."""

    parts: tuple[tuple[int, Array, Array], ...]

    def __add__(self, other: Tally) -> Likeness:
        assert isinstance(other, Likeness)
        return Likeness(self.parts + other.parts)

    def result(self) -> Result:
        parts = sorted(self.parts, key=lambda part: part[0])
        a, b = (unit(np.concatenate([part[side] for part in parts])) for side in (1, 2))
        if not len(a):
            return {"cosine_mean": None, "cosine_least": None, "neighbours": None}
        cosines = np.where(a.any(axis=1) | b.any(axis=1), np.clip(products(a, b), -1, 1), 1.0)
        return {"cosine_mean": float(total(cosines) / len(cosines)), "cosine_least": float(cosines.min()),
                "neighbours": _same_neighbours(a, b)}


def _same_neighbours(a: Array, b: Array) -> float | None:
    """The share of images in percent; a, b: rows of length 1. None for a single image."""
    if len(a) < 2:
        return None
    asked = np.arange(len(a)) if len(a) <= MOST_ASKED else np.arange(MOST_ASKED) * len(a) // MOST_ASKED
    rows = max(1, _BLOCK // len(a))  # of the number of images alone: the blocks decide the last bits
    same = 0
    for start in range(0, len(asked), rows):
        block = asked[start : start + rows]
        same += int((_nearest(a, block) == _nearest(b, block)).sum())
    return 100 * same / len(asked)


def _nearest(vectors: Array, asked: Array) -> Array:
    cosines = vectors[asked] @ vectors.T
    cosines[np.arange(len(asked)), asked] = -np.inf
    nearest: Array = (cosines >= cosines.max(axis=1, keepdims=True) - TIE).argmax(axis=1)
    return nearest


# ---- with labels ----------------------------------------------------------------------------------------------------

class _Part(NamedTuple):
    """Some images. first: the number of the first one.  names: of the first and the last."""

    first: int
    vectors: Array
    labels: Array
    names: tuple[str, str]


@dataclass(frozen=True)
class Verification(Tally):
    """pairs: those to judge by; None for those that follow from the labels. See `qgraph.tasks.verification`."""

    parts: tuple[_Part, ...]
    pairs: Array | None = None

    def __add__(self, other: Tally) -> Verification:
        assert isinstance(other, Verification)
        return Verification(self.parts + other.parts, self.pairs)

    def result(self) -> Result:
        """Raises DataError for labels or pairs that do not make pairs of both kinds."""
        parts = sorted(self.parts, key=lambda part: part.first)
        vectors, labels = (np.concatenate([part[column] for part in parts]) for column in (1, 2))
        names = parts[0].names[0], parts[-1].names[1]
        where = f"{names[0]} to {names[1]}"
        chosen: Array | slice = slice(None)
        if self.pairs is not None:
            verification.check_pairs(self.pairs, len(vectors), names)
            pairs = self.pairs
        elif labels.ndim == 2:
            pairs = _pairs_of_flags(labels, where)
        else:
            pairs = verification.pairs_of(labels, where)
            chosen = verification.balanced(pairs)
        apart, same = verification.distances(vectors, pairs), pairs[:, 2] == 1
        accuracy = verification.accuracy(apart[chosen], same[chosen])
        tar = verification.tar_at_far(apart, same)
        return {"accuracy": None if accuracy is None else float(100 * accuracy),
                "tar_at_far": None if tar is None else float(100 * tar)}


def _pairs_of_flags(labels: Array, where: str) -> Array:
    """(number of the pair, same) of each image -> (image, image, same). Images without their other one are left out."""
    order = np.argsort(labels[:, 0], kind="stable")
    numbers = labels[order, 0]
    if (numbers[2:] == numbers[:-2]).any():
        row = order[:-2][numbers[2:] == numbers[:-2]][0]
        raise DataError(f"{where}: three images or more are of the pair {labels[row, 0]}, want two")
    at = np.flatnonzero(numbers[1:] == numbers[:-1])
    first, second = order[at], order[at + 1]
    if not len(at):
        raise DataError(f"{where}: no pair has both of its images, want some: --select and --skip may part them")
    if (labels[first, 1] != labels[second, 1]).any():
        row = first[labels[first, 1] != labels[second, 1]][0]
        raise DataError(f"{where}: the two images of the pair {labels[row, 0]} are labelled 0 and 1, want one flag")
    return np.column_stack([first, second, labels[first, 1]])


def _identities(labels: Labels, where: Sequence[str]) -> Array:
    """int64 (images,), or (images, 2) for (pair, same). Raises DataError, naming the image, for others."""
    shapes = {np.shape(label) for label in labels}
    for label, image in zip(labels, where):
        values = np.asarray(label)
        whole = values.dtype.kind in "iufb" and np.isfinite(values).all() and (values == np.rint(values)).all()
        if len(shapes) > 1 or values.shape not in ((), (2,)) or not whole or (np.abs(values) >= 1 << 53).any():
            raise DataError(f"{image}: its label is not an identity, want a whole number per image")
        if values.ndim and values[1] not in (0, 1):
            raise DataError(f"{image}: found the label {values.tolist()}, want the number of a pair and 0 or 1")
    return np.asarray(labels, np.float64).astype(np.int64)


# ---- which outputs --------------------------------------------------------------------------------------------------

def _rows(output: Array) -> Array:
    return np.array(output, np.float32).reshape(len(output), -1)


def _sure(head: Head) -> float:
    """0 for what is not a vector per image, or what classifies.

    L2Normalization, and a BatchNorm right behind the last dense layer, are of embeddings.  So is a pooling (or Flatten)
    with no dense layer behind it, unless a bare convolution is in front of it, as in networks that classify by one
    (SqueezeNet), which is left to classification.
    """
    if head.rank < 2 or head.shape[0] != head.images or head.shape[1] < 2 or any(size > 1 for size in head.shape[2:]):
        return 0.0
    ops = [op for op in head.behind if op not in _MOVES]
    if ops[:1] == ["L2Normalization"]:
        return 0.9
    if ops[:1] == ["BatchNorm"] and ops[1:] and ops[1] in _NORMED:
        return _NORMED[ops[1]]
    in_front = next((op for op in ops if op not in (*_POOLS, *_ACTIVATIONS)), "")
    if ops[:1] and ops[0] in _POOLS:
        return _POOLED.get(in_front, 0.0)
    return _FLATTENED.get(in_front, 0.0) if head.behind[:1] == ("Flatten",) else 0.0
