"""`qgraph.simulate`: what a network loses under one strategy of quantization, or under each of a grid of them.

Every strategy is what `qgraph freeze --target mxnet-sim` makes with the same flags.  What strategies share (the model,
its folded graph, calibration tables, the images) is computed once; what is left per strategy is a line of passes and
one compiled forward pass over the data.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from qgraph.analysis.observed import wanted_ranges
from qgraph.arrays import Array
from qgraph.calibration.images import find_images
from qgraph.commands import floatcheck
from qgraph.commands.evaluate import open_for, runnable
from qgraph.commands.judge import Judge
from qgraph.commands.line import bound, collect_table, pipeline, quantize, scaling, split
from qgraph.commands.open_model import open_model
from qgraph.commands.strategies import Simulation, Strategy
from qgraph.commands.trained import is_trained
from qgraph.data.open import Data
from qgraph.data.preprocess import parse_slice
from qgraph.engines import runtime
from qgraph.errors import DataError, OptionError
from qgraph.ir.graph import Graph
from qgraph.ir.select import select_nodes
from qgraph.options import ONLINE, FreezeOptions, Progress, block_shapes
from qgraph.passes.canonicalize import Canonicalize
from qgraph.quant.ranges import method
from qgraph.quant.table import CalibrationTable
from qgraph.targets.base import Executor, Feeds
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.registry import get_target

log = logging.getLogger("qgraph")

TARGET = "mxnet-sim"


def grid(**axes: Sequence[Any]) -> list[Strategy]:
    """Every combination of values of fields of `Strategy`, the last axis changing fastest."""
    return list(dict.fromkeys(Strategy(**dict(zip(axes, values))) for values in itertools.product(*axes.values())))


def _original() -> list[Strategy]:
    """The results table of the system "Quantization on MXNet", below its row of the float model."""
    def rows(act_signed: str, granularity: str, merge_bn: bool, exclude_first: bool, *calib: str) -> list[Strategy]:
        return [Strategy(granularity=granularity, act_signed=act_signed, calib=each, merge_bn=merge_bn,
                         exclude_first=exclude_first) for each in calib]

    offline = ("ema", "kl")
    return [row for granularity in ("layer", "channel") for row in (
        *rows("unsigned", granularity, False, False, ONLINE),
        *rows("unsigned", granularity, False, True, ONLINE, *offline),
        *rows("signed", granularity, False, True, *offline),
        *rows("signed", granularity, True, True, ONLINE, *offline))]


PRESETS: Mapping[str, Callable[[], list[Strategy]]] = {"original": _original}


def simulate(model: Any, data: Any, strategies: Iterable[Strategy] = (Strategy(),),
             options: FreezeOptions | None = None, *, calib_data: Any = None, calib_select: str | None = None,
             kept: Simulation | None = None, each: Callable[[Simulation], None] | None = None,
             progress: Progress | None = None) -> Simulation:
    """Accuracy of the float model and of the model under each strategy, on the same images.

    model: what `qgraph.freeze` takes.  data: labelled images, what `qgraph.open_data` takes; without labels there is
    the agreement with the float model alone.
    options: of `qgraph freeze`; those that a strategy decides are not looked at, and what it excludes stays in float in
    every row.  Its select and skip are for `data`.
    calib_data: [default: the images that skip leaves out, else as for freezing], calib_select chooses from them.
    kept: rows of an earlier run, which are not computed again.  each: is called with all rows after each new one.
    Raises OptionError, UnsupportedError before any work for a strategy that is not one, and DataError where `kept` was
    judged on another number of images.
    """
    options = dataclasses.replace(options or FreezeOptions(), target=TARGET)
    parse_slice(calib_select, "--calib-select")
    strategies = list(strategies)
    for strategy in strategies:
        pipeline(strategy.apply(options))
        if strategy.calib != ONLINE:
            method(strategy.calib)
    bench = _Bench(model, data, options, calib_data, calib_select, strategies, progress)
    found = Simulation(bench.about(), strategies)
    if kept is not None:
        found.take(kept)
    todo = [s for s in strategies if found.row(s) is None]
    todo_float = found.float_row is None
    bench.rounds = len(todo) + todo_float

    if todo_float:
        found.set_float(bench.float_row())
        if each:
            each(found)
    for done, strategy in enumerate(todo):
        if progress:
            progress("strategies", done, len(todo))
        assert found.float_row is not None
        row = bench.row(bench.quantized(strategy))
        if found.float_row["images"] != row["images"]:
            raise DataError(f"{bench.data.name}: gave {row['images']} images, and {found.float_row['images']} before")
        found.add(strategy, row)
        log.info("%s", found.line(strategy))
        if each:
            each(found)
        if progress:
            progress("strategies", done + 1, len(todo))
    return found


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


class _Bench:
    """One model and its images; makes and judges its quantized variants."""

    def __init__(self, model: Any, data: Any, options: FreezeOptions, calib_data: Any, calib_select: str | None,
                 strategies: Sequence[Strategy], progress: Progress | None) -> None:
        self.options, self.progress = options, progress
        self.engine = runtime("simulating", options.runtime)
        online = [s for s in strategies if s.calib == ONLINE]
        beyond = [(f"--calib {ONLINE}", "ranges of the running batch") for _ in online]
        beyond += [(f"--act-bits {s.act_bits}", "activations of more than 8 bits") for s in strategies
                   if s.act_bits > 8]
        if beyond and not self.engine.any_quantizer:
            raise OptionError(f"{beyond[0][0]}: only MXNet can run {beyond[0][1]}, and this runs on {self.engine.name};"
                              ' leave it out, or pip install "qgraph[mxnet]"')
        opened = open_model(model, options.params, options.epoch, block_shapes(options.input_shape))
        self.source = opened.float_graph("simulating", options.outputs)
        if is_trained(self.source):
            raise OptionError(f"{opened.name}: was trained with a quantization of its own; qgraph freeze "
                              "writes that, and qgraph eval judges it")
        self.original = runnable(MxnetModel(self.source.copy()))
        bare = self.source.copy()
        Canonicalize().run(bare)
        select_nodes(bare, options.exclude)  # a wrong name is told before the first row is computed
        self.data: Data = open_for(self.original, data, options)
        self.truth = _Remembered(self.engine(self.original.graph, fused=True))
        if calib_data is None and options.calib_data is None and options.skip is not None:
            calib_data, calib_select = data, options.skip
        images, shapes = find_images(
            opened.prefix, bare, dataclasses.replace(options, select=calib_select, skip=None), calib_data,
            needed=len(online) < len(strategies), progress=progress)
        self.calib = images.data if images is not None else None
        like = images.first.feeds if images is not None else None
        self.feeds = floatcheck.random_feeds(bare, shapes, options.seed, like)
        self.sample = images.sample if images is not None else None
        self.scaling = scaling(images, None, options, self.engine, progress)
        self.rounds = self.round = 0
        self._float_graphs: dict[Any, Graph] = {}
        self._tables: dict[Any, CalibrationTable] = {}

    def about(self) -> dict[str, Any]:
        """What the rows depend on besides their strategies."""
        options = self.options
        preprocess = {k: list(v) if isinstance(v, tuple) else v for k, v in self.data.preprocess.to_dict().items()}
        return {"model": self.source.digest(), "data": self.data.name, "images": self.data.num_items,
                "digest": self.data.fingerprint(),
                "select": options.select, "skip": options.skip, "preprocess": preprocess,
                "calibration": None if self.calib is None else self.calib.name,
                "calibration_images": None if self.calib is None else self.calib.num_items,
                "calibration_digest": None if self.calib is None else self.calib.fingerprint(),
                "exclude": list(options.exclude), "batch_size": options.batch_size, "seed": options.seed,
                "runtime": self.engine.name}

    def float_row(self) -> dict[str, Any]:
        return self._judged(None).scored()

    def row(self, g: Graph) -> dict[str, Any]:
        judge = self._judged(self.engine.exact(g, fused=True))
        found = judge.agreement()
        return {**judge.scored(), **{key: found[key] for key in ("agreement", "worst", "sqnr_db")}}

    def _judged(self, run: Executor | None) -> Judge:
        """All images judged. run: what is compared with the float model; None is that model, by its labels alone."""
        judge = Judge.of(self.original, self.options)
        count = self.data.num_items
        for number, batch in enumerate(self.data):
            want = self.truth.run(number, batch.feeds)
            if run is None:
                judge.add(batch, want)
            else:
                judge.add(batch, run.run(batch.feeds), want)
            if self.progress:
                before = 0 if count is None else self.round * count
                self.progress("simulating", before + judge.images, None if count is None else self.rounds * count)
        if not judge.images:
            raise DataError(f"{self.data.name}: no image was read")
        self.round += 1
        return judge

    def quantized(self, strategy: Strategy) -> Graph:
        options = strategy.apply(self.options)
        float_steps, quant_steps = split(pipeline(options))
        variant = tuple(float_steps)
        if variant not in self._float_graphs:
            g = self.source.copy()
            steps = tuple(bound(step, **self.scaling) for step in float_steps)
            floatcheck.run_checked(steps, g, self.feeds, self.engine, check=self.options.float_check)
            self._float_graphs[variant] = g
        float_graph = self._float_graphs[variant]

        def ranges(quantized: Graph) -> CalibrationTable | None:
            if options.calib == ONLINE:
                return None
            how, signed = method(options.calib), get_target(TARGET).spec.signed(options.act_signed)
            key = (variant, how.name, options.act_bits if how.per_bits else 0, signed if how.bound else None)
            if key not in self._tables:
                assert self.calib is not None
                self._tables[key] = collect_table(float_graph, self.calib, options, signed, self.progress,
                                                  wanted_ranges(quantized))
            return self._tables[key]

        g = float_graph.copy()
        quantize(g, quant_steps, ranges, feeds=self.sample, run_op=self.engine.run_op, original=float_graph)
        return g
