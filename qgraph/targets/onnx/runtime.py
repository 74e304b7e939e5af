"""Runs a graph, or an ONNX model, on onnxruntime's CPU kernels."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Union

import numpy as np

from qgraph.errors import DataError, UnsupportedError
from qgraph.ir.graph import Graph, Port
from qgraph.semantics.inputs import inputs_of
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.model import OnnxModel

EXACT = "session.x64quantprecision"  # CPUs without VNNI: slower kernels that do not saturate


class Executor:
    """A Graph, or an `OnnxModel`, compiled once per shape of its inputs, whatever the batch size.

    watch: what to return instead of the outputs: ports of a Graph, tensor names of an OnnxModel.
    exact: integer kernels that never saturate (`EXACT`).  optimize: False runs the model op by op.
    fused is there for the sake of the interface: what is watched decides what can be fused here.
    """

    engine = "onnxruntime"

    def __init__(self, model: Union[Graph, OnnxModel], watch: Sequence[Any] | None = None, fused: bool = False, *,
                 exact: bool = False, optimize: bool = True) -> None:
        self._exact, self._optimize = exact, optimize
        self._sessions: dict[tuple, tuple[Any, list[str]]] = {}
        self._graph: Graph | None = None
        if isinstance(model, OnnxModel):
            self._model = model
            self._wanted = list(model.outputs if watch is None else watch)
            self.inputs = list(model.inputs)
            return
        # read again for every shape of the inputs: some converters need it
        self._graph = model.copy()
        twin = {n.name: n for n in self._graph.dag}
        wanted = [Port(twin[p.node.name], p.index) for p in (model.heads if watch is None else watch)]
        self._graph.heads = list(dict.fromkeys(wanted))
        position = {p: i for i, p in enumerate(self._graph.heads)}
        self._order = [position[p] for p in wanted]
        self.inputs = inputs_of(self._graph)

    def _session(self, feeds: dict[str, np.ndarray]) -> tuple[Any, list[str]]:
        if self._graph is None:
            key: tuple = ()
        else:
            key = tuple((name, feeds[name].shape[1:]) for name in self.inputs)
        if key not in self._sessions:
            self._sessions.clear()  # one shape at a time: memory stays that of one executor
            if self._graph is None:
                model, names = with_outputs(self._model, self._wanted), self._wanted
            else:
                model = to_onnx(self._graph, {name: feeds[name].shape for name in self.inputs}, check=False)
                names = [model.outputs[i] for i in self._order]
            self._sessions[key] = (self._open(model), names)
        return self._sessions[key]

    def _open(self, model: OnnxModel) -> Any:
        return open_session(model, exact=self._exact, optimize=self._optimize)

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The values of the outputs, or of the watched tensors."""
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise DataError(f"the model wants input {', '.join(missing)}; found {', '.join(feeds)}")
        session, names = self._session(feeds)
        arrays = {name: np.ascontiguousarray(feeds[name], np.float32) for name in self.inputs}
        unique = list(dict.fromkeys(names))
        try:
            found = dict(zip(unique, session.run(unique, arrays)))
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            shapes = {name: array.shape for name, array in arrays.items()}
            raise DataError(f"onnxruntime cannot run this model on inputs of shape {shapes}: "
                            f"{_first_line(error)}") from error
        return [found[name] for name in names]

    def stream(self, batches: Iterable[Any]) -> Iterator[tuple[Any, list[np.ndarray]]]:
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


def open_session(model: OnnxModel, *, exact: bool = False, optimize: bool = True, save_to: str = "") -> Any:
    """An InferenceSession of one thread per core, or of OMP_NUM_THREADS. save_to: where its optimized graph is written.

    Raises UnsupportedError for a model that onnxruntime does not take.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
    if exact:
        options.add_session_config_entry(EXACT, "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_to:
        options.optimized_model_filepath = save_to
    try:
        return ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(f"onnxruntime does not take this model: {_first_line(error)}") from error


def with_outputs(model: OnnxModel, names: Sequence[str]) -> OnnxModel:
    """The model with these tensors as its outputs."""
    import onnx

    if list(names) == model.outputs:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return OnnxModel(proto)


def optimized(model: OnnxModel) -> Any:
    """onnxruntime's optimized graph of the model, as an onnx.GraphProto without weights' values."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "optimized.onnx")
        open_session(model, save_to=path)
        return onnx.load(path).graph


def count_ops(model: OnnxModel) -> dict[str, int]:
    """Ops of onnxruntime's optimized graph."""
    return dict(sorted(Counter(node.op_type for node in optimized(model).node).items()))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
