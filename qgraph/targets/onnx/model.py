"""An ONNX model in memory, ours or anybody's: what it reads, writes and holds, and its file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from qgraph.ir.graph import Node
from qgraph.targets.onnx.read import read

ORDERS = "qgraph.channel_order"  # metadata: JSON, tensor -> order of its channels (`ops.CHANNEL_ORDER`)
ORIGINS = "qgraph.origin"  # metadata: JSON, tensor -> the node of the user's model that has this value


@dataclass(frozen=True)
class Codes:
    """Where an integer tensor of a model is, and what its codes stand for: scale * (code - zero_point)."""

    tensor: str
    scale: float
    zero_point: int


class OnnxModel:
    """An ONNX model in memory, ours or anybody's.

    integers: fake_quantize -> tensor of its codes, in a model that was just written.
    """

    def __init__(self, proto: Any, size: int | None = None, integers: dict[Node, str] | None = None) -> None:
        self.proto, self.integers = proto, integers or {}
        self._size = size

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return int(self.proto.ByteSize()) if self._size is None else self._size

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """What is fed: name -> shape, 0 for a dimension that may vary."""
        constants = {t.name for t in self.proto.graph.initializer}
        return {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim)
                for i in self.proto.graph.input if i.name not in constants}

    @property
    def outputs(self) -> list[str]:
        return [o.name for o in self.proto.graph.output]

    @property
    def channel_orders(self) -> dict[str, np.ndarray]:
        """Tensors whose channels lie in another order than the user's, see `ops.CHANNEL_ORDER`."""
        return {name: np.array(order) for name, order in self._metadata(ORDERS).items()
                if isinstance(order, list) and all(type(i) is int for i in order)
                and sorted(order) == list(range(len(order)))}

    @property
    def origins(self) -> dict[str, str]:
        """Tensors that in the user's model are called otherwise: those of layers into which others were folded."""
        return {name: origin for name, origin in self._metadata(ORIGINS).items() if isinstance(origin, str)}

    def _metadata(self, key: str) -> dict[str, Any]:
        for entry in self.proto.metadata_props:
            if entry.key == key:
                try:
                    found = json.loads(entry.value)
                except (ValueError, RecursionError):
                    break
                return found if isinstance(found, dict) else {}
        return {}

    def codes(self) -> dict[str, Codes]:
        """Float tensor -> the integers it is rounded to, for every QuantizeLinear of one scale."""
        from onnx import numpy_helper

        constants = {t.name: t for t in self.proto.graph.initializer}
        found: dict[str, Codes] = {}
        for node in self.proto.graph.node:
            if node.op_type != "QuantizeLinear" or node.input[0] in found:
                continue
            scale = constants.get(node.input[1])
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if scale is not None and not scale.dims and (zero is not None or len(node.input) < 3):
                found[node.input[0]] = Codes(node.output[0], float(numpy_helper.to_array(scale)),
                                             0 if zero is None else int(numpy_helper.to_array(zero)))
        return found

    def to_bytes(self) -> bytes:
        return bytes(self.proto.SerializeToString(deterministic=True))


def load(path: str | os.PathLike[str]) -> OnnxModel:
    """Read an .onnx file. Raises FormatError for what is none, or keeps its weights in other files."""
    name = os.fspath(path)
    return OnnxModel(read(name), os.path.getsize(name))
