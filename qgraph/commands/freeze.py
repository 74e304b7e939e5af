"""`qgraph.freeze`, a straight line: load, fold, decide, calibrate, bake, lower, check, report."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

from qgraph.calibration.images import find_data, sample, sample_of
from qgraph.commands import floatcheck, report, trained
from qgraph.commands.checks import REFERENCE_IMAGES, run_checks
from qgraph.commands.line import pipeline, split
from qgraph.commands.open_model import Model, default_prefix, open_model
from qgraph.data.open import Data
from qgraph.data.preprocess import Preprocess
from qgraph.engines import runtime
from qgraph.errors import OptionError
from qgraph.files import Content, check_output, write_files
from qgraph.formats.mxnet_marks import is_frozen_op
from qgraph.ir.graph import Graph
from qgraph.ir.rewrite import Pass, PassManager, PassRecord
from qgraph.options import ONLINE, FreezeOptions, Progress, block_shapes
from qgraph.passes.canonicalize import Canonicalize
from qgraph.passes.insert_fake_quantize import layer_verdicts
from qgraph.quant.ranges import method
from qgraph.quant.spec import QParams
from qgraph.quant.table import CalibrationTable
from qgraph.semantics.inputs import inputs_of
from qgraph.targets import base as targets
from qgraph.targets.ncnn.emit import to_ncnn
from qgraph.targets.ncnn.model import NcnnModel, folded_graph
from qgraph.targets.ncnn.runtime import facts as ncnn_facts
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.fusion import fusion
from qgraph.targets.onnx.model import OnnxModel
from qgraph.targets.tengine.emit import frozen_tengine
from qgraph.targets.tengine.model import TengineModel
from qgraph.targets.tengine.runtime import facts as tengine_facts

log = logging.getLogger("qgraph")


@dataclass
class Frozen:
    """A frozen model. graph: with fake_quantize nodes; lowered: in the target's ops; report: plain data, as JSON.

    source: the files that the float model came from, which are not overwritten.
    """

    graph: Graph
    lowered: Graph | OnnxModel | NcnnModel | TengineModel
    table: CalibrationTable | None = field(repr=False)
    report: dict[str, Any] = field(repr=False)
    source: tuple[str, ...] = ()

    def files(self, prefix: str) -> dict[str, Content]:
        found = model_files(self.lowered, prefix)
        if self.table is not None:
            found[f"{prefix}.calib.json"] = self.table.to_json()
        found[f"{prefix}.report.json"] = report_text(self.report)
        return found

    def save(self, prefix: str | os.PathLike[str] | None = None) -> list[str]:
        """Write the model, its table and report, all or none; returns the paths. Default: ``MODEL-quantized``."""
        base = os.fspath(prefix) if prefix is not None else default_prefix(self.source[0]) if self.source else ""
        if not base:
            raise OptionError("save: give a prefix for the files")
        files = self.files(base)
        check_output(base, list(files), self.source)
        write_files(files)
        return list(files)

    def module(self, shapes: dict[str, Sequence[int]] | Sequence[int]) -> Any:
        """A bound `mx.mod.Module` for inference. shapes: of the inputs, by name, or of the one input."""
        from qgraph.formats.mxnet import to_mxnet
        from qgraph.targets.mxnet.runtime import import_mxnet

        if not isinstance(self.lowered, Graph):
            runs = {NcnnModel: "ncnn.Net", TengineModel: "Tengine"}.get(type(self.lowered),
                                                                        "onnxruntime.InferenceSession")
            raise OptionError(f"module: this model is not frozen for MXNet; {runs} runs it")
        mx = import_mxnet("Frozen.module")
        names = inputs_of(self.lowered)
        by_name = shapes if isinstance(shapes, dict) else {names[0]: shapes}
        if any(isinstance(shape, str) or not isinstance(shape, Sequence) for shape in by_name.values()):
            raise OptionError(f"module: found {shapes!r}, want a shape such as (1, 3, 224, 224), or name -> shape")
        if missing := [name for name in names if name not in by_name]:
            raise OptionError(f"module: want a shape for every input, found none for {', '.join(missing)}")
        symbol, arg, aux = to_mxnet(self.lowered)
        module = mx.mod.Module(symbol, data_names=names, label_names=None)
        try:
            module.bind(data_shapes=[(n, tuple(by_name[n])) for n in names], for_training=False)
        except RuntimeError as error:
            raise OptionError(f"module: MXNet cannot bind this model to {by_name}: {_last_line(error)}") from error
        module.set_params(arg, aux)
        return module


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[-1]


def report_text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def freeze(model: Any, options: FreezeOptions | None = None, *, calib_data: Any = None,
           calib_table: CalibrationTable | str | None = None, progress: Progress | None = None) -> Frozen:
    """Quantize a model for `options.target`.

    model: path of a symbol JSON (or its prefix), a `Graph`, or a Gluon block.
    calib_data: what `qgraph.open_data` takes.
    calib_table: a table, or its path, from an earlier run; no data are needed then.
    """
    options = options or FreezeOptions()
    return _freeze(model, options, _signed(options), calib_data, calib_table, progress)


def _signed(options: FreezeOptions) -> bool | None:
    """For which codes ranges are chosen; None is for those that a tensor's signs allow."""
    return targets.get_target(options.target).signed(options.act_signed)


