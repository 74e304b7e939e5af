"""Calibration images in pieces: so few at a time that what is watched of them stays small, whatever the batch size.

An engine holds every watched tensor of a piece until its last one is computed.  The size of a piece follows from the
graph and the shape of an image alone, and pieces are cut from all images in a row: what engines compute, which may
depend on the number of images that they are given, is the same for any batch size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from qgraph.data.batches import Batch
from qgraph.errors import GraphError
from qgraph.ir.graph import Graph, Port
from qgraph.semantics.infer import infer

PIECE_BYTES = 1 << 26  # of the watched tensors of one piece
MOST_IMAGES = 16
FLOAT = 4  # bytes


def in_pieces(batches: Iterable[Batch], g: Graph, watched: Sequence[Port]) -> Iterator[Batch]:
    """The images in pieces for a graph of which these tensors are watched; without labels.

    Batches stay as they are where the first is of one image, as a network may take no more, and where nothing says how
    the watched tensors grow with the images.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        return
    size = piece_size(g, watched, first.feeds) if len(first) > 1 else None
    whole = chain([first], batches)
    yield from whole if size is None else regrouped(whole, size)


def piece_size(g: Graph, watched: Sequence[Port], feeds: Mapping[str, np.ndarray]) -> int | None:
    """A power of two: as many images as `PIECE_BYTES` hold, at most `MOST_IMAGES`. None if it is not known.

    feeds: images, of which the shape counts.
    """
    needed = bytes_of_an_image(g, watched, feeds)
    if needed is None:
        return None
    fitting = min(MOST_IMAGES, max(1, PIECE_BYTES // max(needed, 1)))
    return 1 << fitting.bit_length() - 1


def bytes_of_an_image(g: Graph, watched: Sequence[Port], feeds: Mapping[str, np.ndarray]) -> int | None:
    """Of the watched tensors, in float32; None where it is not known, or the axis of the images is not found."""
    try:
        one, two = (infer(g, {name: (count, *x.shape[1:]) for name, x in feeds.items()}) for count in (1, 2))
    except GraphError:  # such as a network with a batch size of its own
        return None
    total = 0
    for port in dict.fromkeys(watched):
        a, b = one.get(port), two.get(port)
        if a is None or b is None or (a != b and not _grows(a, b)):
            return None
        total += FLOAT * int(np.prod(b) - np.prod(a))
    return total


def _grows(one: Sequence[int], two: Sequence[int]) -> bool:
    """Whether there is an axis of images, as shapes for one and for two of them tell: the first, or one of length 1."""
    axes = [axis for axis, (a, b) in enumerate(zip(one, two)) if a != b]
    return len(one) == len(two) and len(axes) == 1 and two[axes[0]] == 2 * one[axes[0]] and (
        axes[0] == 0 or one[axes[0]] == 1)


def regrouped(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same images in batches of `size`, of fewer at the end and where their shape changes; without labels."""
    kept: Batch | None = None
    for batch in batches:
        if kept is not None and _shapes(kept) != _shapes(batch):
            yield kept
            kept = None
        if kept is not None:
            feeds = {name: np.concatenate([x, batch.feeds[name]]) for name, x in kept.feeds.items()}
            batch = Batch(feeds, None, kept.ids + batch.ids)
        whole = len(batch) - len(batch) % size
        for start in range(0, whole, size):
            yield _part(batch, slice(start, start + size))
        kept = _part(batch, slice(whole, None)) if whole < len(batch) else None
    if kept is not None:
        yield kept


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [x.shape[1:] for x in batch.feeds.values()]


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch({name: x[rows] for name, x in batch.feeds.items()}, None, batch.ids[rows])
