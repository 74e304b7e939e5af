"""A graph of qgraph from the nodes of a .tmfile, with fake_quantize nodes for its scales: what the reference executes.

    Convolution of int8 tensors  ->  fq{scale of conv}(Convolution(fq{scale of x}(x), fq(w), fq(b)))

The inverse of `emit`: an int8 file of ours gives the integers of the graph that it was made from, every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qgraph.analysis.windows import evened, with_zero_taps
from qgraph.errors import UnsupportedError
from qgraph.ir.graph import Fused, Graph, Node, Port
from qgraph.quant.spec import QParams, dequantize, quantize
from qgraph.registry import enter
from qgraph.targets.tengine.files import (
    AVG_POOL,
    CONST,
    CONV_ACTS,
    FP16,
    FP32,
    FULL,
    INT8,
    INT32,
    MAX_POOL,
    PRODUCT,
    SUM,
    UINT8,
    Layer,
    Model,
    Tensor,
)

Maker = Callable[["_Builder", Layer], Node]

MAKERS: dict[str, Maker] = {}

_MOST_TAPS = 64  # for each of a kernel, once zeros stand for uneven padding: bounds what a file makes us allocate


def maker(*names: str) -> Callable[[Maker], Maker]:
    """Register what makes a node of MXNet's from one of these types."""
    return enter(MAKERS, names)


def to_graph(tm: Model) -> Graph:
    """Raises UnsupportedError for a node that has no way back; `tm` is sound, as `files.from_bytes` checks."""
    return _Builder(tm).run()


