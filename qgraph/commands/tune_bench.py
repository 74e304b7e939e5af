"""What candidates of `qgraph tune` are measured on: one network, one target, images in memory.

A candidate is what `freeze` makes of its recipe, in the target's own kernels, but without reports.  What candidates
share (the folded graph of an effort, tables of ranges, the float model's outputs, images) is made once.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qgraph.analysis.observed import wanted_ranges
from qgraph.arrays import Array
from qgraph.calibration.images import CalibrationImages, sample_count, wanted_shapes
from qgraph.commands import floatcheck
from qgraph.commands.checks import reference_feeds
from qgraph.commands.goal import Goal, Standing, standings
from qgraph.commands.judge import Judge
from qgraph.commands.line import asked_ranges, bound, collect_table, pipeline, quantize, scaling, split
from qgraph.commands.open_model import open_model
from qgraph.commands.report import is_quantized
from qgraph.commands.trained import is_trained
from qgraph.commands.tune_rows import FAILS, HOLDS, HOPELESS, Row
from qgraph.data.open import Batch, Data
from qgraph.engines import executor, runtime
from qgraph.errors import OptionError
from qgraph.ir import ops
from qgraph.ir.graph import Graph
from qgraph.options import FreezeOptions, Progress, block_shapes, with_recipe
from qgraph.passes.canonicalize import Canonicalize
from qgraph.passes.insert_fake_quantize import layer_verdicts
from qgraph.quant.recipe import Recipe
from qgraph.quant.table import CalibrationTable
from qgraph.targets.base import Executor, Model, Writing
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.registry import get_target

KEPT_BYTES = 1 << 30  # of decoded images; what is beyond is decoded again
LOOKS = (8, 4, 2)  # a candidate is looked at behind an eighth of the images, a fourth, a half
LEAST_SEEN = 8  # batches: of fewer all may have lost as much by chance, and tell of no doubt
CALIBRATION_IMAGES = 100  # of the tuning half, where there is nothing else
HALVES = 2


@dataclass(frozen=True)
class Candidate:
    """what: in words.  size, ms: what it costs, as predicted."""

    recipe: Recipe
    what: str
    size: int = 0
    ms: float = 0.0


class Images:
    """Batches of data, which stay in memory as far as there is room."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._kept: list[Batch] = []
        self._full = False

    def __iter__(self) -> Iterator[Batch]:
        if self._full:
            yield from self._kept
            return
        room, kept = KEPT_BYTES, list[Batch]()
        for batch in self.data:
            room -= sum(x.nbytes for x in batch.feeds.values())
            if room >= 0:
                kept.append(batch)
            yield batch
        self._kept, self._full = kept, room >= 0


