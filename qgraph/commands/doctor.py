"""`qgraph doctor`: what will make quantization go wrong, found before it does."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from qgraph import engines
from qgraph.analysis import sick_parameters as parameters
from qgraph.analysis.finding import ERROR, NOTE, SEVERITIES, WARNING, Finding, listed, ordered
from qgraph.analysis.sick_tensors import check_tensors
from qgraph.arrays import Array
from qgraph.calibration.images import wanted_shapes
from qgraph.calibration.survey import Survey, better_feeding, survey
from qgraph.commands.line import collect_table, pipeline, quantize, split
from qgraph.commands.needs import Needs, findings_of, needs_of
from qgraph.commands.open_model import end_at, find_symbol, open_model
from qgraph.commands.trained import is_trained
from qgraph.data.open import Data
from qgraph.errors import GraphError, OptionError, QGraphError, suggest
from qgraph.formats.mxnet import load, read_arrays, unmatched
from qgraph.formats.mxnet_json import SYMBOL_SUFFIX
from qgraph.formats.paths import find_params
from qgraph.ir.graph import Graph
from qgraph.ir.rewrite import run_pass
from qgraph.options import FreezeOptions, Progress, block_shapes, parse_shapes
from qgraph.passes import PIPELINES
from qgraph.passes.canonicalize import Canonicalize
from qgraph.semantics.infer import infer
from qgraph.semantics.inputs import hinted_shapes, inputs_of
from qgraph.targets.base import Shapes
from qgraph.targets.registry import names

log = logging.getLogger("qgraph")

IMAGES = 32  # that are looked at where --num-calib says nothing
SATURATION_IMAGES = 4  # on which sums are measured
WRONG, APART = 1.0, 0.5  # mean departure of the BatchNorms; healthy networks have up to 0.13
UNUSED = 0.01  # part of the numbers


def doctor(model: Any, data: Any = None, *, targets: Sequence[str] = (), options: FreezeOptions | None = None,
           progress: Progress | None = None) -> dict[str, Any]:
    """{"findings": [Finding as a dict, the worst first], "counts": {severity: n}, "images", "departure": mean of the
    BatchNorms' or None, "ops": {op: {"count", target: how it would run there}}, "skipped": [what was not checked, and
    why]}.

    model: what `open_model` takes, a float network.  data: what `qgraph.open_data` takes; without, only the parameters
    and ops are looked at.  targets: [default: all], a refusal of one that was asked for is an error.
    Raises OptionError for a model that is quantized, and what opening raises.
    """
    options = options or FreezeOptions()
    skipped: list[str] = []
    options = replace(options, params=_params(model, options))
    findings = list(_unmatched(model, options))
    seen = None
    needs: list[Needs] = []
    counted: dict[str, int] = {}
    if any(finding.severity == ERROR for finding in findings):
        skipped.append("everything else: parameters are missing")
    else:
        source = _opened(model, options)
        bare = source.copy()
        Canonicalize().run(bare)
        findings += _of_parameters(bare)
        images = None if data is None else options.open(data, wanted_shapes(bare, options),
                                                        options.num_calib or IMAGES)
        shapes, wrong = _shapes(bare, images, options)
        findings += wrong
        broken = any(finding.severity == ERROR for finding in findings)
        if broken or images is None:
            skipped.append("what tensors hold on images: " + ("first repair the errors" if broken else "no --data"))
        else:
            engine = engines.runtime("looking at images", options.runtime)
            seen = survey(bare, images, engine, progress)
            findings += check_tensors(seen.seen, seen.ids)
            findings += _of_statistics(bare, seen, images, data, engine)
            findings += _of_saturation(source, seen, images, options, engine)
            if not seen.stored:
                skipped.append("--mean, --std, --bgr: no BatchNorm tells what the network was trained on")
        if not wrong:
            needs = [needs_of(source, shapes, target, options) for target in targets or names()]
            findings += findings_of(needs, bool(targets))
        for node in bare.toposort():
            if node.op != "null":
                counted[node.op] = counted.get(node.op, 0) + 1
    findings = ordered(findings)
    return {"findings": [finding.to_dict() for finding in findings],
            "counts": {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES},
            "images": 0 if seen is None else len(seen.ids),
            "departure": float(f"{np.mean(seen.departures):.4g}") if seen is not None and seen.stored else None,
            "ops": {op: {"count": count, **{row.target: row.cell(op) for row in needs}}
                    for op, count in counted.items()},
            "skipped": skipped}


def _opened(model: Any, options: FreezeOptions) -> Graph:
    """A float network of which the rest can be asked."""
    opened = open_model(model, options.params, options.epoch, block_shapes(options.input_shape))
    source = opened.float_graph("a check", options.outputs)
    if is_trained(source):
        raise OptionError(f"{opened.name}: was trained with a quantization of its own, so its ranges are chosen; "
                          "qgraph freeze writes it, and qgraph eval judges it")
    return source


def _params(model: Any, options: FreezeOptions) -> str | None:
    """The file of the parameters, where the model is MXNet's files and there is one."""
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
    if not path.endswith(SYMBOL_SUFFIX) and not os.path.isfile(path + SYMBOL_SUFFIX):
        return options.params
    return options.params or find_params(find_symbol(path)[1], options.epoch)


