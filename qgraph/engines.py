"""The engines that run float graphs, and what runs any model.

OpenVINO runs written .onnx models alone: `executor` knows it, `runtime` does not.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Callable, Optional

from qgraph.arrays import Array
from qgraph.errors import OptionError, UnsupportedError
from qgraph.ir.graph import Graph, Node, Port
from qgraph.targets.base import Executor, Model
from qgraph.threads import set_thread_count, thread_count

__all__ = ["MODEL_RUNTIMES", "RUNTIMES", "Engine", "check_runtime", "executor", "runtime", "set_thread_count",
           "thread_count"]

log = logging.getLogger("qgraph")

RUNTIMES = ("auto", "mxnet", "onnxruntime")
MODEL_RUNTIMES = (*RUNTIMES, "openvino")  # of `executor`


@dataclass(frozen=True)
class Engine:
    """Runs graphs of MXNet's float ops, with fake_quantize nodes or without.

    any_quantizer: also ones with ranges of the running batch, and with activations of more than 8 bits.
    exact: as `make`, an Executor whose kernels, if they are of integers, never saturate.
    """

    name: str
    make: Callable[..., Executor]
    any_quantizer: bool
    exact: Callable[..., Executor]
    _failed: dict[str, str] = field(default_factory=dict, compare=False)  # op -> why it does not run alone

    def __call__(self, g: Graph, watch: Optional[Sequence[Port]] = None, fused: bool = False) -> Executor:
        """An Executor. watch: what to return instead of the heads.  fused: let the engine fuse where that is safe."""
        return self.make(g, watch, fused)

    def run_op(self, node: Node, inputs: Sequence[Array | Node], fixed: Sequence[bool]) -> list[Array]:
        """The outputs of one node: lends the reference an op that it lacks, see `qgraph.semantics.interpreter.RunOp`.

        Raises UnsupportedError where the op does not run here; the log tells once for each op.
        """
        g = Graph()
        feeds: dict[str, Array] = {}
        sources = []
        for value, constant in zip(inputs, fixed):
            if isinstance(value, Node):
                sources.append(g.add(value.op, name=value.name, attrs=value.attrs))
            elif constant:
                sources.append(g.add_param("constant", value))
            else:
                sources.append(g.add("null", name="input"))
                feeds[sources[-1].name] = value
        twin = g.add(node.op, sources, node.name, n_out=node.n_out, attrs=node.attrs)
        twin.fused = node.fused
        g.heads = [Port(twin, index) for index in range(node.n_out)]
        try:
            return self(g).run(feeds)
        except Exception as error:  # whatever an engine raises: its own classes have no common base
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if self._failed.setdefault(node.op, why) is why:
            log.warning("warning: neither the reference nor %s runs %s alone, so layers behind it are not measured: "
                        "their weights get plain rounding (%s)", self.name, node, why)
        raise UnsupportedError(f"{node}: {why}")


def runtime(what_for: str, name: str = "auto") -> Engine:
    """The engine for float graphs: that named, or MXNet where it is installed.

    Raises MissingDependencyError, saying what it was needed for, where the engine is not installed.
    """
    if name not in RUNTIMES:
        raise OptionError(f"--runtime {name}: want one of {', '.join(RUNTIMES)}")
    from qgraph.targets.mxnet import runtime as mxnet
    from qgraph.targets.onnx.engine import GraphExecutor

    if name == "onnxruntime" or (name == "auto" and not mxnet.is_installed()):
        return Engine("onnxruntime", GraphExecutor, any_quantizer=False, exact=partial(GraphExecutor, exact=True))
    mxnet.import_mxnet(what_for)
    advised = partial(mxnet.Executor, way_out=_on_onnxruntime)
    return Engine("mxnet", advised, any_quantizer=True, exact=advised)


def _on_onnxruntime(g: Graph) -> str:
    """Advice to take onnxruntime, where it is installed and carries every op of the graph; else ""."""
    from qgraph.targets.onnx.emit import carried_ops

    carried = {*carried_ops(), "null", "fake_quantize"}
    there = all(find_spec(package) for package in ("onnx", "onnxruntime"))
    return "--runtime onnxruntime runs it, or " if there and all(n.op in carried for n in g.toposort()) else ""


def executor(model: Model, what_for: str, name: str = "auto", watch: Sequence[Hashable] | None = None) -> Executor:
    """An Executor of any model: a float graph runs on the engine of that name, every other model on its own.

    With an engine that runs no float graphs these run as with auto: see `check_runtime`.
    Raises OptionError for an engine that cannot run this model, and MissingDependencyError.
    """
    if model.ir is not None and model.is_float_graph:
        ports: Any = watch
        return runtime(what_for, name if name in RUNTIMES or name not in MODEL_RUNTIMES else "auto")(model.ir, ports)
    model.refuse_engine(name)
    return model.executor_on(name, watch)


def check_runtime(models: Iterable[Model], name: str) -> None:
    """Raise OptionError for an engine that runs written models alone, where it would run none of these."""
    alone = name in MODEL_RUNTIMES and name not in RUNTIMES
    if alone and all(type(model).executor_on is Model.executor_on for model in models):
        raise OptionError(f"--runtime {name}: it runs .onnx models, and none is given; qgraph convert --to onnx, or "
                          "freeze --target onnx, writes one")