def _freeze(model: Any, options: FreezeOptions, signed: bool | None, calib_data: Any,
            calib_table: CalibrationTable | str | None, progress: Progress | None) -> Frozen:
    target = targets.get_target(options.target)
    float_steps, quant_steps = split(pipeline(options))
    executor = runtime("freezing a model", options.runtime)
    opened = open_model(model, options.params, options.epoch, block_shapes(options.input_shape))
    opened.as_graph("freezing")
    online = options.calib == ONLINE
    if online and (calib_table is not None or options.calib_table is not None):
        raise OptionError(f"--calib {ONLINE}: takes the ranges from the batch that is run, and no --calib-table")
    refuse_frozen(opened)
    given = calib_table if calib_table is not None else options.calib_table
    if isinstance(given, (str, os.PathLike)):
        given = CalibrationTable.load(given)
    if given is not None and options.calib != FreezeOptions.calib and method(options.calib).name != given.method:
        raise OptionError(f"--calib {options.calib}: the ranges are those of --calib-table, by {given.method}; leave "
                          "one of them out")

    if trained.is_trained(opened.graph):
        from qgraph.commands.freeze_trained import freeze_trained

        found = calib_data if calib_data is not None else sample_of(model)
        return freeze_trained(opened, options, target, found, given, progress)
    if options.fast:
        raise OptionError("--fast: is for networks that were trained quantized, and this one was not")
    original = opened.graph.copy()
    bare = opened.graph.copy()
    Canonicalize().run(bare)
    data, shapes = find_data(opened.prefix, bare, options, calib_data, needed=given is None and not online,
                             progress=progress)
    first = next(iter(data)) if data is not None else None

    float_graph = opened.graph
    records: list[PassRecord] = []
    feeds = floatcheck.random_feeds(shapes, options.seed, first.feeds if first else None)
    changed = floatcheck.run_checked(float_steps, float_graph, feeds, executor, options.dump_passes or "", records)
    log.info("float passes: outputs kept to %.1e of their size on a random batch", changed)
    verdicts = _verdicts(float_graph, quant_steps)

    def ranges() -> CalibrationTable | None:
        if online:
            log.info("ranges: of the batch that is being run")
            return None
        if not isinstance(given, CalibrationTable):
            assert data is not None
            return collect_table(float_graph, data, options, signed, progress)
        given.check(float_graph.digest())
        given.check_bits(options.act_bits)
        return given

    g, table, after = quantize(float_graph, quant_steps, ranges, options.dump_passes or "", records, data=data,
                               float_graph=float_graph, feeds=None if data is None else sample(data))
    lowered = lower(g, target, shapes, options.int4)
    if isinstance(lowered, (NcnnModel, TengineModel)):
        lowered.preprocess = _preprocess(table, options)
    checks: dict[str, Any] = run_checks(g, bare, lowered, data, target, executor) if data is not None else {
        "agreement": None, "departure": None}
    if isinstance(lowered, OnnxModel):
        checks["onnxruntime"] = fusion(g, lowered)
    if isinstance(lowered, NcnnModel):
        checks["ncnn"] = ncnn_facts(g, lowered, table)
    if isinstance(lowered, TengineModel):
        checks["tengine"] = tengine_facts(g, lowered, table, None if first is None else {
            name: np.ascontiguousarray(x[:REFERENCE_IMAGES]) for name, x in first.feeds.items()})
    frozen = Frozen(g, lowered, table, {}, opened.files)
    frozen.report = report.build(
        original=original, float_graph=float_graph, graph=g, lowered=lowered, verdicts=verdicts, table=table,
        records=records, findings=[f for step in after for f in getattr(step, "findings", ())],
        options=options.to_dict(), target=target,
        sizes=(opened.size, written_size(lowered)), checks=checks)
    return frozen


