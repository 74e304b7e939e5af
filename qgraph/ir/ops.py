"""What qgraph knows about MXNet's operators: one table row per op.

A row gives the input slots, MXNet's defaults for the attributes that we read, and what the op means to quantization.
To teach qgraph an op, add a row; an op without a row is carried through untouched and stays in float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from qgraph.errors import FormatError, GraphError
from qgraph.ir.graph import Node

# What an op means to quantization:
#   compute   multiplies its data by a weight: data, weight and bias are quantized
#   pass      every output value is one of its input values (pooling, reshape): codes and scale pass through
#   average   output lies in the input's range but between its codes
#   join      its inputs end in one output range (add, concat)
#   float     stays in float
COMPUTE, PASS, AVERAGE, JOIN, FLOAT = "compute", "pass", "average", "join", "float"


@dataclass(frozen=True)
class OpInfo:
    """inputs: slot names; a missing trailing "bias" is governed by `no_bias`. "*" repeats.
    aux: slots that hold auxiliary states (MXNet lists their arrays as ``aux:``).
    defaults: attribute -> MXNet's default, which also gives the type it is read with.
    out_axis: axis of the weight that runs over output channels.
    """

    inputs: tuple[str, ...] = ("data",)
    aux: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    kind: str = FLOAT
    out_axis: int = 0


_CONV = {"kernel": (), "stride": (), "dilate": (), "pad": (), "num_filter": 0, "num_group": 1, "no_bias": False,
         "layout": "None", "act_type": "", "a_min": 0.0, "a_max": 0.0}
_BN = {"eps": 1e-3, "momentum": 0.9, "fix_gamma": True, "use_global_stats": False, "output_mean_var": False, "axis": 1}
_DEFORMABLE = {key: _CONV[key] for key in ("kernel", "stride", "dilate", "pad", "num_filter", "num_group", "no_bias",
                                           "layout")} | {"num_deformable_group": 1}
_POOL = {"kernel": (), "stride": (), "pad": (), "pool_type": "max", "pooling_convention": "valid",
         "global_pool": False, "count_include_pad": True, "layout": "None", "p_value": 2}
_WEIGHTED = ("data", "weight", "bias")
_ACT = {"act_type": "", "a_min": 0.0, "a_max": 0.0}
_SCALAR = OpInfo(defaults={"scalar": 0.0})
_BINARY = OpInfo(("lhs", "rhs"))
_SOFTMAX = OpInfo(defaults={"axis": -1, "temperature": "None", "use_length": False})
_REDUCE = OpInfo(defaults={"axis": (), "keepdims": False, "exclude": False})

OPS: dict[str, OpInfo] = {
    "null": OpInfo(()),
    "fake_quantize": OpInfo(kind=PASS),
    # compute
    "Convolution": OpInfo(_WEIGHTED, defaults=_CONV, kind=COMPUTE),
    "Deconvolution": OpInfo(_WEIGHTED, defaults={**_CONV, "no_bias": True, "adj": (), "target_shape": ()},
                            kind=COMPUTE, out_axis=1),
    "FullyConnected": OpInfo(_WEIGHTED, defaults={"num_hidden": 0, "no_bias": False, "flatten": True, **_ACT},
                             kind=COMPUTE),
    # values pass through
    "Flatten": OpInfo(kind=PASS),
    "Reshape": OpInfo(defaults={"shape": (), "reverse": False}, kind=PASS),
    "transpose": OpInfo(defaults={"axes": ()}, kind=PASS),
    "SwapAxis": OpInfo(defaults={"dim1": 0, "dim2": 0}, kind=PASS),
    "expand_dims": OpInfo(defaults={"axis": 0}, kind=PASS),
    "squeeze": OpInfo(defaults={"axis": ()}, kind=PASS),
    "slice": OpInfo(defaults={"begin": (), "end": (), "step": ()}, kind=PASS),
    "slice_axis": OpInfo(defaults={"axis": 0, "begin": 0, "end": "None"}, kind=PASS),
    "slice_like": OpInfo(("data", "shape_like"), defaults={"axes": ()}, kind=PASS),
    "SliceChannel": OpInfo(defaults={"num_outputs": 1, "axis": 1, "squeeze_axis": False}, kind=PASS),
    "Crop": OpInfo(("data", "*"), defaults={"num_args": 1, "offset": (0, 0), "h_w": (0, 0), "center_crop": False},
                   kind=PASS),
    "UpSampling": OpInfo(("data", "*"), defaults={"scale": 1, "sample_type": "nearest", "num_args": 1, "num_filter": 0,
                                                  "multi_input_mode": "concat"}, kind=PASS),
    "Pad": OpInfo(defaults={"mode": "constant", "pad_width": (), "constant_value": 0.0}, kind=PASS),
    "Pooling": OpInfo(defaults=_POOL, kind=AVERAGE),  # "max" passes values through: see `kind`
    "_contrib_AdaptiveAvgPooling2D": OpInfo(defaults={"output_size": ()}, kind=AVERAGE),
    "_contrib_BilinearResize2D": OpInfo(("data", "*"), defaults={
        "height": 1, "width": 1, "scale_height": 0.0, "scale_width": 0.0, "mode": "size", "align_corners": True}),
    # several inputs, one output range
    "elemwise_add": OpInfo(("lhs", "rhs"), defaults=_ACT, kind=JOIN),
    "Concat": OpInfo(("*",), defaults={"dim": 1, "num_args": 1}, kind=JOIN),
    # windows at places that the data give
    "ROIPooling": OpInfo(("data", "rois"), defaults={"pooled_size": (), "spatial_scale": 1.0}),
    "_contrib_ROIAlign": OpInfo(("data", "rois"), defaults={"pooled_size": (), "spatial_scale": 1.0, "sample_ratio": -1,
                                                            "position_sensitive": False, "aligned": False}),
    "_contrib_DeformableConvolution": OpInfo(("data", "offset", "weight", "bias"), defaults=_DEFORMABLE),
    "_contrib_ModulatedDeformableConvolution": OpInfo(("data", "offset", "mask", "weight", "bias"),
                                                      defaults=_DEFORMABLE),
    # element by element
    "Activation": OpInfo(defaults={"act_type": ""}),
    "clip": OpInfo(defaults={"a_min": 0.0, "a_max": 0.0}),
    "relu": OpInfo(), "sigmoid": OpInfo(), "tanh": OpInfo(), "softsign": OpInfo(),
    "exp": OpInfo(), "sqrt": OpInfo(), "abs": OpInfo(),
    "LeakyReLU": OpInfo(("data", "gamma"), defaults={"act_type": "leaky", "slope": 0.25, "lower_bound": 0.125,
                                                         "upper_bound": 0.334}),
    "hard_sigmoid": OpInfo(defaults={"alpha": 0.2, "beta": 0.5}),
    "_plus_scalar": _SCALAR, "_minus_scalar": _SCALAR, "_rminus_scalar": _SCALAR, "_mul_scalar": _SCALAR,
    "_div_scalar": _SCALAR, "_rdiv_scalar": _SCALAR, "_maximum_scalar": _SCALAR, "_minimum_scalar": _SCALAR,
    "_power_scalar": _SCALAR,
    "elemwise_mul": _BINARY, "elemwise_sub": _BINARY, "elemwise_div": _BINARY,
    "broadcast_add": _BINARY, "broadcast_mul": _BINARY, "broadcast_sub": _BINARY, "broadcast_div": _BINARY,
    "add_n": OpInfo(("*",), defaults={"num_args": 1}),
    **dict.fromkeys(("log", "log2", "log10", "log1p", "expm1", "rsqrt", "cbrt", "rcbrt", "square", "reciprocal", "sign",
                     "floor", "ceil", "round", "rint", "trunc", "fix", "negative", "erf", "sin", "cos", "tan", "arcsin",
                     "arccos", "arctan", "sinh", "cosh", "arcsinh", "arccosh", "arctanh", "logical_not"), OpInfo()),
    **dict.fromkeys(("_rpower_scalar", "_mod_scalar", "_rmod_scalar", "_hypot_scalar", "_equal_scalar",
                     "_not_equal_scalar", "_greater_scalar", "_greater_equal_scalar", "_lesser_scalar",
                     "_lesser_equal_scalar", "_logical_and_scalar", "_logical_or_scalar", "_logical_xor_scalar",
                     "smooth_l1"), _SCALAR),
    **{prefix + word: _BINARY for prefix in ("broadcast_", "_") for word in (
        "maximum", "minimum", "mod", "power", "hypot", "equal", "not_equal", "greater", "greater_equal", "lesser",
        "lesser_equal", "logical_and", "logical_or", "logical_xor")},
    # moved and made values
    "stack": OpInfo(("*",), defaults={"axis": 0, "num_args": 1}),
    "_split_v2": OpInfo(defaults={"indices": (), "axis": 1, "squeeze_axis": False, "sections": 0}),
    "tile": OpInfo(defaults={"reps": ()}),
    "repeat": OpInfo(defaults={"repeats": 1, "axis": ()}),
    "broadcast_axis": OpInfo(defaults={"axis": (), "size": ()}),
    "broadcast_to": OpInfo(defaults={"shape": ()}),
    "broadcast_like": OpInfo(("lhs", "rhs"), defaults={"lhs_axes": (), "rhs_axes": ()}),
    "reshape_like": OpInfo(("lhs", "rhs"), defaults=dict.fromkeys(("lhs_begin", "lhs_end", "rhs_begin", "rhs_end"),
                                                                  ())),
    "reverse": OpInfo(defaults={"axis": ()}),
    "shape_array": OpInfo(), "size_array": OpInfo(), "ones_like": OpInfo(), "zeros_like": OpInfo(),
    "_ones": OpInfo((), defaults={"shape": ()}), "_zeros": OpInfo((), defaults={"shape": ()}),
    "_full": OpInfo((), defaults={"shape": (), "value": 0.0}),
    "_arange": OpInfo((), defaults={"start": 0.0, "stop": "None", "step": 1.0, "repeat": 1, "infer_range": False}),
    "_contrib_arange_like": OpInfo(defaults={"start": 0.0, "step": 1.0, "repeat": 1, "axis": ()}),
    "depth_to_space": OpInfo(defaults={"block_size": 1}), "space_to_depth": OpInfo(defaults={"block_size": 1}),
    "where": OpInfo(("condition", "x", "y")),
    "take": OpInfo(("a", "indices"), defaults={"axis": 0, "mode": "clip"}),
    "Embedding": OpInfo(("data", "weight"), defaults={"input_dim": 0, "output_dim": 0}),
    "pick": OpInfo(("data", "index"), defaults={"axis": (-1,), "keepdims": False, "mode": "clip"}),
    "gather_nd": OpInfo(("data", "indices")),
    "one_hot": OpInfo(("indices",), defaults={"depth": 1, "on_value": 1.0, "off_value": 0.0}),
    "topk": OpInfo(defaults={"axis": (-1,), "k": 1, "ret_typ": "indices", "is_ascend": False}),
    "sort": OpInfo(defaults={"axis": (-1,), "is_ascend": True}),
    "argsort": OpInfo(defaults={"axis": (-1,), "is_ascend": True}),
    "argmax": OpInfo(defaults={"axis": (), "keepdims": False}),
    "argmin": OpInfo(defaults={"axis": (), "keepdims": False}),
    "_contrib_box_decode": OpInfo(("data", "anchors"), defaults={"std0": 1.0, "std1": 1.0, "std2": 1.0, "std3": 1.0,
                                                                 "clip": -1.0, "format": "center"}),
    # products of matrices
    "dot": OpInfo(("lhs", "rhs"), defaults={"transpose_a": False, "transpose_b": False}),
    "batch_dot": OpInfo(("lhs", "rhs"), defaults={"transpose_a": False, "transpose_b": False}),
    # normalization
    "BatchNorm": OpInfo(("data", "gamma", "beta", "moving_mean", "moving_var"), ("moving_mean", "moving_var"), _BN),
    "_contrib_BatchNormWithReLU": OpInfo(("data", "gamma", "beta", "moving_mean", "moving_var"),
                                         ("moving_mean", "moving_var"), _BN),
    "_contrib_SyncBatchNorm": OpInfo(("data", "gamma", "beta", "moving_mean", "moving_var"),
                                     ("moving_mean", "moving_var"), _BN),
    "InstanceNorm": OpInfo(("data", "gamma", "beta"), defaults={"eps": 1e-3}),
    "LayerNorm": OpInfo(("data", "gamma", "beta"), defaults={"axis": -1, "eps": 1e-5}),
    "GroupNorm": OpInfo(("data", "gamma", "beta"), defaults={"num_groups": 1, "eps": 1e-5}),
    "L2Normalization": OpInfo(defaults={"eps": 1e-10, "mode": "instance"}),
    "LRN": OpInfo(defaults={"alpha": 1e-4, "beta": 0.75, "knorm": 2.0, "nsize": 0}),
    # reductions and heads
    "sum": _REDUCE, "mean": _REDUCE, "max": _REDUCE, "min": _REDUCE, "prod": _REDUCE,
    "norm": OpInfo(defaults={"ord": 2, "axis": (), "keepdims": False}),
    "softmax": _SOFTMAX, "log_softmax": _SOFTMAX, "softmin": _SOFTMAX,
    "SoftmaxActivation": OpInfo(defaults={"mode": "instance"}),
    "SoftmaxOutput": OpInfo(("data", "label"), defaults={"multi_output": False, "preserve_shape": False}),
    "LinearRegressionOutput": OpInfo(("data", "label")),
    "LogisticRegressionOutput": OpInfo(("data", "label")),
    "Dropout": OpInfo(defaults={"p": 0.5, "mode": "training"}),
    "BlockGrad": OpInfo(), "_copy": OpInfo(), "identity": OpInfo(), "make_loss": OpInfo(),
    "Cast": OpInfo(defaults={"dtype": "float32"}),
}

# other spellings of the same op, by MXNet's own alias table
ALIASES = {
    "_Plus": "elemwise_add", "_plus": "elemwise_add", "_add": "elemwise_add", "_grad_add": "elemwise_add",
    "_Minus": "elemwise_sub", "_minus": "elemwise_sub", "_sub": "elemwise_sub",
    "_Mul": "elemwise_mul", "_mul": "elemwise_mul", "_Div": "elemwise_div", "_div": "elemwise_div",
    "broadcast_plus": "broadcast_add", "broadcast_minus": "broadcast_sub", "ElementWiseSum": "add_n",
    "_PlusScalar": "_plus_scalar", "_MinusScalar": "_minus_scalar", "_RMinusScalar": "_rminus_scalar",
    "_MulScalar": "_mul_scalar", "_DivScalar": "_div_scalar", "_RDivScalar": "_rdiv_scalar",
    "_MaximumScalar": "_maximum_scalar", "_MinimumScalar": "_minimum_scalar", "_PowerScalar": "_power_scalar",
    "Softmax": "SoftmaxOutput", "concat": "Concat", "flatten": "Flatten", "reshape": "Reshape", "split": "SliceChannel",
    "swapaxes": "SwapAxis", "stop_gradient": "BlockGrad", "pad": "Pad", "cast": "Cast", "crop": "slice",
    "BatchNorm_v1": "BatchNorm", "CuDNNBatchNorm": "BatchNorm", "Pooling_v1": "Pooling",
    "Convolution_v1": "Convolution", "sum_axis": "sum", "max_axis": "max", "min_axis": "min",
    "_Power": "_power", "_Maximum": "_maximum", "_Minimum": "_minimum", "_Mod": "_mod", "_Hypot": "_hypot",
    "_RPowerScalar": "_rpower_scalar", "_ModScalar": "_mod_scalar", "_RModScalar": "_rmod_scalar",
    "broadcast_axes": "broadcast_axis", "flip": "reverse",
}

IDENTITIES = frozenset({"Dropout", "BlockGrad", "_copy", "identity", "make_loss", "LinearRegressionOutput"})
"""Ops that give back their first input at inference."""

_LONGEST_NUMBER = 40  # characters of one; int() takes quadratic time

# attributes of our own; MXNet keeps attributes of this form
CHANNEL_ORDER = "__channel_order__"
"""JSON list: channel i of this node's output is channel list[i] of the user's model."""
SHIFT = "__shift__"
"""A number: how much higher this node's output is than the user's, see `qgraph.passes.signed_residual`."""
KEPT = (CHANNEL_ORDER, SHIFT)
"""Those that frozen files keep."""
CALIBRATED = ("min_calib_range", "max_calib_range")
"""The range of what an integer op of MXNet writes, an attribute of most of them: see `number`."""
ROUNDED = "__rounded__"
"""How the weight of this layer was rounded, "s8, tensor", where that is not how its codes are scaled now."""
WIDE = "__wide__"
"""A layer or an average of floats that adds them in float64, see `qgraph.passes.wide_sums`."""


def info(op: str) -> OpInfo:
    """The op's row; an unknown op gets an empty one (carried through, float)."""
    return OPS.get(op, OpInfo(("*",)))


