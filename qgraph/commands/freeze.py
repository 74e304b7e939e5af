"""`qgraph.freeze`, a straight line: open, fold, calibrate, quantize, write, check, report."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

from qgraph import engines
from qgraph.analysis.observed import wanted_ranges
from qgraph.calibration.images import (
    CalibrationImages,
    as_the_network_takes_them,
    find_images,
    sample_of,
    wanted_shapes,
)
from qgraph.commands import checks, floatcheck, report
from qgraph.commands.carried import check_carried
from qgraph.commands.frozen import Frozen
from qgraph.commands.judge import Judge
from qgraph.commands.line import asked_ranges, collect_table, pipeline, quantize, range_spec, scaling
from qgraph.commands.network import FloatNetwork
from qgraph.commands.noise import layer_noise
from qgraph.commands.open_model import open_model
from qgraph.commands.ruin import ruin
from qgraph.commands.shared import Shared, Truth
from qgraph.commands.steps import Steps
from qgraph.commands.trained import TrainedNetwork, is_trained
from qgraph.data.open import Data
from qgraph.data.preprocess import Preprocess
from qgraph.errors import OptionError
from qgraph.files import Content, check_output, write_files
from qgraph.ir.graph import Graph
from qgraph.ir.rewrite import PassRecord
from qgraph.options import ONLINE, FreezeOptions, Progress, block_shapes, parse_shapes, recipe_of, with_recipe
from qgraph.passes._choices import check_choices
from qgraph.quant.ranges import method
from qgraph.quant.recipe import LayerChoice, Recipe
from qgraph.quant.spec import QSpec
from qgraph.quant.table import CalibrationTable
from qgraph.targets.base import Shapes, Target, Writing
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.registry import get_target, no_open_sizes
from qgraph.threads import one_for_linear_algebra
from qgraph.workers import Workers

log = logging.getLogger("qgraph")


@one_for_linear_algebra()
def freeze(model: Any, options: FreezeOptions | None = None, *, calib_data: Any = None,
           calib_table: CalibrationTable | str | None = None, progress: Progress | None = None,
           workers: Workers | None = None) -> Frozen:
    """Quantize a model for `options.target`.

    model: path of a symbol JSON (or its prefix), a `Graph`, or a Gluon block.
    calib_data: what `qgraph.open_data` takes.
    calib_table: a table, or its path, from an earlier run; no data are needed then.
    workers: who looks at the calibration images; the result does not depend on them.
    """
    options = with_recipe(options or FreezeOptions())
    return _freeze(model, options, range_spec(options), calib_data, calib_table, progress, Shared(options), workers)


@one_for_linear_algebra()
def freeze_all(model: Any, wanted: Sequence[FreezeOptions], prefix: str,
               progress: Progress | None = None, workers: Workers | None = None) -> tuple[list[Frozen], list[str]]:
    """Freeze for several targets with one calibration, and write all or none; (frozen models, paths).

    Images, float passes and the outputs of the float model are made once, for options that differ in the target alone.
    Its ranges are chosen for the codes of the targets, or, where these differ, for what a tensor's signs allow.
    """
    wanted = [with_recipe(options) for options in wanted]
    writers: dict[str, str] = {}
    for options in wanted:  # before minutes of work
        pipeline(options)
        suffix = get_target(options.target).suffix
        if writers.setdefault(suffix, options.target) != options.target:
            raise OptionError(f"--target {options.target}: writes {prefix}{suffix}, as another target does; freeze it "
                              "on its own with another --output")
    kinds = {range_spec(options) for options in wanted}
    codes = kinds.pop() if len(kinds) == 1 else QSpec(wanted[0].act_bits)
    frozen: list[Frozen] = []
    files: dict[str, Content] = {}
    table: CalibrationTable | None = None
    common: list[Shared] = []
    for options in wanted:
        shared = next((one for one in common if one.fits(options)), None)
        if shared is None:
            common.append(shared := Shared(options, several=len(wanted) > 1))
        frozen.append(_freeze(model, options, codes, None, table, progress, shared, workers))
        table = frozen[-1].table
        for path, content in frozen[-1].files(prefix).items():
            if path.startswith(f"{prefix}.report.") and len(wanted) > 1:
                path = f"{prefix}.{frozen[-1].report['target']}{path.removeprefix(prefix)}"
            files[path] = content
    check_output(prefix, list(files), frozen[0].source)
    write_files(files)
    return frozen, list(files)


def _freeze(model: Any, options: FreezeOptions, codes: QSpec, calib_data: Any,
            calib_table: CalibrationTable | str | None, progress: Progress | None, shared: Shared,
            workers: Workers | None) -> Frozen:
    steps = Steps()
    steps.begin("open")
    target = get_target(options.target)
    pipeline(options)  # refuses what cannot be before any work
    opened = shared.once("model", lambda: open_model(model, options.params, options.epoch,
                                                     block_shapes(options.input_shape)))
    original = opened.float_graph("freezing", options.outputs)
    given = _given_table(options, calib_table)
    network = (TrainedNetwork if is_trained(original) else FloatNetwork)(original, options, target)
    bare = network.bare()
    _check_recipe(original, bare, options, target)
    data = calib_data if calib_data is not None else sample_of(model)
    images, shapes = None, network.hinted_shapes()
    if network.reads_images(opened.prefix, data):
        images, shapes = shared.once("images", lambda: find_images(
            opened.prefix, bare, options, data, progress=progress, needed=given is None and options.calib != ONLINE))
    check_carried(network, shapes)
    engine = engines.runtime("freezing a model", options.runtime)  # importing one takes longer than a refusal
    if images is not None:
        found = images
        images = shared.once("images as taken", lambda: as_the_network_takes_them(found, bare, engine))
        shapes = images.shapes(shapes)
    judge_data = shared.once("images to judge on", lambda: _judge_data(options, bare))
    judged = Judge.of(MxnetModel(bare), options)
    records: list[PassRecord] = []
    dump = options.dump_passes or ""
    feeds = floatcheck.random_feeds(bare, shapes, options.seed, images.first.feeds if images is not None else None)

    def fold() -> tuple[Graph, Graph, list[PassRecord]]:
        done: list[PassRecord] = []
        return (*network.fold(feeds, engine, dump, done, scaling(images, given, options, engine, progress, workers)),
                done)

    steps.begin("fold")
    float_graph, g, done = shared.once("float passes", fold) if network.shares_float else fold()
    g = g.copy()
    records += done
    verdicts = network.verdicts(float_graph)

    def ranges(quantized: Graph) -> CalibrationTable | None:
        def observe() -> CalibrationTable:
            network.need(images)
            assert images is not None
            return collect_table(float_graph, images.data, options, progress, wanted_ranges(quantized),
                                 asked_ranges(quantized, options), workers, codes)

        found = network.ranges(quantized, float_graph, given, observe)
        steps.begin("quantize")
        return found

    steps.begin("calibrate")
    table, after = quantize(g, network.quantizing, ranges, dump, records,
                            feeds=None if images is None else images.sample, run_op=engine.run_op,
                            original=None if is_trained(original) else float_graph,  # that lacks what was trained
                            kept_reads=shared.reads if network.shares_float else None,
                            trained=frozenset(network.entries))
    steps.begin("write")
    writing = _writing(options, target, shapes, table, images)
    written = target.write(g, writing)

    def truth() -> Truth:
        return Truth(lambda: network.truth(engine))

    steps.begin("check")
    wanted = shared.once("truth", truth) if network.shares_float else truth()
    checked = checks.judge(g, network, judged, written, images, judge_data, target, engine, wanted)
    wanted.rest()
    network.warn_of(checked["agreement"])
    steps.begin("report")
    noise = layer_noise(network, written, writing.feeds) if written.has_kernels else None
    frozen = Frozen(g, written, table, {}, opened.files, steps.seconds, _recipe(original, options, table))
    frozen.report = report.build(
        files=opened.files, original=original, float_graph=float_graph, graph=g, model=written, verdicts=verdicts,
        table=table, records=records, findings=[f for step in after for f in step.findings],
        options=options.to_dict(), target=target, sizes=(opened.size, written.size), checks={
            **checked, "noise": noise,
            "ruin": ruin(checked["agreement"], network, written, writing.feeds, target, noise),
            **target.check(written, g, writing)})
    steps.end()
    return frozen


def _check_recipe(original: Graph, bare: Graph, options: FreezeOptions, target: Target) -> None:
    """Raise OptionError, UnsupportedError, CalibrationError where the recipe cannot be for this network and target."""
    if not isinstance(options.recipe, Recipe):
        return
    if is_trained(original):
        raise OptionError("--recipe: this network was trained quantized; what is quantized, and how, is chosen with "
                          "qgraph.qat.convert_model")
    options.recipe.check(original.digest())
    weight_bits, act_bits = target.bits(options.weight_bits, options.act_bits)
    check_choices(bare, target, options.layers, LayerChoice(weight_bits, act_bits))


def _recipe(original: Graph, options: FreezeOptions, table: CalibrationTable | None) -> Recipe | None:
    """What was done, as a recipe; None of a network that was trained quantized, or by passes of the user's own."""
    if is_trained(original) or options.passes is not None:
        return None
    calib = options.calib if table is None else table.method
    return None if calib == ONLINE else recipe_of(dataclasses.replace(options, calib=calib), original.digest())


