"""Float weights from which MXNet's int8 kernels recover given codes.

`_sg_mkldnn_conv` and `_sg_mkldnn_fully_connected` quantize their weights themselves, once more, per output channel:

    ws[c] = 127.5 / max|w[c]|        codes = clip(rint(w * ws), -128, 127)

To make them find the codes k of step s, one largest element of the channel is stored as 127.5 s, which fixes ws at 1 / s
(its own code 127.5 saturates at 127), and all others as k s, half a code away from any tie.  A channel whose largest
codes are all -127 needs a step a few ulps longer, so that -127.5 rounds to -127 and not to -128.

A layer that reads signed codes runs with halved weights on CPUs without VNNI: codes = rint(w * ws / 2).  Its codes go to
64 and the largest are stored as 63.75 s: halved they round to 64, and with VNNI all codes are simply doubled.
"""

from __future__ import annotations

import numpy as np

_F = np.float32
_MOST_ULPS = 200


def dictate(codes: np.ndarray, step: np.ndarray, limit: int) -> np.ndarray:
    """codes: int (O, ...), the largest |code| of every channel that is not zero is `limit` (127 or 64). step: (O,).

    Returns float32 weights of the same shape.  Raises ValueError for a channel that does not reach the limit.
    """
    rows = codes.reshape(len(codes), -1)
    largest = np.abs(rows).max(axis=1, initial=0)
    if (largest[largest > 0] != limit).any():
        raise ValueError(f"channel {int(np.argmax((largest > 0) & (largest != limit)))} does not reach code {limit}")
    step = step.astype(_F)
    if limit != 127:
        values = np.where(np.abs(rows) == limit, np.sign(rows) * (limit - 0.25), rows).astype(_F)
        return (values * step[:, None]).reshape(codes.shape)
    negative_only = (largest > 0) & (rows.max(axis=1, initial=0) < 127)
    top = _F(127.5) * step
    for channel in np.flatnonzero(negative_only):
        top[channel] = _below_tie(top[channel])
    step = np.where(negative_only, top / _F(127.5), step).astype(_F)
    weights = rows.astype(_F) * step[:, None]
    weights = np.where(rows == 127, top[:, None], weights)
    first = np.argmin(rows, axis=1)
    weights[negative_only, first[negative_only]] = -top[negative_only]
    return weights.reshape(codes.shape).astype(_F)


def _below_tie(top: np.float32) -> np.float32:
    """The smallest float32 from `top` on whose product with 127.5 / itself is below 127.5.

    There is none for some mantissas; that one weight then gets code -128 instead of -127.
    """
    candidate = top
    for _ in range(_MOST_ULPS):
        if _F(_F(127.5) / candidate) * candidate < _F(127.5):
            return candidate
        candidate = np.nextafter(candidate, _F(np.inf))
    return top