def kind(node: Node) -> str:
    """What this node means to quantization, see the constants above."""
    if node.op == "Pooling":
        return PASS if attr(node, "pool_type") == "max" else AVERAGE if attr(node, "pool_type") == "avg" else FLOAT
    if node.op == "UpSampling":
        return PASS if attr(node, "sample_type") == "nearest" else FLOAT
    if node.op == "Pad":
        return PASS if attr(node, "mode") == "constant" and attr(node, "constant_value") == 0 else FLOAT
    return info(node.op).kind


def attr(node: Node, key: str) -> Any:
    """A typed attribute, or MXNet's default if it is missing.

    Tuples of `stride`, `dilate` and `pad` left empty are filled to the kernel's rank.  Raises GraphError for an
    attribute that is not in the op's row or cannot be read.
    """
    defaults = info(node.op).defaults
    if key not in defaults:
        raise GraphError(f"{node}: attribute {key!r} is not in the table of qgraph/ops.py")
    default, text = defaults[key], node.attrs.get(key)
    value = default if text is None else _read(node, key, text, default)
    if value == () and key in ("stride", "dilate", "pad") and "kernel" in defaults:
        rank = len(attr(node, "kernel"))
        return ((0,) if key == "pad" else (1,)) * rank
    return value


def number(node: Node, key: str) -> float | None:
    """A number that is in no row of the table, None where the node has none (or "None"). Raises FormatError."""
    text = node.attrs.get(key, "None")
    if text == "None":
        return None
    try:
        value = float(text) if len(text) <= _LONGEST_NUMBER else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FormatError(f"{node}: {key}: found {text[:_LONGEST_NUMBER]!r}, want a finite number")
    return value


def _read(node: Node, key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if isinstance(default, int):
            return int(_short(text.strip()).rstrip("L"))
        if isinstance(default, float):
            return float(text)
        if isinstance(default, tuple):
            return parse_tuple(text)
    except (KeyError, ValueError) as error:
        raise GraphError(f"{node}: attribute {key}: found {text[:60]!r}, want {type(default).__name__}") from error
    return text


def parse_tuple(text: str) -> tuple[Any, ...]:
    """``(3, 3)``, ``(3L,3L)``, ``[3,3]``, ``3``, ``None`` -> tuple of int, float or None. Raises ValueError."""
    body = text.strip()
    if body in ("None", "()", "[]", ""):
        return ()
    if body[0] in "([" and body[-1] in ")]":
        body = body[1:-1]
    return tuple(_number(part.strip()) for part in body.split(",") if part.strip())


def _number(text: str) -> Any:
    if text == "None":
        return None
    digits = _short(text).rstrip("L")
    return int(digits) if digits.lstrip("+-").isdecimal() else float(text)


def _short(text: str) -> str:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"{len(text)} characters")
    return text
