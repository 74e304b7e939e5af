"""Float weights from which MXNet's int8 kernels recover given codes.

`_sg_mkldnn_conv` and `_sg_mkldnn_fully_connected` quantize their weights themselves, once more, per output channel:

    ws[c] = 127.5 / max|w[c]|        codes = clip(rint(w * ws), -128, 127)

To make them find the codes k of step s, the largest elements of the channel, 127 or -128, are stored as 127.5 s, which
fixes ws at 1 / s: 127.5 saturates at 127, and -127.5 is a tie that goes to -128.  All others are stored as k s, half a
code away from any tie.

Codes from -127 to 127 do without the tie: -127 is stored as it is, and where there is no 127 beside it, as the
float32 next to -127.5 s that does not reach -127.5 in the product.

A layer that reads signed codes runs with halved weights on CPUs without VNNI: codes = rint(w * ws / 2).  Its codes go
to +-64 and the largest are stored as 63.75 s: halved they round to 64, and with VNNI all codes are doubled, but for
+64, which saturates at 127: there the largest positive weight of a channel counts 63.5.
"""

from __future__ import annotations

import numpy as np

_F = np.float32
_MOST_ULPS = 1024


def dictate(codes: np.ndarray, step: np.ndarray, low: int, high: int) -> np.ndarray:
    """codes: int (O, ...), where every channel that is not zero reaches `low` or `high`.

    low, high: (-128, 127), (-127, 127) or (-64, 64).  step: (O,).
    Returns float32 weights of the same shape.  Raises ValueError for a channel that does not reach them, or only -127
    where no float32 below the tie is near.
    """
    rows = codes.reshape(len(codes), -1)
    step = step.astype(_F)
    top = _F(127.5 if high == 127 else 63.75) * step
    has_low, has_high = ((rows == end).any(axis=1) for end in (low, high))
    missed = rows.any(axis=1) & ~has_low & ~has_high
    for channel in np.flatnonzero(has_low & ~(has_high & (low == -127))):
        top[channel] = _below_tie(top[channel]) if low == -127 else _on_tie(top[channel])
        missed[channel] = np.isnan(top[channel])
    if missed.any():
        raise ValueError(f"channel {int(np.argmax(missed))} reaches neither code {low} nor {high}")
    weights = rows.astype(_F) * step[:, None]
    least = np.where(has_high & (low == -127), _F(-low) * step, top)
    weights = np.where(rows == high, top[:, None], np.where(rows == low, -least[:, None], weights))
    return weights.reshape(codes.shape).astype(_F)


def can_dictate(codes: np.ndarray, step: np.ndarray, low: int, high: int) -> bool:
    try:
        dictate(codes, step, low, high)
    except ValueError:
        return False
    return True


def _below_tie(top: np.float32) -> np.float32:
    """The float32 next to `top` whose float32 product with 127.5 / itself is below 127.5; NaN if it is not near."""
    below = above = top
    for _ in range(_MOST_ULPS):
        for candidate in (below, above):
            if _F(_F(127.5) / candidate) * candidate < _F(127.5):
                return candidate
        below, above = np.nextafter(below, _F(0)), np.nextafter(above, _F(np.inf))
    return _F(np.nan)


def _on_tie(top: np.float32) -> np.float32:
    """The smallest float32 from `top` on whose float32 product with 127.5 / itself is not below 127.5."""
    candidate = top
    for _ in range(_MOST_ULPS):
        if _F(_F(127.5) / candidate) * candidate >= _F(127.5):
            return candidate
        candidate = np.nextafter(candidate, _F(np.inf))
    return top
