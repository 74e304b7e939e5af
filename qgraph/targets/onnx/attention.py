"""Converters to ONNX of attention whose queries, keys and values are interleaved in one tensor, time first."""

from __future__ import annotations

import math

import numpy as np

from qgraph.semantics.attention import PARTS, head_width
from qgraph.targets.onnx.convert import Context, converter


def _heads(c: Context, x: str, slot: int, part: int, parts: int) -> str:
    """One part of (length, batch, heads * parts * width), as (length, batch * heads, width)."""
    width = head_width(c.node, c.shape(slot), parts)
    split = c.op("Reshape", x, c.const([0, -1, parts, width], "heads"))
    return str(c.op("Gather", split, c.const(np.int64(part), "part"), axis=2))


@converter("_contrib_interleaved_matmul_selfatt_qk", "_contrib_interleaved_matmul_encdec_qk")
def _scores(c: Context, *inputs: str) -> str:
    """Queries times keys, divided by the root of a head's width."""
    parts, last = PARTS[c.node.op], len(inputs) - 1
    queries = _heads(c, inputs[0], 0, 0, parts if last == 0 else 1)
    keys = _heads(c, inputs[last], last, parts - 2, parts)
    factor = c.const(np.float32(1 / math.sqrt(head_width(c.node, c.shape(last), parts))), "factor")
    return str(c.op("MatMul", c.op("Transpose", c.op("Mul", queries, factor), perm=[1, 0, 2]),
                    c.op("Transpose", keys, perm=[1, 2, 0])))


@converter("_contrib_interleaved_matmul_selfatt_valatt", "_contrib_interleaved_matmul_encdec_valatt")
def _values(c: Context, x: str, attention: str) -> str:
    """Attention times values, the heads side by side again."""
    parts = PARTS[c.node.op]
    values = c.op("Transpose", _heads(c, x, 0, parts - 1, parts), perm=[1, 0, 2])
    found = c.op("Transpose", c.op("MatMul", attention, values), perm=[1, 0, 2])
    return str(c.op("Reshape", found, c.const([0, -1, c.shape()[2] // parts], "side_by_side")))


@converter("_contrib_div_sqrt_dim")
def _div_sqrt_dim(c: Context, x: str) -> str:
    width = c.shape()[-1]
    if width == -1:
        raise c.refuse("its last axis depends on the batch size")
    return str(c.op("Mul", x, c.const(np.float32(1 / math.sqrt(width)), "factor")))
