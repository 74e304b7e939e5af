"""Layers whose products overflow 16 bits in pairs, and what MXNet's kernels make of them.

``python overflow.py`` prints the facts of all layers as JSON: how a test sees another instruction set, which oneDNN
reads from the environment when the process starts.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from networks import Net, steps, table_of, written

from qgraph import passes
from qgraph.commands.departure import kernel_departure
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import PassManager
from qgraph.quant.spec import QParams
from qgraph.semantics import saturation
from qgraph.semantics.interpreter import run
from qgraph.semantics.saturation import sample_layers

Feeds = dict[str, np.ndarray]
U8, S8 = (8, False), (8, True)


def fused(g: Graph) -> Graph:
    PassManager(passes.PIPELINES["float"]).run(g)
    return g


def one_layer(kind: str, channels: int, out: int = 16, size: int = 6) -> tuple[Graph, Feeds]:
    """fq(layer(fq(data), fq(w), b)), with pairs of one sign each, so that many saturate and the sum stays small."""
    rng = np.random.default_rng(channels)
    kernel = {"1x1": (1, 1), "3x3": (3, 3), "dense": ()}[kind]
    signs = np.repeat(rng.choice([-1, 1], (out, (channels + 1) // 2, *kernel)), 2, axis=1)[:, :channels]
    codes = np.clip(signs * rng.integers(30, 129, (out, channels, *kernel)), -128, 127)
    codes.reshape(out, -1)[:, 0] = 127
    scale = rng.uniform(0.001, 0.002, out).astype(np.float32)
    qp = QParams(*S8, granularity="channel", scale=scale)
    g = Graph()
    x = g.add("fake_quantize", [g.add("null", name="data")], "x", quant=QParams(*U8, scale=np.array(0.02)))
    weight = g.add_param("w", (codes.T * scale).T.astype(np.float32))
    inputs = [x, g.add("fake_quantize", [weight], quant=qp),
              g.add_param("b", rng.normal(size=out).astype(np.float32))]
    if kernel:
        y = g.add("Convolution", inputs, "y", kernel=kernel, num_filter=out, pad=(kernel[0] // 2,) * 2, stride=(1, 2))
    else:
        y = g.add("FullyConnected", inputs, "y", num_hidden=out)
    shape = (4, channels, size, size) if kernel else (saturation.IMAGES, channels)
    feeds = {"data": (rng.integers(60, 256, shape) * np.float32(0.02)).astype(np.float32)}
    g.heads = [Port(y)]
    step = np.abs(run(g, feeds)[0]).max() / 127
    g.heads = [Port(g.add("fake_quantize", [y], "y_q", quant=QParams(*S8, scale=np.array(step))))]
    return g, feeds


LAYERS = [(kind, channels) for kind in ("1x1", "3x3", "dense") for channels in (3, 6, 17, 32)]


def kernel_facts(kind: str, channels: int) -> dict[str, float]:
    """How far the kernel's codes are from exact arithmetic, and from the model of saturation."""
    from qgraph.targets.mxnet.int8 import lower
    from qgraph.targets.mxnet.runtime import Executor

    g, feeds = one_layer(kind, channels)
    step = g.find("y_q").quant.scale  # type: ignore[union-attr]
    kernel = np.rint(Executor(lower(g)).run(feeds)[0] / step)
    if kernel.ndim == 4:
        kernel = kernel.transpose(0, 2, 3, 1).reshape(-1, kernel.shape[1])
    (layer,) = sample_layers(g, feeds, "mxnet")
    assert len(layer.x) == len(kernel) < saturation.POSITIONS
    exact = np.einsum("pct,oct->po", layer.x.astype(float), layer.w.astype(float)) * layer.unit + g.params["b"] / step
    model = exact - layer.excess()

    def distance(want: np.ndarray) -> float:
        return float(np.abs(np.clip(np.rint(want), -128, 127) - kernel).max())

    return {"exact": distance(exact), "model": distance(model), "missed": layer.missed(),
            "inside": float((np.abs(exact) < 127).mean())}


SIGNED: dict[str, tuple[int, dict[str, Any]]] = {
    "pad": (3, dict(kernel=(3, 3), pad=(1, 1))),
    "stride, one channel": (1, dict(kernel=(3, 3), pad=(1, 1), stride=(2, 2))),
    "four channels, no pad": (4, dict(kernel=(3, 3))),
    "1x1, 32 channels": (32, dict(kernel=(1, 1))),
    "asymmetric": (3, dict(kernel=(5, 3), pad=(2, 0), stride=(1, 2))),
    "much pad, no bias": (3, dict(kernel=(3, 3), pad=(3, 2), stride=(2, 1), no_bias=True)),
    "dilated": (3, dict(kernel=(3, 3), pad=(2, 2), dilate=(2, 2))),
}


def signed_departure(name: str) -> dict[str, float]:
    """Of the kernel of a convolution that reads a signed input, from exact arithmetic."""
    channels, attrs = SIGNED[name]
    n = Net(len(name), channels, 10)
    bias = [] if attrs.get("no_bias") else [n.param("first_bias", 8)]
    weight = n.g.add_param("first_weight", np.abs(n.weight(8, channels, *attrs["kernel"])))
    node = n.g.add("Convolution", [n.x, weight, *bias], "first", num_filter=8, **attrs)
    n.channels[node] = 8
    g = fused(n.done(n.head(n.conv(n.act(node, "relu"), 8, 1))))
    feeds = {"data": n.rng.normal(size=(3, *n.shape)).astype(np.float32) + np.float32(1)}
    q = g.copy()
    PassManager(tuple(steps("mxnet", table_of(g, feeds)))).run(q)
    assert q.inputs(q.find("first"))[1].node.quant.qmax == 64  # type: ignore[union-attr]
    model = written(q)
    return kernel_departure(q, model, feeds, "mxnet", lambda m, watch: m.executor(watch))["layers"]["first"]


def all_facts() -> dict[str, Any]:
    facts: dict[str, Any] = {f"{kind} {channels}": kernel_facts(kind, channels) for kind, channels in LAYERS}
    facts.update({f"signed {name}": signed_departure(name) for name in SIGNED})
    return facts


def main() -> None:
    print(json.dumps(all_facts()))  # what oneDNN or MXNet print comes before the last line


if __name__ == "__main__":
    main()
