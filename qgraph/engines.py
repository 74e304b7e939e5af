"""What executes a model: the NumPy reference and the engines, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qgraph.errors import OptionError
from qgraph.ir.graph import Graph
from qgraph.targets.ncnn.model import NcnnModel
from qgraph.targets.tengine.model import TengineModel

RUNTIMES = ("auto", "mxnet", "onnxruntime")


def runtime(what_for: str, name: str = "auto") -> Any:
    """The `Executor` class of the engine that runs float graphs: that named, or MXNet where it is installed.

    Raises MissingDependencyError, saying what it was needed for, where the engine is not installed.
    """
    if name not in RUNTIMES:
        raise OptionError(f"--runtime {name}: want one of {', '.join(RUNTIMES)}")
    from qgraph.targets.mxnet import runtime as mxnet
    from qgraph.targets.onnx import runtime as onnxruntime

    if name == "onnxruntime" or (name == "auto" and not mxnet.is_installed()):
        return onnxruntime.Executor
    mxnet.import_mxnet(what_for)
    return mxnet.Executor


def executor(model: Any, what_for: str, name: str = "auto", watch: Sequence[Any] | None = None) -> Any:
    """An Executor of a Graph, frozen ones for MXNet included, or of an `OnnxModel`, `NcnnModel` or `TengineModel`.

    Raises OptionError for an engine that cannot run this model, and as `runtime`.
    """
    from qgraph.formats.mxnet_marks import is_quantized_op

    if isinstance(model, NcnnModel):
        from qgraph.targets.ncnn import runtime as ncnn

        ncnn.import_ncnn(what_for)
        return ncnn.Executor(model, watch)
    if isinstance(model, TengineModel):
        from qgraph.targets.tengine import runtime as tengine

        return tengine.Executor(model, watch)
    if not isinstance(model, Graph):
        if name == "mxnet":
            raise OptionError("--runtime mxnet: MXNet cannot run an ONNX model, onnxruntime can")
        return runtime(what_for, "onnxruntime")(model, watch)
    if any(is_quantized_op(node) for node in model.dag):
        if name == "onnxruntime":
            raise OptionError("--runtime onnxruntime: this model is frozen for MXNet's own operators; freeze the float "
                              "model with --target onnx instead")
        name = "mxnet"
        what_for += ", which is frozen for MXNet (--target onnx makes one for onnxruntime),"
    return runtime(what_for, name)(model, watch)