def _unmatched(model: Any, options: FreezeOptions) -> Iterator[Finding]:
    """Parameters that the files lack, and such that they hold for nothing."""
    path = options.params
    if path is None or not os.path.isfile(path):
        return  # opening says so
    arrays, _ = read_arrays(path)
    missing, unused = unmatched(end_at(load(find_symbol(model)[0]), options.outputs), arrays)
    if missing:
        rows = [f"{name} ({slot})" + suggest(name, unused, " (the file has {})") for name, slot in missing.items()]
        yield Finding("missing-parameters", ERROR, tuple(missing),
                      f"{path}: no array for {len(missing)} parameters of the symbol: {listed(rows)}",
                      "the network cannot run without them", "give the file that was saved with this symbol (--params "
                      "FILE, --epoch N), or rename the arrays; files of Gluon's save_parameters need export()")
    size = sum(array.size for array in arrays.values())
    extra = sum(arrays[name].size for name in unused)
    if unused and not options.outputs:
        yield Finding("unused-parameters", WARNING if extra > UNUSED * size else NOTE, tuple(unused),
                      f"{path}: {len(unused)} arrays ({100 * extra / size:.3g} % of the numbers) belong to no node of "
                      f"the symbol: {listed(unused)}", "a symbol that was cut, or a file of another network: its other "
                      "arrays may be another network's, too", "check that both files are of one export; arrays that "
                      "are left over do no harm, and freeze leaves them out")


def _of_parameters(bare: Graph) -> Iterator[Finding]:
    broken = list(parameters.check_values(bare))
    yield from broken
    folded = bare.copy()
    if not broken:
        for step in PIPELINES["float"]:
            run_pass(step, folded)
    channels = parameters.folded_channels(folded)
    yield from parameters.check_variances(bare, channels)
    if not broken:
        yield from parameters.check_channels(channels)
        yield from parameters.check_embedding(bare)
        yield from parameters.check_sums(folded)


def _shapes(bare: Graph, images: Data | None, options: FreezeOptions) -> tuple[Shapes, list[Finding]]:
    """(shapes of the inputs, as far as they are known; what does not fit them)"""
    shapes: dict[str, Sequence[int]] = {**hinted_shapes(bare), **parse_shapes(options.input_shape, inputs_of(bare))}
    if images is not None:
        shapes.update((name, x.shape) for batch in islice(images, 1) for name, x in batch.feeds.items())
    known = {name: shapes[name] for name in inputs_of(bare) if name in shapes}
    try:
        infer(bare, known)
    except GraphError as error:
        return known, [Finding("shapes", ERROR, (str(error).split(":", 1)[0],), str(error), "the network cannot run on "
                               f"inputs of {known}", "give the file that was saved with this symbol (--params FILE), "
                               "or data of the size that the network takes (--resize, --crop, --input-shape)")]
    return known, []


def _of_statistics(bare: Graph, seen: Survey, images: Data, data: Any, engine: engines.Engine) -> Iterator[Finding]:
    """Data that cannot be what the network was trained on."""
    if not seen.stored:
        return
    files = isinstance(data, (str, os.PathLike)) and os.path.splitext(data)[1] not in (".npz", ".npy")
    ready = images.preprocess.is_identity and not files
    whole, first = float(np.mean(seen.departures)), seen.stored[0].name
    better = better_feeding(bare, seen, images, ready, engine)
    why = ("BatchNorms keep the means and variances of their training; on these images they are others, so ranges "
           "would be those of wrong inputs, and accuracy is lost in float already")
    if better is not None:
        way, least = better
        yield Finding("preprocessing", ERROR if whole > WRONG else WARNING, tuple(seen.fed),
                      f"what the BatchNorms read departs by {whole:.2g} from their statistics, and by {least:.2g} if "
                      f"images are fed with {way.flags}", why,
                      f"make the arrays anew: {way.formula}" if ready else f"{way.flags}, and the network's own "
                      "--resize and --crop")
    elif whole > APART:
        worst = seen.stored[int(np.argmax(seen.departures))].name
        yield Finding("preprocessing", WARNING, (*seen.fed, first, worst),
                      f"what the BatchNorms read departs by {whole:.2g} from their statistics (most in {worst}), and "
                      "no common way to feed images fits better", why,
                      "find out how the training read its images (--mean, --std, --scale, --bgr), and give images of "
                      "the same kind")


def _of_saturation(source: Graph, seen: Survey, images: Data, options: FreezeOptions,
                   engine: engines.Engine) -> Iterator[Finding]:
    """Layers whose sums of two products leave 16 bits, as freezing for MXNet measures it."""
    wanted = replace(options, target="mxnet", effort="fast", calib="naive")
    float_steps, quantizing = split(pipeline(wanted))
    g = source.copy()
    few: dict[str, Array] = {name: x[:SATURATION_IMAGES] for name, x in seen.fed.items()}
    try:
        for step in float_steps:
            run_pass(step, g)
        float_graph = g.copy()
        _, after = quantize(g, quantizing, lambda placed: collect_table(float_graph, images, wanted, None, ()),
                            feeds=few, run_op=engine.run_op, original=float_graph, trained=frozenset())
    except QGraphError as error:
        log.info("sums of 16 bits were not measured: %s", error)
        return
    rows = sorted((f for step in after for f in step.findings), key=lambda f: -f.missed)
    if rows:
        shown = listed([f"{row.layer} ({100 * row.missed:.2g} % of its outputs)" for row in rows])
        yield Finding("overflow", NOTE, tuple(row.layer for row in rows),
                      f"sums of two u8 x s8 products that leave 16 bits: {shown}",
                      "on x86 without VNNI these sums saturate silently (vpmaddubsw)",
                      "freeze measures it and takes coarser codes where that is better (\"saturation\" in its "
                      "summary); a processor with VNNI has no such loss, and --target \"onnx{isa=avx2}\" uses fewer "
                      "weight codes")
