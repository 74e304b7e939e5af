"""What the folding passes share: a BatchNorm as ``scale * x + shift``, and weights that absorb such a step.

Everything here is float64 and changes nothing; `set_weights` alone writes, in the dtype that the weight had.
Refusals are `MatchFail` with the node and the reason.
"""

from __future__ import annotations

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import MatchFail


def bn_affine(g: Graph, bn: Node) -> tuple[np.ndarray, np.ndarray]:
    """A BatchNorm at inference is ``scale * x + shift`` per channel; both are (C,) float64.

        scale = gamma / sqrt(var + eps)          (gamma is 1 under fix_gamma, MXNet's default)
        shift = beta - mean * scale
    """
    if any(g.uses(Port(bn, i)) or g.is_head(Port(bn, i)) for i in range(1, bn.n_out)):
        raise MatchFail(bn, "its mean or variance output is read")
    arrays = [g.param(port) for port in g.inputs(bn)[1:]]
    if len(arrays) != 4 or any(a is None for a in arrays):
        raise MatchFail(bn, "gamma, beta, mean and variance are not all parameters")
    gamma, beta, mean, var = (np.asarray(a, np.float64) for a in arrays)
    if not gamma.shape == beta.shape == mean.shape == var.shape or gamma.ndim != 1:
        raise MatchFail(bn, f"has parameters of shapes {gamma.shape}, {beta.shape}, {mean.shape}, {var.shape}")
    if ops.attr(bn, "fix_gamma"):
        gamma = np.ones_like(gamma)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + ops.attr(bn, "eps"))
        shift = beta - mean * scale
    _check_finite(bn, "scale or shift", scale, shift)
    return scale, shift


def reads_channel_axis(bn: Node, weighted: Node) -> bool:
    """Whether the BatchNorm's axis is the channel axis of what the Convolution, Deconvolution or FullyConnected emits.

    FullyConnected: axis 1 of its (N, C) with flatten; without, the rank is unknown and only axis -1 is sure.
    """
    axis = ops.attr(bn, "axis")
    if weighted.op == "FullyConnected":
        return bool(axis == -1 or (axis == 1 and ops.attr(weighted, "flatten")))
    rank = len(ops.attr(weighted, "kernel")) + 2
    return bool(axis % rank == 1 and ops.channels_first(weighted))


def own_weights(g: Graph, node: Node) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight and bias (or None) in float64. Refuses what is not a parameter, or is read by somebody else too."""
    found: list[np.ndarray] = []
    for port in g.inputs(node)[1:]:
        array = g.param(port)
        if array is None:
            raise MatchFail(node, f"{port.node.name} is not a parameter")
        if not g.has_one_use(port):
            raise MatchFail(node, f"its parameter {port.node.name} has other readers")
        found.append(np.asarray(array, np.float64))
    if not found:
        raise MatchFail(node, "has no weight")
    return found[0], found[1] if len(found) > 1 else None


def out_channels(node: Node, weight: np.ndarray) -> int:
    groups = ops.attr(node, "num_group") if node.op != "FullyConnected" else 1
    return int(weight.shape[1] * groups if node.op == "Deconvolution" else weight.shape[0])


def scale_outputs(node: Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The weight with its output channels multiplied by `scale` (O,).

    Convolution and FullyConnected keep output channels on axis 0.  A Deconvolution's weight is (I, O/groups, kh, kw):
    rows of group j make the outputs j * O/groups and on.
    """
    if node.op != "Deconvolution":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = ops.attr(node, "num_group")
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    spread = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return (split * spread).reshape(weight.shape)


def per_input(node: Node, weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` of input channels (C,), (1,) or (), laid out to multiply the weight."""
    if values.size == 1:
        return values.reshape([1] * weight.ndim)
    if node.op == "Deconvolution":
        return values.reshape(-1, *[1] * (weight.ndim - 1))
    if node.op == "FullyConnected":  # flattened (C, H, W): each channel owns H * W neighbouring columns
        if weight.shape[1] % len(values):
            raise MatchFail(node, f"reads {weight.shape[1]} values, not a multiple of {len(values)} channels")
        return np.repeat(values, weight.shape[1] // len(values))[None]
    groups, inputs = ops.attr(node, "num_group"), weight.shape[1]
    if groups * inputs != len(values) or weight.shape[0] % groups:
        raise MatchFail(node, f"reads {groups * inputs} channels, not {len(values)}")
    rows = np.repeat(values.reshape(groups, inputs), weight.shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def absorb_input_affine(node: Node, weight: np.ndarray, bias: np.ndarray | None, scale: np.ndarray,
                        shift: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight and bias of `node`(x) that equal `node`(scale * x + shift), per input channel.

        W' = W * scale        b' = b + sum over inputs and kernel of W * shift

    A Convolution pads with zeros *behind* the step, so with padding only a zero shift is exact.
    """
    if not shift.any():
        return weight * per_input(node, weight, scale), bias
    if node.op == "Convolution" and any(ops.attr(node, "pad")):
        raise MatchFail(node, f"pads with zeros ({node.attrs.get('pad')}), which a shift of its input does not survive")
    moved = (weight * per_input(node, weight, shift)).reshape(weight.shape[0], -1).sum(axis=1)
    return weight * per_input(node, weight, scale), moved if bias is None else bias + moved


def set_weights(g: Graph, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> None:
    """Store new values in the dtype of the old weight; a bias is created where there was none.

    Refuses, before changing anything, values that this dtype cannot hold.
    """
    ports = g.inputs(node)
    dtype = g.params[ports[1].node.name].dtype
    with np.errstate(over="ignore"):
        stored = [np.ascontiguousarray(a, dtype=dtype) for a in (weight, bias) if a is not None]
    _check_finite(node, "folded weight or bias", *stored)
    g.params[ports[1].node.name] = stored[0]
    if bias is None:
        return
    if len(ports) > 2:
        g.params[ports[2].node.name] = stored[1]
    else:
        g.set_input(node, 2, g.add_param(f"{node.name}_bias", stored[1], origin=node.origin or (node.name,)))
        node.attrs["no_bias"] = "False"


def absorb(g: Graph, node: Node, *gone: Node) -> None:
    """`node` remembers, behind its own name, the names of the nodes that it now stands for."""
    names = list(node.origin or (node.name,))
    for other in gone:
        names += other.origin or (other.name,)
    node.origin = tuple(dict.fromkeys(names))


def _check_finite(node: Node, what: str, *arrays: np.ndarray) -> None:
    if not all(np.isfinite(a).all() for a in arrays):
        raise MatchFail(node, f"the {what} is not finite")
