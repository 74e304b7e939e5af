"""`qgraph.freeze`, a straight line: load, fold, decide, calibrate, bake, lower, check, report."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from qgraph import departure, floatcheck, report, targets, trained
from qgraph.data import Batch, Data
from qgraph.errors import CalibrationError, OptionError
from qgraph.files import Content, write_files
from qgraph.formats.onnx import to_onnx
from qgraph.formats.onnx_model import OnnxModel
from qgraph.fusion import fusion
from qgraph.ir import Graph
from qgraph.models import (
    Model,
    default_prefix,
    find_symbol,
    hinted_shapes,
    inputs_of,
    is_quantized_op,
    known_channels,
    open_model,
)
from qgraph.options import DEFAULT_IMAGES, FreezeOptions, Progress, parse_shapes
from qgraph.passes.canonicalize import Canonicalize
from qgraph.passes.insert_fake_quantize import SIGNED, layer_verdicts
from qgraph.passes.pipelines import pipeline, split
from qgraph.quant.spec import QParams
from qgraph.quant.table import CalibrationTable
from qgraph.rewrite import Pass, PassManager, PassRecord
from qgraph.runtimes import executor as open_executor
from qgraph.runtimes import runtime

log = logging.getLogger("qgraph")

DISTILLED = "distilled"  # how the name of such data begins
DISTILLED_IMAGES = 32
AGREEMENT_IMAGES = 128
REFERENCE_IMAGES = 4
SAMPLE_IMAGES = 16  # on which passes may measure, such as limit-saturation
CHECK_IMAGES = 4


@dataclass
class Frozen:
    """A frozen model. graph: with fake_quantize nodes; lowered: in the target's ops; report: plain data, as JSON."""

    graph: Graph
    lowered: Graph | OnnxModel
    table: CalibrationTable | None = field(repr=False)
    report: dict[str, Any] = field(repr=False)
    default_prefix: str = ""

    def files(self, prefix: str) -> dict[str, Content]:
        found = model_files(self.lowered, prefix)
        if self.table is not None:
            found[f"{prefix}.calib.json"] = self.table.to_json()
        found[f"{prefix}.report.json"] = report_text(self.report)
        return found

    def save(self, prefix: str | os.PathLike[str] | None = None) -> list[str]:
        """Write the model, its table and report, all or none; returns the paths. Default: ``MODEL-quantized``."""
        base = os.fspath(prefix) if prefix is not None else self.default_prefix
        if not base:
            raise OptionError("save: give a prefix for the files")
        files = self.files(base)
        write_files(files)
        return list(files)

    def module(self, shapes: dict[str, Sequence[int]] | Sequence[int]) -> Any:
        """A bound `mx.mod.Module` for inference. shapes: of the inputs, by name, or of the one input."""
        from qgraph.formats.mxnet import to_mxnet
        from qgraph.runtimes.mxnet import import_mxnet

        if not isinstance(self.lowered, Graph):
            raise OptionError("module: this model is frozen for ONNX; onnxruntime.InferenceSession runs it")
        mx = import_mxnet("Frozen.module")
        names = inputs_of(self.lowered)
        by_name = shapes if isinstance(shapes, dict) else {names[0]: shapes}
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
    target = targets.get_target(options.target)
    float_steps, quant_steps = split(pipeline(options))
    executor = runtime("freezing a model", options.runtime)
    opened = open_model(model, options.params, options.epoch, _block_shapes(options))
    opened.as_graph("freezing")
    _refuse_frozen(opened)
    table = calib_table if calib_table is not None else options.calib_table
    if isinstance(table, (str, os.PathLike)):
        table = CalibrationTable.load(table)

    if trained.is_trained(opened.graph):
        from qgraph.freezing_trained import freeze_trained

        found = calib_data if calib_data is not None else trained.sample_of(model)
        return freeze_trained(opened, options, target, found, table, progress)
    original = opened.graph.copy()
    bare = opened.graph.copy()
    Canonicalize().run(bare)
    data, shapes = _inputs(opened, bare, options, calib_data, needed=table is None, progress=progress)
    first = next(iter(data)) if data is not None else None

    g = opened.graph
    records: list[PassRecord] = []
    feeds = floatcheck.random_feeds(shapes, options.seed, first.feeds if first else None)
    changed = floatcheck.run_checked(float_steps, g, feeds, executor, options.dump_passes or "", records)
    log.info("float passes: outputs kept to %.1e of their size on a random batch", changed)
    float_graph = g.copy()
    verdicts = _verdicts(float_graph, quant_steps)

    before_calibration, after = _split_at_table(quant_steps)
    PassManager(before_calibration, options.dump_passes or "", records).run(g)
    wants_table = bool(g.nodes("fake_quantize"))
    if not wants_table:
        log.warning("warning: nothing is quantized: every layer is excluded or stays in float")
        table = None
    elif table is None:
        assert data is not None
        table = _collect(float_graph, data, options, progress)
    else:
        table.check(float_graph.digest())
        table.check_bits(options.act_bits)
    sample = None if data is None else _sample(data)
    after = tuple(_bind(step, table=table, data=data, float_graph=float_graph, feeds=sample) for step in after)
    PassManager(after, options.dump_passes or "", records).run(g)
    for node in g.nodes("fake_quantize"):
        if not isinstance(node.quant, QParams):
            raise OptionError(f"--passes: {node.name} has no range: end the line with calibrate,bake-weights")

    lowered = lower(g, target, shapes, options.int4)
    checks: dict[str, Any] = _checks(g, float_graph, lowered, data, target, executor) if data is not None else {
        "agreement": None, "departure": None}
    if isinstance(lowered, OnnxModel):
        checks["onnxruntime"] = fusion(g, lowered)
    frozen = Frozen(g, lowered, table, {}, default_prefix(opened.files[0]) if opened.files else "")
    frozen.report = report.build(
        original=original, float_graph=float_graph, graph=g, lowered=lowered, verdicts=verdicts, table=table,
        records=records, findings=[f for step in after for f in getattr(step, "findings", ())],
        options=options.to_dict(), target=target,
        sizes=(opened.size, _written_size(lowered)), checks=checks)
    return frozen


