"""How far the kernels of a frozen model are from exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qgraph.arrays import Array
from qgraph.ir.graph import Graph, Port
from qgraph.quant.shown import SHOWN_BINS
from qgraph.quant.spec import QParams, per_axis
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.semantics.interpreter import RunOp, Tensor
from qgraph.targets.base import Executor, Feeds, Model

MOST_BITS = 16  # of codes that are counted


def kernel_departure(g: Graph, model: Model, feeds: Feeds, rounding: str, open_executor: Callable[..., Executor],
                     run_op: RunOp | None = None) -> dict[str, Any]:
    """Each integer tensor of the frozen model against exact arithmetic *on the same integers*, layer by layer.

    The reference goes on with the kernel's codes, so that no layer is blamed for the one before.
    g: the graph with fake_quantize nodes that `model` was written from.  open_executor: (model, watch=...) -> Executor.
    run_op: see `qgraph.semantics.interpreter`; what stays unknown is not judged.
    Returns {"images", "within_one": least percentage of codes within 1 of the exact ones, "layers": {name: {"equal",
    "within_one" in percent, "max" in codes}}, "codes": {name: {"used", "of": how many codes, "at_ends": percent of the
    values that have the lowest or the highest code, unless that one is zero, "counts": of the codes in equal bins}},
    "output": largest error of an output as a part of its largest value}.
    """
    carriers, heads = model.codes, list(model.heads)
    ports = list(dict.fromkeys(carriers.values()))
    values = open_executor(model, watch=[*ports, *heads]).run(feeds)
    codes = dict(zip(ports, values))
    layers: dict[str, dict[str, float]] = {}
    used: dict[str, dict[str, Any]] = {}
    written: dict[Port, Tensor] = {}
    ends = {head.node for head in g.heads}
    for node, _, outputs in Reference(g, rounding=rounding, run_op=run_op).walk(feeds):
        if node in carriers and isinstance(node.quant, QParams):
            kernel = codes[carriers[node]].astype(np.int32)
            if model.centered:
                kernel += per_axis(node.quant.zero_point, node.quant, kernel.shape).astype(np.int32)
            if node.quant.granularity == "tensor" and node.quant.bits <= MOST_BITS:
                used[g.inputs(node)[0].key] = _used(kernel, node.quant)
            if outputs and kernel.shape == outputs[0].codes.shape:
                layers[g.inputs(node)[0].key] = _judge(outputs[0].codes, kernel)
            if not outputs or kernel.shape == outputs[0].codes.shape:
                outputs[:] = [Tensor(codes=kernel, qp=node.quant)]
        if node in ends:
            written.update((Port(node, index), tensor) for index, tensor in enumerate(outputs))
    errors = [_relative(written[head].real, value) for head, value in zip(g.heads, values[len(ports):])
              if head in written]
    images = len(next(iter(feeds.values()))) if feeds else 0
    return {"images": images, "within_one": min((v["within_one"] for v in layers.values()), default=100.0),
            "layers": layers, "codes": used, "output": float(f"{max(errors, default=0.0):.3g}")}


def _used(codes: Array, qp: QParams) -> dict[str, Any]:
    """Which codes a tensor has."""
    counts = np.bincount((np.clip(codes, qp.qmin, qp.qmax) - qp.qmin).ravel(), minlength=qp.qmax - qp.qmin + 1)
    per = -(-len(counts) // SHOWN_BINS)
    ends = sum(int(counts[end - qp.qmin]) for end in (qp.qmin, qp.qmax) if end != int(qp.zero_point))
    return {"used": int(np.count_nonzero(counts)), "of": len(counts),
            "at_ends": round(100 * ends / max(codes.size, 1), 3),
            "counts": np.add.reduceat(counts, np.arange(0, len(counts), per)).tolist()}


def _judge(exact: Array, kernel: Array) -> dict[str, float]:
    distance = np.abs(exact.astype(np.int64) - kernel)
    return {"equal": round(100 * float((distance == 0).mean()), 3),
            "within_one": round(100 * float((distance <= 1).mean()), 3), "max": int(distance.max(initial=0))}


def _relative(want: Array, found: Array) -> float:
    finite = np.isfinite(want) & np.isfinite(found)
    size = float(np.abs(want[finite]).max(initial=0.0)) or 1.0
    return float(np.abs(want[finite].astype(np.float64) - found[finite]).max(initial=0.0)) / size
