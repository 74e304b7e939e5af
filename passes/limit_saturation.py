"""Give up a part of the range of codes where saturation costs more than that would."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from qgraph.analysis.codes import quantizers_behind, ranged, upper_end
from qgraph.ir.graph import Graph, Node
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._in_float import leave_in_float
from qgraph.quant.spec import QParams
from qgraph.semantics.interpreter import RunOp
from qgraph.semantics.saturation import Layer, pair_excess, pairs, sample_layers

log = logging.getLogger("qgraph")
FACTORS = (1.25, 1.5, 2.0)  # with steps twice as long all codes are below 128, where no pair can overflow
A_BIT = 3 ** -0.5  # root mean square error, in codes, of rounding to half as many
NOTICED = 1e-3  # part of the outputs that saturation moves by more than a code


@dataclass(frozen=True)
class Finding:
    """One layer that saturates. Errors are root mean squares in output codes, over the sampled positions.

    missed: part of the outputs that are off by more than one code.  chosen: factor on the step of what it reads, 1 is
    none.  errors: factor -> rounding and saturation error together.  why: why no factor was tried, or "".
    """

    layer: str
    missed: float
    chosen: float
    errors: Mapping[float, float]
    why: str = ""

    def to_dict(self) -> dict[str, object]:
        return {"layer": self.layer, "missed_percent": round(100 * self.missed, 4), "chosen": self.chosen,
                "rms_error_by_factor": {str(k): round(v, 4) for k, v in self.errors.items()}, "why": self.why}


@register
class LimitSaturation(Pass):
    """fq{u8 step s}(x)  ->  fq{u8 step f s}(x), where a layer that reads x saturates and f > 1 has the smaller error.

    The codes of x become smaller, so fewer pairs of products overflow 16 bits, and coarser.  Both errors are measured
    on the sample images over all the layers that read x, or what shares its scale; with min/max ranges leaving the
    range as it is mostly wins.  Behind a fused clip the range must end at its bound, and a range that was trained is a
    part of the network, so there is no choice; a layer that loses more than a bit then is left in float (exact).

    feeds: some calibration images; without them the pass does nothing.  findings: what was measured, for the report.
    run_op: runs the ops that the reference lacks; a layer that nothing can measure stays as it is.
    trained: tensors whose range was chosen in training.  exact: only what changes no value, as in `IntegerFlow`.
    """

    name = "limit-saturation"
    requires = ("calibrate",)
    rounding: str = "mxnet"
    feeds: Optional[Mapping[str, np.ndarray]] = None
    run_op: Optional[RunOp] = None
    findings: list = field(default_factory=list, compare=False)
    trained: frozenset[str] = frozenset()
    exact: bool = False

    def run(self, g: Graph) -> int:
        if self.feeds is None:
            return 0
        by_source: dict[tuple[Node, ...], list[Layer]] = {}
        sharing = _sharing(g)
        position = {fq: i for i, fq in enumerate(sharing)}
        for layer in sample_layers(g, self.feeds, self.rounding, run_op=self.run_op):
            read = quantizers_behind(g, g.inputs(layer.node)[0])
            together = {fq for one in read for fq in sharing[one]}
            by_source.setdefault(tuple(sorted(together, key=position.__getitem__)), []).append(layer)
        count = 0
        for group, layers in by_source.items():
            missed = {layer.node.name: layer.missed() for layer in layers}
            if max(missed.values()) <= NOTICED:
                continue
            why = _fixed(g, group, self.trained)
            factors = (1.0,) if why else (1.0, *FACTORS)
            errors = {f: [error_with(layer, f) for layer in layers] for f in factors}
            best = min(factors, key=lambda f: sum(e * e for e in errors[f]))
            for number, layer in enumerate(layers):
                if missed[layer.node.name] > NOTICED:
                    in_float = self.exact and errors[1.0][number] > A_BIT
                    if in_float:
                        leave_in_float(g, layer.node, self.trained)
                        count += 1
                    self.findings.append(Finding(layer.node.name, missed[layer.node.name], best,
                                                 {f: errors[f][number] for f in factors},
                                                 f"{why}: it stays in float" if in_float else why))
                    log.debug("%s: %s saturates in %.3f %% of its outputs; step times %g", self.name, layer.node.name,
                             100 * missed[layer.node.name], best)
            if best > 1:
                for fq in group:
                    assert isinstance(fq.quant, QParams)
                    fq.quant = dataclasses.replace(fq.quant, scale=(fq.quant.scale * best).astype(np.float32))
                count += 1
        if self.exact and count:
            g.prune()
        return count


def _sharing(g: Graph) -> dict[Node, tuple[Node, ...]]:
    """Quantizer -> itself and all others that were given the same united range: they must keep one scale."""
    by_source: dict[tuple[str, ...], list[Node]] = {}
    quantizers = g.nodes("fake_quantize")
    for fq in quantizers:
        if fq.quant is not None and fq.quant.source:
            by_source.setdefault(fq.quant.source, []).append(fq)
    shared = {fq: tuple(group) for group in by_source.values() for fq in group}
    return {fq: shared.get(fq, (fq,)) for fq in quantizers}


def _fixed(g: Graph, group: tuple[Node, ...], trained: frozenset[str]) -> str:
    """Why the range of these quantizers cannot be widened, or ""."""
    for fq in group:
        source = g.inputs(fq)[0].node
        if upper_end(source) is not None:
            return f"the range of {source.name} must end at its fused clip"
        if not trained.isdisjoint(ranged(g, fq)):
            return f"the range of {source.name} was trained, and is kept"
    return "" if group else "what it reads is not quantized by one scale"


def error_with(layer: Layer, factor: float) -> float:
    """Root mean square error, in output codes, of the layer on codes `factor` times as coarse, saturation included."""
    w = layer.w.astype(np.float32)
    exact = np.einsum("pct,oct->po", layer.x.astype(np.float32), w, optimize=True)
    x = np.rint(layer.x / np.float32(factor)).astype(np.float32)
    coarse = np.einsum("pct,oct->po", x, w, optimize=True) - pair_excess(*map(pairs, (x, w)))
    return float(np.sqrt((((coarse * factor - exact) * layer.unit) ** 2).mean()))
