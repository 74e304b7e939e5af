"""Float weights from which MXNet's int8 kernels recover given codes.

`_sg_mkldnn_conv` and `_sg_mkldnn_fully_connected` quantize their weights themselves, once more, per output channel:

    ws[c] = 127.5 / max|w[c]|        codes = clip(rint(w * ws), -128, 127)

To make them find the codes k of step s, the largest elements of the channel, 127 or -128, are stored as 127.5 s, which
fixes ws at 1 / s: 127.5 saturates at 127, and -127.5 is a tie that goes to -128.  All others are stored as k s, half a
code away from any tie.

A layer that reads signed codes runs with halved weights on CPUs without VNNI: codes = rint(w * ws / 2).  Its codes go
to +-64 and the largest are stored as 63.75 s: halved they round to 64, and with VNNI all codes are doubled, but for
+64, which saturates at 127: there the largest positive weight of a channel counts 63.5.
"""

from __future__ import annotations

import numpy as np

_F = np.float32
_MOST_ULPS = 1024


def dictate(codes: np.ndarray, step: np.ndarray, low: int, high: int) -> np.ndarray:
    """codes: int (O, ...), where every channel that is not zero reaches `low` or `high`: (-128, 127) or (-64, 64).

    step: (O,).  Returns float32 weights of the same shape.  Raises ValueError for a channel that does not reach them.
    """
    rows = codes.reshape(len(codes), -1)
    live = rows.any(axis=1)
    reached = (rows == low).any(axis=1) | (rows == high).any(axis=1)
    if (live & ~reached).any():
        raise ValueError(f"channel {int(np.argmax(live & ~reached))} reaches neither code {low} nor {high}")
    step = step.astype(_F)
    top = _F(127.5 if high == 127 else 63.75) * step
    for channel in np.flatnonzero((rows == low).any(axis=1)):
        top[channel] = _on_tie(top[channel])
    weights = rows.astype(_F) * step[:, None]
    weights = np.where(rows == high, top[:, None], np.where(rows == low, -top[:, None], weights))
    return weights.reshape(codes.shape).astype(_F)


def _on_tie(top: np.float32) -> np.float32:
    """The smallest float32 from `top` on whose float32 product with 127.5 / itself is not below 127.5."""
    candidate = top
    for _ in range(_MOST_ULPS):
        if _F(_F(127.5) / candidate) * candidate >= _F(127.5):
            return candidate
        candidate = np.nextafter(candidate, _F(np.inf))
    return top
