"""From an image, as it is stored, to the numbers a network reads; and the little languages of those options.

One rule says what is an image: a decoded file, or a uint8 array H x W x (1, 3 or 4).  Images go through ``Preprocess``;
every other array is taken as ready, N x C x H x W.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile

from qgraph.data.geometry import MAX_PIXELS, Geometry
from qgraph.errors import DataError, OptionError, QGraphError, suggest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm")
_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM")  # no EPS (runs ghostscript) and other exotic decoders


def _floats(name: str, value: str | ArrayLike) -> tuple[float, ...]:
    """A number, a sequence of numbers, or text like "0.4,0.5,0.6" -> finite floats."""
    try:
        parts = value.split(",") if isinstance(value, str) else np.ravel(value).tolist()
        values = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise OptionError(f"--{name} is {value!r}, want numbers like 0.485,0.456,0.406") from None
    if not all(math.isfinite(v) and abs(v) < 3e38 for v in values):
        raise OptionError(f"--{name} is {value!r}: not finite")
    return values


@dataclass(frozen=True)
class Preprocess:
    """Decoded image -> C x H x W float32: ``(pixel * scale - mean) / std`` on pixels 0..255.

    resize: short side, bilinear (Pillow's, which averages when it shrinks; aspect ratio kept).  crop: centre square.
    bgr: feed blue first.  mean, std: one value, or one per channel in the order in which the channels are fed.
    channels: 3, or 1 for networks that read grey images (``open_data`` sets it from the model's input shape).
    """

    resize: int | None = None
    crop: int | None = None
    bgr: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = _floats(name, getattr(self, name))
            if len(values) not in (1, 3):  # three for a grey network are refused when an image comes
                want = "1" if self.channels == 1 else f"1 or {self.channels} (one per channel)"
                raise OptionError(f"--{name} has {len(values)} values, want {want}")
            object.__setattr__(self, name, values)
        if not np.array(self.std, np.float32).all():
            raise OptionError(f"--std is {self.std}: it divides, so it cannot be 0")
        scale = _floats("scale", self.scale)
        if len(scale) != 1 or not scale[0]:
            raise OptionError(f"--scale is {self.scale!r}, want one number, not 0")
        object.__setattr__(self, "scale", scale[0])
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None and not (isinstance(size, int) and 1 <= size <= 8192):
                raise OptionError(f"--{name} is {size!r}, want a number of pixels, 1 to 8192")

    @classmethod
    def from_options(cls, preset: str | None = None, **explicit: object) -> Preprocess:
        """A preset, with every explicit option that is not None in place of the preset's. Raises OptionError."""
        if preset is not None and preset not in PRESETS:
            guess = suggest(preset, PRESETS, "did you mean {}? ", cutoff=0.5)
            raise OptionError(f"unknown preset {preset!r}: {guess}There are {', '.join(PRESETS)}")
        given: dict[str, Any] = {name: value for name, value in explicit.items() if value is not None}
        if unknown := given.keys() - {field.name for field in fields(cls)}:
            raise OptionError(f"unknown preprocessing option: {', '.join(sorted(unknown))}")
        return replace(PRESETS[preset or "none"], **given)

    @property
    def mean_norm(self) -> tuple[list[float], list[float]]:
        """(pixel * scale - mean) / std  =  (pixel - mean values) * norm values: three of each, one for grey images."""
        mean, std = (list(v) * (self.channels if len(v) == 1 else 1) for v in (self.mean, self.std))
        return [m / self.scale for m in mean], [self.scale / s for s in std]

    @property
    def is_identity(self) -> bool:
        """Whether it leaves pixels as they are."""
        return self == Preprocess(channels=self.channels)

    def to_dict(self) -> dict[str, object]:
        """Its fields as plain values."""
        return asdict(self)

    def _check_channels(self) -> None:
        """OptionError for three values where the network reads grey images, which only the data's opening tells."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                preset = next((preset for preset, p in PRESETS.items() if getattr(p, name) == values), "")
                what = f"--preprocess {preset}: its {name}" if preset else f"--{name}"
                raise OptionError(f"{what} has {len(values)} values, want 1, as the network reads grey images: give "
                                  "--mean and --std of one value each")

    def geometry(self, size: tuple[int, int], where: str) -> Geometry:
        """Where the pixels of an image of this (width, height) go. Raises DataError for one that is too small."""
        return Geometry.of(size, self.resize, self.crop, where)

    def __call__(self, image: Image.Image, where: str = "image") -> np.ndarray:
        """PIL image -> C x H x W float32."""
        self._check_channels()
        image = image.convert("L" if self.channels == 1 else "RGB")
        geometry = self.geometry(image.size, where)
        if geometry.resized != geometry.size:
            image = image.resize(geometry.resized, 2)  # 2 is BILINEAR in every Pillow
        if geometry.cropped != geometry.resized:
            (left, top), (width, height) = geometry.offset, geometry.cropped
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, np.uint8).reshape(image.size[1], image.size[0], self.channels).transpose(2, 0, 1)
        if self.bgr:
            pixels = pixels[::-1]
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        x = np.ascontiguousarray(pixels, np.float32)
        x *= np.float32(self.scale)
        x -= mean
        x /= std
        return x


PRESETS: dict[str, Preprocess] = {
    "none": Preprocess(),
    "imagenet": Preprocess(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255),  # GluonCV
    "cifar10": Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), scale=1 / 255),  # GluonCV
    "tf": Preprocess(mean=(127.5,), std=(127.5,)),
    "inception": Preprocess(mean=(127.5,), std=(127.5,)),
    "caffe": Preprocess(bgr=True, mean=(104.0, 117.0, 123.0)),
}


def parse_slice(text: str | slice | None, option: str = "--select") -> slice | None:
    """``START:STOP:STEP`` -> slice; parts may be empty or negative, as in Python."""
    if text is None or isinstance(text, slice):
        return text
    parts = text.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or numbers[2:] == [0] or any(abs(n or 0) > sys.maxsize for n in numbers):
        raise OptionError(f"{option} is {text!r}, want START:STOP:STEP like ::10 (every tenth) or 100: (all but 100)")
    return slice(*numbers)


@contextlib.contextmanager
def opened(source: str | BinaryIO, where: str) -> Iterator[Image.Image]:
    """An encoded image (file object or path); of it, only the header has been read. Whatever fails is a DataError."""
    try:
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # gluoncv.data sets it: half an image would pass
        with Image.open(source, formats=_IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{where}: claims {width}x{height} pixels, more than {MAX_PIXELS} are refused")
            if image.mode == "F":
                raise DataError(f"{where}: holds floating-point pixels, want 8 bits a channel")
            yield image
    except QGraphError:
        raise
    except Exception as error:  # on hostile bytes Pillow's decoders raise nearly every class there is
        raise DataError(f"{where}: cannot be decoded as an image: {error}") from error


def decode(source: str | BinaryIO, where: str, preprocess: Preprocess) -> np.ndarray:
    """Encoded image (file object or path) -> C x H x W float32."""
    with opened(source, where) as image:
        if image.mode.startswith("I"):  # 16 bits: the upper 8, as OpenCV (so MXNet) does; convert() would clip
            return preprocess(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)), where)
        return preprocess(image, where)


def geometry_of(source: str | BinaryIO, where: str, preprocess: Preprocess) -> Geometry:
    """Where the pixels of an encoded image go; it is not decoded."""
    with opened(source, where) as image:
        return preprocess.geometry(image.size, where)


def is_image(x: np.ndarray) -> bool:
    return x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] in (1, 3, 4) and x.shape[0] not in (1, 3, 4)


def ready(x: np.ndarray, where: str, preprocess: Preprocess) -> np.ndarray:
    """One array without batch axis -> float32, preprocessed if it is an image."""
    if is_image(x):
        pixels = x[:, :, 0] if x.shape[2] == 1 else x
        return preprocess(Image.fromarray(np.ascontiguousarray(pixels)), where)
    if not preprocess.is_identity:
        raise OptionError(
            f"{where}: {x.dtype} {x.shape} is taken as ready: preprocessing applies to image files and to uint8 "
            "H x W x C arrays; drop the preprocessing options, or give such images"
        )
    with np.errstate(over="ignore"):  # what overflows float32 becomes Inf and is reported as such
        return x.astype(np.float32, copy=False)
