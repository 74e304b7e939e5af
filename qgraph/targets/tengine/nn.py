"""Converters to Tengine: layers with weights, poolings, activations, sums, and what moves values."""

from __future__ import annotations

import math

import numpy as np

from qgraph.analysis.windows import window
from qgraph.ir import ops
from qgraph.targets.tengine.convert import Context, clip, converter
from qgraph.targets.tengine.files import AVG_POOL, CONV_ACTS, FULL, INCLUDE_PAD, MAX_POOL, PRODUCT, SUM


def conv_act(c: Context) -> str:
    """The activation that a Convolution of Tengine can carry: "", relu, relu6."""
    act = c.node.fused
    if act is None or act.act != "clip":
        return act.act if act is not None else ""
    return "relu6" if (act.low, act.high) == (0, 6) else "other"


@converter("Convolution")
def _convolution(c: Context) -> int:
    seen, groups = window(c.g, c.node), c.attr("num_group")
    if not ops.is_2d(c.node):
        raise c.refuse("Tengine's convolution is 2-D, NCHW")
    weight = c.param(1, "weight")
    if c.int8 and len(weight) == 1:
        raise c.refuse(one_channel("convolution"))
    act = conv_act(c)
    params = (*seen.kernel, *c.attr("stride"), *c.attr("dilate"), weight.shape[1] * groups, len(weight), groups,
              CONV_ACTS.get(act, -1), *seen.before, *seen.behind)
    out = c.layer("Convolution", [c.tensor(), *c.weights(seen)], *params)
    return out if act in CONV_ACTS else c.activation(out)


def one_channel(what: str) -> str:
    return (f"Tengine's int8 {what} crashes with one output channel: its single scale is not read as a list; give it a "
            "second one (of zeros) and drop what it computes")


@converter("FullyConnected")
def _fully_connected(c: Context) -> int:
    weight = c.param(1, "weight")
    if c.int8 and len(weight) == 1:
        raise c.refuse(one_channel("fully connected layer"))
    if not c.attr("flatten"):
        raise c.refuse("it works on the last axis alone (flatten=False), and Tengine's on all of an image")
    data, shape = c.tensor(), c.shape()
    if shape is None or len(shape) != 2:
        dims = (1, math.prod(shape[1:])) if shape else ()
        data = c.layer("Flatten", [data], 1, 3, like=data, name=f"{c.node.name}_flatten", dims=dims)
    return c.activation(c.layer("FullyConnected", [data, *c.weights()], len(weight)))


@converter("Pooling")
def _pooling(c: Context) -> int:
    how, convention, whole = c.attr("pool_type"), c.attr("pooling_convention"), c.attr("global_pool")
    if how not in ("max", "avg") or convention not in ("valid", "full"):
        raise c.refuse(f"Tengine has no {how} pooling with pooling_convention={convention}")
    alg = MAX_POOL if how == "max" else AVG_POOL
    if whole:
        return c.layer("Pooling", [c.tensor()], alg, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0)
    kernel, stride, pad = c.attr("kernel"), c.attr("stride"), c.attr("pad")
    if not ops.is_2d(c.node):
        raise c.refuse("Tengine's pooling is 2-D, NCHW")
    include = alg == AVG_POOL and c.attr("count_include_pad") and any(pad)
    flavor = FULL if convention == "full" else INCLUDE_PAD if include else 0
    shape, out = c.shape(), c.out_shape()
    if convention == "full":
        sizes = None if shape is None else tuple(map(_full_size, shape[2:], kernel, stride, pad))
        if out is None or sizes != tuple(out[2:]):
            raise c.refuse("pooling_convention=full: Tengine would give it another size, or its size is not known "
                           "(--input-shape tells it)")
        if alg == AVG_POOL and any(pad) and not include:
            raise c.refuse("an average that rounds its size up counts its padding in Tengine, and this one does not")
    if shape is not None and out is not None and tuple(kernel) == tuple(shape[2:]) and (
            tuple(out[2:]) != (1, 1) or any(pad)):
        raise c.refuse("its window is as large as the image: Tengine then pools all of it, without padding")
    return c.layer("Pooling", [c.tensor()], alg, *kernel, *stride, 0, flavor, *pad, *pad)


def _full_size(size: int, kernel: int, stride: int, pad: int) -> int:
    """Tengine's size of a pooling that rounds up (calc_output_size in pooling_param.h; C divides towards zero)."""
    found = 2 + int((size - kernel + 2 * pad - 1) / stride)
    return found - 1 if pad and (found - 1) * stride >= size + pad else found


