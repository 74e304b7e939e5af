"""Converters to ONNX of what computes element by element, reduces or multiplies matrices.

Every tensor between two converters is float32.  What MXNet computes in integers (behind a Cast, or a shape) is carried
as whole numbers in float32, rounded toward zero where integers would be: exact up to 2**24.
"""

from __future__ import annotations

import math

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Port
from qgraph.semantics.geometry import reduced_axes
from qgraph.semantics.types import type_of
from qgraph.targets.onnx.convert import Context, converter

FLOAT, INT64, BOOL = 1, 7, 9  # onnx.TensorProto's numbers of types
TYPES = {"float16": 10, "int8": 3, "int32": 6, "int64": INT64, "uint8": 2, "bool": BOOL}

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


# ---- types ----------------------------------------------------------------------------------------------------------

def scalar(c: Context, value: float) -> str:
    return c.const(np.float32(value), "scalar")


def to_float(c: Context, x: str) -> str:
    return c.op("Cast", x, to=FLOAT)


def to_index(c: Context, x: str) -> str:
    return c.op("Cast", x, to=INT64)


def _through(c: Context, x: str, dtype: str) -> str:
    """x as that type holds it."""
    return to_float(c, c.op("Cast", x, to=TYPES[dtype]))


def _integers(c: Context) -> bool:
    """The node computes in integers in MXNet."""
    return "int" in type_of(c.graph, Port(c.node))


def _whole(c: Context, x: str) -> str:
    return _through(c, x, "int64") if _integers(c) else x


@converter("Cast")
def _cast(c: Context, x: str) -> str:
    """To an integer type: rounded toward zero; to bool: 0 or 1."""
    dtype = c.attr("dtype")
    if dtype in ("float32", "float64"):
        return c.op("Identity", x)
    if dtype not in TYPES:
        raise c.refuse(f"found dtype {dtype}, want one of float32, float64, {', '.join(TYPES)}")
    return _through(c, x, dtype)


# ---- one tensor -----------------------------------------------------------------------------------------------------

@converter(*UNARY)
def _unary(c: Context, x: str) -> str:
    return _whole(c, c.op(UNARY[c.node.op], x))


@converter("square")
def _square(c: Context, x: str) -> str:
    return c.op("Mul", x, x)


@converter("rsqrt")
def _rsqrt(c: Context, x: str) -> str:
    return c.op("Reciprocal", c.op("Sqrt", x))


@converter("cbrt", "rcbrt")
def _cbrt(c: Context, x: str) -> str:
    power = 1 / 3 if c.node.op == "cbrt" else -1 / 3
    return c.op("Mul", c.op("Sign", x), c.op("Pow", c.op("Abs", x), scalar(c, power)))


@converter("log2", "log10")
def _log(c: Context, x: str) -> str:
    base = 2 if c.node.op == "log2" else 10
    return c.op("Mul", c.op("Log", x), scalar(c, 1 / math.log(base)))


@converter("log1p")
def _log1p(c: Context, x: str) -> str:
    return c.op("Log", c.op("Add", x, scalar(c, 1)))


@converter("expm1")
def _expm1(c: Context, x: str) -> str:
    return c.op("Sub", c.op("Exp", x), scalar(c, 1))


@converter("logical_not")
def _logical_not(c: Context, x: str) -> str:
    return to_float(c, c.op("Equal", x, scalar(c, 0)))


def _step_up(c: Context, x: str, op: str) -> str:
    """floor(x), and one more where the rest is `op` 0.5."""
    low = c.op("Floor", x)
    return c.op("Add", low, to_float(c, c.op(op, c.op("Sub", x, low), scalar(c, 0.5))))


@converter("rint")
def _rint(c: Context, x: str) -> str:
    """Halves go down; ONNX's Round takes them to even numbers."""
    return _step_up(c, x, "Greater")


@converter("round")
def _round(c: Context, x: str) -> str:
    """Halves go away from zero."""
    return c.op("Mul", c.op("Sign", x), _step_up(c, c.op("Abs", x), "GreaterOrEqual"))


@converter("trunc", "fix")
def _trunc(c: Context, x: str) -> str:
    return c.op("Mul", c.op("Sign", x), c.op("Floor", c.op("Abs", x)))