def freeze_all(model: Any, wanted: Sequence[FreezeOptions], prefix: str,
               progress: Progress | None = None) -> tuple[list[Frozen], list[str]]:
    """Freeze for several targets with one calibration, and write all or none; (frozen models, paths)."""
    frozen: list[Frozen] = []
    files: dict[str, Content] = {}
    table: CalibrationTable | None = None
    for options in wanted:
        frozen.append(freeze(model, options, calib_table=table, progress=progress))
        table = frozen[-1].table
        for path, content in frozen[-1].files(prefix).items():
            if path.endswith(".report.json") and len(wanted) > 1:
                path = f"{prefix}.{options.target}.report.json"
            elif path in files and not path.endswith(".calib.json"):
                raise OptionError(f"--target {options.target}: writes {path}, as another target does; freeze it on its "
                                  "own with another --output")
            files[path] = content
    write_files(files)
    return frozen, list(files)


def lower(g: Graph, target: targets.Target, shapes: Mapping[str, Sequence[int]] | None = None,
          int4: bool = False) -> Graph | OnnxModel:
    """The graph in the target's own ops. shapes: of the inputs, which some ONNX ops need.  int4: see `to_onnx`."""
    if target.flow == "qdq":
        return to_onnx(g, shapes, int4=int4)
    if target.flow == "fused":
        from qgraph.formats.mxnet_int8 import lower as lower_int8

        return lower_int8(g)
    from qgraph.formats.mxnet_sim import lower as lower_sim

    return lower_sim(g)


def model_files(lowered: Graph | OnnxModel, prefix: str) -> dict[str, Content]:
    """Path -> content of the model's own files."""
    if isinstance(lowered, OnnxModel):
        return {f"{prefix}.onnx": lowered.to_bytes()}
    from qgraph.formats.mxnet import checkpoint_files

    return checkpoint_files(lowered, prefix)


def check_output(model: str, prefix: str) -> None:
    """Before minutes of work: the folder is there and may be written, and the model itself is not overwritten."""
    folder = os.path.dirname(prefix) or "."
    if not os.path.isdir(folder):
        raise OptionError(f"--output {prefix}: the folder {folder} does not exist; create it first")
    if not os.path.basename(prefix):
        raise OptionError(f"--output {prefix}: this is a folder, want a prefix for files, such as {prefix}model-int8")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"--output {prefix}: no permission to write in the folder {folder}")
    if os.path.realpath(f"{prefix}-symbol.json") == os.path.realpath(find_symbol(model)[0]):
        raise OptionError(f"--output {prefix}: would overwrite the model itself, want another prefix")


def _refuse_frozen(opened: Model) -> None:
    for node in opened.graph.dag:
        if is_quantized_op(node):
            raise OptionError(f"{opened.prefix or 'model'}: is quantized already ({node}), want the float model")


def _block_shapes(options: FreezeOptions) -> dict[str, tuple[int, ...]]:
    names = [text.rpartition(":")[0] or "data" for text in options.input_shape]
    return parse_shapes(options.input_shape, names) if names else {}


# ---- data -----------------------------------------------------------------------------------------------------------

