"""An MXNet model in memory: a graph of MXNet's ops, float or frozen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from qgraph.arrays import Array
from qgraph.errors import OptionError
from qgraph.files import Content
from qgraph.formats.mxnet_marks import is_frozen_op, is_quantized_op
from qgraph.formats.mxnet_writer import checkpoint_files, to_mxnet
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.infer import infer
from qgraph.semantics.inputs import hinted_shapes, inputs_of, known_channels
from qgraph.targets.base import Description, Executor, Model, Shapes, Tensors, counted


class MxnetModel(Model):
    """graph: its ops.  codes: in a model that was just written, where the integers of quantizers are.

    centered: whether these are less their zero points.
    """

    kind = "an MXNet model"
    engine = "mx.mod.Module"
    float_engine = "mxnet"

    def __init__(self, graph: Graph, codes: Mapping[Node, Port] | None = None, centered: bool = False) -> None:
        self.graph, self._codes, self.centered = graph, codes or {}, centered

    @property
    def ir(self) -> Graph:
        return self.graph

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        channels = known_channels(self.graph)
        return {name: channels.get(name, ()) for name in inputs_of(self.graph)}

    @property
    def known_shapes(self) -> dict[str, list[int] | None]:
        shapes = hinted_shapes(self.graph)
        return {name: list(shapes[name]) if name in shapes else None for name in inputs_of(self.graph)}

    @property
    def outputs(self) -> list[str]:
        return [head.key for head in self.graph.heads]

    @property
    def heads(self) -> list[Hashable]:
        return [*self.graph.heads]

    @property
    def arrays(self) -> Mapping[str, Array]:
        return self.graph.params

    @property
    def op_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(n.op for n in self.graph.toposort() if n.op != "null").items()))

    @property
    def codes(self) -> Mapping[Node, Hashable]:
        return self._codes

    @property
    def frozen(self) -> bool:
        return any(is_frozen_op(node) for node in self.graph.dag)

    @property
    def is_float_graph(self) -> bool:
        return not any(is_quantized_op(node) for node in self.graph.dag)

    def files(self, prefix: str) -> dict[str, Content]:
        return checkpoint_files(self.graph, prefix)

    def executor(self, watch: Sequence[Any] | None = None, *, precise: bool = False) -> Executor:
        from qgraph.targets.mxnet.runtime import Executor as Runtime
        from qgraph.targets.mxnet.runtime import import_mxnet

        import_mxnet("a model that is frozen for MXNet (--target onnx makes one for onnxruntime)")
        return Runtime(self.graph, watch)

    def refuse_engine(self, name: str) -> None:
        if name not in ("auto", self.float_engine):
            raise OptionError(f"--runtime {name}: this model is frozen for MXNet's own operators; freeze the float "
                              "model with --target onnx instead")

    def tensors(self) -> Tensors:
        from qgraph.targets.mxnet.tensors import MxnetTensors

        return MxnetTensors(self.graph, self.frozen)

    def describe(self, shapes: Shapes | None = None) -> Description:
        """Of a frozen model every integer op is a row; what a float model becomes is told by `qgraph inspect`."""
        known = infer(self.graph, {**hinted_shapes(self.graph), **(shapes or {})})
        body: dict[str, Any] = {
            "frozen": self.frozen,
            "inputs": {name: list(shapes[name]) if shapes and name in shapes else shape
                       for name, shape in self.known_shapes.items()},
            "outputs": {h.key: list(known[h]) if h in known else None for h in self.graph.heads},
            "ops": self.op_counts, "params": counted([*self.graph.params.values()]),
            "layers": [_integer_row(n) for n in self.graph.toposort() if is_frozen_op(n)]}
        rows = [(row["op"], row["name"], row.get("dtype"),
                 "{:.5g} .. {:.5g}".format(*row["range"]) if "range" in row else "") for row in body["layers"]]
        return Description(body, columns=("integer op", "name", "type", "range"), rows=rows)

    def module(self, shapes: Mapping[str, Sequence[int]] | Sequence[int]) -> Any:
        """A bound `mx.mod.Module` for inference. shapes: of the inputs, by name, or of the one input."""
        from qgraph.targets.mxnet.runtime import import_mxnet

        mx = import_mxnet("Frozen.module")
        names = inputs_of(self.graph)
        by_name = shapes if isinstance(shapes, Mapping) else {names[0]: shapes}
        if any(isinstance(shape, str) or not isinstance(shape, Sequence) for shape in by_name.values()):
            raise OptionError(f"module: found {shapes!r}, want a shape such as (1, 3, 224, 224), or name -> shape")
        if missing := [name for name in names if name not in by_name]:
            raise OptionError(f"module: want a shape for every input, found none for {', '.join(missing)}")
        symbol, arg, aux = to_mxnet(self.graph)
        module = mx.mod.Module(symbol, data_names=names, label_names=None)
        try:
            module.bind(data_shapes=[(n, tuple(by_name[n])) for n in names], for_training=False)
        except RuntimeError as error:
            last = (str(error).strip().splitlines() or [""])[-1]
            raise OptionError(f"module: MXNet cannot bind this model to {by_name}: {last}") from error
        module.set_params(arg, aux)
        return module


def _integer_row(node: Node) -> dict[str, Any]:
    row: dict[str, Any] = {"name": node.name, "op": node.op}
    low, high = (ops.number(node, key) for key in ops.CALIBRATED)
    if low is not None and high is not None:
        row["dtype"] = node.attrs.get("out_type") or ("int8" if low < 0 else "uint8")
        row["range"] = [low, high]
    return row
