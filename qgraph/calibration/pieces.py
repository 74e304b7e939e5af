"""Calibration images in pieces: so few at a time that what is watched of them stays small, whatever the batch size.

An engine holds every watched tensor of a piece until its last one is computed.  The size of a piece follows from the
graph and the shape of an image alone, and pieces are cut from all images in a row: what engines compute, which may
depend on the number of images that they are given, is the same for any batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from qgraph.data.batches import Batch
from qgraph.errors import GraphError
from qgraph.ir.graph import Graph, Port
from qgraph.semantics.infer import infer

PIECE_BYTES = 1 << 26  # of the watched tensors of one piece
MOST_IMAGES = 16
ALIVE = 4  # tensors that an engine holds at a time
FLOAT = 4  # bytes
Feeds = Mapping[str, np.ndarray]


def in_pieces(batches: Iterable[Batch], g: Graph, watched: Sequence[Port]) -> Iterator[Batch]:
    """The images in pieces for a graph of which these tensors are watched; without labels.

    Batches stay as they are where the first is of one image, as a network may take no more, and where nothing says how
    the watched tensors grow with the images.
    """
    return _pieces(batches, lambda feeds: piece_size(g, watched, feeds))


def in_pieces_to_run(batches: Iterable[Batch], g: Graph) -> Iterator[Batch]:
    """The same for a graph of which the outputs are read: an engine holds a few tensors at a time."""
    return _pieces(batches, lambda feeds: size_to_run(g, feeds))


def _pieces(batches: Iterable[Batch], size_of: Callable[[Feeds], int | None]) -> Iterator[Batch]:
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        return
    size = size_of(first.feeds) if len(first) > 1 else None
    whole = chain([first], batches)
    yield from whole if size is None else regrouped(whole, size)


def piece_size(g: Graph, watched: Sequence[Port], feeds: Feeds) -> int | None:
    """A power of two: as many images as `PIECE_BYTES` hold, at most `MOST_IMAGES`. None if it is not known.

    feeds: images, of which the shape counts.
    """
    needed = bytes_of_an_image(g, watched, feeds)
    return None if needed is None else _fitting(needed)


def size_to_run(g: Graph, feeds: Feeds) -> int | None:
    """The same, for so many tensors at a time as `ALIVE` says, each as large as the largest."""
    sizes = _bytes_of_an_image(g, feeds)
    if any(sizes.get(head) is None for head in g.heads):
        return None
    return _fitting(ALIVE * max(size or 0 for size in sizes.values()))


def _fitting(needed: int) -> int:
    fitting = min(MOST_IMAGES, max(1, PIECE_BYTES // max(needed, 1)))
    return 1 << fitting.bit_length() - 1


def bytes_of_an_image(g: Graph, watched: Sequence[Port], feeds: Feeds) -> int | None:
    """Of the watched tensors, in float32; None where it is not known, or the axis of the images is not found."""
    sizes = _bytes_of_an_image(g, feeds)
    found = [sizes.get(port) for port in dict.fromkeys(watched)]
    return None if None in found else sum(size or 0 for size in found)


def _bytes_of_an_image(g: Graph, feeds: Feeds) -> dict[Port, int | None]:
    """Of each tensor."""
    try:
        one, two = (infer(g, {name: (count, *x.shape[1:]) for name, x in feeds.items()}) for count in (1, 2))
    except GraphError:  # such as a network with a batch size of its own
        return {}
    return {port: FLOAT * (math.prod(two[port]) - math.prod(shape)) if _grows(shape, two[port]) else None
            for port, shape in one.items() if port in two}


def _grows(one: Sequence[int], two: Sequence[int]) -> bool:
    """Whether shapes for one and for two images tell the axis of images: the first, or one of length 1; or have none.
    """
    if one == two:
        return True
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
