"""Numbers in the attributes of frozen files, which are untrusted."""

from __future__ import annotations

import math

import numpy as np

from qgraph.errors import FormatError
from qgraph.ir import ops
from qgraph.ir.graph import Node


def range_of(node: Node) -> tuple[float, float] | None:
    """The calibrated range of an integer op, None where it has none. Raises FormatError."""
    if "min_calib_range" not in node.attrs or "max_calib_range" not in node.attrs:
        return None
    return _number(node, "min_calib_range"), _number(node, "max_calib_range")


def shift_of(node: Node) -> np.float32:
    """How much higher the node's output is than the user's. Raises FormatError."""
    return np.float32(_number(node, ops.SHIFT)) if ops.SHIFT in node.attrs else np.float32(0)


def _number(node: Node, key: str) -> float:
    text = node.attrs[key]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise FormatError(f"{node}: {key}: found {text[:40]!r}, want a number")
    return number
