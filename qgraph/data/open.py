"""Calibration and evaluation data: whatever the user has becomes batches of float32, without MXNet.

``open_data`` takes a ``.rec``, an image folder, ``.npz``/``.npy``, arrays, a Gluon ``Dataset`` or ``DataLoader``, an
``mx.io.DataIter``, or any iterable of batches, and gives a ``Data`` that can be swept again and again (KL calibration
sweeps twice).  Memory does not grow with the number of items, and neither the number of decoding threads nor their
timing changes what comes out.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from qgraph.arrays import Array
from qgraph.data.batches import Batch, labels_of, stack
from qgraph.data.image_files import Folder, Pairs, Records
from qgraph.data.labels import Labelled, read_labels
from qgraph.data.preprocess import IMAGE_SUFFIXES, PRESETS, Preprocess, is_image, parse_slice, ready
from qgraph.data.sources import Arrays, Dataset, Items, Label, Npz, Numbered, Stream, read_npy
from qgraph.errors import DataError, MissingInputError, OptionError

__all__ = ["PRESETS", "Batch", "Data", "Preprocess", "open_data", "parse_slice"]

Shape = Sequence[int]
_DIGESTED = 32  # labels at a time


@dataclass(frozen=True)
class Origin:
    """The files that items are read from. path, labels: absolute.  name: of the items, as they were opened."""

    path: Path
    labels: Path | None
    name: str

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that is read."""
        index = (self.path.with_suffix(".idx"),) if self.path.suffix.lower() == ".rec" else ()
        return (self.path, *index, *(() if self.labels is None else (self.labels,)))

    def open(self, names: Sequence[str], preprocess: Preprocess) -> Items:
        """Read them again, here. Raises DataError."""
        source = _open_path(self.path, names, preprocess)
        source.name = self.name
        return source if self.labels is None else _labelled(source, self.labels)


