"""Boxes that a user's function makes of the outputs of detectors that end before their decoding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import OptionError
from qgraph.registry import described, user_attribute
from qgraph.tasks.detection import ROW

PADDING = -1.0
WANTED = f"rows of class, score, x0, y0, x1, y1: an array (N, M, {ROW}) or a list of arrays (M, {ROW}), an image each"


class Decode:
    """A user's function, given as ``MODULE:FUNCTION``; the current folder is searched too.

    It takes the outputs of one batch and its feeds (input name -> array), and gives boxes in pixels of the input: an
    array (N, M, 6), or for each image one (M, 6), with rows of class, score, x0, y0, x1, y1.  Rows with a class or a
    score below 0 are padding.
    """

    def __init__(self, text: str) -> None:
        """Raises OptionError for a text, a module or a function that cannot be used."""
        if not re.fullmatch(r"[\w.]+:\w+", text):
            raise OptionError(f"--decode: found {text!r}, want MODULE:FUNCTION, such as my_detector:boxes")
        self.name = text
        module, _, function = text.partition(":")
        self._function: Callable[..., Any] = user_attribute("--decode", module, function)
        if not callable(self._function):
            raise OptionError(f"--decode: {module} has no function {function!r}")

    def __reduce__(self) -> tuple[type[Decode], tuple[str]]:
        """Travel by name: the function is found where it arrives."""
        return Decode, (self.name,)

    def __call__(self, outputs: Sequence[Array], feeds: Mapping[str, Array], images: int) -> Array:
        """Boxes (N, M, 6), filled up with rows of -1. Raises OptionError for what the function raises or gives."""
        try:
            found = self._function(list(outputs), dict(feeds))
        except Exception as error:  # whatever the user's function raises
            raise OptionError(f"--decode: {self.name} failed with {described(error)}") from error
        return self._padded(found, images)

    def _padded(self, found: Any, images: int) -> Array:
        if not isinstance(found, (list, tuple)) and not (isinstance(found, np.ndarray) and found.ndim == 3):
            raise OptionError(f"--decode: {self.name} gave {_kind(found)}, want {WANTED}")
        if len(found) != images:
            raise OptionError(f"--decode: {self.name} gave boxes of {len(found)} images for {images}, want {WANTED}")
        for number, part in enumerate(found):
            if not (isinstance(part, np.ndarray) and part.dtype.kind in "iuf" and part.shape[1:] == (ROW,)):
                raise OptionError(f"--decode: {self.name} gave {_kind(part)} for image {number} of a batch, want "
                                  f"{WANTED}")
        padded = np.full((images, max(map(len, found), default=0), ROW), PADDING)
        for rows, part in zip(padded, found):
            rows[:len(part)] = part
        return padded


def _kind(part: Any) -> str:
    return f"{part.dtype} {part.shape}" if isinstance(part, np.ndarray) else type(part).__name__
