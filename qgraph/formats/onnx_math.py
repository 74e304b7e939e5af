"""Converters to ONNX of what computes element by element, reduces, multiplies matrices or sorts.

Every tensor between two converters is float32: comparisons, indices and casts give whole numbers in float32, which is
what most of MXNet's own ops do.
"""

from __future__ import annotations

import math

import numpy as np

from qgraph import ops
from qgraph.formats.onnx_convert import Context, converter
from qgraph.geometry import reduced_axes

FLOAT, INT64 = 1, 7  # onnx.TensorProto's numbers of the types

UNARY = {  # MXNet op -> ONNX op
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil",
    "negative": "Neg", "reciprocal": "Reciprocal", "erf": "Erf", "sin": "Sin", "cos": "Cos", "tan": "Tan",
    "arcsin": "Asin", "arccos": "Acos", "arctan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "arcsinh": "Asinh",
    "arccosh": "Acosh", "arctanh": "Atanh",
}
ARITHMETIC = {  # MXNet's word -> ONNX op, for two tensors or a tensor and a scalar
    "add": "Add", "plus": "Add", "sub": "Sub", "minus": "Sub", "mul": "Mul", "div": "Div", "power": "Pow",
    "maximum": "Max", "minimum": "Min",
}
COMPARISONS = {  # MXNet's word -> ONNX op, whether its result is turned round
    "equal": ("Equal", False), "not_equal": ("Equal", True), "greater": ("Greater", False),
    "greater_equal": ("GreaterOrEqual", False), "lesser": ("Less", False), "lesser_equal": ("LessOrEqual", False),
}
LOGIC = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}
REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd"}


def scalar(c: Context, value: float) -> str:
    return c.const(np.float32(value), "scalar")


def to_float(c: Context, x: str) -> str:
    return c.op("Cast", x, to=FLOAT)


def to_index(c: Context, x: str) -> str:
    return c.op("Cast", x, to=INT64)


# ---- one tensor -----------------------------------------------------------------------------------------------------

@converter(*UNARY)
def _unary(c: Context, x: str) -> str:
    return c.op(UNARY[c.node.op], x)


# ---- two tensors, or a tensor and a number --------------------------------------------------------------------------

def _combine(c: Context, word: str, a: str, b: str) -> str:
    """a <word> b, as float32."""
    if word in ARITHMETIC:
        return c.op(ARITHMETIC[word], a, b)
    if word in COMPARISONS:
        op, inverted = COMPARISONS[word]
        truth = c.op(op, a, b)
        return to_float(c, c.op("Not", truth) if inverted else truth)
    if word in LOGIC:
        return to_float(c, c.op(LOGIC[word], *(c.op("Cast", x, to=9) for x in (a, b))))
    if word == "hypot":
        return c.op("Sqrt", c.op("Add", c.op("Mul", a, a), c.op("Mul", b, b)))
    return _mod(c, a, b)


def _mod(c: Context, a: str, b: str) -> str:
    """The remainder with the sign of b, 0 for b = 0; ONNX's own for floats has the sign of a."""
    zero = scalar(c, 0)
    remainder = c.op("Mod", a, b, fmod=1)
    wrong = c.op("Less", c.op("Mul", c.op("Sign", remainder), c.op("Sign", b)), zero)
    found = c.op("Where", wrong, c.op("Add", remainder, b), remainder)
    return c.op("Where", c.op("Equal", b, zero), zero, found)


_WORDS = [*ARITHMETIC, *COMPARISONS, *LOGIC, "hypot", "mod"]


@converter("elemwise_add")
def _elemwise_add(c: Context, a: str, b: str) -> str:
    return c.activation(c.op("Add", a, b))


@converter("elemwise_sub", "elemwise_mul", "elemwise_div", *(f"broadcast_{word}" for word in _WORDS),
           *(f"_{word}" for word in _WORDS))
def _binary(c: Context, a: str, b: str) -> str:
    return _combine(c, c.node.op.split("_", 1)[1], a, b)


@converter(*(f"_{word}_scalar" for word in _WORDS))
def _with_scalar(c: Context, x: str) -> str:
    return _combine(c, c.node.op[1:-len("_scalar")], x, scalar(c, c.attr("scalar")))


@converter(*(f"_r{word}_scalar" for word in ("minus", "div", "power", "mod")))
def _scalar_first(c: Context, x: str) -> str:
    return _combine(c, c.node.op[2:-len("_scalar")], scalar(c, c.attr("scalar")), x)


@converter("add_n")
def _add_n(c: Context, *inputs: str) -> str:
    return c.op("Sum", *inputs)


# ---- reductions -----------------------------------------------------------------------------------------------------

def _axes(c: Context) -> tuple[tuple[int, ...], bool]:
    """Axes that a reduction runs over, and whether that is all of them; () stands for all."""
    axes = ops.attr(c.node, "axis")
    if not axes:
        return (), True
    if c.knows():
        rank = len(c.shape())
        axes = reduced_axes(c.node, rank)
        return axes, len(axes) == rank
    if c.attr("exclude"):
        c.shape()  # raises
    return axes, False


def reduction(c: Context, op: str, x: str) -> str:
    """An ONNX Reduce op; a full one leaves MXNet one axis of one element, and ONNX none."""
    axes, full = _axes(c)
    keep = c.attr("keepdims")
    inputs = [x] if full else [x, c.const(list(axes), "axes")]
    found: str = c.op(op, *inputs, keepdims=int(keep))
    return c.reshape(found, (1,)) if full and not keep else found


@converter(*REDUCTIONS)
def _reduce(c: Context, x: str) -> str:
    return reduction(c, REDUCTIONS[c.node.op], x)