def quantize(source: Graph, steps: tuple[Pass, ...], ranges: Callable[[], CalibrationTable | None],
             dump_dir: str = "", records: list[PassRecord] | None = None,
             **found: Any) -> tuple[Graph, CalibrationTable | None, tuple[Pass, ...]]:
    """Run the quantizing passes on a copy: (the graph with fake_quantize nodes, the table, the passes that read it).

    ranges: gives the calibration, None for online ranges; it is asked if anything is quantized.
    found: what only a run can know, for the fields of the passes.
    """
    g = source.copy()
    records = [] if records is None else records
    before, after = split_at_table(steps)
    PassManager(before, dump_dir, records).run(g)
    table = None
    if g.nodes("fake_quantize"):
        table = ranges()
    else:
        log.warning("warning: nothing is quantized: every layer is excluded or stays in float")
    after = tuple(bind(step, table=table, **found) for step in after)
    PassManager(after, dump_dir, records).run(g)
    for node in g.nodes("fake_quantize"):
        if not isinstance(node.quant, QParams) and not (node.quant and node.quant.online):
            raise OptionError(f"--passes: {node.name} has no range: end the line with calibrate,bake-weights")
    return g, table, after


def freeze_all(model: Any, wanted: Sequence[FreezeOptions], prefix: str,
               progress: Progress | None = None) -> tuple[list[Frozen], list[str]]:
    """Freeze for several targets with one calibration, and write all or none; (frozen models, paths).

    Its ranges are chosen for the codes of the targets, or, where these differ, for what a tensor's signs allow.
    """
    writers: dict[str, str] = {}
    for options in wanted:  # before minutes of work
        pipeline(options)
        suffix = targets.get_target(options.target).suffix
        if writers.setdefault(suffix, options.target) != options.target:
            raise OptionError(f"--target {options.target}: writes {prefix}{suffix}, as another target does; freeze it "
                              "on its own with another --output")
    kinds = {_signed(options) for options in wanted}
    signed = kinds.pop() if len(kinds) == 1 else None
    frozen: list[Frozen] = []
    files: dict[str, Content] = {}
    table: CalibrationTable | None = None
    for options in wanted:
        frozen.append(_freeze(model, options, signed, None, table, progress))
        table = frozen[-1].table
        for path, content in frozen[-1].files(prefix).items():
            if path.endswith(".report.json") and len(wanted) > 1:
                path = f"{prefix}.{options.target}.report.json"
            files[path] = content
    check_output(prefix, list(files), frozen[0].source)
    write_files(files)
    return frozen, list(files)


