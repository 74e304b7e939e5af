"""Runs an ONNX model in OpenVINO, on its CPU kernels."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from qgraph.data.open import Batch
from qgraph.errors import DataError, MissingDependencyError, UnsupportedError
from qgraph.targets.base import Feeds, check_feeds
from qgraph.targets.onnx.runtime import Runnable, first_line, with_outputs
from qgraph.threads import thread_count

NAME = "openvino"  # as in --runtime


def import_openvino(what_for: str = "running a model in OpenVINO") -> Any:
    """The package. Raises MissingDependencyError where it is not installed, or does not import."""
    try:
        import openvino
    except ImportError:
        raise MissingDependencyError(NAME, what_for, NAME) from None
    return openvino


def is_installed() -> bool:
    """Whether OpenVINO is there and works."""
    try:
        import_openvino()
    except MissingDependencyError:
        return False
    return True


class Executor:
    """An ONNX model, compiled for each shape of its inputs: OpenVINO is slower where sizes are left open.

    watch: names of the tensors to return instead of the outputs.  Floats have 32 bits, as in the file.
    """

    def __init__(self, model: Runnable, watch: Sequence[str] | None = None) -> None:
        self._names = list(model.outputs if watch is None else watch)
        self._core = import_openvino().Core()
        try:
            self._model = self._core.read_model(io.BytesIO(with_outputs(model, self._names)))
        except RuntimeError as error:
            raise UnsupportedError(f"OpenVINO does not take this model: {first_line(error)}") from error
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}
        self.inputs = list(model.inputs)

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """The values of the outputs, or of the watched tensors."""
        check_feeds(self.inputs, feeds)
        arrays = {name: np.ascontiguousarray(feeds[name], np.float32) for name in self.inputs}
        try:
            found = self._compile({name: array.shape for name, array in arrays.items()})(arrays)
        except (RuntimeError, TypeError) as error:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise DataError(f"OpenVINO cannot run this model on inputs of shape {shapes}: {first_line(error)}"
                            ) from error
        return [np.array(found[name]) for name in self._names]

    def _compile(self, shapes: dict[str, tuple[int, ...]]) -> Any:
        key = tuple(shapes.values())
        if key not in self._compiled:
            self._compiled.clear()  # one shape at a time: memory stays that of one model
            self._model.reshape({name: list(shape) for name, shape in shapes.items()})
            options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
            if thread_count():
                options["INFERENCE_NUM_THREADS"] = thread_count()
            self._compiled[key] = self._core.compile_model(self._model, "CPU", options)
        return self._compiled[key]

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        """(batch, values) for every batch."""
        for batch in batches:
            yield batch, self.run(batch.feeds)
