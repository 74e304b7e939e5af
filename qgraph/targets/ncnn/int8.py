"""What only int8 layers of ncnn need: their weights and scales, requantization, Winograd's limit, the scale table.

ncnn's scale is a multiplier, 127 / largest value: the inverse of a step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.quant.spec import per_axis, quantize
from qgraph.targets.ncnn.convert import Context
from qgraph.targets.ncnn.files import Layer, Weight

FUSING = ("Convolution", "ConvolutionDepthWise")
MASK, NO_WINOGRAD = 31, 64  # parameter of any layer: bits of options that are off for it (net.cpp)
# Convolutions of 3x3 run as F(4,3): y = (A^T ((G W G^T) * (B^T X B)) A) / 576 in int32.  int32 sums wrap
# round, so only the result, 576 * y, must fit.  Transformed weights (up to 144 * 127) and inputs (100 * 127) fit int16.
WINOGRAD_LIMIT = ((1 << 31) - 1) // 576


def int8_parts(c: Context, weight: np.ndarray, bias: np.ndarray | None) -> list[Weight] | None:
    """Arrays of an int8 layer in the order of the .bin: codes, bias, scales of the weights, scale of the input.

    None if the layer is not quantized.  Raises UnsupportedError for a quantization that ncnn has not.
    """
    data, own = c.quantizer(0), c.quantizer(1)
    if data is None or own is None:
        return None
    name = c.node.name
    if data.granularity != "tensor" or not data.signed or (data.qmin, data.qmax) != (-127, 127):
        raise UnsupportedError(f"{name}: ncnn quantizes activations to -127..127 with one scale; found {data.dtype} "
                               f"from {data.qmin} to {data.qmax} per {data.granularity}; freeze with --target ncnn "
                               "and no --act-bits or --act-signed")
    if not own.signed or own.qmin < -127 or own.qmax > 127 or own.zero_point.any():
        raise UnsupportedError(f"{name}: ncnn's weights are codes of -127..127; found {own.dtype} from {own.qmin} to "
                               f"{own.qmax}")
    codes = quantize(weight, own, "half-away").astype(np.int8)
    steps = np.broadcast_to(per_axis(own.scale, own, weight.shape), weight.shape).reshape(len(weight), -1)[:, 0]
    parts = [Weight(codes, True)]
    if bias is not None:
        parts.append(Weight(bias))
    return [*parts, Weight(multiplier(steps)), Weight(multiplier(data.scale.reshape(1)))]


def multiplier(step: np.ndarray) -> np.ndarray:
    """1 / step in float32, finite."""
    with np.errstate(over="ignore"):
        return np.minimum(np.float32(1) / np.asarray(step, np.float32), np.finfo(np.float32).max)


def is_int8(layer: Layer) -> bool:
    return layer.number(8) != 0 and bool(layer.weights) and layer.weights[0].array.dtype == np.int8


# ---- requantization -------------------------------------------------------------------------------------------------

def fuse_requantize(layers: list[Layer]) -> set[str]:
    """int8 convolutions write the codes that the next ones read, exactly where ncnn2int8 does; the blobs of codes.

    An int8 Convolution or ConvolutionDepthWise, of which the only reader is one too, or a Split that such ones read on
    every branch.  Its term grows by 100, and the reader's input scale becomes its output scale.  All else
    (InnerProduct, sums, poolings, an activation that is a layer of its own) reads float32.
    """
    reader = {blob: layer for layer in layers for blob in layer.inputs}

    def takes_codes(blob: str) -> bool:
        layer = reader.get(blob)
        return layer is not None and layer.type in FUSING and len(layer.inputs) == 1 and is_int8(layer)

    codes: set[str] = set()
    for layer in layers:
        if layer.type not in FUSING or not is_int8(layer):
            continue
        blob = layer.outputs[0]
        following = reader.get(blob)
        branches = following.outputs if following is not None and following.type == "Split" else [blob]
        if all(map(takes_codes, branches)):
            layer.params[8] = layer.number(8) + 100
            layer.weights.append(input_scale(reader[branches[0]]))
            codes.update([blob, *branches])
    return codes


def input_scale(layer: Layer) -> Weight:
    """The multiplier of an int8 layer's input; behind it there may be that of its output."""
    return layer.weights[-2 if layer.number(8) > 100 else -1]


def output_scale(layer: Layer) -> np.ndarray:
    """What a blob of codes is divided by; 1 for a layer that writes floats."""
    return layer.weights[-1].array if layer.number(8) > 100 else np.ones(1, np.float32)


# ---- Winograd -------------------------------------------------------------------------------------------------------

def largest_sum(codes: np.ndarray, nonnegative_input: bool) -> int:
    """No sum of an output is larger in magnitude, for any codes of the input in -127..127, or in 0..127."""
    rows = codes.reshape(len(codes), -1).astype(np.int64)
    plus, minus = np.maximum(rows, 0).sum(1), np.maximum(-rows, 0).sum(1)
    return int(127 * (np.maximum(plus, minus) if nonnegative_input else plus + minus).max(initial=0))


def limit_winograd(layers: list[Layer], nonnegative_blobs: Iterable[str]) -> list[str]:
    """``31=64`` on the int8 3x3 convolutions whose sums could overflow in F(4,3); their names.

    They then run as matrix products, which are exact.
    """
    known = set(nonnegative_blobs)
    for layer in layers:
        if layer.type == "Split" and layer.inputs[0] in known:
            known.update(layer.outputs)
    masked = []
    for layer in layers:
        window = [layer.number(key, layer.number(other, 1)) for key, other in
                  ((1, 1), (11, 1), (2, 2), (12, 2), (3, 3), (13, 3))]
        if layer.type != "Convolution" or not is_int8(layer) or window != [3, 3, 1, 1, 1, 1]:
            continue
        codes = layer.weights[0].array.reshape(layer.number(0), -1)
        if largest_sum(codes, layer.inputs[0] in known) > WINOGRAD_LIMIT:
            layer.params[MASK] = NO_WINOGRAD
            masked.append(layer.name)
    return masked


# ---- the table of scales --------------------------------------------------------------------------------------------

def scale_table(layers: Iterable[Layer]) -> str:
    """What ncnn2int8 reads: the scales of the weights of each int8 layer, then those of the inputs.

    A layer that is to stay in float has no line; an empty line would end the table.
    """
    int8 = [layer for layer in layers if is_int8(layer)]
    lines = [" ".join([f"{layer.name}_param_0", *map(_digits, _weight_scales(layer))]) for layer in int8]
    lines += [f"{layer.name} {_digits(input_scale(layer).array[0])}" for layer in int8]
    return "".join(line + "\n" for line in lines)


def _weight_scales(layer: Layer) -> np.ndarray:
    return layer.weights[-3 if layer.number(8) > 100 else -2].array


def _digits(value: float) -> str:
    return f"{float(value):.9g}"
