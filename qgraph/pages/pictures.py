"""Small pictures of images, with what a model finds in them drawn on top."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from qgraph.arrays import Array
from qgraph.data.preprocess import Preprocess
from qgraph.pages.look import SERIES
from qgraph.tasks.base import Marks

_SIDE = 160  # pixels of the longer side, at most
_WITH_MARKS = 320
_SHOWN = 0.5  # of a class's colour over a pixel
_RADIUS = 3  # of a point
_COLOURS = np.array([[int(colour[at:at + 2], 16) for at in (1, 3, 5)] for colour in SERIES], np.uint8)


def picture(image: Array, preprocess: Preprocess, marks: Marks | None = None) -> str:
    """A PNG in base64. image: (1 or 3, H, W); its smallest and largest value become black and white.

    Colours are those of the classes, in turns; a box has the number of its class beside it.
    """
    from PIL import Image

    low, high = float(image.min()), float(image.max())
    pixels = np.clip((image - low) * (255 / ((high - low) or 1)), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    shown = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else
                            np.ascontiguousarray(pixels[:, :, ::-1] if preprocess.bgr else pixels))
    shown.thumbnail((_WITH_MARKS, _WITH_MARKS) if marks else (_SIDE, _SIDE))
    if marks:
        shown = _marked(shown.convert("RGB"), marks)
    stream = io.BytesIO()
    shown.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _marked(shown: Any, marks: Marks) -> Any:
    from PIL import Image, ImageDraw

    if marks.pixels is not None:
        small = Image.fromarray(marks.pixels.astype(np.int32)).resize(shown.size, Image.Resampling.NEAREST)
        classes = np.asarray(small)
        shown = Image.blend(shown, Image.fromarray(_COLOURS[classes % len(_COLOURS)]), _SHOWN)
    draw = ImageDraw.Draw(shown)
    for box, number in zip(_finite(marks.boxes), marks.classes):
        colour = SERIES[number % len(SERIES)]
        x, y, right, below = (float(v) for v in np.clip(box, 0, 1) * (*shown.size, *shown.size))
        draw.rectangle((x, y, max(x, right), max(y, below)), outline=colour, width=3)
        draw.text((x + 3, y + 2), str(number), fill="white", stroke_width=1, stroke_fill=colour)
    for number, (x, y) in enumerate(_finite(marks.points) * shown.size):
        draw.ellipse((x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS), fill=SERIES[number % len(SERIES)],
                     outline="white")
    return shown


def _finite(rows: Array | None) -> Array:
    return np.zeros((0, 2)) if rows is None else np.nan_to_num(rows, posinf=0.0, neginf=0.0)
