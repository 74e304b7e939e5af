"""What a convolution's window sees: uneven padding, and the zero taps that stand for it where both sides pad alike.

MXNet's convolution, and so the graph, pads both sides alike.  With L and R the padding before and behind, k the kernel
and d the dilation of one axis, uneven sides are a kernel enlarged by e = |R - L| / d zero taps:

    R > L:  e zero taps in front, pad = R:   tap j + e of output o reads  o * stride - R + (j + e) * d
                                                                        = o * stride - L + j * d,  as before
    L > R:  e zero taps behind,   pad = L:   tap j of output o reads  o * stride - L + j * d,  as before

and H + 2 * pad - d * (k + e - 1) = H + L + R - d * (k - 1): the output has its size for every H and stride.
`evened` goes there; `window` goes back, for engines that pad each side by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qgraph.analysis.codes import before_quantizer
from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node


@dataclass(frozen=True)
class Window:
    """The part of a kernel that counts, and the padding that it needs. One entry per spatial axis.

    start: taps in front of it that are zero.  before, behind: the padding of each side.
    """

    start: tuple[int, ...]
    kernel: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]

    def of(self, weight: Array) -> Array:
        """The taps that count. weight: (channels, channels of a group, *kernel) of the convolution."""
        taps: tuple[Any, ...] = (Ellipsis, *(slice(s, s + k) for s, k in zip(self.start, self.kernel)))
        return np.ascontiguousarray(weight[taps])


def window(g: Graph, conv: Node) -> Window:
    """The window of a Convolution without the zero taps at its edges, as far as padding stands against them.

    All of the kernel where the weight is no parameter, is zero, or has other readers.
    """
    kernel, pads, dilates = (tuple(ops.attr(conv, key)) for key in ("kernel", "pad", "dilate"))
    weight = _own_weight(g, conv)
    if weight is None or weight.shape[2:] != kernel:
        return whole(conv)
    start, kept, before, behind = [], [], [], []
    for axis, (taps, pad, dilate) in enumerate(zip(kernel, pads, dilates), 2):
        planes = np.moveaxis(weight, axis, 0)
        front, back = _zeros(planes, pad // dilate), _zeros(planes[::-1], pad // dilate)
        start.append(front)
        kept.append(taps - front - back)
        before.append(pad - front * dilate)
        behind.append(pad - back * dilate)
    if kept != list(kernel) and not weight.any():
        return whole(conv)
    return Window(tuple(start), tuple(kept), tuple(before), tuple(behind))


def _zeros(planes: Array, most: int) -> int:
    """How many of the first planes are zero, `most` at most."""
    return next((count for count, plane in enumerate(planes[:most]) if plane.any()), min(most, len(planes)))


def whole(conv: Node) -> Window:
    """The window of a Convolution with all of its taps."""
    kernel, pads = (tuple(ops.attr(conv, key)) for key in ("kernel", "pad"))
    return Window((0,) * len(kernel), kernel, pads, pads)


def _own_weight(g: Graph, conv: Node) -> Array | None:
    """The array of a weight that nothing else reads."""
    port = g.inputs(conv)[1]
    source = before_quantizer(g, port)
    return g.param(source) if g.has_one_use(port) and g.has_one_use(source) else None


def evened(before: Sequence[int], behind: Sequence[int], dilate: Sequence[int]
           ) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Per spatial axis the padding of both sides, and the zero taps (in front, behind) that a kernel gets for it.

    None where the dilation of an axis does not divide the difference of its sides.
    """
    pads, taps = [], []
    for left, right, step in zip(before, behind, dilate):
        extra, odd = divmod(abs(right - left), step)
        if odd:
            return None
        pads.append(max(left, right))
        taps.append((extra, 0) if right > left else (0, extra))
    return pads, taps


def with_zero_taps(weight: Array, taps: Sequence[tuple[int, int]]) -> Array:
    """The enlarged kernel. taps: of `evened`."""
    return np.pad(weight, [(0, 0), (0, 0), *taps])