@converter("smooth_l1")
def _smooth_l1(c: Context, x: str) -> str:
    """0.5 (s x)**2 where |x| < 1 / s**2, else |x| - 0.5 / s**2."""
    square = c.attr("scalar") ** 2
    size = c.op("Abs", x)
    inner = c.op("Mul", c.op("Mul", x, x), scalar(c, 0.5 * square))
    outer = c.op("Sub", size, scalar(c, 0.5 / square))
    return c.op("Where", c.op("Less", size, scalar(c, 1 / square)), inner, outer)


# ---- two tensors, or a tensor and a number --------------------------------------------------------------------------

def _combine(c: Context, word: str, a: str, b: str) -> str:
    """a <word> b, as float32."""
    if word in ARITHMETIC:
        found: str = c.op(ARITHMETIC[word], a, b)
        return _whole(c, found) if word in ("div", "power") else found
    if word in COMPARISONS:
        op, inverted = COMPARISONS[word]
        truth = c.op(op, a, b)
        return to_float(c, c.op("Not", truth) if inverted else truth)
    if word in LOGIC:
        return to_float(c, c.op(LOGIC[word], *(c.op("Cast", x, to=BOOL) for x in (a, b))))
    if word == "hypot":
        return _whole(c, c.op("Sqrt", c.op("Add", c.op("Mul", a, a), c.op("Mul", b, b))))
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


def _scalar(c: Context) -> str:
    value = c.attr("scalar")
    return scalar(c, math.trunc(value) if _integers(c) else value)


@converter(*(f"_{word}_scalar" for word in _WORDS))
def _with_scalar(c: Context, x: str) -> str:
    return _combine(c, c.node.op[1:-len("_scalar")], x, _scalar(c))


@converter(*(f"_r{word}_scalar" for word in ("minus", "div", "power", "mod")))
def _scalar_first(c: Context, x: str) -> str:
    return _combine(c, c.node.op[2:-len("_scalar")], _scalar(c), x)


@converter("add_n")
def _add_n(c: Context, *inputs: str) -> str:
    return c.op("Sum", *inputs)


# ---- reductions -----------------------------------------------------------------------------------------------------

def _axes(c: Context) -> tuple[tuple[int, ...], bool]:
    """Axes that a reduction runs over, and whether that is all of them; () stands for all."""
    axes = c.attr("axis")
    if not axes:
        return (), True
    exclude = "exclude" in ops.info(c.node.op).defaults and c.attr("exclude")
    if c.knows() or exclude:
        rank = len(c.shape())
        axes = reduced_axes(c.node, rank) if exclude else axes
        return axes, len(axes) == rank
    return axes, False


def _reduction(c: Context, op: str, x: str) -> str:
    """An ONNX Reduce op; a full one leaves MXNet one axis of one element, and ONNX none."""
    axes, full = _axes(c)
    keep = c.attr("keepdims")
    inputs = [x] if full else [x, c.const(list(axes), "axes")]
    found = _whole(c, c.op(op, *inputs, keepdims=int(keep)))
    return c.reshape(found, (1,)) if full and not keep else found


@converter(*REDUCTIONS)
def _reduce(c: Context, x: str) -> str:
    return _reduction(c, REDUCTIONS[c.node.op], x)


@converter("norm")
def _norm(c: Context, x: str) -> str:
    return _reduction(c, "ReduceL1" if c.attr("ord") == 1 else "ReduceL2", x)


# ---- products of matrices -------------------------------------------------------------------------------------------

@converter("batch_dot")
def _batch_dot(c: Context, *factors: str) -> str:
    turned = list(factors)
    for slot, key in enumerate(("transpose_a", "transpose_b")):
        if c.attr(key):
            rank = len(c.shape(slot))
            turned[slot] = c.op("Transpose", factors[slot], perm=[*range(rank - 2), rank - 1, rank - 2])
    return c.op("MatMul", *turned)


@converter("dot")
def _dot(c: Context, a: str, b: str) -> str:
    """The last axis of a by the first of b, as a product of two matrices; transposed: the first of a, the last of b."""
    left, right = len(c.shape(0)), len(c.shape(1))
    if c.attr("transpose_a"):
        a = c.op("Transpose", a, perm=[*range(1, left), 0])
    if c.attr("transpose_b"):
        b = c.op("Transpose", b, perm=[right - 1, *range(right - 1)])
    if left == right == 2:
        return c.op("MatMul", a, b)
    length = c.shape(0)[0 if c.attr("transpose_a") else -1]
    if length == -1:
        raise c.refuse("found an axis that depends on the batch size between the factors")
    product = c.op("MatMul", c.reshape(a, (-1, length)), c.reshape(b, (length, -1)))
    return c.reshape(product, c.out_shape())
