"""Data for workers: divided into pieces, or whole; read by the workers themselves where they see the same files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional

from qgraph.data.batches import Batch
from qgraph.data.open import Data
from qgraph.workers import Item, Result, Workers

log = logging.getLogger("qgraph")

Progress = Callable[[str, int, Optional[int]], None]  # as of `qgraph.options`
PIECE_IMAGES = 16  # a piece has the least number of whole batches that hold so many


@dataclass(frozen=True)
class Piece:
    """Some batches of data, or all of them. It travels.

    first: the number of its first image.  stop: the number behind its last image, None for all that there are.
    sent: its batches, where workers do not read them.
    """

    first: int = 0
    stop: int | None = None
    sent: tuple[Batch, ...] | None = None

    def of(self, data: Data | None) -> Iterable[Batch]:
        """Its batches. data: those that it is a piece of, unless it was sent."""
        if self.sent is not None:
            return self.sent
        assert data is not None
        return data if self.stop is None else data.part(self.first, self.stop)


class Pieces:
    """Data as workers take them: `Piece.of(shared)` gives the batches of a piece wherever it runs.

    A piece is a number of whole batches at places that depend on the data and the batch size alone, so that what is
    counted in pieces does not depend on the workers.  In this process all of the data are one piece.
    shared: the data, where workers read them; None where pieces carry their images.
    """

    def __init__(self, data: Data, workers: Workers) -> None:
        self._data, self.workers, self.apart, self.images = data, workers, workers.apart, data.num_items
        self.shared = data if not workers.apart or _seen(data, workers) else None

    def __iter__(self) -> Iterator[Piece]:
        if not self.apart:
            return iter([Piece()])
        return self._sent() if self.shared is None else self._read(self.shared)

    def whole(self) -> Piece:
        """All of the data as one piece."""
        return Piece() if self.shared is not None else Piece(0, None, tuple(self._data))

    def _read(self, data: Data) -> Iterator[Piece]:
        size = _batches(data.batch_size) * data.batch_size
        return (Piece(first, min(first + size, len(data))) for first in range(0, len(data), size))

    def _sent(self) -> Iterator[Piece]:
        first, batches = 0, list[Batch]()
        for batch in self._data:
            batches.append(batch)
            if len(batches) == _batches(self._data.batch_size):
                piece = Piece(first, None, tuple(batches))
                yield piece
                first, batches = first + sum(map(len, batches)), []
        if batches:
            yield Piece(first, None, tuple(batches))


def _batches(batch_size: int) -> int:
    """Of a piece."""
    return -(-PIECE_IMAGES // batch_size)


def _seen(data: Data, workers: Workers) -> bool:
    """Whether workers can read the data. The log says where they cannot."""
    if data.origin is None:
        return False
    seen = workers.see(data.origin.paths)
    if not seen:
        log.info("images of %s are sent: not every worker finds the same at %s", data.name, data.origin.path)
    return seen


# ---- what is counted over pieces ------------------------------------------------------------------------------------

class Told:
    """Is told of images that are done. total: how many there are, where that is known."""

    def __init__(self, what: str = "", total: int | None = None, progress: Progress | None = None) -> None:
        self.done = 0
        self._what, self._total, self._progress = what, total, progress

    def __call__(self, images: int) -> None:
        self.done += images
        if self._progress:
            self._progress(self._what, self.done, self._total)


def over_pieces(run: Callable[[Told, Piece], Result], pieces: Pieces, what: str,
                progress: Progress | None) -> Iterator[Result]:
    """``run(told, piece)`` of each piece, in their order; see `run_all`."""
    return run_all(run, pieces, pieces.workers, what, pieces.images, progress)


def run_all(run: Callable[[Told, Item], Result], items: Iterable[Item], workers: Workers, what: str,
            images: int | None, progress: Progress | None) -> Iterator[Result]:
    """``run(told, item)`` of each item, in their order; progress comes with each batch, from workers with each item.

    run: as of `Workers.map`; it says to `told` how many images are done.  images: how many that will be.
    """
    told = Told(what, images, progress)
    if not workers.apart:
        yield from workers.map(partial(run, told), items, what)
        return
    for done, result in workers.map(partial(_with_images, run), items, what):
        told(done)
        yield result


def _with_images(run: Callable[[Told, Item], Result], item: Item) -> tuple[int, Result]:
    """(images that were run, what they give)"""
    told = Told()
    result = run(told, item)
    return told.done, result
