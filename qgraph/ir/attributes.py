"""The typed fields of a node as attributes: how its text form, and MXNet's files, write them and read them back.

    fused     act_type=relu                  or act_type=clip a_min=0 a_max=6, on ops that may carry an activation
    layout    __channel_order__=[1,0,2]      channel i of the output is channel list[i] of the user's model
    scales    __channel_scales__=[1.0,8.0]   channel i of the user's output times list[i]
    shift     __shift__=16.0                 how much higher the output is than the user's
    rounded   __rounded__="s8 F43, tensor"
    wide      __wide__=1

MXNet keeps attributes of the form ``__name__``.  Frozen files have the layout, the scales and the shift.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

import numpy as np

from qgraph.errors import FormatError
from qgraph.ir import ops
from qgraph.ir.node import ChannelOrder, ChannelScales, Fused, Node, Rounded

LAYOUT, SCALES, SHIFT, ROUNDED, WIDE = ("__channel_order__", "__channel_scales__", "__shift__", "__rounded__",
                                        "__wide__")
IN_FILES = (LAYOUT, SCALES, SHIFT)
ACT, LOW, HIGH = FUSED = ("act_type", "a_min", "a_max")
ALL = (*IN_FILES, ROUNDED, WIDE, *FUSED)
_WHOLE = re.compile(r"-?\d{1,15}\Z")


def written(node: Node) -> dict[str, str]:
    """The attributes that say what the typed fields hold; none for a field that holds nothing."""
    found = {}
    if node.fused is not None:
        found[ACT] = node.fused.act
        if node.fused.act == "clip":
            found.update({LOW: str(node.fused.low), HIGH: str(node.fused.high)})
    if node.layout is not None:
        found[LAYOUT] = json.dumps(node.layout, separators=(",", ":"))
    if node.scales is not None:
        found[SCALES] = json.dumps(node.scales, separators=(",", ":"))
    if node.shift:
        found[SHIFT] = repr(node.shift)
    if node.rounded is not None:
        found[ROUNDED] = f"{node.rounded.dtype}, {node.rounded.granularity}"
    if node.wide:
        found[WIDE] = "1"
    return found


def take(node: Node, names: Iterable[str] = ALL) -> None:
    """Move these attributes of a node into its typed fields. Raises FormatError for one that says nonsense."""
    own = () if node.op in ops.FUSING and ACT in node.attrs else FUSED  # an Activation has an act_type of its own
    texts = {name: node.attrs.pop(name) for name in names if name in node.attrs and name not in own}
    if texts.get(ACT):
        try:
            node.fused = fused(texts)
        except ValueError:
            raise FormatError(f"{node}: found {texts}, want {LOW} and {HIGH} to be numbers") from None
    if LAYOUT in texts:
        node.layout = _layout(node, texts[LAYOUT])
    if SCALES in texts:
        node.scales = _scales(node, texts[SCALES])
    if SHIFT in texts:
        node.shift = _shift(node, texts[SHIFT])
    if ROUNDED in texts:
        dtype, comma, granularity = texts[ROUNDED].partition(", ")
        if not comma:
            raise FormatError(f"{node}: {ROUNDED}: found {texts[ROUNDED][:40]!r}, want a type and a granularity")
        node.rounded = Rounded(dtype, granularity)
    node.wide = node.wide or WIDE in texts


def fused(attrs: Mapping[str, str]) -> Fused:
    """The activation that these attributes say. Raises ValueError for an end that is no number."""
    return Fused(attrs[ACT], _end(attrs.get(LOW, "0")), _end(attrs.get(HIGH, "0")))


def _end(text: str) -> float:
    return int(text) if _WHOLE.match(text) else float(text)


def _layout(node: Node, text: str) -> ChannelOrder:
    try:
        order = np.array(json.loads(text), np.int64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        order = np.zeros(0, np.int64)
    if order.ndim != 1 or not len(order) or not np.array_equal(np.sort(order), np.arange(len(order))):
        raise FormatError(f"{node}: {LAYOUT}: found {text[:40]!r}, want a permutation")
    return tuple(order.tolist())


def _scales(node: Node, text: str) -> ChannelScales:
    try:
        scales = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        scales = np.zeros(0)
    if scales.ndim != 1 or not len(scales) or not ((scales > 2.0**-64) & (scales < 2.0**64)).all():
        raise FormatError(f"{node}: {SCALES}: found {text[:40]!r}, want factors")
    return tuple(scales.tolist())


def _shift(node: Node, text: str) -> float:
    try:
        shift = float(np.float32(text))
    except ValueError:
        shift = float("nan")
    if not np.isfinite(shift):
        raise FormatError(f"{node}: {SHIFT}: found {text[:40]!r}, want a number")
    return shift