def _inputs(opened: Model, bare: Graph, options: FreezeOptions, calib_data: Any, needed: bool,
            progress: Progress | None) -> tuple[Data | None, dict[str, tuple[int, ...]]]:
    """(calibration data, shapes of a small batch). bare: the original without labels.

    Data: what is given, else ``<prefix>-calib.npz``, else, if they are needed, images distilled from the BatchNorms.
    """
    names = inputs_of(bare)
    given = parse_shapes(options.input_shape, names)
    wanted = {name: given.get(name) or known_channels(bare).get(name, ()) for name in names}
    wanted = {name: (0, *shape[1:]) if shape else () for name, shape in wanted.items()}
    source = calib_data if calib_data is not None else options.calib_data
    beside = f"{opened.prefix}-calib.npz"
    if source is None and opened.prefix and os.path.isfile(beside):
        source = beside
        log.info("calibration data: %s", beside)
    limit = options.num_calib or DEFAULT_IMAGES
    if source is not None:
        data = options.open(source, wanted, limit)
        first = _peek(data)
        return data, {name: (min(len(first), CHECK_IMAGES), *first.feeds[name].shape[1:]) for name in names}
    shapes = {**hinted_shapes(bare), **given}
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise OptionError(f"the shape of input {unknown[0]!r} is not known: give --calib-data PATH, or "
                          f"--input-shape {unknown[0]}:1,3,224,224 with the right numbers")
    shapes = {name: shapes[name] for name in names}
    if not needed:
        return None, shapes
    return _distilled(bare, shapes, options, progress), shapes


def _sample(data: Data) -> dict[str, np.ndarray]:
    """The first images, as many whatever the batch size."""
    batches: list[Batch] = []
    for batch in data:
        batches.append(batch)
        if sum(map(len, batches)) >= SAMPLE_IMAGES:
            break
    return {name: np.concatenate([b.feeds[name] for b in batches])[:SAMPLE_IMAGES] for name in batches[0].feeds}


def _peek(data: Data) -> Batch:
    for batch in data:
        return batch
    raise CalibrationError(f"{data.name}: no image was read")


def _distilled(bare: Graph, shapes: dict[str, tuple[int, ...]], options: FreezeOptions,
               progress: Progress | None) -> Data:
    if not bare.nodes("BatchNorm"):
        raise CalibrationError("there are no calibration data, and the network has no BatchNorm to distil images from: "
                               "give --calib-data PATH (.rec, image folder, .npz or .npy)")
    from qgraph.distill import distill, need_mxnet

    need_mxnet()
    count = options.num_calib or DISTILLED_IMAGES
    log.warning("WARNING: no calibration data were given: the ranges come from %d images distilled from the network's "
                "own BatchNorm statistics. Real images (--calib-data PATH) are better.", count)

    def report_step(done: int, total: int) -> None:
        if progress is not None:
            progress("distilling images", done, total)

    arrays = distill(bare, shapes, count, options.seed, progress=report_step)
    data = FreezeOptions(batch_size=options.batch_size).open(arrays, {name: () for name in shapes})
    data.name = f"{DISTILLED} from BatchNorm statistics, seed {options.seed}"
    return data


def _collect(float_graph: Graph, data: Data, options: FreezeOptions, progress: Progress | None) -> CalibrationTable:
    from qgraph.calibration import collect

    table = collect(float_graph, data, options.calib, act_bits=options.act_bits,
                    act_signed=SIGNED[options.act_signed], progress=progress, runtime=options.runtime)
    log.info("calibrated %d tensors with %s on %d images (%s)", len(table.entries), table.method, table.images,
             table.data)
    return table


# ---- passes ---------------------------------------------------------------------------------------------------------

def _split_at_table(steps: tuple[Pass, ...]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """(passes before, passes from the first one that reads the calibration)"""
    for at, step in enumerate(steps):
        if any(f.name == "table" for f in dataclasses.fields(step)):  # type: ignore[arg-type]
            return steps[:at], steps[at:]
    return steps, ()


def _bind(step: Pass, **found: Any) -> Pass:
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


# ---- checks ---------------------------------------------------------------------------------------------------------

def _checks(g: Graph, float_graph: Graph, lowered: Graph | OnnxModel, data: Data, target: targets.Target,
            executor: Any) -> dict[str, Any]:
    """Agreement with the float model, and the kernels' departure from exact arithmetic.

    Where MXNet is not there to run what is frozen for it, the simulation is judged, and no kernels.
    """
    batches = list(islice(data, -(-AGREEMENT_IMAGES // data.batch_size)))
    feeds = {name: np.ascontiguousarray(x[:REFERENCE_IMAGES]) for name, x in batches[0].feeds.items()}
    if isinstance(lowered, Graph) and executor.__module__ != "qgraph.runtimes.mxnet":
        log.warning("warning: the files for MXNet are judged by simulation: its kernels do not run on this runtime")
        return {"agreement": departure.agreement(executor(float_graph), executor(g), batches), "departure": None}
    def run(model: Any, watch: Sequence[Any] | None = None) -> Any:
        return open_executor(model, "judging the frozen model", watch=watch)

    return {"agreement": departure.agreement(executor(float_graph), run(lowered), batches),
            "departure": departure.kernel_departure(g, lowered, feeds, target.rounding, run)}


def _written_size(lowered: Graph | OnnxModel) -> int:
    """Bytes of the model's files that `save` writes."""
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
