"""The figure of the arithmetic: real numbers against what their codes stand for, drawn by the functions themselves."""

from __future__ import annotations

import numpy as np

from qgraph.quant.spec import QSpec, fake_quantize

SIZE, REACH, STEP = 320, 1.5, 0.125  # pixels; real numbers shown, from -REACH; scale of the drawn quantizer
POINTS = 600


def staircase() -> str:
    """An SVG of a signed quantizer of 4 bits with a range of -1 to 0.875."""
    params = QSpec(bits=4, signed=True).with_numbers(np.float32(STEP))
    real = np.linspace(-REACH, REACH, POINTS, dtype=np.float32)
    steps = _path(real, fake_quantize(real, params))
    line = _path(real[[0, -1]], real[[0, -1]])
    half = SIZE / 2
    return (f'<svg viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" role="img" aria-label="What codes of 4 bits stand for, '
            'against the real number: a staircase that ends at the ends of the range">'
            f'<path d="M0 {half}H{SIZE}M{half} 0V{SIZE}" stroke="currentColor" opacity="0.3"/>'
            f'<path d="{line}" stroke="currentColor" stroke-dasharray="4" opacity="0.5" fill="none"/>'
            f'<path d="{steps}" stroke="#3f51b5" stroke-width="2" fill="none"/>'
            f'<text x="{SIZE - 4}" y="{half - 6}" text-anchor="end" font-size="12" fill="currentColor">r</text>'
            f'<text x="{half + 6}" y="14" font-size="12" fill="currentColor">scale * q</text></svg>')


def _path(x: np.ndarray, y: np.ndarray) -> str:
    scale = SIZE / (2 * REACH)
    points = (f"{(a + REACH) * scale:.1f} {(REACH - b) * scale:.1f}" for a, b in zip(x.tolist(), y.tolist()))
    return "M" + "L".join(points)
