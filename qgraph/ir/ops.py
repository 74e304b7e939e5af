"""What qgraph knows about MXNet's operators: one table row per op.

A row gives the input slots, MXNet's defaults for the attributes that we read, and what the op means to quantization.
To teach qgraph an op, add a row; an op without a row is carried through untouched and stays in float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qgraph.errors import FormatError, GraphError
from qgraph.ir.node import Node

# What an op means to quantization:
#   compute   multiplies its data by a weight: data, weight and bias are quantized
#   pass      every output value is one of its input values (pooling, reshape): codes and scale pass through
#   average   output lies in the input's range but between its codes
#   join      its inputs end in one output range (add, concat)
#   float     stays in float
COMPUTE, PASS, AVERAGE, JOIN, FLOAT = "compute", "pass", "average", "join", "float"

SUM, PRODUCT, CONCAT = "sum", "product", "concat"  # how an op combines all its inputs
NONNEGATIVE = "nonnegative"  # no output value is below 0
KEPT_SIGN = "kept"  # none is where none of its first input is
SQUASHES, REPEATS = "squashes", "repeats"  # what a head of the training does with its first input: softmax, or nothing


@dataclass(frozen=True)
class OpInfo:
    """inputs: slot names; a missing trailing "bias" is governed by `no_bias`. "*" repeats.
    aux: slots that hold auxiliary states (MXNet lists their arrays as ``aux:``).
    defaults: attribute -> MXNet's default, which also gives the type it is read with; None is an optional number.
    kind: what it means to quantization.  kinds: the same for nodes with these attributes.
    out_axis: axis of the weight that runs over output channels.
    fuses: a node may carry the activation behind it, see `Node.fused`.
    identity: it gives back its first input at inference.
    combines, sign, head: see the constants above.
    """

    inputs: tuple[str, ...] = ("data",)
    aux: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    kind: str = FLOAT
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    out_axis: int = 0
    fuses: bool = False
    identity: bool = False
    combines: str = ""
    sign: str = ""
    head: str = ""


_WORDS = ("maximum", "minimum", "mod", "power", "hypot", "equal", "not_equal", "greater", "greater_equal", "lesser",
          "lesser_equal", "logical_and", "logical_or", "logical_xor")
UNARY = ("relu", "sigmoid", "tanh", "softsign", "exp", "sqrt", "abs", "log", "log2", "log10", "log1p", "expm1", "rsqrt",
         "cbrt", "rcbrt", "square", "reciprocal", "sign", "floor", "ceil", "round", "rint", "trunc", "fix", "negative",
         "erf", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "arcsinh", "arccosh", "arctanh",
         "logical_not")
"""Ops that take one tensor, element by element, and no attributes."""
WITH_SCALAR = (*(f"_{word}_scalar" for word in ("plus", "minus", "rminus", "mul", "div", "rdiv", "rpower", "rmod",
                                                *_WORDS)), "smooth_l1")
"""Ops that take one tensor and a number."""
ELEMWISE = (*(f"elemwise_{word}" for word in ("add", "sub", "mul", "div")), *(f"_{word}" for word in _WORDS))
"""Ops that take two tensors of one shape."""
BROADCAST = tuple(f"broadcast_{word}" for word in ("add", "sub", "mul", "div", *_WORDS))
"""Ops that take two tensors of shapes that broadcast."""

_CONV = {"kernel": (), "stride": (), "dilate": (), "pad": (), "num_filter": 0, "num_group": 1, "no_bias": False,
         "layout": "None"}
_BN = {"eps": 1e-3, "momentum": 0.9, "fix_gamma": True, "use_global_stats": False, "output_mean_var": False, "axis": 1}
_DEFORMABLE = {**_CONV, "num_deformable_group": 1}
_POOL = {"kernel": (), "stride": (), "pad": (), "pool_type": "max", "pooling_convention": "valid",
         "global_pool": False, "count_include_pad": True, "layout": "None", "p_value": 2}
_WEIGHTED = ("data", "weight", "bias")
_SCALAR = OpInfo(defaults={"scalar": 0.0})
_BINARY = OpInfo(("lhs", "rhs"))
_IDENTITY = OpInfo(identity=True)
_REGRESSION = OpInfo(("data", "label"), identity=True, head=REPEATS)
_SOFTMAX = {"axis": -1, "temperature": None, "use_length": False}
_REDUCE = {"axis": (), "keepdims": False, "exclude": False}

OPS: dict[str, OpInfo] = {
    "null": OpInfo(()),
    "fake_quantize": OpInfo(kind=PASS),
    # compute
    "Convolution": OpInfo(_WEIGHTED, defaults=_CONV, kind=COMPUTE, fuses=True),
    "Deconvolution": OpInfo(_WEIGHTED, defaults={**_CONV, "no_bias": True, "adj": (), "target_shape": ()},
                            kind=COMPUTE, out_axis=1, fuses=True),
    "FullyConnected": OpInfo(_WEIGHTED, defaults={"num_hidden": 0, "no_bias": False, "flatten": True},
                             kind=COMPUTE, fuses=True),
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
                                                  "multi_input_mode": "concat"},
                         kinds={PASS: {"sample_type": "nearest"}}, sign=KEPT_SIGN),
    "Pad": OpInfo(defaults={"mode": "constant", "pad_width": (), "constant_value": 0.0},
                  kinds={PASS: {"mode": "constant", "constant_value": 0.0}}),
    "Pooling": OpInfo(defaults=_POOL, kinds={PASS: {"pool_type": "max"}, AVERAGE: {"pool_type": "avg"}},
                      sign=KEPT_SIGN),
    "_contrib_AdaptiveAvgPooling2D": OpInfo(defaults={"output_size": ()}, kind=AVERAGE),
    "_contrib_BilinearResize2D": OpInfo(("data", "*"), defaults={
        "height": 1, "width": 1, "scale_height": None, "scale_width": None, "mode": "size", "align_corners": True},
        sign=KEPT_SIGN),
    # several inputs, one output range
    "Concat": OpInfo(("*",), defaults={"dim": 1, "num_args": 1}, kind=JOIN, combines=CONCAT),
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
    **dict.fromkeys(UNARY, OpInfo()),
    **dict.fromkeys(("relu", "sigmoid", "exp", "sqrt", "abs", "square"), OpInfo(sign=NONNEGATIVE)),
    "LeakyReLU": OpInfo(("data", "gamma"), defaults={"act_type": "leaky", "slope": 0.25, "lower_bound": 0.125,
                                                         "upper_bound": 0.334}),
    "hard_sigmoid": OpInfo(defaults={"alpha": 0.2, "beta": 0.5}, sign=NONNEGATIVE),
    **dict.fromkeys(WITH_SCALAR, _SCALAR),
    **dict.fromkeys((*ELEMWISE, *BROADCAST), _BINARY),
    "elemwise_add": OpInfo(("lhs", "rhs"), kind=JOIN, fuses=True, combines=SUM),
    "broadcast_add": OpInfo(("lhs", "rhs"), combines=SUM),
    **dict.fromkeys(("elemwise_mul", "broadcast_mul"), OpInfo(("lhs", "rhs"), combines=PRODUCT)),
    "add_n": OpInfo(("*",), defaults={"num_args": 1}, combines=SUM),
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
    "_arange": OpInfo((), defaults={"start": 0.0, "stop": None, "step": 1.0, "repeat": 1, "infer_range": False}),
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
    "batch_take": OpInfo(("a", "indices")),
    "_contrib_box_iou": OpInfo(("lhs", "rhs"), defaults={"format": "corner"}),
    "_contrib_box_nms": OpInfo(defaults={
        "overlap_thresh": 0.5, "valid_thresh": 0.0, "topk": -1, "coord_start": 2, "score_index": 1, "id_index": -1,
        "background_id": -1, "force_suppress": False, "in_format": "corner", "out_format": "corner"}),
    "_contrib_MultiBoxPrior": OpInfo(defaults={"sizes": (1.0,), "ratios": (1.0,), "clip": False, "steps": (-1.0, -1.0),
                                               "offsets": (0.5, 0.5)}),
    "_contrib_MultiBoxDetection": OpInfo(("cls_prob", "loc_pred", "anchor"), defaults={
        "clip": True, "threshold": 0.01, "background_id": 0, "nms_threshold": 0.5, "force_suppress": False,
        "variances": (0.1, 0.1, 0.2, 0.2), "nms_topk": -1}),
    **dict.fromkeys(("_contrib_Proposal", "_contrib_MultiProposal"),
                    OpInfo(("cls_prob", "bbox_pred", "im_info"), defaults={
                        "rpn_pre_nms_top_n": 6000, "rpn_post_nms_top_n": 300, "threshold": 0.7, "rpn_min_size": 16,
                        "scales": (4.0, 8.0, 16.0, 32.0), "ratios": (0.5, 1.0, 2.0), "feature_stride": 16,
                        "output_score": False, "iou_loss": False})),
    # products of matrices
    "dot": OpInfo(("lhs", "rhs"), defaults={"transpose_a": False, "transpose_b": False}),
    "batch_dot": OpInfo(("lhs", "rhs"), defaults={"transpose_a": False, "transpose_b": False}),
    # recurrent layers
    "RNN": OpInfo(("data", "parameters", "state", "*"), defaults={
        "state_size": 0, "num_layers": 1, "bidirectional": False, "mode": "", "state_outputs": False,
        "projection_size": None, "use_sequence_length": False, "lstm_state_clip_min": None,
        "lstm_state_clip_max": None}),
    "_rnn_param_concat": OpInfo(("*",), defaults={"dim": 1, "num_args": 1}),
    # attention
    **dict.fromkeys(("_contrib_interleaved_matmul_selfatt_qk", "_contrib_interleaved_matmul_encdec_qk",
                     "_contrib_interleaved_matmul_selfatt_valatt", "_contrib_interleaved_matmul_encdec_valatt"),
                    OpInfo(("*",), defaults={"heads": 1})),
    "_contrib_div_sqrt_dim": OpInfo(),
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
    "sum": OpInfo(defaults=_REDUCE), "max": OpInfo(defaults=_REDUCE), "min": OpInfo(defaults=_REDUCE),
    "prod": OpInfo(defaults=_REDUCE), "mean": OpInfo(defaults=_REDUCE, sign=KEPT_SIGN),
    "norm": OpInfo(defaults={"ord": 2, "axis": (), "keepdims": False}),
    "softmax": OpInfo(("data", "*"), defaults=_SOFTMAX, sign=NONNEGATIVE, head=SQUASHES),
    "log_softmax": OpInfo(defaults=_SOFTMAX, head=SQUASHES),
    "softmin": OpInfo(defaults=_SOFTMAX),
    "SoftmaxActivation": OpInfo(defaults={"mode": "instance"}, head=SQUASHES),
    "SoftmaxOutput": OpInfo(("data", "label"), defaults={"multi_output": False, "preserve_shape": False},
                            head=SQUASHES),
    "LogisticRegressionOutput": OpInfo(("data", "label"), head=SQUASHES),
    "LinearRegressionOutput": _REGRESSION, "MAERegressionOutput": _REGRESSION, "SVMOutput": _REGRESSION,
    "Dropout": OpInfo(defaults={"p": 0.5, "mode": "training"}, identity=True),
    "BlockGrad": _IDENTITY, "_copy": _IDENTITY, "identity": _IDENTITY, "make_loss": _IDENTITY, "MakeLoss": _IDENTITY,
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
    "_contrib_box_non_maximum_suppression": "_contrib_box_nms",
    "amp_cast": "Cast", "broadcast_axes": "broadcast_axis", "flip": "reverse",
}

SHAPE_ONLY: dict[str, tuple[int, ...]] = {
    "slice_like": (1,), "Crop": (1,), "broadcast_like": (1,), "reshape_like": (1,), "shape_array": (0,),
    "size_array": (0,), "zeros_like": (0,), "ones_like": (0,), "_contrib_arange_like": (0,),
    "_contrib_MultiBoxPrior": (0,)}
"""Op -> input slots of which only the shape counts."""
JUMPS = frozenset({
    "topk", "argsort", "argmax", "argmin", "_contrib_box_nms", "_contrib_MultiBoxDetection", "_contrib_Proposal",
    "_contrib_MultiProposal", "ROIPooling", "sign", "floor", "ceil", "round", "rint", "trunc", "fix", "logical_not",
    *(f"{form}{word}{end}" for form, end in (("_", ""), ("broadcast_", ""), ("_", "_scalar"))
      for word in ("equal", "not_equal", "greater", "greater_equal", "lesser", "lesser_equal", "mod"))})
"""Ops that choose or round: the least change of an input can change their output by all of its size."""
IDENTITIES = frozenset(op for op, row in OPS.items() if row.identity)
FUSING = tuple(op for op, row in OPS.items() if row.fuses)

NONNEGATIVE_ACTS = frozenset({"relu", "sigmoid", "softrelu"})
"""Values of act_type, of an Activation or fused."""
CHANNEL_FIRST = ("NCW", "NCHW", "NCDHW")
"""Layouts with the channels in axis 1."""

_RANDOM = ("_random_", "_sample_", "random_", "sample_", "_npi_uniform", "_npi_normal", "_shuffle")

_LONGEST_NUMBER = 40  # characters of one; int() takes quadratic time

CALIBRATED = ("min_calib_range", "max_calib_range")
"""The range of what an integer op of MXNet writes, an attribute of most of them: see `number`."""


def info(op: str) -> OpInfo:
    """The op's row; an unknown op gets an empty one (carried through, float)."""
    return OPS.get(op, OpInfo(("*",)))


