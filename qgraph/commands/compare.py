"""`qgraph.compare`: where a frozen model departs from the float one, layer by layer."""

from __future__ import annotations

from typing import Any

from qgraph.analysis.difference import Difference
from qgraph.commands.evaluate import open_for, runnable
from qgraph.commands.judge import Judge
from qgraph.commands.open_model import open_model
from qgraph.engines import check_runtime, executor
from qgraph.errors import DataError, OptionError
from qgraph.ir import ops
from qgraph.options import JudgeOptions, Progress
from qgraph.passes import PIPELINES
from qgraph.passes.fuse_relu import FuseRelu
from qgraph.targets.base import Model, Tensors

WORST = 3


def _open(model: Any) -> Model:
    """Open a model so that tensors of the same name hold the same values on both sides.

    A float network is folded as freezing does.  In a frozen model only activations are fused here, since mxnet-sim
    writes them as separate nodes and int8 layers contain them.
    """
    opened = runnable(open_model(model).model)
    if opened.ir is not None:
        for step in (FuseRelu(),) if opened.frozen else PIPELINES["float"]:
            step.run(opened.ir)
    return opened


def compare(a: Any, b: Any, data: Any, *, options: JudgeOptions | None = None,
            progress: Progress | None = None, runtime: str = "auto") -> dict[str, Any]:
    """`b` judged by `a` on the same images; both are what `open_model` takes.

    Returns {"images", "agreement": in percent or None, "output": the worst one and its DIFF, "judged": what
    `Judge.agreement` says of all outputs, "layers": [{"name", "op", "origin", **DIFF, "added_noise"}], "worst": [names
    of layers], "exclude": "--exclude ...", "no_advice": why these are empty or ""} with DIFF = sqnr_db (None: equal to
    the last bit), cosine, max_error.  added_noise is the layer's noise / signal less
    that of what it reads; None if `a` is no MXNet model.  Integer tensors are compared as what they stand for.
    Raises OptionError for two that are no model and its frozen form, DataError where the data hold no image.
    """
    models = _open(a), _open(b)
    check_runtime(models, runtime)
    first, second = (model.tensors() for model in models)
    names = _common(*models, first, second)
    options = options or JudgeOptions()
    opened = open_for(models[0], data, options)
    runs = [executor(model, "comparing models", runtime, tensors.watch(names))
            for model, tensors in zip(models, (first, second))]

    found = {name: Difference() for name in names}
    judge, count = Judge.of(models[0], options), len(models[0].outputs)
    for batch in opened:
        want, got = (run.run(batch.feeds) for run in runs)
        judge.add(batch.unlabelled(), got[:count], want[:count])
        for name, real, got_real in zip(names, first.reals(names, want[count:]), second.reals(names, got[count:])):
            if name in found and real.shape == got_real.shape:
                found[name].update(real, got_real)
            else:
                found.pop(name, None)
        if progress:
            progress("comparing", judge.images, opened.num_items)
    if not judge.images:
        raise DataError(f"{opened.name}: no image was read")
    layers = first.rows(found)
    worst = [] if first.no_advice else _worst(layers, models[0])
    judged = judge.agreement()
    output = {"name": judged["worst"], **{key: judged[key] for key in ("sqnr_db", "cosine", "max_error")}}
    return {"images": judge.images, "agreement": judged["agreement"], "output": output, "judged": judged,
            "layers": layers, "worst": worst, "exclude": " ".join(f"--exclude {name}" for name in worst),
            "no_advice": first.no_advice}


def _common(a: Model, b: Model, first: Tensors, second: Tensors) -> list[str]:
    """Names of layers, sums, concatenations and poolings that both models have, in the order of the first."""
    odd = sorted(set(a.inputs) ^ set(b.inputs))
    if odd:
        raise OptionError(f"only one of the models has the input {', '.join(odd)}, want two of the same network")
    if len(a.outputs) != len(b.outputs):
        raise OptionError(f"the models have {len(a.outputs)} and {len(b.outputs)} outputs, want two of the same "
                          "network")
    names = first.common(second)
    if not names:
        raise OptionError("the models have no layer of the same name, want a model and its frozen form")
    return names


def _worst(layers: list[dict[str, Any]], model: Model) -> list[str]:
    """The layers with weights that add most noise, worst first."""
    assert model.ir is not None
    weighted = {node.name for node in model.ir.toposort() if ops.kind(node) == ops.COMPUTE}
    rows = [row for row in layers if row["added_noise"] > 1e-9 and row["name"] in weighted]
    return [row["name"] for row in sorted(rows, key=lambda row: (-row["added_noise"], row["name"]))[:WORST]]
