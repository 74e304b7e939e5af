"""What the parameters of a float network tell of trouble to come: no data are needed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qgraph.analysis.finding import ERROR, NOTE, WARNING, Finding, listed
from qgraph.arrays import Array
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node

HUGE = 1e10  # of a parameter: squares and sums of such values leave float32
DEAD = 1e-4  # of a layer's median channel: int8 cannot tell it from zero
DEAD_SHARE, DEAD_LAYER, LEAST_CHANNELS = 0.05, 0.5, 16
STEEP = 64.0  # times the median channel of a layer; trained depthwise layers have up to 26
TINY_PART = 1 / 16  # of the range of an embedding
LARGEST_CODE = 127 * 255  # of a product
INT32 = 2**31 - 1


def check_values(g: Graph) -> Iterator[Finding]:
    """Numbers that are none, or beyond what float32 can calculate with."""
    broken = {name: int((~np.isfinite(array)).sum()) for name, array in g.params.items() if array.dtype.kind == "f"}
    broken = {name: count for name, count in broken.items() if count}
    if broken:
        shown = listed([f"{name} ({count} of {g.params[name].size})" for name, count in broken.items()])
        yield Finding("not-finite", ERROR, tuple(broken), f"parameters that are NaN or infinite: {shown}",
                      "one NaN makes every output behind it NaN, and a range of infinity has no scale",
                      "take the checkpoint of an earlier epoch (--epoch N, --params FILE), or train again with a lower "
                      "rate or clipped gradients")
    huge = {name: float(np.abs(array).max(initial=0)) for name, array in g.params.items()
            if array.dtype.kind == "f" and name not in broken}
    huge = {name: value for name, value in huge.items() if value > HUGE}
    if huge:
        shown = listed([f"{name} (up to {value:.3g})" for name, value in huge.items()])
        yield Finding("huge", ERROR, tuple(huge), f"parameters that no training ends with: {shown}",
                      "products of such values leave float32, and one of them takes the whole range of its tensor",
                      "take the checkpoint of an earlier epoch (--epoch N, --params FILE); a file of another byte "
                      "order or type looks like this, too")


def check_variances(g: Graph, folded: dict[str, Array]) -> Iterator[Finding]:
    """BatchNorms whose variances divide by next to nothing. folded: of `folded_channels`."""
    negative: list[str] = []
    near: dict[str, int] = {}
    steep: dict[str, float] = {}
    total = 0
    for node in g.nodes("BatchNorm"):
        var = g.param(g.inputs(node)[4]) if len(g.inputs(node)) > 4 else None
        if var is None or not np.isfinite(var).all():
            continue
        total += var.size
        if var.min(initial=0) < 0:
            negative.append(node.name)
            continue
        small = var < 1e-2 * ops.attr(node, "eps")
        if not small.any():
            continue
        near[node.name] = int(small.sum())
        channels = folded.get(_writer(g, node), np.zeros(0))
        if channels.shape == small.shape and (ratio := float(channels[small].max() / _median(channels))) > STEEP:
            steep[node.name] = ratio
    if negative:
        yield Finding("variance", ERROR, tuple(negative), f"BatchNorms with negative variances: {listed(negative)}",
                      "the square root of a negative number is NaN", "the file is damaged or was merged wrongly: "
                      "export the network again")
    if not near:
        return
    worst = sorted(steep, key=lambda name: -steep[name])
    share = sum(near.values()) / total
    shown = listed(worst or [f"{name} ({count})" for name, count in near.items()])
    many = "; ".join(f"{name}: {steep[name]:.0f} times the median channel" for name in worst[:3])
    severity = WARNING if steep or share > DEAD_SHARE else NOTE
    yield Finding(
        "variance", severity, tuple(worst or near),
        f"{sum(near.values())} of {total} variances of BatchNorms are next to zero: {shown}"
        + (f"; folded into the weights, {many}" if steep else ""),
        "a BatchNorm divides by the root of its variance, so what was constant in training is multiplied by hundreds: "
        "such a channel takes the range of its tensor as soon as it moves",
        f"set gamma of these channels to 0 and put what they give into beta, or leave the layers in float: "
        f"{_excludes([_writer(g, node) for node in g.nodes('BatchNorm') if node.name in (worst or near)])}"
        if severity != NOTE else "nothing, as these channels are dead; pruning them makes the network faster")


def check_channels(folded: dict[str, Array]) -> Iterator[Finding]:
    """Output channels that are dead, and such that dominate their layer's weights."""
    dead: dict[str, int] = {}
    for name, channels in folded.items():
        if count := int((channels <= DEAD * _median(channels)).sum()):
            dead[name] = count
    total = sum(map(len, folded.values()))
    if dead:
        count = sum(dead.values())
        many = [name for name in dead
                if dead[name] >= DEAD_LAYER * len(folded[name]) and len(folded[name]) >= LEAST_CHANNELS]
        rows = sorted(dead, key=lambda name: -dead[name] / len(folded[name]))
        shown = listed([f"{name} ({dead[name]} of {len(folded[name])})" for name in rows])
        yield Finding("dead-channels", WARNING if many or count > DEAD_SHARE * total else NOTE, tuple(rows),
                      f"{count} of {total} output channels have weights of next to zero: {shown}",
                      "they cost time and size for nothing, and many of them say that a part of the network never "
                      "learned (a rate too high, a wrong initialization) or was pruned",
                      "prune them before quantizing, or train again if they are many")
    steep = {name: float(channels.max() / _median(channels)) for name, channels in folded.items() if len(channels) > 2}
    steep = {name: ratio for name, ratio in steep.items() if ratio > STEEP}
    if steep:
        rows = sorted(steep, key=lambda name: -steep[name])
        shown = listed([f"{name} (channel {int(folded[name].argmax())}, {steep[name]:.0f} times the median)"
                        for name in rows])
        yield Finding("dominating-channels", WARNING, tuple(rows), f"output channels that dominate a layer: {shown}",
                      "one scale per layer leaves the other channels no codes, and with one per channel the output, "
                      "which has one range, still does",
                      f"--granularity channel and --effort best (which scales channels alike), or {_excludes(rows)}")


