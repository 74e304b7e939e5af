"""The ways in which networks are commonly fed: what images may have been meant to become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from qgraph.arrays import Array
from qgraph.data.preprocess import PRESETS, Preprocess

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RGB = (  # mean and std in the order RGB; scale first
    Preprocess(),
    Preprocess(scale=1 / 255),
    Preprocess(mean=_IMAGENET[0], std=_IMAGENET[1], scale=1 / 255),
    Preprocess(mean=PRESETS["cifar10"].mean, std=PRESETS["cifar10"].std, scale=1 / 255),
    Preprocess(mean=(127.5,), std=(127.5,)),
    Preprocess(mean=(127.5,), std=(128.0,)),
    Preprocess(mean=(128.0,), std=(128.0,)),
    Preprocess(mean=(127.5,)),
    Preprocess(mean=(123.68, 116.779, 103.939)),
    Preprocess(mean=(123.0, 117.0, 104.0)),
)
_READY = ((0.0, 1.0, 1 / 255, 0.0), (-1.0, 1.0, 1 / 127.5, 127.5), (0.0, 255.0, 1.0, 0.0))
"""(lowest, highest, scale, mean) of pixels in ready arrays: the value is (pixel - mean) * scale."""


@dataclass(frozen=True)
class Feeding:
    """A way to feed images. flags: of the command line, without those of the geometry."""

    preprocess: Preprocess

    @property
    def flags(self) -> str:
        p = self.preprocess
        for name, preset in PRESETS.items():
            if name != "none" and (p.mean, p.std, p.scale, p.bgr) == (preset.mean, preset.std, preset.scale,
                                                                      preset.bgr):
                return f"--preprocess {name}"
        parts = [f"--scale {p.scale:.7g}" if p.scale != 1 else "",
                 f"--mean {_numbers(p.mean)}" if any(p.mean) else "",
                 f"--std {_numbers(p.std)}" if any(x != 1 for x in p.std) else "", "--bgr" if p.bgr else "--rgb"]
        return " ".join(part for part in parts if part)

    @property
    def formula(self) -> str:
        """For arrays that are ready: the same in words."""
        p = self.preprocess
        pixel = "pixel" if p.scale == 1 else f"pixel * {p.scale:.7g}"
        mean = f"{pixel} - {_numbers(p.mean)}" if any(p.mean) else pixel
        std = f"({mean}) / {_numbers(p.std)}" if any(x != 1 for x in p.std) else mean
        return f"{std} of pixels 0..255 in the order {'BGR' if p.bgr else 'RGB'}"

    def apply(self, pixels: Array) -> Array:
        """pixels: (N, C, ...) RGB 0..255 -> what is fed."""
        mean, norm = replace(self.preprocess, channels=pixels.shape[1]).mean_norm
        turned = pixels[:, ::-1] if self.preprocess.bgr else pixels
        shape = (1, -1, *[1] * (pixels.ndim - 2))
        return np.ascontiguousarray((turned - np.reshape(mean, shape)) * np.reshape(norm, shape), np.float32)


def feedings(channels: int) -> Iterator[Feeding]:
    """The common ways to feed images of so many channels, the simplest first."""
    for way in _RGB:
        if channels == 3:
            yield Feeding(way)
            yield Feeding(replace(way, bgr=True, mean=way.mean[::-1], std=way.std[::-1]))
        elif len(way.mean) == len(way.std) == 1:
            yield Feeding(replace(way, channels=channels))


def pixels_of(fed: Array, made_by: Preprocess, ready: bool) -> tuple[Array, Preprocess] | None:
    """(pixels 0..255 in the order RGB, how they are fed now) of what is fed; None where that cannot be told.

    made_by: the preprocessing of images.  ready: the data were arrays, whose range tells of their pixels; their order
    is taken for RGB.
    """
    now = made_by
    if ready:
        low, high = float(fed.min(initial=0)), float(fed.max(initial=0))
        for least, most, scale, mean in _READY:
            if least - 0.01 <= low and high <= most + 0.01:
                now = Preprocess(mean=(mean,), std=(1 / scale,), channels=fed.shape[1])
                break
        else:
            return None
    mean_values, norm = replace(now, channels=fed.shape[1]).mean_norm
    shape = (1, -1, *[1] * (fed.ndim - 2))
    pixels = fed / np.reshape(norm, shape) + np.reshape(mean_values, shape)
    return pixels[:, ::-1] if now.bgr else pixels, now


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.6g}" for value in values)
