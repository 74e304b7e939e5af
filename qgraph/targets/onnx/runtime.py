"""Runs an ONNX model on onnxruntime's CPU kernels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qgraph.errors import DataError, UnsupportedError
from qgraph.targets.base import Feeds, check_feeds
from qgraph.threads import thread_count

if TYPE_CHECKING:
    from qgraph.data.open import Batch

EXACT = "session.x64quantprecision"  # CPUs without VNNI: slower kernels that do not saturate


class Runnable(Protocol):
    """What onnxruntime is given of a model (`qgraph.targets.onnx.model.OnnxModel`)."""

    proto: Any

    @property
    def inputs(self) -> Mapping[str, Sequence[int]]: ...

    @property
    def outputs(self) -> list[str]: ...

    def to_bytes(self) -> bytes: ...


class Executor:
    """An ONNX model, compiled once, whatever the batch size.

    watch: names of the tensors to return instead of the outputs.
    exact: integer kernels that never saturate (`EXACT`).  optimize: False runs the model op by op.
    """

    def __init__(self, model: Runnable, watch: Sequence[str] | None = None, *, exact: bool = False,
                 optimize: bool = True) -> None:
        self._model, self._wanted = model, list(model.outputs if watch is None else watch)
        self._exact, self._optimize = exact, optimize
        self._sessions: dict[Hashable, tuple[Any, list[str]]] = {}
        self.inputs = list(model.inputs)

    def _session(self, feeds: Feeds) -> tuple[Any, list[str]]:
        """(a session, names of the tensors to ask it for)"""
        if () not in self._sessions:
            self._sessions[()] = self._open(with_outputs(self._model, self._wanted)), self._wanted
        return self._sessions[()]

    def _open(self, model: bytes) -> Any:
        return open_session(model, exact=self._exact, optimize=self._optimize)

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """The values of the outputs, or of the watched tensors."""
        check_feeds(self.inputs, feeds)
        session, names = self._session(feeds)
        arrays = {name: np.ascontiguousarray(feeds[name], np.float32) for name in self.inputs}
        unique = list(dict.fromkeys(names))
        try:
            found = dict(zip(unique, session.run(unique, arrays)))
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            shapes = {name: array.shape for name, array in arrays.items()}
            raise DataError(f"onnxruntime cannot run this model on inputs of shape {shapes}: "
                            f"{first_line(error)}") from error
        return [found[name] for name in names]

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        """(batch, values) for every batch; onnxruntime computes the next one while the caller looks at this one."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            previous: Any = None
            pending: Any = None
            for batch in batches:
                values = pending.result() if pending is not None else None
                pending = pool.submit(self.run, batch.feeds)
                if values is not None:
                    yield previous, values
                previous = batch
            if pending is not None:
                yield previous, pending.result()


def open_session(model: bytes, *, exact: bool = False, optimize: bool = True, save_to: str = "") -> Any:
    """An InferenceSession of one thread per core, or of `thread_count`.

    model: the bytes of its file.  save_to: where its optimized graph is written.
    Raises UnsupportedError for a model that onnxruntime does not take.
    """
    import onnxruntime as ort

    options = session_options()
    if exact:
        options.add_session_config_entry(EXACT, "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_to:
        options.optimized_model_filepath = save_to
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(f"onnxruntime does not take this model: {first_line(error)}") from error


def session_options() -> Any:
    """Options of a quiet session, of one thread per core or of `thread_count`."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = thread_count()
    return options


def with_outputs(model: Runnable, names: Sequence[str]) -> bytes:
    """The model with these tensors as its outputs."""
    import onnx

    if list(names) == model.outputs:
        return model.to_bytes()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return bytes(proto.SerializeToString(deterministic=True))


def optimized(model: Runnable) -> Any:
    """onnxruntime's optimized graph of the model, as an onnx.GraphProto without weights' values."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "optimized.onnx")
        open_session(model.to_bytes(), save_to=path)
        return onnx.load(path).graph


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
