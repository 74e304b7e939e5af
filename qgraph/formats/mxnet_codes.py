"""The codes of activations in MXNet's ops, as integers and as whole numbers in float32.

    2 to 8 bits     _contrib_quantize_v2 [-> limits of fewer bits, on integers] -> _contrib_dequantize
    9 to 16 bits    x * (1 / s), clipped, + 1.5 * 2^23 - 1.5 * 2^23, which rounds to nearest, ties to even
    online          the same to a range that is computed: mean over the images of max |x|, or of max x

MXNet encodes the step s of a CPU quantizer as a range of 127.5 s (int8) or 255.5 s (uint8), see `spec.mxnet_range`, so
a range of 127.5 or 255.5 gives the codes themselves back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

import numpy as np

from qgraph import ops
from qgraph.errors import UnsupportedError
from qgraph.formats.mxnet_marks import AS_IS, MARK, mark_of
from qgraph.ir import Graph, Node, Port
from qgraph.quant.spec import QParams, QSpec, mxnet_range, quantize

_LEAST = 1e-30  # a range of zero would divide by zero
_ONE = 2.0 ** -10  # eps and variance of a BatchNorm whose 1 / sqrt(var + eps) is 1 to the last bit
_ROUNDER = 1.5 * 2 ** 23  # float32 has no digits behind the point from here on
LIMITED = "_limited"


def is_online(spec: QSpec | QParams | None) -> bool:
    return spec is not None and spec.online and spec.signed is not None


def quantize_v2(out: Graph, source: Port, qp: QParams, name: str) -> Node:
    """float -> (codes, min, max). The range is written with all digits; MXNet's own passes write six decimals."""
    high = float(mxnet_range(qp.scale, bool(qp.signed)))
    return out.add("_contrib_quantize_v2", [source], name, n_out=3, out_type="int8" if qp.signed else "uint8",
                   min_calib_range=-high if qp.signed else 0.0, max_calib_range=high)


def channel_product(out: Graph, x: Port, factors: Port, shift: np.ndarray, name: str, origin: Iterable[str],
                    axis: int = 1, attrs: Mapping[str, object] | None = None) -> Port:
    """x * factors + shift, both (channels,): a BatchNorm without mean and variance, oneDNN's only op of the kind.

    Without a shift the product is rounded once, whatever the kernel; with one it depends on the kernel.
    """
    zeros, var = np.zeros(len(shift), np.float32), np.full(len(shift), 1 - _ONE, np.float32)
    rest = [Port(out.add_param(f"{name}_{part}", value))
            for part, value in (("beta", shift), ("mean", zeros), ("var", var))]
    return Port(out.add("BatchNorm", [x, factors, *rest], name, origin=origin, attrs={
        **(attrs or {}), "fix_gamma": "False", "use_global_stats": "True", "eps": repr(_ONE), "axis": str(axis)}))


