"""Target `mxnet-sim`: the quantized graph simulated in float by MXNet's own ops.

    fake_quantize(x)  ->  [clip ->] _contrib_quantize_v2 -> _contrib_dequantize
    fake_quantize(x)  {online}: the same, to a range that is computed: mean over the images of max |x|, or of max x
    fake_quantize(w)  ->  w, whose baked values lie on the grid already
    conv(x, w) -> BatchNorm {deferred}  ->  conv(x, w s) + b, see `qgraph.passes.defer_bn`

MXNet encodes the step s of a CPU quantizer as a range of 127.5 s (int8) or 255.5 s (uint8), see `spec.mxnet_range`.
Fewer than 8 bits, or a lowest code of -127, are a `clip` in front.  More than 8 bits, which no quantizer of MXNet has,
are float arithmetic: x / s + 1.5 * 2^23 - 1.5 * 2^23 is rounded to the nearest whole number, ties to even.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qgraph import ops
from qgraph.errors import UnsupportedError
from qgraph.formats.mxnet_marks import AS_IS, MARK, mark_of
from qgraph.ir import Graph, Node, Port
from qgraph.passes.defer_bn import fold_deferred
from qgraph.quant.spec import QParams, QSpec, mxnet_range

_LEAST = 1e-30  # a range of zero would divide by zero
_ROUNDER = 1.5 * 2 ** 23  # float32 has no digits behind the point from here on


def lower(g: Graph, marked: bool = False) -> Graph:
    """A copy of `g` in MXNet's ops. Raises UnsupportedError for a quantizer that these ops cannot carry.

    marked: `qgraph.load` gets the quantizers back, see `mxnet_marks`.
    """
    out = g.copy()
    for fq in out.nodes("fake_quantize"):
        source = out.inputs(fq)[0]
        if fq.quant is not None and fq.quant.online and fq.quant.signed is not None:
            out.replace(fq, _online(out, fq, source, fq.quant))
            continue
        if not isinstance(fq.quant, QParams):
            raise UnsupportedError(f"{fq.name}: not calibrated, so it cannot be written")
        if out.param(source) is None:
            chain = _simulate(out, fq, source, fq.quant)
            if marked:
                for node in chain:
                    node.attrs[MARK] = mark_of(fq.quant)
            out.replace(fq, Port(chain[-1]))
        elif marked:
            out.replace(fq, Port(out.add("_copy", [source], fq.name + "_copy", attrs={MARK: mark_of(fq.quant)})))
        else:
            out.replace_uses(fq, source)
            out.remove(fq)
    fold_deferred(out)  # weights are plain parameters by now
    _keep_batchnorms(out, marked)
    avoid_sum_fusion(out)
    return out


def _keep_batchnorms(out: Graph, marked: bool) -> None:
    """conv -> BatchNorm  becomes  conv -> * 1 -> BatchNorm.

    MXNet's default bind would fold the BatchNorm into the weight, which so would leave its grid, or round otherwise
    than in training; copies it sees through.
    """
    for bn in out.nodes("BatchNorm"):
        layer = out.inputs(bn)[0].node
        if ops.kind(layer) == ops.COMPUTE:
            out.set_input(bn, 0, out.add("_mul_scalar", [layer], layer.name + "_as_is", scalar=1.0,
                                         attrs={MARK: AS_IS} if marked else {}))


def avoid_sum_fusion(out: Graph) -> None:
    """elemwise_add -> broadcast_add where it adds a float convolution that has other readers.

    MXNet 1.9.1's default bind fuses the former with the convolution and computes ``conv2(relu(c)) + c`` wrongly.
    """
    for add in out.nodes("elemwise_add"):
        if any(p.node.op == "Convolution" and not out.has_one_use(p) for p in out.inputs(add)):
            add.op = "broadcast_add"


def _simulate(out: Graph, fq: Node, source: Port, qp: QParams) -> list[Node]:
    """The clip, if there is one, and the dequantize at the end."""
    made = []
    if qp.granularity != "tensor" or qp.bits > 16 or qp.zero_point.any():
        raise UnsupportedError(f"{fq.name}: MXNet quantizes activations per tensor, to at most 16 bits, without zero "
                               f"point; found {qp.granularity}, {qp.bits} bits")
    if qp.bits > 8:
        factor = np.float32(127.5 if qp.signed else 255.5) / mxnet_range(qp.scale, bool(qp.signed))
        steps = out.add("_mul_scalar", [source], fq.name + "_steps", scalar=float(factor))
        chain = _rounded(out, fq, Port(steps), qp)
        return [steps, *chain, out.add("_mul_scalar", [chain[-1]], fq.name + "_dequantize", scalar=float(qp.scale))]
    if (qp.qmin, qp.qmax) not in ((-128, 127), (0, 255)):
        step = float(qp.scale)
        made.append(out.add("clip", [source], fq.name + "_clip", a_min=qp.qmin * step, a_max=qp.qmax * step))
        source = Port(made[0])
    quantized = quantize_v2(out, source, qp, fq.name + "_quantize")
    return [*made, out.add("_contrib_dequantize", [Port(quantized, i) for i in range(3)], fq.name + "_dequantize")]


def _rounded(out: Graph, fq: Node, steps: Port, spec: QSpec) -> list[Node]:
    """x / s -> codes, in float."""
    clip = out.add("clip", [steps], fq.name + "_clip", a_min=spec.qmin, a_max=spec.qmax)
    up = out.add("_plus_scalar", [clip], fq.name + "_up", scalar=_ROUNDER)
    return [clip, up, out.add("_minus_scalar", [up], fq.name + "_codes", scalar=_ROUNDER)]


def _online(out: Graph, fq: Node, source: Port, spec: QSpec) -> Port:
    """As `spec.online_params`.

    `_contrib_quantize` takes 127 (int8) or 255 (uint8) steps for its range, `_contrib_dequantize` half a step more.
    """
    def op(kind: str, inputs: list[Port], name: str, **attrs: Any) -> Port:
        return Port(out.add(kind, inputs, f"{fq.name}_{name}", **attrs))

    values = op("abs", [source], "abs") if spec.signed else source
    readers = out.readers(fq)
    if readers and all(n.op == "Convolution" and len(ops.attr(n, "kernel")) == 2 for n in readers):
        # oneDNN's pooling is several times as fast as a reduction
        values = op("Pooling", [values], "pool", kernel=(1, 1), pool_type="max", global_pool=True)
    largest = op("max", [values], "largest", axis=(0,), exclude=True, keepdims=True)
    high = op("_maximum_scalar", [op("mean", [largest], "mean", axis=(0,), keepdims=True)], "high", scalar=_LEAST)
    if spec.bits > 8:
        step = op("_div_scalar", [high], "step", scalar=float(spec.qmax))
        whole = _rounded(out, fq, op("broadcast_div", [source, step], "steps"), spec)[-1]
        return op("broadcast_mul", [Port(whole), step], "dequantize")
    if (spec.qmin, spec.qmax) not in ((-128, 127), (0, 255)):  # else the codes saturate by themselves
        source = op("broadcast_minimum", [source, high], "clip")
        low = op("_mul_scalar", [high], "low", scalar=spec.qmin / spec.qmax)
        source = op("broadcast_maximum", [source, low], "clip_low")
    step = op("_div_scalar", [op("Reshape", [high], "range", shape=(-1,))], "step", scalar=float(spec.qmax))
    sign, steps = (-1.0, 127.0) if spec.signed else (0.0, 255.0)

    def ends(name: str, steps: float) -> list[Port]:
        return [op("_mul_scalar", [step], name + "_min", scalar=sign * steps),
                op("_mul_scalar", [step], name + "_max", scalar=steps)]

    codes = op("_contrib_quantize", [source, *ends("quantize", steps)], "quantize", n_out=3,
               out_type="int8" if spec.signed else "uint8")
    return op("_contrib_dequantize", [codes, *ends("dequantize", steps + 0.5)], "dequantize")


def quantize_v2(out: Graph, source: Port, qp: QParams, name: str) -> Node:
    """float -> (codes, min, max). The range is written with all digits; MXNet's own passes write six decimals."""
    high = float(mxnet_range(qp.scale, bool(qp.signed)))
    return out.add("_contrib_quantize_v2", [source], name, n_out=3, out_type="int8" if qp.signed else "uint8",
                   min_calib_range=-high if qp.signed else 0.0, max_calib_range=high)
