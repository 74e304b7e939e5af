"""Where the pixels of an image go: the resize and the centre crop, the same for images, boxes, points and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import DataError

Size = tuple[int, int]  # (width, height), in pixels

MAX_PIXELS = 1 << 26  # of one image; more is an image bomb


@dataclass(frozen=True)
class Geometry:
    """From an image, as it is stored, to the network's input: it is resized, then a part of it is cut out.

    ``x of the input = x of the image * resized / size - offset``; 0 is the left (or upper) edge of the first pixel.
    """

    size: Size
    resized: Size
    offset: Size
    cropped: Size

    @classmethod
    def of(cls, size: Size, short: int | None, crop: int | None, where: str) -> Geometry:
        """short: side of the resized image, crop: of the centre square, both in pixels. Raises DataError."""
        resized = width, height = size
        if short:
            resized = width * short // min(size), height * short // min(size)
        if resized != size and resized[0] * resized[1] > MAX_PIXELS:
            raise DataError(f"{where}: {size} resized to a short side of {short} is {resized[0]}x{resized[1]}")
        if not crop:
            return cls(size, resized, (0, 0), resized)
        if crop > min(resized):
            hint = f"give --resize {crop} or more, or a smaller --crop"
            raise DataError(f"{where}: cannot crop {crop}x{crop} out of {resized[0]}x{resized[1]} pixels: {hint}")
        return cls(size, resized, ((resized[0] - crop) // 2, (resized[1] - crop) // 2), (crop, crop))

    def points(self, xy: Array) -> Array:
        """... x 2 of the image -> the same of the input, also where they lie outside of it."""
        return xy * (np.array(self.resized) / self.size) - self.offset

    def mask(self, mask: Array) -> Array:
        """Height x width of the image -> of the input; each pixel is the nearest one."""
        columns, rows = (((2 * (np.arange(count) + offset) + 1) * size) // (2 * resized) for count, offset, size,
                         resized in zip(self.cropped, self.offset, self.size, self.resized))
        return mask[rows[:, None], columns]
