"""Runs an ncnn model with the package `ncnn`, image by image."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from qgraph.data.open import Batch
from qgraph.errors import DataError, MissingDependencyError, UnsupportedError
from qgraph.quant.spec import QParams, quantize
from qgraph.targets.base import Feeds, check_feeds
from qgraph.threads import thread_count


def import_ncnn(what_for: str = "running an ncnn model") -> Any:
    """The package. Raises MissingDependencyError where it is not installed, or does not import."""
    try:
        import ncnn
    except ImportError:
        raise MissingDependencyError("ncnn", what_for, "ncnn") from None
    return ncnn


def is_installed() -> bool:
    """Whether ncnn is there and works."""
    try:
        import_ncnn()
    except MissingDependencyError:
        return False
    return True


class Codes(NamedTuple):
    """A blob, and how the int8 layers behind it round it: watched, it gives the codes."""

    blob: str
    quant: QParams


class Runnable(Protocol):
    """What ncnn is given of a model (`qgraph.targets.ncnn.model.NcnnModel`). requantized: blobs that hold int8."""

    requantized: set[str]

    @property
    def param(self) -> str: ...

    @property
    def bin(self) -> bytes: ...

    @property
    def inputs(self) -> Mapping[str, Sequence[int]]: ...

    @property
    def outputs(self) -> list[str]: ...


class Executor:
    """watch: what to return instead of the outputs: names of blobs, or `Codes`, which are given as codes.

    packing: ncnn's layout of several channels side by side, on by default; without, int8 layers compute exactly.
    half: 16-bit floats between layers where the CPU has them, as is ncnn's default.  winograd: of float layers too.
    """

    def __init__(self, model: Runnable, watch: Sequence[Any] | None = None, *, packing: bool = True,
                 half: bool = True, winograd: bool = True) -> None:
        ncnn = import_ncnn()
        self._model = model
        self._watch = list(model.outputs if watch is None else watch)
        self.inputs = list(model.inputs)
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = thread_count() or os.cpu_count() or 1
        options.use_packing_layout = packing
        options.use_winograd_convolution = winograd
        if not half:
            options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
            options.use_bf16_packed = options.use_bf16_storage = False
        with tempfile.TemporaryDirectory() as folder:
            for suffix, content in ((".param", model.param.encode()), (".bin", model.bin)):
                with open(os.path.join(folder, "model" + suffix), "wb") as stream:
                    stream.write(content)
            if (self._net.load_param(os.path.join(folder, "model.param"))
                    or self._net.load_model(os.path.join(folder, "model.bin"))):
                raise UnsupportedError("ncnn does not take this model; it has said why on stderr")

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """The values of the outputs, or of what is watched, with the batch in front."""
        check_feeds(self.inputs, feeds)
        arrays = {name: np.ascontiguousarray(feeds[name], np.float32) for name in self.inputs}
        images = [self._image({name: array[i] for name, array in arrays.items()})
                  for i in range(len(next(iter(arrays.values()))))]
        return [np.stack(column) for column in zip(*images)]

    def _image(self, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        ncnn = import_ncnn()
        extractor = self._net.create_extractor()
        extractor.set_light_mode(False)  # what is watched must outlive its readers
        for name, array in arrays.items():
            extractor.input(name, ncnn.Mat(np.atleast_1d(array)).clone())  # a number is a blob of one
        found: dict[str, np.ndarray] = {}
        for wanted in self._watch:
            blob = wanted.blob if isinstance(wanted, Codes) else wanted
            if blob not in found:
                status, mat = extractor.extract(blob)
                if status:
                    shapes = {name: array.shape for name, array in arrays.items()}
                    raise DataError(f"ncnn cannot run this model up to {blob} on images of shape {shapes} "
                                    f"(status {status})")
                found[blob] = np.array(mat)
        return [self._codes(wanted, found[wanted.blob]) if isinstance(wanted, Codes) else found[wanted]
                for wanted in self._watch]

    def _codes(self, wanted: Codes, value: np.ndarray) -> np.ndarray:
        """What int8 layers read: a blob of codes as it is, floats rounded as they do."""
        if wanted.blob in self._model.requantized:
            return value.astype(np.int32)
        return quantize(value, wanted.quant, "half-away")

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        """(batch, values) for every batch."""
        for batch in batches:
            yield batch, self.run(batch.feeds)