def check_embedding(g: Graph) -> Iterator[Finding]:
    """An output behind a BatchNorm whose gammas are tiny beside its betas: what tells images apart gets few codes."""
    for head in g.heads:
        node = head.node
        while g.inputs(node) and (node.op in ops.IDENTITIES or ops.kind(node) == ops.PASS
                                  or node.op == "L2Normalization"):
            node = g.inputs(node)[0].node
        if node.op != "BatchNorm":
            continue
        gamma, beta = (g.param(port) for port in g.inputs(node)[1:3])
        if gamma is None or beta is None:
            continue
        spread = 3 * np.abs(np.ones_like(gamma) if ops.attr(node, "fix_gamma") else gamma)
        whole = float((np.abs(beta) + spread).max(initial=0))
        part = float(np.median(spread)) / whole if whole else 1.0
        if part < TINY_PART:
            yield Finding("tiny-gammas", WARNING, (node.name,),
                          f"{node.name}, in front of the output {head.key}, moves its median channel by {part:.2g} of "
                          "the output's range (tiny gammas, large betas)",
                          f"of 255 codes what tells images apart gets about {max(1, round(255 * part))}; the rest is "
                          "an offset that all images share",
                          f"leave the layer in front in float ({_excludes([_writer(g, node)])}), or end the network "
                          f"before it (--outputs {g.inputs(node)[0].node.name}) and do this BatchNorm in float")


def check_sums(g: Graph) -> Iterator[Finding]:
    """Layers whose sums of int8 products can leave int32."""
    over: dict[str, float] = {}
    for node, weight in _weights(g):
        flat = np.abs(weight.reshape(len(weight), -1).astype(np.float64))
        top = flat.max(axis=1, initial=0)
        codes = np.rint(flat / np.where(top > 0, top, 1)[:, None] * 127).sum(axis=1) * 255
        if (worst := float(codes.max(initial=0))) > INT32:
            over[node.name] = worst
    if over:
        shown = listed([f"{name} (up to {value:.2g})" for name, value in over.items()])
        yield Finding("overflow", WARNING, tuple(over), f"sums of int8 products that can leave int32: {shown}",
                      "the accumulators of every target have 32 bits and wrap around or saturate silently",
                      f"{_excludes([*over])}, or --weight-bits 7 where the target has them")


def folded_channels(folded: Graph) -> dict[str, Array]:
    """Layer -> the largest magnitude of the weights of each output channel. folded: behind the float passes."""
    return {node.name: np.abs(weight.reshape(len(weight), -1)).max(axis=1) for node, weight in _weights(folded)
            if np.isfinite(weight).all() and weight.size}


def _weights(g: Graph) -> Iterator[tuple[Node, Array]]:
    """(layer, its weight with the output channels in axis 0)"""
    for node in g.toposort():
        if ops.kind(node) == ops.COMPUTE and len(g.inputs(node)) > 1:
            weight = g.param(g.inputs(node)[1])
            if weight is not None and weight.ndim > ops.info(node.op).out_axis:
                yield node, np.moveaxis(weight, ops.info(node.op).out_axis, 0)


def _median(channels: Array) -> float:
    """Of the channels that are not zero."""
    live = channels[channels > 0]
    return float(np.median(live)) if live.size else 1.0


def _writer(g: Graph, node: Node) -> str:
    """The layer that writes what a BatchNorm reads, or whatever node does."""
    return g.inputs(node)[0].node.name


def _excludes(names: list[str]) -> str:
    return " ".join(f"--exclude {name}" for name in names[:3]) + (" ..." if len(names) > 3 else "")