class CodesWriter:
    """Writes the quantizers of activations into `out`. params: weights and biases of which codes were written."""

    def __init__(self, out: Graph, marked: bool) -> None:
        self.out, self.marked = out, marked
        self.params: dict[Node, Port] = {}
        self._integers: dict[Node, Port] = {}  # what dequantize reads, for up to 8 bits
        self._ends: dict[Node, tuple[Port, Port]] = {}  # the range that gives values back
        self._codes: dict[Node, Port] = {}
        self._steps: dict[Node, Union[np.ndarray, Port]] = {}
        self._tops: dict[Node, float] = {}
        self._unit: dict[bool, tuple[Port, Port]] = {}

    def __contains__(self, fq: Node) -> bool:
        return fq in self._steps

    def step(self, fq: Node) -> Union[np.ndarray, Port]:
        """A float32 number, or where the range is computed a port of shape (1,)."""
        return self._steps[fq]

    def end_at(self, readers: Sequence[Node], top: float) -> bool:
        """Whether an upper bound on what all these read can be left out, because no code of theirs would differ."""
        for fq in readers:
            if fq.op != "fake_quantize":
                return False
            if not is_online(fq.quant) and (not isinstance(fq.quant, QParams)
                                            or quantize(np.asarray(top), fq.quant, "mxnet") < fq.quant.qmax):
                return False
        self._tops.update((fq, top) for fq in readers)
        return bool(readers)

    def write(self, fq: Node) -> None:
        """Raises UnsupportedError for a quantizer that these ops cannot carry."""
        source, spec = self.out.inputs(fq)[0], fq.quant
        if is_online(spec):
            self._online(fq, source, spec)  # type: ignore[arg-type]
        elif isinstance(spec, QParams):
            self._offline(fq, source, spec)
        else:
            raise UnsupportedError(f"{fq.name}: not calibrated, so it cannot be written")

    def port(self, fq: Node) -> Port:
        """Codes, as floats."""
        if fq not in self._codes:
            self._codes[fq] = self._dequantized(fq, self._unit_range(bool(fq.quant.signed)), "codes")  # type: ignore
        return self._codes[fq]

    def values(self, fq: Node) -> Port:
        """Codes times the step."""
        if fq in self._integers:
            return self._dequantized(fq, self._ends[fq], "dequantize")
        step, codes = self._steps[fq], self._codes[fq]
        if isinstance(step, Port):
            return self._op(fq, "broadcast_mul", [codes, step], "dequantize")
        return self._op(fq, "_mul_scalar", [codes], "dequantize", scalar=float(step))

    # ---- ops --------------------------------------------------------------------------------------------------------

    def _op(self, fq: Node, kind: str, inputs: list[Port], name: str, **attrs: Any) -> Port:
        return Port(self.out.add(kind, inputs, f"{fq.name}_{name}", origin=fq.origin, **attrs))

    def _dequantized(self, fq: Node, ends: tuple[Port, Port], name: str) -> Port:
        found = self._op(fq, "_contrib_dequantize", [self._integers[fq], *ends], name)
        if self.marked and isinstance(fq.quant, QParams):
            found.node.attrs[MARK] = mark_of(fq.quant)
        return found

    def _unit_range(self, signed: bool) -> tuple[Port, Port]:
        if signed not in self._unit:
            name, low, high = ("int8", -127.5, 127.5) if signed else ("uint8", 0.0, 255.5)
            self._unit[signed] = (Port(self.out.add_param(f"{name}_low", np.array([low], np.float32))),
                                  Port(self.out.add_param(f"{name}_high", np.array([high], np.float32))))
        return self._unit[signed]

    def _limit(self, fq: Node, codes: Port, spec: QSpec | QParams) -> Port:
        """The limits that the integer type does not have by itself."""
        lowest, highest = (-128, 127) if spec.signed else (0, 255)
        wanted = [("_minimum_scalar", spec.qmax, "high")] if spec.qmax < highest else []
        wanted += [("_maximum_scalar", spec.qmin, "low")] if spec.qmin > lowest else []
        for number, (kind, bound, name) in enumerate(wanted, 1):
            last = number == len(wanted)
            codes = self._op(fq, kind, [codes], LIMITED[1:] if last else name, scalar=bound,
                             attrs={MARK: AS_IS} if self.marked else {})
        return codes

    def _rounded(self, fq: Node, steps: Port, spec: QSpec | QParams) -> Port:
        """x / s -> codes, in float."""
        clipped = self._op(fq, "clip", [steps], "clip", a_min=spec.qmin, a_max=spec.qmax)
        up = self._op(fq, "_plus_scalar", [clipped], "up", scalar=_ROUNDER)
        return self._op(fq, "_minus_scalar", [up], "codes", scalar=_ROUNDER)

    # ---- ranges -----------------------------------------------------------------------------------------------------

    def _offline(self, fq: Node, source: Port, qp: QParams) -> None:
        if qp.granularity != "tensor" or qp.bits > 16 or qp.zero_point.any():
            raise UnsupportedError(f"{fq.name}: MXNet quantizes activations per tensor, to at most 16 bits, without "
                                   f"zero point; found {qp.granularity}, {qp.bits} bits")
        self._steps[fq] = qp.scale
        if qp.bits > 8:
            factor = np.float32(127.5 if qp.signed else 255.5) / mxnet_range(qp.scale, bool(qp.signed))
            self._codes[fq] = self._rounded(fq, self._op(fq, "_mul_scalar", [source], "steps", scalar=float(factor)),
                                            qp)
            return
        node = quantize_v2(self.out, source, qp, fq.name + "_quantize")
        self._integers[fq] = self._limit(fq, Port(node), qp)
        self._ends[fq] = Port(node, 1), Port(node, 2)

    def _online(self, fq: Node, source: Port, spec: QSpec) -> None:
        """As `spec.online_params`.

        `_contrib_quantize` takes 127 (int8) or 255 (uint8) steps for its range, `_contrib_dequantize` half a step more.
        """
        def op(kind: str, inputs: list[Port], name: str, **attrs: Any) -> Port:
            return self._op(fq, kind, inputs, name, **attrs)

        def scalar(kind: str, port: Port, name: str, value: float) -> Port:
            return op(f"_{kind}_scalar", [port], name, scalar=value)

        values = op("abs", [source], "abs") if spec.signed else source
        readers = self.out.readers(fq)
        if readers and all(n.op == "Convolution" and len(ops.attr(n, "kernel")) == 2 for n in readers):
            # oneDNN's pooling is several times as fast as a reduction
            values = op("Pooling", [values], "pool", kernel=(1, 1), pool_type="max", global_pool=True)
        largest = op("Reshape", [op("max", [values], "largest", axis=(0,), exclude=True)], "images", shape=(-1,))
        largest = scalar("maximum", largest, "positive", 0.0)
        if fq in self._tops:
            largest = scalar("minimum", largest, "top", self._tops[fq])
        mean = op("mean", [op("Cast", [largest], "wide", dtype="float64")], "mean", keepdims=True)
        high = scalar("maximum", op("Cast", [mean], "rounded", dtype="float32"), "high", _LEAST)
        steps, radius = (127.0, 127.5) if spec.signed else (255.0, 255.5)
        # the step that dequantize gets back from its range, see `spec.with_range`
        reach = scalar("mul", scalar("div", high, "width", float(spec.qmax)), "reach", radius)
        step = scalar("div", reach, "step", radius)
        self._steps[fq] = step
        if spec.bits > 8:
            factor = scalar("rdiv", scalar("mul", step, "whole", steps), "inverse", steps)
            self._codes[fq] = self._rounded(fq, op("broadcast_mul", [source, factor], "steps"), spec)
            return
        sign = -1.0 if spec.signed else 0.0

        def ends(name: str, reach: float) -> tuple[Port, Port]:
            return scalar("mul", step, name + "_min", sign * reach), scalar("mul", step, name + "_max", reach)

        codes = op("_contrib_quantize", [source, *ends("quantize", steps)], "quantize", n_out=3,
                   out_type="int8" if spec.signed else "uint8")
        self._integers[fq] = self._limit(fq, codes, spec)
        self._ends[fq] = ends("dequantize", radius)
