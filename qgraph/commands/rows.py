"""What `qgraph.simulate` computes for each strategy: the quantized graph, and how it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qgraph.arrays import Array
from qgraph.calibration.images import sample_count
from qgraph.commands.judge import Judge
from qgraph.commands.line import pipeline, quantize, split
from qgraph.commands.strategies import Strategy
from qgraph.data.open import Data
from qgraph.data.pieces import Piece, Told
from qgraph.engines import Engine, runtime
from qgraph.errors import DataError
from qgraph.ir.graph import Graph
from qgraph.options import FreezeOptions
from qgraph.quant.table import CalibrationTable
from qgraph.targets.base import Executor, Feeds
from qgraph.targets.mxnet.model import MxnetModel

REMEMBERED = 256 << 20  # bytes of outputs


class _Remembered:
    """A model whose outputs are computed once for every batch, as far as they fit into so many bytes."""

    def __init__(self, executor: Executor) -> None:
        self._executor, self._bytes = executor, 0
        self._kept: dict[int, list[Array]] = {}

    def run(self, number: int, feeds: Feeds) -> list[Array]:
        """The outputs of a batch, by its number."""
        if number in self._kept:
            return self._kept[number]
        found = self._executor.run(feeds)
        self._bytes += sum(array.nbytes for array in found)
        if self._bytes <= REMEMBERED:
            self._kept[number] = found
        return found


@dataclass(frozen=True)
class Job:
    """A row to be computed. It travels.

    strategy: None is the float model.  variant: the number of its float graph.  table: None for ranges of the running
    batch.
    """

    strategy: Strategy | None = None
    variant: int = 0
    table: CalibrationTable | None = None


@dataclass
class Rows:
    """What rows have in common. It travels, and computes rows where it is.

    original: the float model.  float_graphs: what the float passes of strategies made of it, by number.
    sample: images that passes may measure on, as many as the most demanding row.
    images, shared: those that judge, as `Pieces.whole` and `Pieces.shared`.
    """

    original: MxnetModel
    options: FreezeOptions
    float_graphs: Sequence[Graph]
    sample: Feeds | None
    images: Piece
    shared: Data | None

    @cached_property
    def _engine(self) -> Engine:
        return runtime("simulating", self.options.runtime)

    @cached_property
    def _truth(self) -> _Remembered:
        return _Remembered(self._engine(self.original.graph, fused=True))

    def row(self, told: Told, job: Job) -> dict[str, Any]:
        """As `Simulation` has it. Raises DataError where there is no image."""
        if job.strategy is None:
            return self._judged(None, told).scored()
        judge = self._judged(self._engine.exact(self.quantized(job.strategy, job), fused=True), told)
        found = judge.agreement()
        return {**judge.scored(), **{key: found[key] for key in ("agreement", "worst", "sqnr_db")}}

    def quantized(self, strategy: Strategy, job: Job) -> Graph:
        """The graph of this strategy, ready to be simulated."""
        float_graph, options = self.float_graphs[job.variant], strategy.apply(self.options)
        count = sample_count(options)
        sample = None if self.sample is None else {name: array[:count] for name, array in self.sample.items()}
        g = float_graph.copy()
        quantize(g, split(pipeline(options))[1], lambda _: job.table, feeds=sample, run_op=self._engine.run_op,
                 original=float_graph)
        return g

    def _judged(self, run: Executor | None, told: Told) -> Judge:
        """All images judged. run: what is compared with the float model; None is that model, by its labels alone."""
        judge = Judge.of(self.original, self.options)
        for number, batch in enumerate(self.images.of(self.shared)):
            want = self._truth.run(number, batch.feeds)
            if run is None:
                judge.add(batch, want)
            else:
                judge.add(batch, run.run(batch.feeds), want)
            told(len(batch))
        if not judge.images:
            raise DataError("no image to judge on was read")
        return judge


def computed_row(rows: Rows, told: Told, job: Job) -> dict[str, Any]:
    return rows.row(told, job)