def kind(node: Node) -> str:
    """What this node means to quantization, see the constants above."""
    row = info(node.op)
    for found, attrs in row.kinds.items():
        if all(attr(node, key) == value for key, value in attrs.items()):
            return found
    return row.kind


def head(node: Node) -> str:
    """Say what a head of the training, under any of its names, does with its first input; "" for other ops."""
    return info(ALIASES.get(node.op, node.op)).head


def randomness(node: Node) -> str:
    """How this node draws random numbers at inference; "" if it does not."""
    if node.op == "Dropout" and attr(node, "mode") == "always":
        return "drops at inference, too (mode=always)"
    return "draws random numbers" if node.op.startswith(_RANDOM) else ""


def channels_first(node: Node) -> bool:
    """Whether a convolution or a pooling has its channels in axis 1, as without a layout."""
    return attr(node, "layout") in ("None", *CHANNEL_FIRST)


def is_2d(node: Node) -> bool:
    """Whether a convolution or a pooling works on images (N, C, H, W)."""
    return len(attr(node, "kernel")) == 2 and attr(node, "layout") in ("None", "NCHW")


def attr(node: Node, key: str) -> Any:
    """A typed attribute, or MXNet's default if it is missing.

    Tuples of `stride`, `dilate` and `pad` left empty are filled to the kernel's rank.  Raises GraphError for an
    attribute that is not in the op's row or cannot be read.
    """
    defaults = info(node.op).defaults
    if key not in defaults:
        raise GraphError(f"{node}: attribute {key!r} is not in the table of qgraph/ir/ops.py")
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


def _read(node: Node, key: str, text: str, default: object) -> object:
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if isinstance(default, int):
            return int(_short(text.strip()).rstrip("L"))
        if isinstance(default, float):
            return float(text)
        if isinstance(default, tuple):
            return parse_tuple(text)
        if default is None:
            return None if text.strip() == "None" else float(text)
    except (KeyError, ValueError) as error:
        wanted = "a number" if default is None else type(default).__name__
        raise GraphError(f"{node}: attribute {key}: found {text[:60]!r}, want {wanted}") from error
    return text


def parse_tuple(text: str) -> tuple[Any, ...]:
    """``(3, 3)``, ``(3L,3L)``, ``[3,3]``, ``3``, ``None`` -> tuple of int, float or None. Raises ValueError."""
    body = text.strip()
    if body in ("None", "()", "[]", ""):
        return ()
    if body[0] in "([" and body[-1] in ")]":
        body = body[1:-1]
    return tuple(_number(part.strip()) for part in body.split(",") if part.strip())


def _number(text: str) -> float | None:
    if text == "None":
        return None
    digits = _short(text).rstrip("L")
    return int(digits) if digits.lstrip("+-").isdecimal() else float(text)


def _short(text: str) -> str:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"{len(text)} characters")
    return text
