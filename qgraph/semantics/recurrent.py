"""The fused RNN op: LSTM, GRU and plain recurrent layers, time first: (length, batch, width)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Node
from qgraph.semantics.geometry import Shape, axis_of, need
from qgraph.semantics.infer import rule
from qgraph.semantics.kernels import kernel, sigmoid

GATES = {"rnn_relu": 1, "rnn_tanh": 1, "gru": 3, "lstm": 4}
"""Mode -> gates, in MXNet's order: reset, update, new; input, forget, new, output."""


class Weights(NamedTuple):
    """Of one layer in one direction; rows run over gates, then units. One bias for the input, one for the state."""

    inputs: np.ndarray
    states: np.ndarray
    input_bias: np.ndarray
    state_bias: np.ndarray


def directions(node: Node) -> int:
    return 2 if ops.attr(node, "bidirectional") else 1


def check_forms(node: Node) -> None:
    """Raise UnsupportedError for forms that MXNet has on GPUs, or that change what a step computes."""
    for key in ("projection_size", "use_sequence_length", "lstm_state_clip_min", "lstm_state_clip_max"):
        if ops.attr(node, key):
            raise UnsupportedError(f"{node}: found {key}={node.attrs[key]}, want a recurrent layer without it")
    if ops.attr(node, "mode") not in GATES:
        raise UnsupportedError(f"{node}: found mode {ops.attr(node, 'mode')!r}, want one of {', '.join(GATES)}")


def layers(node: Node, flat: np.ndarray, width: int) -> list[list[Weights]]:
    """Layer -> direction -> weights. flat: the parameters, all weights first, then all biases. width: of the data."""
    check_forms(node)
    units, count, sides = ops.attr(node, "state_size"), ops.attr(node, "num_layers"), directions(node)
    rows = GATES[ops.attr(node, "mode")] * units
    widths = [width] + [units * sides] * (count - 1)
    need(node, flat.size == sum(sides * rows * (w + units + 2) for w in widths), "parameters", flat.size,
         f"those of {count} layers of {units} units on {width} values")
    at = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        start, at = at, at + int(np.prod(shape))
        return flat[start:at].reshape(shape)

    matrices = [[(take(rows, w), take(rows, units)) for _ in range(sides)] for w in widths]
    return [[Weights(*pair, take(rows), take(rows)) for pair in layer] for layer in matrices]


@rule("RNN")
def _rnn_shape(node: Node, shapes: list[Shape]) -> Shape | list[Shape]:
    need(node, len(shapes[0]) == 3, "data", shapes[0], "3 axes")
    units, sides = int(ops.attr(node, "projection_size") or ops.attr(node, "state_size")), directions(node)
    length, batch, _ = shapes[0]
    out, count = (length, batch, sides * units), sides * ops.attr(node, "num_layers")
    states: list[Shape] = [(count, batch, units), (count, batch, ops.attr(node, "state_size"))]
    return [out, *states][:node.n_out] if node.n_out > 1 else out


@kernel("RNN")
def _rnn(node: Node, x: np.ndarray, flat: np.ndarray, *states: np.ndarray) -> list[np.ndarray]:
    ends: list[list[np.ndarray]] = []
    for number, layer in enumerate(layers(node, flat.ravel(), x.shape[2])):
        outputs = []
        for side, weights in enumerate(layer):
            zeros = np.zeros((x.shape[1], weights.states.shape[1]), np.float32)
            begin = [state[number * len(layer) + side] for state in states] or [zeros, zeros]
            steps = list(_steps(node, x[::-1] if side else x, weights, begin))
            outputs.append(np.stack([step[0] for step in (steps[::-1] if side else steps)]))
            ends.append(steps[-1])
        x = np.concatenate(outputs, 2)
    return [x, *(np.stack(values) for values in zip(*ends))]


def _steps(node: Node, x: np.ndarray, w: Weights, begin: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The states behind each step: the output, and in an LSTM the cell."""
    mode, state, cell = ops.attr(node, "mode"), begin[0], begin[-1]
    for step in np.matmul(x, w.inputs.T) + w.input_bias:
        own = np.matmul(state, w.states.T) + w.state_bias
        if mode == "lstm":
            entry, forget, new, output = np.split(step + own, 4, 1)
            cell = sigmoid(forget) * cell + sigmoid(entry) * np.tanh(new)
            state = sigmoid(output) * np.tanh(cell)
            yield [state, cell]
            continue
        if mode == "gru":
            (reset, update, new), (r, z, n) = np.split(step, 3, 1), np.split(own, 3, 1)
            keep = sigmoid(update + z)
            state = (1 - keep) * np.tanh(new + sigmoid(reset + r) * n) + keep * state
        else:
            state = np.tanh(step + own) if mode == "rnn_tanh" else np.maximum(step + own, 0)
        yield [state]


@rule("_rnn_param_concat")
def _parameters_shape(node: Node, shapes: list[Shape]) -> Shape:
    axis = axis_of(node, ops.attr(node, "dim"), len(shapes[0]))
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1:])


@kernel("_rnn_param_concat")
def _parameters(node: Node, *parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, ops.attr(node, "dim"))