def _given_table(options: FreezeOptions, table: CalibrationTable | str | None) -> CalibrationTable | None:
    """The table of an earlier run, if there is one. Raises OptionError where it contradicts the options."""
    given = table if table is not None else options.calib_table
    if given is None:
        return None
    if options.calib == ONLINE:
        raise OptionError(f"--calib {ONLINE}: takes the ranges from the batch that is run, and no --calib-table")
    found = given if isinstance(given, CalibrationTable) else CalibrationTable.load(os.fspath(given))
    if found.factors and options.effort == "fast":
        raise OptionError("--calib-table: these ranges are of equalized channels, which --effort fast leaves alone")
    if options.calib != FreezeOptions.calib and method(options.calib).name != found.method:
        raise OptionError(f"--calib {options.calib}: the ranges are those of --calib-table, by {found.method}; leave "
                          "one of them out")
    return found


def _judge_data(options: FreezeOptions, bare: Graph) -> Data | None:
    """The images of --judge-data, all of them; the options that choose images are for calibration."""
    if options.judge_data is None:
        return None
    return dataclasses.replace(options, select=None, skip=None).open(options.judge_data, wanted_shapes(bare, options))


def _writing(options: FreezeOptions, target: Target, shapes: Shapes, table: CalibrationTable | None,
             images: CalibrationImages | None) -> Writing:
    """What the target is told of the run; sizes that the user left open are 0."""
    given = parse_shapes(options.input_shape, [*shapes], no_open_sizes(target))
    opened = {name: [0 if axis and not given.get(name, shape)[axis] else size for axis, size in enumerate(shape)]
              for name, shape in shapes.items()}
    feeds = None if images is None else checks.reference_feeds(images)
    return Writing(opened, table, _preprocess(table, options), feeds)


def _preprocess(table: CalibrationTable | None, options: FreezeOptions) -> Preprocess:
    """What made the images of the calibration."""
    return Preprocess(**table.preprocess) if table is not None and table.preprocess else options.preprocessing()
