"""Converters to ncnn of what computes element by element, or reduces."""

from __future__ import annotations

import numpy as np

from qgraph.semantics.geometry import axis_of
from qgraph.targets.ncnn.convert import Context, converter

ADD, SUB, MUL, DIV, MAX, MIN, POW, RSUB, RDIV, RPOW = range(10)  # of BinaryOp
_BINARY = {"add": ADD, "sub": SUB, "mul": MUL, "div": DIV, "maximum": MAX, "minimum": MIN, "power": POW,
           "plus": ADD, "minus": SUB, "rminus": RSUB, "rdiv": RDIV, "rpower": RPOW}
_SWAPPED = {SUB: RSUB, DIV: RDIV, POW: RPOW}
_UNARY = {"abs": 0, "negative": 1, "floor": 2, "ceil": 3, "square": 4, "sqrt": 5, "rsqrt": 6, "exp": 7, "log": 8,
          "sin": 9, "cos": 10, "tan": 11, "arcsin": 12, "arccos": 13, "arctan": 14, "reciprocal": 15}
_REDUCTIONS = {"sum": 0, "mean": 3, "max": 4, "min": 5, "prod": 6}


@converter(*_UNARY)
def _unary(c: Context) -> str:
    return str(c.layer("UnaryOp", c.blob(), params={0: _UNARY[c.node.op]}))


@converter(*(f"_{word}_scalar" for word in _BINARY if word not in ("add", "sub")))
def _scalar(c: Context) -> str:
    return _with_scalar(c, c.blob(), _BINARY[c.node.op[1:-len("_scalar")]], c.attr("scalar"))


def _with_scalar(c: Context, x: str, op: int, value: float) -> str:
    return str(c.layer("BinaryOp", x, params={0: op, 1: 1, 2: float(value)}))


@converter(*(prefix + word for prefix in ("elemwise_", "broadcast_") for word in ("add", "sub", "mul", "div")),
           *(prefix + word for prefix in ("_", "broadcast_") for word in ("maximum", "minimum", "power")))
def _binary(c: Context) -> str:
    """BinaryOp, which broadcasts blobs of as many axes; MXNet's sum may carry an activation."""
    op = _BINARY[c.node.op.split("_")[-1]]
    out = _combined(c, op)
    return c.activation(out)


def _combined(c: Context, op: int) -> str:
    values = [c.value(0), c.value(1)]
    for slot, value in enumerate(values):
        if value is not None and value.size and _is_one_number(c, slot, value):
            scalar = float(np.ravel(value)[0])
            return _with_scalar(c, c.blob(1 - slot), op if slot else _SWAPPED.get(op, op), scalar)
    left, right = (_operand(c, slot) for slot in (0, 1))
    return str(c.layer("BinaryOp", left, right, params={0: op}))


def _is_one_number(c: Context, slot: int, value: np.ndarray) -> bool:
    """A constant that is the same everywhere, and does not make the other operand larger."""
    if value.size == 1:
        return True
    same = c.knows(1 - slot) and c.knows_output() and c.shape(1 - slot) == c.out_shape()
    return same and bool((value == value.ravel()[0]).all())


def _operand(c: Context, slot: int) -> str:
    """A blob with as many axes as the other operand's."""
    value = c.value(slot)
    other = 1 - slot
    rank = len(c.shape(other)) if c.value(other) is None and c.knows(other) else None
    if value is not None:
        shape = value.shape
        if rank is None:
            rank = len(shape) - 1
        if len(shape) == rank + 1:
            if shape[0] != 1:
                raise c.refuse(f"it reads a constant of shape {shape}, want 1 in the first axis, the batch")
            shape = shape[1:]
        if len(shape) > rank:
            raise c.refuse(f"it reads a constant of shape {value.shape} beside {rank} axes")
        return c.constant(value.reshape((1,) * (rank - len(shape)) + shape))
    if rank is not None and c.knows(slot) and len(c.shape(slot)) < rank:
        own = c.shape(slot)
        return c.reshape(c.blob(slot), (1,) * (rank - len(own)) + own)
    return c.blob(slot)


@converter("add_n")
def _add_n(c: Context) -> str:
    """Eltwise."""
    blobs = [c.blob(slot) for slot in range(len(c.ports))]
    return str(c.layer("Eltwise", *blobs, params={0: 1})) if len(blobs) > 1 else blobs[0]


@converter(*_REDUCTIONS)
def _reduction(c: Context) -> str:
    """Reduction over axes that are not the batch's."""
    rank = len(c.shape()) + 1
    axes = {axis_of(c.node, a, rank) for a in c.attr("axis")} or set(range(rank))
    if c.attr("exclude") and c.attr("axis"):
        axes = set(range(rank)) - axes
    if 0 in axes:
        raise c.refuse("it reduces the batch axis, and ncnn runs one image at a time")
    out = str(c.layer("Reduction", c.blob(), params={0: _REDUCTIONS[c.node.op], 1: 0, 3: sorted(a - 1 for a in axes),
                                                     4: int(c.attr("keepdims")), 5: 1}))
    return out


@converter("Cast")
def _cast(c: Context) -> str:
    """Nothing, between float types."""
    if c.attr("dtype") not in ("float32", "float64"):
        raise c.refuse(f"found dtype {c.attr('dtype')}, and ncnn computes in float32")
    return c.blob()
