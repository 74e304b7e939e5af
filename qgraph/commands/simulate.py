"""`qgraph.simulate`: what a network loses under one strategy of quantization, or under each of a grid of them.

Every strategy is what `qgraph freeze --target mxnet-sim` makes with the same flags.  What strategies share (the model,
its folded graph, calibration tables, the images) is computed once; what is left per strategy is a line of passes and
one compiled forward pass over the data.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Callable

from qgraph.analysis.observed import wanted_ranges
from qgraph.calibration.images import find_images, sample_count
from qgraph.commands import floatcheck
from qgraph.commands.evaluate import open_for, runnable
from qgraph.commands.line import (
    asked_ranges,
    bound,
    collect_table,
    pipeline,
    range_spec,
    scaling,
    split,
    split_at_table,
)
from qgraph.commands.open_model import open_model
from qgraph.commands.rows import Job, Rows, computed_row
from qgraph.commands.strategies import Simulation, Strategy
from qgraph.commands.trained import is_trained
from qgraph.data.open import Data
from qgraph.data.pieces import Pieces, run_all
from qgraph.data.preprocess import parse_slice
from qgraph.engines import runtime
from qgraph.errors import DataError, OptionError
from qgraph.ir.graph import Graph
from qgraph.ir.select import select_nodes
from qgraph.options import ONLINE, FreezeOptions, Progress, block_shapes, with_recipe
from qgraph.passes._choices import check_choices
from qgraph.passes.canonicalize import Canonicalize
from qgraph.quant.ranges import method
from qgraph.quant.recipe import LayerChoice, Recipe
from qgraph.quant.table import CalibrationTable
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.registry import get_target
from qgraph.workers import Here, Workers

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
             progress: Progress | None = None, workers: Workers | None = None) -> Simulation:
    """Accuracy of the float model and of the model under each strategy, on the same images.

    model: what `qgraph.freeze` takes.  data: labelled images, what `qgraph.open_data` takes; without labels there is
    the agreement with the float model alone.
    options: of `qgraph freeze`; those that a strategy decides are not looked at, and what it excludes, and its recipe
    says of single layers, holds in every row.  Its select and skip are for `data`.
    calib_data: [default: the images that skip leaves out, else as for freezing], calib_select chooses from them.
    kept: rows of an earlier run, which are not computed again.  each: is called with all rows after each new one.
    workers: who computes rows, and observes ranges; the rows do not depend on them.
    Raises OptionError, UnsupportedError before any work for a strategy that is not one, and DataError where `kept` was
    judged on another number of images.
    """
    options = with_recipe(dataclasses.replace(options or FreezeOptions(), target=TARGET))
    parse_slice(calib_select, "--calib-select")
    strategies = list(strategies)
    for strategy in strategies:
        pipeline(strategy.apply(options))
        if strategy.calib != ONLINE:
            method(strategy.calib)
    bench = _Bench(model, data, options, calib_data, calib_select, strategies, progress, workers or Here())
    found = Simulation(bench.about(), strategies)
    if kept is not None:
        found.take(kept)
    todo = [s for s in strategies if found.row(s) is None]
    todo_float = found.float_row is None
    rounds = len(todo) + todo_float
    jobs: Iterator[Job] = chain([Job()] if todo_float else [], map(bench.job, todo))
    if bench.workers.apart:
        bench.fold(todo)  # float graphs travel together, in front of all rows; ranges are looked for beside them
    images = None if bench.data.num_items is None else rounds * bench.data.num_items
    computed = run_all(partial(computed_row, bench.rows), jobs, bench.workers, "simulating", images, progress)

    if todo_float:
        found.set_float(next(computed))
        if each:
            each(found)
    for done, strategy in enumerate(todo):
        if progress:
            progress("strategies", done, len(todo))
        assert found.float_row is not None
        row = next(computed)
        if found.float_row["images"] != row["images"]:
            raise DataError(f"{bench.data.name}: gave {row['images']} images, and {found.float_row['images']} before")
        found.add(strategy, row)
        log.info("%s", found.line(strategy))
        if each:
            each(found)
        if progress:
            progress("strategies", done + 1, len(todo))
    return found


class _Bench:
    """One model and its images; makes and judges its quantized variants."""

    def __init__(self, model: Any, data: Any, options: FreezeOptions, calib_data: Any, calib_select: str | None,
                 strategies: Sequence[Strategy], progress: Progress | None, workers: Workers) -> None:
        self.options, self.progress, self.workers = options, progress, workers
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
        if isinstance(options.recipe, Recipe):
            options.recipe.check(self.source.digest())
            for s in strategies:
                check_choices(bare, get_target(TARGET), options.layers, LayerChoice(s.weight_bits, s.act_bits))
        self.data: Data = open_for(self.original, data, options)
        if calib_data is None and options.calib_data is None and options.skip is not None:
            calib_data, calib_select = data, options.skip
        images, shapes = find_images(
            opened.prefix, bare, dataclasses.replace(options, select=calib_select, skip=None), calib_data,
            needed=len(online) < len(strategies), progress=progress)
        self.images = images
        self.calib = images.data if images is not None else None
        like = images.first.feeds if images is not None else None
        self.feeds = floatcheck.random_feeds(bare, shapes, options.seed, like)
        self._variants: dict[Any, int] = {}
        self._float_graphs: list[Graph] = []
        self._tables: dict[Any, CalibrationTable] = {}
        pieces = Pieces(self.data, workers)
        most = max((sample_count(s.apply(options)) for s in strategies), default=0)
        self.rows = Rows(self.original, options, self._float_graphs,
                         images.of_count(most).sample if images is not None else None, pieces.whole(), pieces.shared)

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
                "recipe": options.recipe.to_dict() if isinstance(options.recipe, Recipe) else None,
                "runtime": self.engine.name}

    def fold(self, strategies: Sequence[Strategy]) -> None:
        """Make the float graphs of all these."""
        for strategy in strategies:
            self._variant(strategy.apply(self.options))

    def _variant(self, options: FreezeOptions) -> int:
        """The number of a float graph, which is made once."""
        float_steps, _ = split(pipeline(options))
        variant = tuple(float_steps)
        if variant not in self._variants:
            g = self.source.copy()
            images = None if self.images is None else self.images.of_count(sample_count(options))
            known = scaling(images, None, options, self.engine, self.progress, self.workers)
            steps = tuple(bound(step, **known) for step in float_steps)
            floatcheck.run_checked(steps, g, self.feeds, self.engine, check=self.options.float_check)
            self._variants[variant] = len(self._float_graphs)
            self._float_graphs.append(g)
        return self._variants[variant]

    def job(self, strategy: Strategy) -> Job:
        """The row of a strategy, with what it shares with others: its float graph and its ranges."""
        options = strategy.apply(self.options)
        number = self._variant(options)
        if options.calib == ONLINE:
            return Job(strategy, number)
        quantized = self._float_graphs[number].copy()
        for step in split_at_table(split(pipeline(options))[1])[0]:
            step.run(quantized)
        table = self._table(quantized, number, options) if quantized.nodes("fake_quantize") else None
        return Job(strategy, number, table)

    def _table(self, quantized: Graph, variant: int, options: FreezeOptions) -> CalibrationTable:
        how, codes = method(options.calib), range_spec(options)
        asked = asked_ranges(quantized, options)
        key = (variant, how.name, options.act_bits if how.per_bits or asked else 0,
               (codes.signed, codes.symmetric) if how.bound or asked else None, tuple(sorted(asked.items())))
        if key not in self._tables:
            assert self.calib is not None
            self._tables[key] = collect_table(self._float_graphs[variant], self.calib, options, self.progress,
                                              wanted_ranges(quantized), asked, self.workers)
        return self._tables[key]
