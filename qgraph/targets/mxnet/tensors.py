"""The tensors of an MXNet model, float or frozen, as the user's network names them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.analysis.channels import as_the_users
from qgraph.analysis.difference import Difference
from qgraph.formats.mxnet_marks import is_quantized_op
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.targets.base import Tensors

_SIGNED, _UNSIGNED = 127.5, 255.5  # steps in the range that MXNet carries beside its codes


class MxnetTensors(Tensors):
    """graph: with its activations fused (and all of a float one folded), so that names hold the same values in both."""

    def __init__(self, graph: Graph, frozen: bool) -> None:
        self.graph = graph
        self.nodes = {n.name: n for n in graph.toposort() if n.op != "null"}
        self.no_advice = "A is frozen, want the float MXNet model" if frozen else ""

    def comparable(self) -> list[str]:
        return [name for name, node in self.nodes.items() if _is_tensor(node)
                and (ops.kind(node) in (ops.COMPUTE, ops.JOIN, ops.AVERAGE) or node.op == "Pooling"
                     or is_quantized_op(node))]

    def has(self, name: str) -> bool:
        return name in self.nodes and _is_tensor(self.nodes[name])

    def op(self, name: str) -> str:
        return self.nodes[name].op

    def watch(self, names: Sequence[str]) -> list[Hashable]:
        """One tensor per float name, codes with their minimum and maximum per integer name."""
        return [*self.graph.heads,
                *(Port(self.nodes[name], i) for name in names for i in range(1 if self._is_float(name) else 3))]

    def reals(self, names: Sequence[str], values: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        rest = iter(values)
        for name in names:
            yield as_the_users(self._real(name, rest), self.nodes[name])

    def _is_float(self, name: str) -> bool:
        return not is_quantized_op(self.nodes[name])

    def _real(self, name: str, values: Iterator[np.ndarray]) -> np.ndarray:
        return next(values) if self._is_float(name) else _dequantize(next(values), next(values), next(values))

    def rows(self, differences: Mapping[str, Difference]) -> list[dict[str, Any]]:
        """One row per layer in topological order. The noise of a node that is not compared is that of what it reads."""
        noise: dict[Node, float] = {}
        rows = []
        for node in self.graph.toposort():
            before = max((noise[p.node] for p in self.graph.inputs(node)), default=0.0)
            noise[node] = before
            difference = differences.get(node.name) if node.op != "null" else None
            if difference is None:
                continue
            noise[node] = float(difference.noise / difference.signal) if difference.signal else 0.0
            rows.append({"name": node.name, "op": node.op, "origin": list(node.origin or (node.name,)),
                         **difference.to_dict(), "added_noise": float(f"{max(noise[node] - before, 0.0):.4g}")})
        return rows


def _is_tensor(node: Node) -> bool:
    return node.n_out >= 3 if is_quantized_op(node) else node.n_out == 1


def _dequantize(codes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    lowest, highest = float(low.ravel()[0]), float(high.ravel()[0])
    step = max(abs(lowest), abs(highest)) / (_SIGNED if lowest < 0 else _UNSIGNED)
    return codes.astype(np.float32) * np.float32(step)
