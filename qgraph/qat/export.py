"""A network that trained quantized, as a graph with `fake_quantize` nodes: what inference in offline mode computes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from qgraph.files import write_files
from qgraph.formats.gluon import from_gluon, traced
from qgraph.formats.mxnet_writer import checkpoint_files
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.qat.tracer import OBSERVED, tracing
from qgraph.qat.types import Block
from qgraph.targets.mxnet.sim import lower

SAMPLE_IMAGES = 32


def quantized_ports(net: Block) -> tuple[Graph, dict[tuple[str, int], Port]]:
    """(the float graph, (name of a block, which call of it) -> the tensor of it that is quantized)"""
    with tracing(net, observe=True) as tracer:
        graph = traced(net, (), tracer.arrays)
    ports: dict[tuple[str, int], Port] = {}
    for node in [n for n in graph.toposort() if OBSERVED in n.name and n.op in ops.IDENTITIES]:
        number = int(node.name.rpartition(OBSERVED)[2])  # Gluon puts the block's prefix in front
        source = graph.inputs(node)[0]
        graph.replace_uses(node, source)
        graph.remove(node)
        ports[tracer.observed[number].name, number] = source
    return graph, ports


def export(net: Block, path: str, epoch: int, sample: Mapping[str, np.ndarray]) -> None:
    """See `Control.export`. sample: some inputs, by name."""
    files = dict(checkpoint_files(lower(from_gluon(net), marked=True), path, epoch))
    if sample:
        files[f"{path}-calib.npz"] = _npz({name: x[:SAMPLE_IMAGES] for name, x in sample.items()})
    write_files(files)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
