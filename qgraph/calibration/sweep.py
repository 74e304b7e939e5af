"""One sweep of a float graph over images, by this process or by several: what is counted adds up exactly."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Union

import numpy as np

from qgraph import engines
from qgraph.analysis.channels import channel_ends
from qgraph.arrays import Array
from qgraph.data.open import Batch, Data
from qgraph.data.pieces import Piece, Pieces, Told, over_pieces
from qgraph.errors import CalibrationError
from qgraph.ir.graph import Graph, Port
from qgraph.options import Progress
from qgraph.quant.observers import Ema, Histogram, MinMax
from qgraph.targets.base import Executor, Shapes
from qgraph.workers import Here, Workers

log = logging.getLogger("qgraph")

Observer = Union[MinMax, Ema, Histogram]


@dataclass
class Watched:
    """A float graph that is run for these tensors. runtime: of `qgraph.engines`. It travels, and runs where it is."""

    g: Graph
    ports: Sequence[Port]
    runtime: str

    @cached_property
    def _executor(self) -> Executor:
        return engines.runtime("calibrating", self.runtime)(self.g, watch=self.ports, fused=True)

    def stream(self, piece: Piece, shared: Data | None) -> Iterator[tuple[Batch, list[Array]]]:
        """(batch, values of the tensors) for every batch of a piece. shared: as of `Pieces`."""
        return self._executor.stream(piece.of(shared))


def observe(watched: Watched, observers: Mapping[Port, Observer], needed: set[str], data: Data, workers: Workers,
            what: str, progress: Progress | None) -> tuple[dict[Port, Any], Shapes]:
    """New observers, as these, that have seen all of the data, and the shapes of the inputs in its first batch.

    observers: that have seen nothing.  needed: names of tensors that must have one; of the others, one whose values
    cannot be observed is left out.  what: the work, for the progress.
    Raises CalibrationError for the first image with NaN or Inf in a tensor that is needed.
    """
    if workers.apart and any(isinstance(observer, Ema) for observer in observers.values()):
        log.info("moving averages depend on the order of the batches: %s are gathered in this process", what)
        workers = Here()
    numbers = {port: number for number, port in enumerate(watched.ports)}
    blank = {numbers[port]: observer for port, observer in observers.items()}
    found: dict[int, Observer] = {}
    shapes: Shapes = {}
    pieces = Pieces(data, workers)
    for part, fed in over_pieces(partial(_observed, watched, pieces.shared, blank, needed), pieces, what, progress):
        found, shapes = (_merged(found, part), shapes) if shapes else (part, fed)
    return {port: found[numbers[port]] for port in observers if numbers[port] in found}, shapes


def _observed(watched: Watched, shared: Data | None, blank: Mapping[int, Observer], needed: set[str], told: Told,
              piece: Piece) -> tuple[dict[int, Observer], Shapes]:
    """(observers of one piece, by the number of the tensor, shapes of the inputs in its first batch)"""
    found = dict(copy.deepcopy(blank))
    shapes: Shapes = {}
    for batch, values in watched.stream(piece, shared):
        shapes = shapes or {name: array.shape for name, array in batch.feeds.items()}
        for number, (port, value) in enumerate(zip(watched.ports, values)):
            if number in found:
                try:
                    found[number].update(_by_image(value, len(batch)), batch.ids)
                except CalibrationError as error:
                    if port.key in needed:
                        raise
                    del found[number]
                    log.debug("a tensor without a range, which nothing here quantizes: %s", error)
        told(len(batch))
    return found, shapes


def _merged(one: Mapping[int, Observer], other: Mapping[int, Observer]) -> dict[int, Observer]:
    """What both have, together."""
    both = {number: observer for number, observer in one.items() if number in other}
    for number, observer in both.items():
        assert not isinstance(observer, Ema)
        observer.merge(other[number])  # type: ignore[arg-type]  # both are of one class
    return both


def channel_ranges(g: Graph, data: Data, ports: Sequence[Port], *, progress: Progress | None = None,
                   runtime: str = "auto", workers: Workers | None = None) -> list[Array]:
    """The ranges of the channels (axis 1) of these tensors, for two halves of the images: one sweep over `data`.

    Each as of `qgraph.analysis.channels.channel_ends`, whatever the batch size; infinite for a half without images.
    """
    found: list[Array] = []
    pieces = Pieces(data, workers or Here())
    for part in over_pieces(partial(_ends, Watched(g, ports, runtime), pieces.shared), pieces, "channels", progress):
        found = _wider(found, part)
    return found


def _ends(watched: Watched, shared: Data | None, told: Told, piece: Piece) -> list[Array]:
    found: list[Array] = []
    done = piece.first
    for batch, values in watched.stream(piece, shared):
        found = _wider(found, [channel_ends(value, len(batch), done) for value in values])
        done += len(batch)
        told(len(batch))
    return found


def _wider(found: Sequence[Array], seen: Sequence[Array]) -> list[Array]:
    """The ranges that hold both. found: [] at the start."""
    return [np.stack([np.minimum(a[:, 0], b[:, 0]), np.maximum(a[:, 1], b[:, 1])], axis=1)
            for a, b in zip(found, seen)] or list(seen)


def _by_image(value: Array, count: int) -> Array:
    """A tensor without the batch axis, such as anchors, is the same for every image."""
    shared = value.shape[:1] in ((), (1,)) or value.size % count
    return np.broadcast_to(value.ravel(), (count, value.size)) if shared else value
