"""Batches of samples: arrays for each input, labels, and what the samples are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qgraph.arrays import Array
from qgraph.data.sources import Label
from qgraph.errors import DataError


@dataclass(frozen=True)
class Batch:
    """feeds: input name -> N x ... float32, contiguous, finite.  labels: N int64 (N x ...; not whole: float32), or an
    array for each sample where they have several shapes, or None.  ids: what each sample is called, for messages: a
    path, or ``val.rec[17]``."""

    feeds: dict[str, np.ndarray]
    labels: Array | list[Array] | None
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def unlabelled(self) -> Batch:
        """The same without labels."""
        return replace(self, labels=None)

    def rows(self) -> Iterator[Batch]:
        """Batches of one."""
        for i, where in enumerate(self.ids):
            part = slice(i, i + 1)
            yield Batch({name: x[part] for name, x in self.feeds.items()},
                        None if self.labels is None else self.labels[part], [where])


def stack(column: Sequence[np.ndarray], ids: Sequence[str]) -> np.ndarray:
    for x, where in zip(column, ids):
        if x.shape != column[0].shape:
            raise DataError(
                f"{where}: has the shape {x.shape}, but {ids[0]} {column[0].shape}, and a batch needs one shape: "
                "give --crop (with --resize), or --batch-size 1"
            )
    return np.stack(column)


def labels_of(labels: Sequence[Label], ids: Sequence[str]) -> Array | list[Array] | None:
    """One array where all have one shape, else a list; None where one is missing.

    Whole numbers become int64, so that they compare with an argmax, but floats of two axes or more (boxes, points) stay
    such.  One number in a vector is taken out of it where all labels are such.
    """
    values = [np.asarray(label) for label in labels if label is not None]
    if len(values) < len(labels):
        return None
    for value, where in zip(values, ids):
        if not np.isfinite(value).all():
            raise DataError(f"{where}: its label holds a number that is not finite: remove or repair this sample")
    if len({value.shape for value in values}) == 1:
        stacked = np.stack(values)
        stacked = stacked.reshape(len(stacked)) if stacked.size == len(stacked) else stacked
        return stacked.astype(np.int64 if _are_whole(stacked, stacked.ndim - 1) else np.float32)
    whole = all(_are_whole(value, value.ndim) for value in values)
    return [value.astype(np.int64 if whole else np.float32) for value in values]


def _are_whole(values: Array, axes: int) -> bool:
    """axes: of one label."""
    if values.dtype.kind in "iub":
        return True
    return axes < 2 and bool(((values == np.rint(values)) & (np.abs(values) < 1 << 53)).all())