class Data:
    """Batches of one source; iterate as often as you like, the same batches come each time.

    ``num_items``, and ``len()``: items after select, skip and limit; None (and a TypeError) for a stream.
    ``origin``: the files that it is read from, None where it is in memory.  Pickled data of files are opened again by
    their absolute paths, and give the same batches.
    """

    origin: Origin | None = None

    def __init__(
        self,
        source: Items | Stream,
        preprocess: Preprocess,
        input_names: Sequence[str],
        input_shapes: Mapping[str, Shape],
        select: slice | Sequence[int],
        skip: slice,
        limit: int | None,
        batch_size: int,
        decoders: int,
    ) -> None:
        self.name = source.name
        self.preprocess = preprocess
        self.input_names = tuple(input_names)
        self.batch_size = batch_size
        self._source, self._shapes, self._decoders = source, input_shapes, decoders
        self._select, self._skip, self._limit = select, skip, limit
        self._single = False  # a stream's own batches are taken apart
        self.num_items: int | None = None
        if isinstance(source, Items):
            if not isinstance(select, slice) and max(select, default=0) >= len(source):
                raise OptionError(f"{self.name}: select has {max(select)}, but there are {len(source)} items")
            self.num_items = sum(1 for _ in self._kept(len(source)))
            if not self.num_items:
                raise DataError(f"{self.name}: select, skip and limit keep none of its {len(source)} items")
            source.check(self._kept(len(source)))
        elif not isinstance(select, slice):
            raise OptionError(f"{self.name}: is a stream, whose items cannot be selected by a list of numbers")
        elif any((part or 0) < 0 for s in (select, skip) for part in (s.start, s.stop, s.step)):
            raise OptionError(f"{self.name}: its length is not known, so select and skip cannot count from its end")

    def __len__(self) -> int:
        if self.num_items is None:
            raise TypeError(f"{self.name} does not say how many items it has")
        return self.num_items

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self._source, Items):
            return self._from_items(self._source)
        batches = self._from_stream(self._source)
        return (row for batch in batches for row in batch.rows()) if self._single else batches

    def one_by_one(self) -> Data:
        """The same items in batches of one."""
        twin = self._twin()
        twin.batch_size, twin._single = 1, True
        return twin

    def part(self, first: int, stop: int) -> Data:
        """The items from number `first` to before `stop` of those that are used. Raises DataError for a stream."""
        if not isinstance(self._source, Items):
            raise DataError(f"{self.name}: is a stream, which has no numbered items")
        return self._of(list(islice(self._kept(len(self._source)), first, stop)))

    def shares(self, count: int, seed: int) -> list[Data]:
        """The items in so many parts of the same size, but for one item; dealt out after a shuffle.

        Raises DataError for a stream, and for fewer items than parts.
        """
        kept = list(self._kept(len(self._source))) if isinstance(self._source, Items) else []
        if len(kept) < count:
            found = f"{len(kept)} items" if kept else "a stream"
            raise DataError(f"{self.name}: found {found}, want a file or a folder of {count} or more, to be split into "
                            f"{count} parts")
        order = np.random.default_rng(seed).permutation(len(kept))
        return [self._of([kept[i] for i in order[number::count]]) for number in range(count)]

    def rest(self, count: int) -> Data | None:
        """At most so many of the items that are left out by select and limit, spread evenly; None if there are none."""
        if not isinstance(self._source, Items):
            return None
        kept, dropped = set(self._kept(len(self._source))), range(len(self._source))[self._skip]
        left = [i for i in range(len(self._source)) if i not in kept and i not in dropped]
        if not left:
            return None
        return self._of(left[::-(-len(left) // count)])

    def _of(self, numbers: Sequence[int]) -> Data:
        """These items of the source."""
        twin = self._twin()
        twin._select, twin._skip, twin._limit = numbers, slice(0), None
        twin.num_items = len(numbers)
        return twin

    def _twin(self) -> Data:
        """The same data of the same source, opened once."""
        twin = object.__new__(Data)
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.origin is not None:
            del state["_source"]
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        if self.origin is not None:
            self._source = self.origin.open(self.input_names, self.preprocess)

    def _kept(self, count: int) -> Iterator[int]:
        """The numbers of the items that are used, in the order in which they are used."""
        dropped = range(count)[self._skip]
        selected = range(count)[self._select] if isinstance(self._select, slice) else self._select
        return islice((i for i in selected if i not in dropped), self._limit)

    def names(self) -> list[str]:
        """What the items that are used are called, in their order. Raises DataError for a stream."""
        if isinstance(self._source, Stream):
            raise DataError(f"{self.name}: is a stream, whose items have no names")
        return [self._source.where(i) for i in self._kept(len(self._source))]

    def labels(self) -> Array | list[Array] | None:
        """Of all items that are used, in their order; images are not decoded where that can be."""
        if isinstance(self._source, Items):
            rows = list(self._kept(len(self._source)))
            return labels_of(list(self._source.labels(rows)), [self._source.where(i) for i in rows])
        labels: list[Array] = []
        ids: list[str] = []
        for batch in self:
            if batch.labels is None:
                return None
            labels.extend(batch.labels)
            ids.extend(batch.ids)
        return labels_of(labels, ids)

    def fingerprint(self, images: int = 64) -> str:
        """Tells other data: a digest of all labels and so many images, spread evenly; of a stream its first batch."""
        digest = hashlib.blake2b(digest_size=8)
        if isinstance(self._source, Items):
            kept = list(self._kept(len(self._source)))
            chosen = kept[::max(1, len(kept) // images)]
            rows = self._source.rows(chosen, self._decoders, 2 * self._decoders)
            arrays: Iterable[Array] = (x for columns, _ in rows for x in columns)
            parts = self._label_parts(self._source, kept)
        else:
            first = next(iter(self))
            arrays, parts = first.feeds.values(), iter([first.labels])
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        for labels in parts:
            for label in labels if isinstance(labels, list) else [] if labels is None else [labels]:
                digest.update(np.ascontiguousarray(label).tobytes())
        return digest.hexdigest()

    @staticmethod
    def _label_parts(source: Items, kept: Sequence[int]) -> Iterator[Array | list[Array] | None]:
        """The labels of some items at a time: masks of all of them may not fit into memory."""
        labels = source.labels(kept)
        for start in range(0, len(kept), _DIGESTED):
            ids = [source.where(i) for i in kept[start:start + _DIGESTED]]
            yield labels_of(list(islice(labels, len(ids))), ids)

    def _from_items(self, source: Items) -> Iterator[Batch]:
        kept = self._kept(len(source))
        rows = source.rows(self._kept(len(source)), self._decoders, self.batch_size + 2 * self._decoders)
        while ids := [source.where(i) for i in islice(kept, self.batch_size)]:
            columns, labels = zip(*islice(rows, len(ids)))
            yield self._batch([stack(column, ids) for column in zip(*columns)], labels, ids)

    def _from_stream(self, source: Stream) -> Iterator[Batch]:
        """The source's own batches, less the items that are not wanted."""
        assert isinstance(self._select, slice)
        selected, dropped = range(sys.maxsize)[self._select], range(sys.maxsize)[self._skip]
        seen = left = 0
        if self._limit is not None:
            left = self._limit
        for arrays, labels in source:
            shapes = [x.shape for x in arrays] + ([] if labels is None else [labels.shape])
            if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
                raise DataError(f"{source.name}: a batch has shapes {shapes}, want the batch axis first, of one length")
            numbers = range(seen, seen + shapes[0][0])
            seen = numbers.stop
            rows = [i - numbers.start for i in numbers if i in selected and i not in dropped]
            if self._limit is not None:
                rows = rows[:left]
                left -= len(rows)
            if rows:
                ids = [source.where(numbers[row]) for row in rows]
                feeds = [self._ready_rows(x[rows], ids) for x in arrays]
                yield self._batch(feeds, [None] * len(ids) if labels is None else list(labels[rows]), ids)
            if self._limit is not None and not left:
                return
        if not seen:
            raise DataError(f"{source.name}: gave no items (was it used up before?)")

    def _ready_rows(self, x: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        if x.ndim == 4 and is_image(x[0]):
            return np.stack([ready(row, where, self.preprocess) for row, where in zip(x, ids)])
        return ready(x, ids[0], self.preprocess)

    def _batch(self, arrays: Sequence[np.ndarray], labels: Sequence[Label], ids: list[str]) -> Batch:
        feeds = {}
        for name, x in zip(self.input_names, arrays):
            self._check_shape(name, x.shape, ids[0])
            finite = np.isfinite(x)
            if not finite.all():
                row = int(np.argmin(finite.reshape(len(x), -1).all(1)))
                bad = x[row][~finite[row]][0]
                raise DataError(f"{ids[row]}: {name} holds {bad}: remove or repair this sample")
            feeds[name] = np.ascontiguousarray(x, np.float32)
        return Batch(feeds, labels_of(labels, ids), ids)

    def _check_shape(self, name: str, shape: Shape, where: str) -> None:
        """Against the model's shape, whose batch axis and 0 match anything; without one, anything goes."""
        found, want = tuple(shape[1:]), self._shapes.get(name)
        if want is None or (len(shape) == len(want) and all(w in (0, -1, f) for f, w in zip(found, want[1:]))):
            return
        sizes = ", ".join(str(w) if w > 0 else "?" for w in want[1:])
        hint = "for images, --crop and --resize set the size"
        if len(shape) + 1 == len(want):
            hint = "for a single one add the batch axis, x[None]"
        raise DataError(f"{where}: {name} has the shape {found} without the batch axis, want ({sizes}) as the model "
                        f"does ({hint})")


def open_data(
    source: object,
    preprocess: Preprocess | None = None,
    *,
    labels: str | os.PathLike[str] | None = None,
    select: str | slice | Sequence[int] | None = None,
    skip: str | slice | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    decoders: int | None = None,
    input_names: Sequence[str] = ("data",),
    input_shapes: Mapping[str, Shape] | None = None,
) -> Data:
    """Open whatever holds samples.  Nothing is decoded before the first sweep.

    source: path of a ``.rec``, of an image folder, of an ``.npz`` (``data`` or an array per input; ``label``), of an
    ``.npy``, of a ``.bin`` with InsightFace's pairs; or an array, a dict of arrays, a Dataset (items), a DataLoader,
    DataIter or iterable (batches).
    labels: path of a file or folder of labels in place of those of the source: COCO's JSON, a folder of VOC's XML or of
    PNG masks (all three for a folder of images), ``.npz`` (``label``) or ``.npy`` by number, or lines ``name,label``.
    select keeps and skip drops items by number (``"::10"``), limit keeps the first so many of the rest.  select may be
    a list of numbers, whose order and repetitions are kept.
    input_shapes: input name -> the model's shape; 0 matches any size.  decoders: decoding threads, default at most 4.
    Raises DataError (the data are not usable) and OptionError (an option is not), here or on the first sweep.
    """
    if batch_size < 1 or (limit is not None and limit < 1) or (decoders is not None and decoders < 1):
        raise OptionError(f"want at least 1 each: batch size {batch_size}, limit {limit}, decoders {decoders}")
    preprocess, names, shapes = preprocess or Preprocess(), tuple(input_names), dict(input_shapes or {})
    if not names:
        raise OptionError("the model has no input that data could be fed to")
    shape = shapes.get(names[0])
    if shape is not None and len(shape) == 4 and shape[1] == 1:
        preprocess = replace(preprocess, channels=1)
    opened = _source(source, names, preprocess)
    data = Data(
        opened if labels is None else _labelled(opened, labels),
        preprocess,
        names,
        shapes,
        _selection(select),
        parse_slice(skip, "--skip") or slice(0),
        limit,
        batch_size,
        decoders or min(4, os.cpu_count() or 1),
    )
    if isinstance(source, (str, os.PathLike)):
        data.origin = Origin(Path(source).absolute(), None if labels is None else Path(labels).absolute(), opened.name)
    return data


def _selection(select: str | slice | Sequence[int] | None) -> slice | Sequence[int]:
    if select is None or isinstance(select, (str, slice)):
        return parse_slice(select, "--select") or slice(None)
    rows = [int(row) for row in select]
    if any(row < 0 for row in rows):
        raise OptionError(f"select: found {min(rows)}, want numbers of items from 0")
    return rows


def _source(source: object, names: Sequence[str], preprocess: Preprocess) -> Items | Stream:
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), names, preprocess)
    if isinstance(source, Mapping):
        return Arrays("arrays", source, names, preprocess)
    if isinstance(source, np.ndarray) or callable(getattr(source, "asnumpy", None)):
        return Arrays("array", {names[0]: source}, names, preprocess)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "__iter__"):
        return Dataset(cast(Numbered, source), names, preprocess)
    try:
        return Stream(cast(Iterable[object], source), names)
    except TypeError:
        wanted = "a path, arrays, a Dataset, a DataLoader or an iterable of batches"
        raise DataError(f"cannot read data from a {type(source).__name__}, want {wanted}") from None


def _labelled(source: Items | Stream, labels: object) -> Labelled:
    if not isinstance(labels, (str, os.PathLike)):
        raise OptionError(f"labels is a {type(labels).__name__}, want a path")
    if not isinstance(source, Items):
        raise OptionError(f"--labels {labels}: {source.name} is a stream, whose labels come with its batches")
    if not Path(labels).exists():
        raise DataError(f"--labels {labels}: there is no such file or folder")
    return Labelled(source, read_labels(Path(labels)))


def _open_path(path: Path, names: Sequence[str], preprocess: Preprocess) -> Items:
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if kind in ("folder", ".rec", ".bin") and len(names) > 1:
        raise MissingInputError(
            f"{path}: images feed one input, the model reads {', '.join(names)}: give an .npz with an array for each",
            names[1:],
        )
    if kind == "folder":
        return Folder(path, preprocess)
    if kind == ".rec":
        return Records(path, preprocess)
    if kind == ".bin":
        return Pairs(path, preprocess)
    if kind == ".npz":
        return Npz(path, names, preprocess)
    if kind == ".npy":
        return Arrays(path.name, {names[0]: read_npy(path)}, names, preprocess)
    hint = {".idx": "give the .rec beside it", ".lst": "give the .rec made from it"}.get(kind, "")
    hint = "give the folder that holds it" if kind in IMAGE_SUFFIXES else hint
    wanted = ".rec, .npz, .npy, .bin (InsightFace's pairs) or a folder of images"
    raise DataError(f"{path}: found {kind or 'no'} extension, want {wanted}; {hint}".rstrip("; "))
