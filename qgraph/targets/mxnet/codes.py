"""The codes of activations in MXNet's ops: whole numbers in float32, of 2 to 16 bits.

    y     = x * (1 / s)
    codes = max(min(y + R - R, qmax), qmin)      less the zero point, as are qmin and qmax here

R = 1.5 * 2^23: a sum with it is rounded to a whole number, ties to even.  Where convolutions write x and read the codes
it is written per channel (`channel_ops`), elsewhere as elementwise ops; the codes are the same.  Per channel there is
no minimum:

    z     = max(qmax - R + (R - y), 0)           round(y) <= qmax
    codes = max(qmax - z - qmin, 0) + qmin       qmin <= round(y)

Quantize and dequantize would be fewer passes over memory, but bring tensors into other layouts and back.

online: 1 / s comes from the batch, whose range is the mean over its images of max |x|, or of max x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

import numpy as np

from qgraph.analysis.codes import before_quantizer
from qgraph.errors import UnsupportedError
from qgraph.formats.mxnet_marks import AS_IS, CODES, MARK, mark_of
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import LEAST_RANGE, ROUNDER, QParams, QSpec, mxnet_range, quantize
from qgraph.targets.mxnet.channel_ops import ChannelOps

Step = Union[np.ndarray, Port]


def is_online(spec: QSpec | QParams | None) -> bool:
    return spec is not None and spec.online and spec.signed is not None


class CodesWriter:
    """Writes the quantizers of activations into `out`."""

    def __init__(self, out: Graph, channel_ops: ChannelOps, marked: bool) -> None:
        self.out, self.channel_ops, self.marked = out, channel_ops, marked
        self._codes: dict[Node, Port] = {}
        self._steps: dict[Node, Step] = {}
        self._tops: dict[Node, float] = {}

    def __contains__(self, fq: Node) -> bool:
        return fq in self._codes

    def port(self, fq: Node) -> Port:
        return self._codes[fq]

    def step(self, fq: Node) -> Step:
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
            assert spec is not None
            step, inverse = self._online(fq, source, spec)
        elif isinstance(spec, QParams):
            step, inverse = self._offline(fq, spec)
        else:
            raise UnsupportedError(f"{fq.name}: not calibrated, so it cannot be written")
        self._steps[fq] = step
        self._codes[fq] = self._rounded(fq, source, inverse, spec)
        if self.marked and isinstance(spec, QParams):
            self._codes[fq].node.attrs[MARK] = mark_of(spec)
        elif not self.marked:
            self._codes[fq].node.attrs[MARK] = CODES

    def values(self, fq: Node) -> Port:
        """Codes times the step."""
        step = self._steps[fq]
        found = (self._op(fq, "broadcast_mul", [self._codes[fq], step], "values") if isinstance(step, Port)
                 else self._op(fq, "_mul_scalar", [self._codes[fq]], "values", scalar=float(step)))
        if self.marked:
            found.node.attrs[MARK] = AS_IS
        return found

    # ---- ops --------------------------------------------------------------------------------------------------------

    def _op(self, fq: Node, kind: str, inputs: list[Port], name: str, attrs: Mapping[str, object] | None = None,
            **more: object) -> Port:
        return Port(self.out.add(kind, inputs, f"{fq.name}_{name}", origin=fq.origin, attrs={**(attrs or {}), **more}))

    def _rounded(self, fq: Node, x: Port, inverse: Step, spec: QSpec | QParams) -> Port:
        layer = _layer_behind(self.out, fq)
        planar = layer is not None and len(ops.attr(layer, "kernel")) == 2  # BatchNormWithReLU is for images alone
        channels = _channels(self.out, fq) if planar and _has_own_layout(x.node, self.out) else None
        mark = {MARK: AS_IS} if self.marked else {}
        zero = int(spec.zero_point) if isinstance(spec, QParams) else 0
        qmin, qmax = spec.qmin - zero, spec.qmax - zero
        if channels is None:
            def op(kind: str, port: Port, name: str, scalar: float) -> Port:
                return self._op(fq, f"_{kind}_scalar", [port], name, scalar=scalar, attrs=mark)

            y = (self._op(fq, "broadcast_mul", [x, inverse], "steps", attrs=mark) if isinstance(inverse, Port)
                 else op("mul", x, "steps", float(inverse)))
            rounded = op("minus", op("plus", y, "up", ROUNDER), "rounded", ROUNDER)
            return op("maximum", op("minimum", rounded, "below", qmax), "codes", qmin)

        def affine(port: Port, name: str, factor: Step | float, shift: float, relu: bool = False) -> Port:
            return self.channel_ops.affine(port, channels, factor, shift, f"{fq.name}_{name}", fq.origin, relu=relu,
                                           attrs=mark)

        if isinstance(inverse, Port):
            ones = self.channel_ops.constant(1.0, channels)
            inverse = self._op(fq, "broadcast_mul", [ones, inverse], "inverses")
        z = affine(affine(x, "steps", inverse, 0.0), "rounded", -1.0, ROUNDER)
        z = affine(z, "below", 1.0, qmax - ROUNDER, relu=True)
        if not qmin:
            return affine(z, "codes", -1.0, qmax, relu=True)
        return affine(affine(z, "above", -1.0, qmax - qmin, relu=True), "codes", 1.0, qmin)

    # ---- ranges -----------------------------------------------------------------------------------------------------

    def _offline(self, fq: Node, qp: QParams) -> tuple[Step, Step]:
        """(step, its reciprocal as MXNet's quantize computes it)"""
        if qp.granularity != "tensor" or qp.bits > 16 or self.marked and qp.zero_point.any():
            raise UnsupportedError(f"{fq.name}: MXNet quantizes activations per tensor, to at most 16 bits, and in a "
                                   f"network to train without zero point; found {qp.granularity}, {qp.bits} bits")
        return qp.scale, np.float32(127.5 if qp.signed else 255.5) / mxnet_range(qp.scale, bool(qp.signed))

    def _online(self, fq: Node, source: Port, spec: QSpec) -> tuple[Step, Step]:
        """As `spec.online_params`: ports of shape (1,)."""
        def op(kind: str, inputs: list[Port], name: str, **attrs: object) -> Port:
            return self._op(fq, kind, inputs, name, attrs)

        def scalar(kind: str, port: Port, name: str, value: float) -> Port:
            return op(f"_{kind}_scalar", [port], name, scalar=value)

        def each(values: Port, name: str) -> Port:
            """Largest value of each image."""
            if layer is not None:  # oneDNN's pooling is several times as fast as a reduction
                kernel = (1,) * len(ops.attr(layer, "kernel"))
                values = op("Pooling", [values], f"{name}_pool", kernel=kernel, pool_type="max", global_pool=True)
            return op("Reshape", [op("max", [values], name, axis=(0,), exclude=True)], f"{name}_images", shape=(-1,))

        channels, layer = _channels(self.out, fq), _layer_behind(self.out, fq)
        largest = each(source, "largest")
        if spec.signed:
            negated = (self.channel_ops.affine(source, channels, -1.0, 0.0, f"{fq.name}_negated", fq.origin)
                       if channels is not None else scalar("mul", source, "negated", -1.0))
            largest = op("broadcast_maximum", [largest, each(negated, "lowest")], "magnitude")
        largest = scalar("maximum", largest, "positive", 0.0)
        if fq in self._tops:
            largest = scalar("minimum", largest, "top", self._tops[fq])
        mean = op("mean", [op("Cast", [largest], "wide", dtype="float64")], "mean", keepdims=True)
        high = scalar("maximum", op("Cast", [mean], "rounded_mean", dtype="float32"), "range", LEAST_RANGE)
        radius = 127.5 if spec.signed else 255.5
        # the step as MXNet keeps it, see `spec.with_range`
        reach = scalar("mul", scalar("div", high, "width", float(spec.qmax)), "reach", radius)
        step = scalar("div", reach, "step", radius)
        return step, scalar("rdiv", scalar("mul", step, "kept_reach", radius), "inverse", radius)


_KEEPS_LAYOUT = frozenset({"Activation", "LeakyReLU", "Pooling", "_copy", "Dropout"})
_OWN_LAYOUT = frozenset({"Convolution", "Deconvolution", "BatchNorm", "_contrib_BatchNormWithReLU", "Concat",
                         "elemwise_add"})


def _has_own_layout(node: Node, g: Graph) -> bool:
    """Whether oneDNN writes it, as far as the op tells: in the plain layout its BatchNorm is slow."""
    while node.op in _KEEPS_LAYOUT:
        node = g.inputs(node)[0].node
    return node.op in _OWN_LAYOUT


def _layer_behind(g: Graph, fq: Node) -> Node | None:
    """A convolution, transposed or not, that reads the codes."""
    return next((n for n in g.readers(fq) if n.op in ("Convolution", "Deconvolution") and g.inputs(n)[0].node is fq),
                None)


def _channels(g: Graph, fq: Node) -> int | None:
    """Of the tensor, on axis 1, where a convolution says it."""
    layer = _layer_behind(g, fq)
    weight = None if layer is None else g.inputs(layer)[1]
    if layer is None or weight is None:
        return None
    array = g.param(before_quantizer(g, weight))
    if array is None:
        return None
    return int(array.shape[0] if layer.op == "Deconvolution" else array.shape[1] * ops.attr(layer, "num_group"))
