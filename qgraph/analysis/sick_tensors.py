"""What the values of a float network on some images tell of trouble to come: one range must fit a whole tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from qgraph.analysis.finding import ERROR, NOTE, WARNING, Finding, listed
from qgraph.arrays import Array
from qgraph.ir.graph import Port

UNEVEN, UNEVEN_NOTE = 16.0, 8.0  # times the median channel; healthy networks have up to 12
DOMINATING = 8.0  # times the next channels; healthy networks have up to 3
FEW = 0.02  # of a tensor's channels may dominate it
EXPLODING, ALONE = 5.0, 3.0  # times the median image, and the next one; healthy networks have up to 2.8 and 2.1
TOLD = 3  # images


@dataclass
class Seen:
    """What was seen of one tensor. channels: the largest magnitude of each (axis 1).  images: of each image.

    broken: the first image with a value that is not finite.
    """

    channels: Array | None = None
    images: list[float] = field(default_factory=list)
    broken: str = ""

    def update(self, value: Array, ids: list[str]) -> None:
        """Add a batch (N, channels, ...); a tensor without the batch axis has no images."""
        size = np.abs(value)
        if len(value) == len(ids):
            largest = size.reshape(len(value), -1).max(axis=1, initial=0)
            self.images += largest.tolist()
            if not np.isfinite(largest).all() and not self.broken:
                self.broken = ids[int(np.flatnonzero(~np.isfinite(largest))[0])]
        if value.ndim > 1:
            found = size.max(axis=tuple(axis for axis in range(value.ndim) if axis != 1), initial=0)
            if self.channels is None or self.channels.shape == found.shape:
                self.channels = found if self.channels is None else np.maximum(self.channels, found)


def check_tensors(seen: Mapping[Port, Seen], ids: list[str]) -> Iterator[Finding]:
    """Values that are not finite, channels that leave the others no codes, images that leave the others none."""
    broken = {port.key: one.broken for port, one in seen.items() if one.broken}
    if broken:
        first = next(iter(broken))
        yield Finding("not-finite", ERROR, tuple(broken), f"{first} is NaN or infinite for {broken[first]}",
                      "a tensor with such values has no range", "look at this image, and at the layers before "
                      f"{first}; a value that float32 cannot hold comes of parameters or inputs that are too large")
        return
    yield from _of_channels({port.key: one.channels for port, one in seen.items() if one.channels is not None})
    yield from _of_images({port.key: np.array(one.images) for port, one in seen.items()}, ids)


def _of_channels(tensors: Mapping[str, Array]) -> Iterator[Finding]:
    alone: dict[str, tuple[float, int]] = {}
    uneven: dict[str, float] = {}
    for name, channels in tensors.items():
        live = np.sort(channels[channels > 0])[::-1]
        if len(live) < 4:
            continue
        few = max(1, int(FEW * len(live)))
        if live[0] > DOMINATING * live[few]:
            alone[name] = float(live[0] / live[few]), int(channels.argmax())
        elif live[0] > UNEVEN_NOTE * np.median(live):
            uneven[name] = float(live[0] / np.median(live))
    if alone:
        rows = sorted(alone, key=lambda name: -alone[name][0])
        shown = listed([f"{name} (channel {alone[name][1]}, {alone[name][0]:.0f} times the others)" for name in rows])
        yield Finding("dominating-channels", WARNING, tuple(rows), f"channels that take the range of a tensor: {shown}",
                      "a tensor of activations has one range; the other channels get "
                      f"{max(1, round(255 / alone[rows[0]][0]))} of its 255 codes at most",
                      "--effort best (scales channels alike between layers), or --calib mse, which may clip it, or "
                      f"leave the readers in float (--exclude; qgraph explain MODEL {rows[0]} names them)")
    if uneven:
        rows = sorted(uneven, key=lambda name: -uneven[name])
        shown = listed([f"{name} (largest channel {uneven[name]:.0f} times the median)" for name in rows])
        yield Finding("uneven-channels", WARNING if uneven[rows[0]] > UNEVEN else NOTE, tuple(rows),
                      f"channels of very different ranges in one tensor: {shown}",
                      f"half of the channels of {rows[0]} get less than {max(1, round(255 / uneven[rows[0]]))} of 255 "
                      "codes", "--effort best (scales channels alike between layers), or --calib auto, which weighs "
                      "channels by their readers")


def _of_images(tensors: Mapping[str, Array], ids: list[str]) -> Iterator[Finding]:
    found: dict[str, list[tuple[float, str]]] = {}
    for name, images in tensors.items():
        if len(images) != len(ids) or len(images) < 4:
            continue
        order = np.argsort(-images, kind="stable")
        middle = float(np.median(images))
        top, second = images[order[0]], images[order[1]]
        if middle > 0 and top > EXPLODING * middle and top > ALONE * second:
            found.setdefault(ids[int(order[0])], []).append((float(top / middle), name))
    for image, rows in list(found.items())[:TOLD]:
        ratio, worst = max(rows)
        yield Finding("exploding-range", WARNING, (image, *(name for _, name in rows)),
                      f"{image} alone reaches {ratio:.0f} times the median image's largest value in {worst} "
                      f"(in {len(rows)} tensors)",
                      "with --calib naive this one image sets the range, and all others get "
                      f"{max(1, round(255 / ratio))} of 255 codes", "look at the image and leave it out (--skip), or "
                      "--calib percentile, kl or mse, which clip it")