class Bench:
    """options: of `freeze`, but for what recipes say.  data, judge_data: paths, as of `tune`.

    Raises OptionError, DataError for what cannot be tuned.
    """

    def __init__(self, model: Any, options: FreezeOptions, goal: Goal, data: Any, judge_data: Any = None,
                 calib_data: Any = None, progress: Progress | None = None) -> None:
        self.options, self.goal, self.progress = options, goal, progress
        self.target, self.engine = get_target(options.target), runtime("tuning", options.runtime)
        opened = open_model(model, options.params, options.epoch, block_shapes(options.input_shape))
        self.opened, self.source = opened, opened.float_graph("tuning", options.outputs)
        if is_trained(self.source):
            raise OptionError(f"{opened.name}: was trained with a quantization of its own, which says what is "
                              "quantized, and how")
        self.bare = self.source.copy()
        Canonicalize().run(self.bare)
        shapes = wanted_shapes(self.bare, options)
        given = options.open(data, shapes)
        tuning, judging = given.shares(HALVES, options.seed) if judge_data is None else (
            given, dataclasses.replace(options, select=None, skip=None).open(judge_data, shapes))
        self.tuning, self.judging = Images(tuning), Images(judging)
        self.calibration = self._calibration(data, calib_data, shapes, tuning)
        self._truths: dict[int, tuple[list[list[Array]], list[Judge]]] = {}
        self._graphs: dict[Hashable, Graph] = {}
        self._tables: dict[Any, CalibrationTable] = {}

    def _calibration(self, data: Any, calib_data: Any, shapes: Mapping[str, Sequence[int]], tuning: Data) -> Data:
        """What is given, what lies beside the model, the images that ``--skip`` leaves out, some of the tuning half."""
        options, beside = self.options, f"{self.opened.prefix}-calib.npz"
        limit = options.num_calib or CALIBRATION_IMAGES
        if (source := calib_data if calib_data is not None else options.calib_data) is not None:
            return dataclasses.replace(options, select=None, skip=None).open(source, shapes, limit)
        if self.opened.prefix and os.path.isfile(beside):
            return dataclasses.replace(options, select=None, skip=None).open(beside, shapes, limit)
        if options.skip is not None:
            return dataclasses.replace(options, select=options.skip, skip=None).open(data, shapes, limit)
        return tuning.shares(max(1, len(tuning) // limit), options.seed)[0]

    def about(self) -> dict[str, Any]:
        """What rows depend on besides their recipes."""
        goal = {name: list(map(list, value)) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self.goal).items()}
        options = {name: value for name, value in self.options.to_dict().items() if name != "recipe"}
        return {"model": self.source.digest(), "target": str(self.target), "goal": goal, "options": options,
                "tuning": [self.tuning.data.name, self.tuning.data.num_items, self.tuning.data.fingerprint()],
                "calibration": [self.calibration.name, self.calibration.num_items, self.calibration.fingerprint()],
                "runtime": self.engine.name}

    @cached_property
    def layers(self) -> dict[str, int]:
        """The layers that the target can quantize -> how many weights each has."""
        verdicts = layer_verdicts(self.folded, self.target, self.options.exclude)
        return {node.name: int(weight.size) for node, why in verdicts.items()
                if not why and (weight := self.folded.param(self.folded.inputs(node)[1])) is not None}

    @property
    def folded(self) -> Graph:
        """The float graph, as it is without anything measured."""
        return self.float_graph(self.with_recipe(Recipe(effort="fast")))

    def with_recipe(self, recipe: Recipe) -> FreezeOptions:
        """The options of `freeze` for a recipe."""
        return with_recipe(dataclasses.replace(self.options, recipe=recipe))

    # ---- making -----------------------------------------------------------------------------------------------------

    def images(self, options: FreezeOptions) -> CalibrationImages:
        return CalibrationImages(self.calibration, sample_count(options))

    def float_graph(self, options: FreezeOptions) -> Graph:
        """Behind the float passes; one for all options that have the same passes and images."""
        images, steps = self.images(options), split(pipeline(options))[0]
        key = (images.count, *map(repr, steps))
        if key not in self._graphs:
            known = scaling(images, None, options, self.engine, self.progress)
            g = self.source.copy()
            feeds = floatcheck.random_feeds(self.bare, images.shapes(images.first.feeds), options.seed,
                                            images.first.feeds)
            floatcheck.run_checked(tuple(bound(step, **known) for step in steps), g, feeds, self.engine,
                                   check=options.float_check)
            self._graphs[key] = g
        return self._graphs[key]

    def build(self, recipe: Recipe) -> tuple[Graph, Model]:
        """(the graph with fake_quantize nodes, the model that the target makes of it)"""
        options = self.with_recipe(recipe)
        images, float_graph = self.images(options), self.float_graph(options)

        def ranges(quantized: Graph) -> CalibrationTable:
            asked = asked_ranges(quantized, options)
            wanted = wanted_ranges(quantized)
            key = (float_graph.digest(), options.calib, options.act_bits, tuple(sorted(asked.items())))
            if key not in self._tables or not self._tables[key].entries.keys() >= set(wanted):
                self._tables[key] = collect_table(float_graph, self.calibration, options, None, wanted, asked)
            return self._tables[key]

        g = float_graph.copy()
        table, _ = quantize(g, split(pipeline(options))[1], ranges, feeds=images.sample, run_op=self.engine.run_op,
                            original=float_graph)
        shapes = images.shapes(images.first.feeds)
        writing = Writing(shapes, table, self.calibration.preprocess, reference_feeds(images))
        return g, self.target.write(g, writing)

    def runs(self, g: Graph, model: Model) -> Executor:
        """What runs a model that was built: its own kernels, or where they are not here a simulation."""
        if model.absent() or model.float_engine and model.float_engine != self.engine.name:
            return self.engine.exact(g)
        return executor(model, "tuning")

    # ---- measuring --------------------------------------------------------------------------------------------------

    def truth(self, images: Images) -> tuple[list[list[Array]], list[Judge]]:
        """The outputs of the float model, and a judge of them by labels, for each batch."""
        if id(images) not in self._truths:
            run = self.engine(self.bare)
            outputs, judges = [], []
            for batch in images:
                outputs.append(list(run.run(batch.feeds)))
                judges.append(self._judge(batch, outputs[-1], None))
            self._truths[id(images)] = outputs, judges
        return self._truths[id(images)]

    def _judge(self, batch: Batch, found: Sequence[Array], want: Sequence[Array] | None) -> Judge:
        judge = Judge.of(MxnetModel(self.bare), self.options)
        judge.add(batch, found, want)
        return judge

    def judged(self, run: Executor, images: Images, early: bool) -> tuple[dict[str, Standing], int]:
        """(standing by bound, how many images were judged). early: what is hopeless is not judged to the end."""
        outputs, truth = self.truth(images)
        looks = {look for part in LOOKS if (look := math.ceil(len(truth) / part)) >= LEAST_SEEN}
        if not early or self.goal.seeks_accuracy:
            looks = set()
        found: list[Judge] = []
        for batch, want in zip(images, outputs):
            found.append(self._judge(batch, run.run(batch.feeds), want))
            if len(found) in looks and len(found) < len(truth):
                standing = standings(self.goal.bounds, found, truth[:len(found)])
                if any(bound.hopeless for bound in standing.values()):
                    return standing, sum(judge.images for judge in found)
        return standings(self.goal.bounds, found, truth), sum(judge.images for judge in found)

    def measure(self, candidate: Candidate) -> Row:
        """On the tuning half."""
        g, model = self.build(candidate.recipe)
        found, count = self.judged(self.runs(g, model), self.tuning, early=True)
        whole = count == sum(judge.images for judge in self.truth(self.tuning)[1])
        state = HOPELESS if not whole else HOLDS if all(one.holds for one in found.values()) else FAILS
        quantized = sum(ops.kind(node) == ops.COMPUTE and is_quantized(g, node) for node in g.toposort())
        return Row(candidate.recipe, candidate.what, state, count, found, candidate.size, candidate.ms, quantized)
