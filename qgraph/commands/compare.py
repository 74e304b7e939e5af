"""`qgraph.compare`: where a frozen model departs from the float one, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.analysis.difference import Difference
from qgraph.commands.departure import class_scores
from qgraph.commands.evaluate import open_for, runnable
from qgraph.commands.open_model import Model, input_sizes, open_model
from qgraph.engines import executor
from qgraph.errors import DataError, OptionError
from qgraph.formats.mxnet_marks import is_frozen_op, is_quantized_op
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.options import DataOptions, Progress
from qgraph.passes import PIPELINES
from qgraph.passes.fuse_relu import FuseRelu
from qgraph.targets.ncnn.int8 import output_scale
from qgraph.targets.ncnn.model import NcnnModel
from qgraph.targets.onnx.model import OnnxModel
from qgraph.targets.tengine.model import TengineModel

WORST = 3
_ONNX_LAYERS = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose", "Add", "Concat", "MaxPool", "AveragePool",
                          "GlobalAveragePool", "GlobalMaxPool"})
_SIGNED, _UNSIGNED = 127.5, 255.5  # steps in the range that MXNet carries beside its codes


class _Side:
    """One of the two models, such that tensors of the same name hold the same values on both sides.

    A float model is folded as freezing does.  In a frozen one only activations are fused: simulated layers carry them
    as nodes of their own, integer layers inside.
    """

    def __init__(self, model: Any) -> None:
        self.graph = runnable(open_model(model).graph)
        self.frozen = any(is_frozen_op(node) for node in self.graph.dag)
        for step in (FuseRelu(),) if self.frozen else PIPELINES["float"]:
            step.run(self.graph)
        self.nodes = {n.name: n for n in self.graph.toposort() if n.op != "null"}

    def comparable(self) -> list[str]:
        """Layers, sums, concatenations and poolings, in order."""
        return [name for name, node in self.nodes.items() if _is_tensor(node)
                and (ops.kind(node) in (ops.COMPUTE, ops.JOIN, ops.AVERAGE) or node.op == "Pooling"
                     or is_quantized_op(node))]

    def has(self, name: str) -> bool:
        return name in self.nodes and _is_tensor(self.nodes[name])

    def watch(self, names: Sequence[str]) -> list[Any]:
        """The first output, then what `reals` reads."""
        return [self.graph.heads[0], *self.ports(names)]

    def is_float(self, name: str) -> bool:
        return not is_quantized_op(self.nodes[name])

    def ports(self, names: Iterable[str]) -> list[Port]:
        """The tensors to watch: one per float name, codes with their minimum and maximum per integer name."""
        return [Port(self.nodes[name], i) for name in names for i in range(1 if self.is_float(name) else 3)]

    def reals(self, names: Iterable[str], values: list[np.ndarray]) -> dict[str, np.ndarray]:
        """What the watched tensors stand for."""
        rest = iter(values)
        return {name: self._as_the_users(name, next(rest) if self.is_float(name) else _dequantize(
                    next(rest), next(rest), next(rest))) for name in names}

    def _as_the_users(self, name: str, value: np.ndarray) -> np.ndarray:
        """Passes may have reordered channels and shifted values, and say so on the node."""
        node = self.nodes[name]
        value = value if node.layout is None else _reordered(value, np.array(node.layout))
        return value - np.float32(node.shift) if node.shift else value

    def rows(self, found: Mapping[str, Difference]) -> list[dict[str, Any]]:
        return _layers(self.graph, found)


class _OnnxSide:
    """The same of an ONNX model. Of a quantized layer the codes are watched, so that onnxruntime fuses it as ever."""

    def __init__(self, model: OnnxModel) -> None:
        self.graph = model
        self.codes, self.orders = model.codes(), model.channel_orders
        self.made = {name: node.op_type for node in model.proto.graph.node for name in node.output}
        self.tensors = {name: name for name in self.made}

    def use_origins(self) -> None:
        """Call tensors as in the user's model: a converted model has them all, a frozen one folds layers."""
        origins = self.graph.origins
        self.tensors = {**self.tensors, **{origins[name]: name for name in self.made if name in origins}}
        for name in origins.keys() - set(origins.values()):
            self.tensors.pop(name, None)

    def comparable(self) -> list[str]:
        return [name for name, tensor in self.tensors.items()
                if self.made[tensor] in _ONNX_LAYERS or tensor in self.codes]

    def has(self, name: str) -> bool:
        return name in self.tensors

    def watch(self, names: Sequence[str]) -> list[Any]:
        tensors = [self.tensors[name] for name in names]
        return [self.graph.outputs[0], *(self.codes[t].tensor if t in self.codes else t for t in tensors)]

    def reals(self, names: Iterable[str], values: list[np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for name, value in zip(names, values):
            tensor = self.tensors[name]
            if tensor in self.codes:
                known = self.codes[tensor]
                value = (value.astype(np.float32) - known.zero_point) * np.float32(known.scale)
            order = self.orders.get(tensor)
            found[name] = value if order is None else _reordered(value, order)
        return found

    def rows(self, found: Mapping[str, Difference]) -> list[dict[str, Any]]:
        """One row per tensor; what a layer adds is not told apart where there is no graph of ours."""
        return [{"name": name, "op": self.made[self.tensors[name]], "origin": [name], **difference.to_dict(),
                 "added_noise": None} for name, difference in found.items()]


class _NcnnSide:
    """The same of an ncnn model, whose layers are called as the nodes."""

    _PLAIN = frozenset({"Convolution", "ConvolutionDepthWise", "InnerProduct", "Deconvolution", "Convolution1D",
                        "DeconvolutionDepthWise", "BinaryOp", "Eltwise", "Concat", "Pooling"})

    def __init__(self, model: NcnnModel) -> None:
        self.graph = model
        self.layers = {layer.name: layer for layer in model.layers if len(layer.outputs) == 1}

    def comparable(self) -> list[str]:
        return [name for name, layer in self.layers.items() if layer.type in self._PLAIN]

    def has(self, name: str) -> bool:
        return name in self.layers

    def watch(self, names: Sequence[str]) -> list[Any]:
        return [self.graph.outputs[0], *(self.layers[name].outputs[0] for name in names)]

    def reals(self, names: Iterable[str], values: list[np.ndarray]) -> dict[str, np.ndarray]:
        """What an int8 layer writes in codes is divided by its output scale."""
        return {name: value / output_scale(self.layers[name]) for name, value in zip(names, values)}

    def rows(self, found: Mapping[str, Difference]) -> list[dict[str, Any]]:
        return [{"name": name, "op": self.layers[name].type, "origin": [name], **difference.to_dict(),
                 "added_noise": None} for name, difference in found.items()]


class _TengineSide:
    """The same of a Tengine model, whose nodes are called as ours; what a relu of its own ends counts behind it."""

    def __init__(self, model: TengineModel) -> None:
        self.graph = model
        self.nodes = {n.name: n for n in model.graph.toposort() if n.op not in ("null", "fake_quantize")}

    def comparable(self) -> list[str]:
        return [name for name, node in self.nodes.items()
                if ops.kind(node) == ops.COMPUTE or node.op in ("broadcast_add", "Concat", "Pooling")]

    def has(self, name: str) -> bool:
        return name in self.nodes

    def watch(self, names: Sequence[str]) -> list[Port]:
        return [self.graph.graph.heads[0], *(self._value(self.nodes[name]) for name in names)]

    def _value(self, node: Node) -> Port:
        """Behind its rounding, and behind the activation that is fused into it on the other side."""
        g, found = self.graph.graph, node
        follow = ("fake_quantize",) if node.op in ("Pooling", "Concat") else ("fake_quantize", "Activation", "clip")
        while len(readers := g.readers(found)) == 1 and readers[0].op in follow and not g.is_head(found):
            found = readers[0]
        return Port(found)

    def reals(self, names: Iterable[str], values: list[np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, values))

    def rows(self, found: Mapping[str, Difference]) -> list[dict[str, Any]]:
        return [{"name": name, "op": self.nodes[name].op, "origin": [name], **difference.to_dict(),
                 "added_noise": None} for name, difference in found.items()]


def _open_side(model: Any) -> Any:
    opened = open_model(model)
    if isinstance(opened.graph, TengineModel):
        return _TengineSide(opened.graph)
    if isinstance(opened.graph, NcnnModel):
        return _NcnnSide(opened.graph)
    return _Side(opened) if isinstance(opened.graph, Graph) else _OnnxSide(opened.graph)


def _reordered(value: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Channels back in the user's order."""
    if value.ndim < 2 or value.shape[1] != len(order):
        return value
    back = np.empty_like(value)
    back[:, order] = value
    return back


def _dequantize(codes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    lowest, highest = float(low.ravel()[0]), float(high.ravel()[0])
    step = max(abs(lowest), abs(highest)) / (_SIGNED if lowest < 0 else _UNSIGNED)
    return codes.astype(np.float32) * np.float32(step)


def compare(a: Any, b: Any, data: Any, *, options: DataOptions | None = None,
            progress: Progress | None = None, runtime: str = "auto") -> dict[str, Any]:
    """`b` judged by `a` on the same images; both are what `open_model` takes.

    Returns {"images", "agreement": top-1 in percent or None, "output": DIFF, "layers": [{"name", "op", "origin",
    **DIFF, "added_noise"}], "worst": [names], "exclude": "--exclude ...", "no_advice": why these are empty or ""} with
    DIFF = sqnr_db (None: equal to the last bit), cosine, max_error.  added_noise is the layer's noise / signal less
    that of what it reads; None if `a` is no MXNet model.  Integer tensors are compared as what they stand for.
    """
    first, second = _open_side(a), _open_side(b)
    if isinstance(first, _OnnxSide) and isinstance(second, _OnnxSide):
        first.use_origins()
        second.use_origins()
    names = _common(first, second)
    opened = open_for(first.graph, data, options or DataOptions())
    runs = [executor(side.graph, "comparing models", runtime, side.watch(names)) for side in (first, second)]

    found = {name: Difference() for name in names}
    output = Difference()
    images = same = 0
    classifies = True
    for batch in opened:
        (want_out, *want), (got_out, *got) = (run.run(batch.feeds) for run in runs)
        if want_out.shape != got_out.shape:
            raise OptionError(f"the models' outputs have the shapes {want_out.shape} and {got_out.shape}, "
                              "want two of the same network")
        output.update(want_out, got_out)
        scores = class_scores(want_out), class_scores(got_out)
        classifies = classifies and scores[0] is not None
        if scores[0] is not None and scores[1] is not None:
            same += int((scores[0].argmax(1) == scores[1].argmax(1)).sum())
        got_reals = second.reals(names, got)
        for name, real in first.reals(names, want).items():
            if name in found and real.shape == got_reals[name].shape:
                found[name].update(real, got_reals[name])
            else:
                found.pop(name, None)
        images += len(batch)
        if progress:
            progress("comparing", images, opened.num_items)
    if not images:
        raise DataError(f"{opened.name}: no image was read")
    layers = first.rows(found)
    no_advice = _no_advice(first)
    worst = [] if no_advice else _worst(layers, first)
    return {"images": images, "agreement": round(100 * same / images, 2) if classifies else None,
            "output": output.to_dict(), "layers": layers, "worst": worst,
            "exclude": " ".join(f"--exclude {name}" for name in worst), "no_advice": no_advice}


def _common(first: Any, second: Any) -> list[str]:
    """Names of layers, sums, concatenations and poolings that both models have, in the order of the first."""
    odd = sorted(set(input_sizes(first.graph)) ^ set(input_sizes(second.graph)))
    if odd:
        raise OptionError(f"only one of the models has the input {', '.join(odd)}, want two of the same network")
    names = [name for name in first.comparable() if second.has(name)]
    if isinstance(first, _OnnxSide) and isinstance(second, _OnnxSide):  # what is a layer here may be its relu there
        wanted = {*names, *filter(first.has, second.comparable())}
        names = [name for name in first.tensors if name in wanted]
    if not names:
        raise OptionError("the models have no layer of the same name, want a model and its frozen form")
    return names


def _is_tensor(node: Node) -> bool:
    return node.n_out >= 3 if is_quantized_op(node) else node.n_out == 1


def _layers(g: Graph, found: Mapping[str, Difference]) -> list[dict[str, Any]]:
    """One row per layer in topological order. The noise of a node that is not compared is that of what it reads."""
    noise: dict[Node, float] = {}
    rows = []
    for node in g.toposort():
        before = max((noise[p.node] for p in g.inputs(node)), default=0.0)
        noise[node] = before
        difference = found.get(node.name) if node.op != "null" else None
        if difference is None:
            continue
        noise[node] = difference.noise / difference.signal if difference.signal else 0.0
        rows.append({"name": node.name, "op": node.op, "origin": list(node.origin or (node.name,)),
                     **difference.to_dict(), "added_noise": float(f"{max(noise[node] - before, 0.0):.4g}")})
    return rows


def _no_advice(side: Any) -> str:
    """Why it cannot be told from the first model which layers `freeze` should leave in float, or ""."""
    if isinstance(side, _Side) and not side.frozen:
        return ""
    return f"A is {'frozen' if isinstance(side, _Side) else Model(side.graph).kind}, want the float MXNet model"


def _worst(layers: list[dict[str, Any]], side: _Side) -> list[str]:
    """The layers with weights that add most noise, worst first."""
    found = [x for x in layers if x["added_noise"] > 1e-9 and ops.kind(side.nodes[x["name"]]) == ops.COMPUTE]
    return [x["name"] for x in sorted(found, key=lambda x: (-x["added_noise"], x["name"]))[:WORST]]