class _Builder:
    def __init__(self, tm: Model) -> None:
        self.tm, self.g = tm, Graph()
        self.values: dict[int, Port] = {}

    def run(self) -> Graph:
        for layer in self.tm.layers:
            if layer.op == "Const":
                continue
            if layer.op == "InputOp":
                node = self.g.add("null", name=layer.name)
            elif layer.op not in MAKERS or layer.params is None:
                raise UnsupportedError(f"{layer.name}: qgraph cannot execute a node of {layer.op}; "
                                       "qgraph inspect shows the file")
            else:
                node = MAKERS[layer.op](self, layer)
            number = layer.outputs[0]
            tensor = self.tm.tensors[number]
            self.values[number] = Port(node)
            if tensor.dtype in (INT8, UINT8):
                self.values[number] = Port(self.g.add("fake_quantize", [node], f"{layer.name}_q",
                                                      quant=_of_value(tensor), origin=(layer.name,)))
            elif tensor.dtype != FP32:
                raise UnsupportedError(f"{tensor.name}: qgraph cannot execute values of data type {tensor.dtype}")
        self.g.heads = [self.values[self.tm.layers[i].outputs[0]] for i in self.tm.outputs
                        if self.tm.layers[i].op != "Const"]
        if not self.g.heads:
            raise UnsupportedError("the outputs of this .tmfile are constants: there is nothing to execute")
        self.g.prune()
        return self.g

    def add(self, op: str, layer: Layer, slots: int | None = None, **attrs: object) -> Node:
        """A node that reads the layer's inputs, or the first `slots` of them."""
        return self.g.add(op, [self.value(i) for i in layer.inputs[:slots]], layer.name, attrs=attrs)

    def value(self, number: int) -> Port:
        if number not in self.values:
            self.values[number] = self._constant(self.tm.tensors[number])
        return self.values[number]

    def array(self, layer: Layer, slot: int) -> np.ndarray:
        """A constant that has to be there."""
        tensor = self.tm.tensors[layer.inputs[slot]] if slot < len(layer.inputs) else None
        if tensor is None or tensor.array is None:
            raise UnsupportedError(f"{layer.name}: input {slot} of a {layer.op} is no constant")
        return tensor.array

    def enlarge(self, layer: Layer, taps: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Give the weight of a convolution the zero taps of `evened`; the size of its kernel."""
        weight = self.array(layer, 1)
        kernel = tuple(size + sum(added) for size, added in zip(weight.shape[2:], taps))
        if kernel != weight.shape[2:]:
            if math.prod(kernel) > _MOST_TAPS * math.prod(weight.shape[2:]):
                raise UnsupportedError(f"{layer.name}: qgraph cannot execute a Convolution that pads one side by "
                                       f"{max(map(max, taps))} more than the other")
            number = layer.inputs[1]
            self.values[number] = self._constant(replace(self.tm.tensors[number], array=with_zero_taps(weight, taps)))
        return kernel

    def _constant(self, tensor: Tensor) -> Port:
        assert tensor.kind == CONST and tensor.array is not None
        if tensor.dtype in (FP32, FP16):
            return Port(self.g.add_param(tensor.name, tensor.array.astype(np.float32)))
        if tensor.scales is None or tensor.dtype not in (INT8, INT32):
            raise UnsupportedError(f"{tensor.name}: found a constant of data type {tensor.dtype} with "
                                   f"{0 if tensor.scales is None else len(tensor.scales)} scales, want int8 or int32 "
                                   "with some")
        if len(tensor.scales) != len(tensor.array) or (tensor.zeros is not None and tensor.zeros.any()):
            raise UnsupportedError(f"{tensor.name}: found {len(tensor.scales)} scales for {len(tensor.array)} output "
                                   "channels, want one for each, with zero points of 0")
        bits = 8 if tensor.dtype == INT8 else 32
        qp = QParams(bits=bits, signed=True, granularity="channel", scale=tensor.scales)
        param = self.g.add_param(tensor.name, real_of(tensor.array, qp))
        return Port(self.g.add("fake_quantize", [param], f"{tensor.name}_q", quant=qp, origin=(tensor.name,)))


def _of_value(tensor: Tensor) -> QParams:
    if tensor.scales is None or len(tensor.scales) != 1:
        found = 0 if tensor.scales is None else len(tensor.scales)
        raise UnsupportedError(f"{tensor.name}: found {found} scales for a value, want one")
    zero = 0 if tensor.zeros is None else int(tensor.zeros[0])
    signed = tensor.dtype == INT8
    return QParams(bits=8, signed=signed, narrow=signed, symmetric=zero == 0, scale=tensor.scales[0],
                   zero_point=np.asarray(zero, np.int64))


def real_of(codes: np.ndarray, qp: QParams) -> np.ndarray:
    """Float32 values that have just these codes: codes * scale, or, of large codes, a neighbour of that."""
    real = dequantize(codes.astype(np.int32), qp)
    for _ in range(16):
        found = quantize(real, qp, "half-away").astype(np.int64)
        wrong = found != codes
        if not wrong.any():
            break
        toward = np.where(found < codes, np.inf, -np.inf).astype(np.float32)
        real = np.where(wrong, np.nextafter(real, toward), real).astype(np.float32)
    return real


# ---- nodes ----------------------------------------------------------------------------------------------------------

_FUSED = {"": None, "relu": Fused("relu"), "relu6": Fused("clip", 0, 6)}


@maker("Convolution")
def _convolution(b: _Builder, layer: Layer) -> Node:
    kh, kw, sh, sw, dh, dw, channels, count, groups, act, top, left, bottom, right = _ints(layer)
    weight = b.array(layer, 1)
    kinds = {number: kind for kind, number in CONV_ACTS.items()}
    legal = min(top, left, bottom, right) >= 0 < min(dh, dw)
    even = evened((top, left), (bottom, right), (dh, dw)) if legal else None
    if even is None or act not in kinds or min(groups, count, channels) < 1 or (
            weight.shape != (count, channels // groups, kh, kw)):
        raise UnsupportedError(f"{layer.name}: qgraph cannot execute a Convolution with pads "
                               f"{(top, left, bottom, right)}, activation {act}, weights of {weight.shape}")
    pad, taps = even
    kernel = b.enlarge(layer, taps)
    node = b.add("Convolution", layer, 3, kernel=kernel, stride=(sh, sw), dilate=(dh, dw), pad=tuple(pad),
                 num_filter=count, num_group=groups, no_bias=len(layer.inputs) < 3)
    node.fused = _FUSED[kinds[act]]
    return node


@maker("FullyConnected")
def _fully_connected(b: _Builder, layer: Layer) -> Node:
    weight = b.array(layer, 1)
    if weight.ndim != 2 or _ints(layer) != [len(weight)]:
        raise UnsupportedError(f"{layer.name}: found weights of {weight.shape} and {layer.params} outputs, want two "
                               "axes")
    return b.add("FullyConnected", layer, 3, num_hidden=len(weight), no_bias=len(layer.inputs) < 3)


@maker("Pooling")
def _pooling(b: _Builder, layer: Layer) -> Node:
    alg, kh, kw, sh, sw, whole, flavor, top, left, bottom, right = _ints(layer)
    if alg not in (MAX_POOL, AVG_POOL) or (top, left) != (bottom, right) or flavor & 0xF not in (0, FULL):
        raise UnsupportedError(f"{layer.name}: qgraph cannot execute a Pooling with method {alg}, pads "
                               f"{(top, left, bottom, right)}, flavor {flavor}")
    how: dict[str, object] = {"pool_type": "max" if alg == MAX_POOL else "avg"}
    if whole:
        return b.add("Pooling", layer, 1, global_pool=True, kernel=(1, 1), **how)
    return b.add("Pooling", layer, 1, kernel=(kh, kw), stride=(sh, sw), pad=(top, left), **how,
                 pooling_convention="full" if flavor == FULL else "valid", count_include_pad=bool(flavor))


@maker("Eltwise")
def _eltwise(b: _Builder, layer: Layer) -> Node:
    kinds = {SUM: "broadcast_add", PRODUCT: "broadcast_mul"}
    kind = (layer.params or (None,))[0]
    if kind not in kinds or len(layer.inputs) != 2:
        raise UnsupportedError(f"{layer.name}: qgraph cannot execute an Eltwise of type {kind} of {len(layer.inputs)} "
                               "values")
    return b.add(kinds[kind], layer)  # type: ignore[index]


@maker("ReLU")
def _relu(b: _Builder, layer: Layer) -> Node:
    slope = float((layer.params or (0.0,))[0])  # type: ignore[arg-type]
    if slope == 0:
        return b.add("Activation", layer, 1, act_type="relu")
    return b.add("LeakyReLU", layer, 1, act_type="leaky", slope=slope)


@maker("ReLU6")
def _relu6(b: _Builder, layer: Layer) -> Node:
    return b.add("clip", layer, 1, a_min=0, a_max=6)


@maker("Clip")
def _clip(b: _Builder, layer: Layer) -> Node:
    high, low = layer.params or (0, 0)
    return b.add("clip", layer, 1, a_min=low, a_max=high)


@maker("Elu")
def _elu(b: _Builder, layer: Layer) -> Node:
    return b.add("LeakyReLU", layer, 1, act_type="elu", slope=(layer.params or (1,))[0])


@maker("PReLU")
def _prelu(b: _Builder, layer: Layer) -> Node:
    b.array(layer, 1)
    return b.add("LeakyReLU", layer, 2, act_type="prelu")


@maker("Sigmoid", "Tanh")
def _activation(b: _Builder, layer: Layer) -> Node:
    return b.add("Activation", layer, 1, act_type=layer.op.lower())


@maker("Softmax")
def _softmax(b: _Builder, layer: Layer) -> Node:
    return b.add("softmax", layer, 1, axis=_ints(layer)[0])


@maker("BatchNormalization")
def _batch_norm(b: _Builder, layer: Layer) -> Node:
    factor, eps, _ = layer.params or (1.0, 0.0, 0)
    if factor != 1 or len(layer.inputs) != 5:
        raise UnsupportedError(f"{layer.name}: qgraph cannot execute a BatchNormalization of {len(layer.inputs)} "
                               f"inputs with the factor {factor}")
    return b.add("BatchNorm", layer, eps=eps, fix_gamma=False, use_global_stats=True)


@maker("Flatten")
def _flatten(b: _Builder, layer: Layer) -> Node:
    if _ints(layer) not in ([1, 3], [1, -1]):
        raise UnsupportedError(f"{layer.name}: qgraph cannot execute a Flatten of axes {layer.params}, want 1 to 3")
    return b.add("Flatten", layer, 1)


@maker("Reshape")
def _reshape(b: _Builder, layer: Layer) -> Node:
    is_mxnet, reverse, sizes = layer.params or (0, 0, [])
    if not is_mxnet or reverse or not isinstance(sizes, list) or min(sizes, default=-2) < -1:
        raise UnsupportedError(f"{layer.name}: qgraph cannot execute a Reshape to {sizes} that is not MXNet's")
    return b.add("Reshape", layer, 1, shape=tuple(sizes))


@maker("Concat")
def _concat(b: _Builder, layer: Layer) -> Node:
    return b.add("Concat", layer, dim=_ints(layer)[0], num_args=len(layer.inputs))


@maker("Dropout")
def _dropout(b: _Builder, layer: Layer) -> Node:
    return b.add("_copy", layer, 1)


def _ints(layer: Layer) -> list[int]:
    return [value for value in layer.params or () if isinstance(value, int)]
