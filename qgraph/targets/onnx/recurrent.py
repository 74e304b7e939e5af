"""Converters to ONNX of the fused RNN op: an LSTM, GRU or RNN node for each layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qgraph.errors import QGraphError
from qgraph.ir.graph import Port
from qgraph.semantics.interpreter import Executor
from qgraph.semantics.recurrent import GATES, Weights, directions, layers
from qgraph.targets.onnx.convert import Context, converter

_NODES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}  # ONNX's gates: input, output, forget, new; update, reset, new


@converter("_rnn_param_concat")
def _parameters(c: Context, *parts: str) -> str:
    return str(c.op("Concat", *parts, axis=c.attr("dim")))


@converter("RNN")
def _rnn(c: Context, x: str, _: str, *states: str) -> list[str]:
    """Layers on the outputs of the one before; their last states side by side, as MXNet has them."""
    mode, units, sides, width = c.attr("mode"), c.attr("state_size"), directions(c.node), c.shape()[2]
    if width == -1:
        raise c.refuse("the width of its data depends on the batch size")
    found = layers(c.node, _flat(c), width)
    attrs = {"hidden_size": units, "direction": "bidirectional" if sides == 2 else "forward"}
    if mode == "gru":
        attrs["linear_before_reset"] = 1
    elif mode != "lstm":
        attrs["activations"] = ["Tanh" if mode == "rnn_tanh" else "Relu"] * sides
    begin = [[state] if len(found) == 1 else _split(c, state, len(found)) for state in states]
    ends: list[list[str]] = []
    for number, layer in enumerate(found):
        out, *last = c.op(_NODES[mode], x, *_arrays(c, mode, layer), "", *(state[number] for state in begin),
                          n_out=3 if mode == "lstm" else 2, **attrs)
        x = c.op("Reshape", c.op("Transpose", out, perm=[0, 2, 1, 3]), c.const([0, 0, sides * units], "shape"))
        ends.append(last)
    behind = [list(parts) for parts in zip(*ends)][:c.node.n_out - 1]
    return [x, *(c.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0] for parts in behind)]


def _split(c: Context, state: str, count: int) -> list[str]:
    return list(c.op("Split", state, n_out=count, axis=0, num_outputs=count))


def _flat(c: Context) -> np.ndarray:
    """The parameters, that Gluon puts together out of those of the layers."""
    array = c.value(1)
    if array is None:
        port: Port = c.graph.inputs(c.node)[1]
        try:
            (array,) = Executor(c.graph, [port]).run({})
        except QGraphError as error:
            raise c.refuse(f"its parameters are computed: {error}") from error
    return np.asarray(array, np.float32).ravel()


def _arrays(c: Context, mode: str, layer: Sequence[Weights]) -> list[str]:
    """W, R and B, a row for each direction."""
    def ordered(array: np.ndarray) -> np.ndarray:
        gates = array.reshape(GATES[mode], -1, *array.shape[1:])
        return gates[list(_ORDER.get(mode, (0,)))].reshape(array.shape)

    biases = [np.concatenate([ordered(w.input_bias), ordered(w.state_bias)]) for w in layer]
    return [c.const(np.stack(arrays), hint) for hint, arrays in (
        ("W", [ordered(w.inputs) for w in layer]), ("R", [ordered(w.states) for w in layer]), ("B", biases))]