def lower(g: Graph, target: targets.Target, shapes: Mapping[str, Sequence[int]] | None = None,
          int4: bool = False) -> Graph | OnnxModel | NcnnModel | TengineModel:
    """The graph in the target's own ops. shapes: of the inputs, which some ops need.  int4: see `to_onnx`."""
    if target.flow == "float-between":
        model = to_ncnn(g, shapes)
        model.folded = folded_graph(g)
        return model
    if target.flow == "whole":
        return frozen_tengine(g, shapes)
    if target.flow == "qdq":
        return to_onnx(g, shapes, int4=int4)
    if target.flow == "fused":
        from qgraph.targets.mxnet.int8 import lower as lower_int8

        return lower_int8(g)
    from qgraph.targets.mxnet.sim import lower as lower_sim

    return lower_sim(g)


def model_files(lowered: Graph | OnnxModel | NcnnModel | TengineModel, prefix: str) -> dict[str, Content]:
    """Path -> content of the model's own files."""
    if isinstance(lowered, (NcnnModel, TengineModel)):
        return lowered.files(prefix)
    if isinstance(lowered, OnnxModel):
        return {f"{prefix}.onnx": lowered.to_bytes()}
    from qgraph.formats.mxnet import checkpoint_files

    return checkpoint_files(lowered, prefix)


def refuse_frozen(opened: Model) -> None:
    for node in opened.graph.dag:
        if is_frozen_op(node):
            raise OptionError(f"{opened.prefix or 'model'}: is quantized already ({node}), want the float model")


# ---- data -----------------------------------------------------------------------------------------------------------

def collect_table(float_graph: Graph, data: Data, options: FreezeOptions, signed: bool | None,
             progress: Progress | None) -> CalibrationTable:
    from qgraph.calibration.collect import collect

    table = collect(float_graph, data, options.calib, act_bits=options.act_bits, act_signed=signed, progress=progress,
                    runtime=options.runtime)
    log.info("calibrated %d tensors with %s on %d images (%s)", len(table.entries), table.method, table.images,
             table.data)
    return table


def _preprocess(table: CalibrationTable | None, options: FreezeOptions) -> Preprocess:
    """What made the images of the calibration."""
    return options.preprocessing() if table is None else Preprocess(**table.preprocess)


# ---- passes ---------------------------------------------------------------------------------------------------------

def split_at_table(steps: tuple[Pass, ...]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """(passes before, passes from the first one that reads the calibration)"""
    for at, step in enumerate(steps):
        if any(f.name == "table" for f in dataclasses.fields(step)):  # type: ignore[arg-type]
            return steps[:at], steps[at:]
    return steps, ()


def bind(step: Pass, **found: Any) -> Pass:
    """The pass with what only a run can know in the fields that it has for it."""
    names = {f.name for f in dataclasses.fields(step)} & found.keys()  # type: ignore[arg-type]
    return dataclasses.replace(step, **{name: found[name] for name in names}) if names else step  # type: ignore


def _verdicts(float_graph: Graph, steps: Sequence[Pass]) -> dict[str, str]:
    for step in steps:
        if step.name == "insert-fake-quantize":
            target, exclude = targets.get_target(step.target), step.exclude  # type: ignore[attr-defined]
            found = {n.name: why for n, why in layer_verdicts(float_graph, target, exclude).items()}
            for name, why in found.items():
                if why:
                    log.info("stays in float: %s: %s", name, why)
            return found
    return {}


# ---- size -----------------------------------------------------------------------------------------------------------

def written_size(lowered: Graph | OnnxModel | NcnnModel | TengineModel) -> int:
    """Bytes of the model's files that `save` writes."""
    if isinstance(lowered, (NcnnModel, TengineModel)):
        return lowered.size

    class Counter:
        size = 0

        def write(self, chunk: Any) -> int:
            self.size += memoryview(chunk).nbytes
            return memoryview(chunk).nbytes

    counter = Counter()
    for content in model_files(lowered, "").values():
        if callable(content):
            content(counter)  # type: ignore[arg-type]
        else:
            counter.write(content.encode() if isinstance(content, str) else content)
    return counter.size
