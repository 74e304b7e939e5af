"""`qgraph.freeze` of a network that was trained quantized."""

from __future__ import annotations

import dataclasses
from typing import Any

from qgraph.analysis.codes import drop_quantizers
from qgraph.calibration.images import find_data, sample
from qgraph.commands import floatcheck, report, trained
from qgraph.commands import freeze as freezing
from qgraph.commands.checks import run_checks
from qgraph.commands.line import pipeline, split
from qgraph.commands.open_model import Model
from qgraph.engines import runtime
from qgraph.ir.rewrite import PassManager, PassRecord
from qgraph.options import FreezeOptions, Progress
from qgraph.passes.canonicalize import Canonicalize
from qgraph.quant.spec import QParams
from qgraph.quant.table import CalibrationTable
from qgraph.semantics.inputs import hinted_shapes
from qgraph.targets import base as targets
from qgraph.targets.onnx.fusion import fusion
from qgraph.targets.onnx.model import OnnxModel


def freeze_trained(opened: Model, options: FreezeOptions, target: targets.Target, calib_data: Any,
                   table: CalibrationTable | None, progress: Progress | None) -> freezing.Frozen:
    """The frozen model, with the trained ranges. calib_data: for tensors that training leaves in float, if need be."""
    trained.check_options(options)
    g, records = opened.graph, list[PassRecord]()
    trained.check_carried(g, target)
    original, executor = g.copy(), runtime("freezing a model", options.runtime)
    untrained = trained.untrained_layers(g, target)
    verdicts = trained.verdicts(g, untrained)
    simulated = target.flow == "simulated"
    data, shapes = None, hinted_shapes(g)
    if not simulated or trained.has_data(opened.prefix, options, calib_data):
        bare = trained.without_quantizers(g)
        Canonicalize().run(bare)
        data, shapes = find_data(opened.prefix, bare, options, calib_data, needed=table is None, progress=progress)
    float_steps, quant_steps = split(pipeline(dataclasses.replace(options, exclude=untrained)))
    findings: list[Any] = []
    if simulated:
        PassManager((Canonicalize(),), options.dump_passes or "", records).run(g)
        float_graph, table = trained.without_quantizers(g), None
    else:
        codes = trained.take_weights(g)
        feeds = floatcheck.random_feeds(shapes, options.seed, next(iter(data)).feeds if data is not None else None)
        floatcheck.run_checked(float_steps, g, feeds, trained.in_float(executor), options.dump_passes or "", records)
        float_graph = trained.without_quantizers(g)
        if options.fast:
            trained.part_shortcuts(g)
        entries = trained.trained_ranges(g)
        if target.flow == "qdq" or (target.flow == "fused" and not options.fast):
            narrow = any(isinstance(n.quant, QParams) and n.quant.bits < 8 for n in g.dag)
            trained.respecify(g, target)
            trained.give_weights(g, codes, untrained)
            # codes of biases are as coarse as those of data and weights together, too coarse below 8 bits
            left_out = {"quantize-between", "share-scales", "signed-residual", *(["quantize-bias"] if narrow else [])}
            quant_steps = tuple(freezing.bind(step, exact=True) for step in quant_steps if step.name not in left_out)
        else:
            drop_quantizers(g)
        before, after = freezing.split_at_table(quant_steps)
        PassManager(before, options.dump_passes or "", records).run(g)
        if missing := trained.missing_ranges(g, entries):
            if table is None:
                trained.need(data, missing, target)
                assert data is not None
                table = freezing.collect_table(float_graph, data, options, target.signed(options.act_signed), progress)
            else:
                table.check(float_graph.digest())
        table = trained.joined(table, entries, float_graph)
        shown = None if data is None else sample(data)
        known = {"table": table, "data": data, "float_graph": float_graph, "feeds": shown}
        after = tuple(freezing.bind(step, **known) for step in after)
        PassManager(after, options.dump_passes or "", records).run(g)
        findings = [f for step in after for f in getattr(step, "findings", ())]
    lowered = freezing.lower(g, target, shapes)
    checks: dict[str, Any] = {"agreement": None, "departure": None}
    if data is not None:
        checks = run_checks(g, bare, lowered, data, target, executor)
    if isinstance(lowered, OnnxModel):
        checks["onnxruntime"] = fusion(g, lowered)
    frozen = freezing.Frozen(g, lowered, table, {}, opened.files)
    frozen.report = report.build(
        original=original, float_graph=float_graph, graph=g, lowered=lowered, verdicts=verdicts, table=table,
        records=records, findings=findings, options=options.to_dict(), target=target,
        sizes=(opened.size, freezing.written_size(lowered)), checks=checks)
    return frozen
