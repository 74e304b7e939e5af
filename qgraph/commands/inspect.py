"""`qgraph inspect`: what a model is made of, and what `freeze` would do with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.commands.open_model import end_at, open_model
from qgraph.errors import OptionError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.options import parse_shapes
from qgraph.passes import PIPELINES
from qgraph.passes.insert_fake_quantize import layer_verdicts
from qgraph.semantics.infer import infer
from qgraph.semantics.inputs import hinted_shapes, inputs_of
from qgraph.targets.base import Description, Model, Shapes
from qgraph.targets.mxnet.model import MxnetModel
from qgraph.targets.registry import get_target


def inspect_model(model: Any, *, params: str | None = None, epoch: int | None = None, target: str = "mxnet",
                  exclude: Sequence[str] = (), outputs: Sequence[str] = (),
                  input_shape: Sequence[str] = ()) -> dict[str, Any]:
    """{"frozen", "inputs", "outputs", "ops": {op: count}, "params": {"arrays", "numbers", "bytes"}, "layers": [...]}.

    A layer of a float model: name, op, weight and output shape (None if not known), origin, "float" (why it would stay
    in float for `target`, "" if it would be quantized), after the float passes.  Of a frozen one: name, op, output type
    and range.  What models of other engines have besides, each says in its `describe`.
    """
    return describe(model, params=params, epoch=epoch, target=target, exclude=exclude, outputs=outputs,
                    input_shape=input_shape).body


def describe(model: Any, *, params: str | None = None, epoch: int | None = None, target: str = "mxnet",
             exclude: Sequence[str] = (), outputs: Sequence[str] = (),
             input_shape: Sequence[str] = ()) -> Description:
    """The same with the table that people read."""
    opened = open_model(model, params, epoch).model
    if opened.ir is None:
        if outputs:
            raise OptionError(f"--outputs: is for MXNet models, found {opened.kind}, whose outputs are "
                              f"{', '.join(opened.outputs)}")
        return opened.describe()
    end_at(opened.ir, outputs)
    shapes = parse_shapes(input_shape, inputs_of(opened.ir))
    return opened.describe(shapes) if opened.frozen else _float(opened, opened.ir, shapes, target, exclude)


def _float(model: Model, g: Graph, shapes: Shapes, target: str, exclude: Sequence[str]) -> Description:
    """A float model, with what freezing for `target` would make of each layer."""
    chosen = get_target(target)
    found = model.describe(shapes)
    for step in PIPELINES["float"]:
        step.run(g)
    known = infer(g, {**hinted_shapes(g), **shapes})
    doubts = chosen.doubts(g)
    layers = [_layer(g, node, why or doubts.get(node, ""), known)
              for node, why in layer_verdicts(g, chosen, tuple(exclude)).items()]
    found.body.update(target=target, layers=layers, ops_after_folding=MxnetModel(g).op_counts)
    found.columns = ("layer", "op", "weight", "output", f"for {target}")
    found.rows = [(row["name"], row["op"], shown_shape(row["weight"]), shown_shape(row["output"]),
                   f"float: {row['float']}" if row["float"] else "quantized") for row in layers]
    return found


def _layer(g: Graph, node: Node, why: str, known: Mapping[Port, tuple[int, ...]]) -> dict[str, Any]:
    inputs = g.inputs(node)
    weight = g.param(inputs[1]) if len(inputs) > 1 else None
    return {"name": node.name, "op": node.op, "weight": None if weight is None else list(weight.shape),
            "groups": ops.attr(node, "num_group") if node.op != "FullyConnected" else 1,
            "output": list(known[Port(node)]) if Port(node) in known else None,
            "origin": list(node.origin or (node.name,)), "float": why}


def shown_shape(shape: Sequence[int | str] | None) -> str:
    """``1x3x224x224``, or ? where it is not known."""
    return "?" if shape is None else "x".join(map(str, shape))