@converter("mean", "_contrib_AdaptiveAvgPooling2D")
def _mean(c: Context) -> int:
    """Over height and width: a global average pooling."""
    if c.node.op == "mean":
        shape = c.want_shape()
        axes = sorted(axis % len(shape) for axis in c.attr("axis"))
        if len(shape) != 4 or axes != [2, 3] or c.attr("exclude"):
            raise c.refuse("Tengine has a mean over height and width alone (axis=(2, 3))")
    elif c.attr("output_size") not in ((), (1,), (1, 1)):
        raise c.refuse("Tengine has no adaptive pooling but for the size of 1")
    out = c.layer("Pooling", [c.tensor()], AVG_POOL, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0,
                  dims=(*c.want_shape()[:2], 1, 1))
    if c.node.op == "mean" and not c.attr("keepdims"):
        out = c.layer("Flatten", [out], 1, 3, like=out, name=f"{c.node.name}_flatten")
    return out


# ---- element by element ---------------------------------------------------------------------------------------------

_ACTS = {"sigmoid": "Sigmoid", "tanh": "Tanh"}


@converter("Activation", "relu", "sigmoid", "tanh")
def _activation(c: Context) -> int:
    kind = c.attr("act_type") if c.node.op == "Activation" else c.node.op
    if kind == "relu":
        return c.layer("ReLU", [c.tensor()], 0.0)
    if kind not in _ACTS:
        raise c.refuse(f"Tengine has no activation {kind}")
    return c.layer(_ACTS[kind], [c.tensor()])


@converter("LeakyReLU")
def _leaky_relu(c: Context) -> int:
    kind = c.attr("act_type")
    if kind == "leaky":
        return c.layer("ReLU", [c.tensor()], float(c.attr("slope")))
    if c.int8 or kind not in ("elu", "prelu"):
        raise c.refuse(f"Tengine has no {'int8 ' if c.int8 else ''}{kind}")
    if kind == "elu":
        return c.layer("Elu", [c.tensor()], float(c.attr("slope")))
    return c.layer("PReLU", [c.tensor(), c.constant(1, c.param(1, "slopes").reshape(-1))])


@converter("clip")
def _clip(c: Context) -> int:
    return clip(c, c.tensor(), float(c.attr("a_min")), float(c.attr("a_max")))


@converter("elemwise_add", "broadcast_add", "add_n", "elemwise_mul", "broadcast_mul")
def _eltwise(c: Context) -> int:
    if len(c.ports) != 2:
        raise c.refuse(f"Tengine's sum takes two values, found {len(c.ports)}")
    kind = PRODUCT if c.node.op.endswith("mul") else SUM
    a, b = c.tensor(0), c.tensor(1)
    if c.node.op.startswith("broadcast") and c.shape(0) != c.shape(1):
        first, second = c.want_shape(0), c.want_shape(1)
        if math.prod(second) > math.prod(first):
            a, b, first, second = b, a, second, first
        if len(first) != 4 or second != (*first[:2], 1, 1):
            raise c.refuse(f"Tengine spreads a value per channel over an image, found shapes {first} and {second}")
    out = c.layer("Eltwise", [a, b], kind, 0, 0.0, 1.0, 1.0)
    return c.activation(out)


@converter("softmax", "SoftmaxActivation")
def _softmax(c: Context) -> int:
    if c.node.op == "SoftmaxActivation":
        return c.layer("Softmax", [c.tensor()], 1)
    if c.attr("temperature") is not None or c.attr("use_length"):
        raise c.refuse("Tengine's softmax has no temperature and no length")
    return c.layer("Softmax", [c.tensor()], c.axis(c.attr("axis")))


@converter("BatchNorm", int8=False)
def _batch_norm(c: Context) -> int:
    """One that no pass could fold; `fix_gamma` ignores gamma."""
    if c.attr("axis") != 1:
        raise c.refuse("Tengine normalizes over axis 1")
    arrays = [c.param(slot, "statistics") for slot in range(1, 5)]
    if c.attr("fix_gamma"):
        arrays[0] = np.ones_like(arrays[0])
    return c.layer("BatchNormalization", [c.tensor(), *(c.constant(i + 1, a) for i, a in enumerate(arrays))],
                   1.0, float(c.attr("eps")), 0)


# ---- values that move -----------------------------------------------------------------------------------------------

@converter("Flatten")
def _flatten(c: Context) -> int:
    shape = c.shape()
    if shape is not None and len(shape) == 2:
        return c.tensor()
    return c.layer("Flatten", [c.tensor()], 1, 3)


@converter("Reshape", "expand_dims", "squeeze")
def _reshape(c: Context) -> int:
    """The sizes that MXNet gives an image, with 0 for the batch (0 keeps a size)."""
    source, out = c.want_shape(), c.out_shape()
    if out is None or not out or out[0] != source[0]:
        raise c.refuse("Tengine's Reshape keeps the axis of the batch")
    return c.layer("Reshape", [c.tensor()], 1, 0, [0, *out[1:]])


@converter("Concat")
def _concat(c: Context) -> int:
    return c.layer("Concat", [c.tensor(slot) for slot in range(len(c.ports))], c.axis(c.attr("dim")))


@converter("Dropout", "_copy", "identity", "BlockGrad")
def _identity(c: Context) -> int:
    return c.tensor()
