"""A network that trained quantized, as a graph with `fake_quantize` nodes: what inference in offline mode computes.

Blocks are traced in a mode of their own: instead of the arithmetic of `chain` they emit identities that carry the
trained numbers (`qgraph.formats.mxnet_marks`), and their weights are those that the codes stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from qgraph.calibration.images import sample_of
from qgraph.files import write_files
from qgraph.formats.gluon import from_gluon
from qgraph.formats.mxnet import checkpoint_files
from qgraph.formats.mxnet_marks import MARK, mark_of
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.qat.fake_bn import folded, scale_of, shifted_bias
from qgraph.qat.layer import Quantizer, call
from qgraph.qat.statistic import mx
from qgraph.quant.spec import QParams, QSpec, fake_quantize, with_range
from qgraph.quant.weights import weight_params
from qgraph.targets.mxnet.sim import lower

ROUNDING = "mxnet"
SAMPLE_IMAGES = 32


class Tracer:
    """What converted blocks emit while they are traced. arrays: name -> value of what is not a parameter as it is.

    observe: nothing is quantized; ``observed[i]`` is the block whose data go through the identity called `_PORT` + i.
    """

    def __init__(self, blocks: list[Any], others: set[str], observe: bool) -> None:
        self.blocks, self.observe = blocks, observe
        self.arrays: dict[str, Any] = {}
        self.observed: list[Any] = []
        self._others = others  # names of the parameters that other blocks read, too

    def data(self, block: Any, F: Any, x: Any) -> Any:
        state: Quantizer = block.qat
        if self.observe:
            self.observed.append(block)
            return F.identity(x, name=f"{_PORT}{len(self.observed) - 1}") if state.spec is not None else x
        if not state.quantizes_data:
            return x
        assert state.spec is not None
        high = float(state.high.list_data()[0].asscalar())
        return _marked(F, x, with_range(state.spec, -high if state.spec.signed else 0.0, high))

    def layer(self, block: Any, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        state: Quantizer = block.qat
        x = self.data(block, F, x)
        array = block.weight.list_data()[0]
        if state.bn is not None:
            gamma, beta, mean, var = state.bn.arrays(mx.nd, array)
            scale = scale_of(mx.nd, gamma, var, state.bn.eps)
            own = None if bias is None else block.bias.list_data()[0]
            array = folded(mx.nd, array, scale, state.bn)
            bias = self._constant(F, block.params.prefix + "bias", shifted_bias(own, beta, mean, scale).asnumpy())
            weight = self._constant(F, block.weight.name, array.asnumpy())
        if state.weight is not None and state.enabled and not self.observe:
            params = _weight_params(block, array.asnumpy(), state.weight)
            baked = fake_quantize(array.asnumpy(), params, ROUNDING)
            weight = _marked(F, self._constant(F, block.weight.name, baked), params)
        return call(block, F, x, weight, bias)

    def _constant(self, F: Any, name: str, value: np.ndarray) -> Any:
        name = name + "_quantized" if name in self._others else name
        self.arrays[name] = value
        return F.var(name, shape=value.shape)


_PORT = "qat_observed_"


def _marked(F: Any, x: Any, params: QParams) -> Any:
    return F.identity(x, attr={MARK: mark_of(params)})


def _weight_params(block: Any, array: np.ndarray, spec: QSpec) -> QParams:
    learned = block.qat.weight_high
    if learned is None:
        return weight_params(block.name, array, spec)
    high = np.abs(learned.list_data()[0].asnumpy())
    high = high.reshape(()) if spec.granularity == "tensor" else high.reshape(-1)
    return with_range(spec, -high, high)


@contextmanager
def tracing(net: Any, observe: bool = False) -> Iterator[Tracer]:
    """Within it the converted blocks of `net` trace as they will be frozen."""
    blocks: list[Any] = []
    others: set[str] = set()

    def look(block: Any) -> None:
        if isinstance(getattr(block, "qat", None), Quantizer):
            blocks.append(block)
        else:
            others.update(p.name for p in block._reg_params.values())

    net.apply(look)
    tracer = Tracer(blocks, others, observe)
    if not observe:
        from qgraph.qat.control import require_ranges

        require_ranges([b for b in blocks if b.qat.quantizes_data])
    try:
        for block in blocks:
            block.qat.tracer = tracer
        yield tracer
    finally:
        for block in blocks:
            block.qat.tracer = None


def quantized_ports(net: Any) -> tuple[Graph, dict[tuple[str, int], Port]]:
    """(the float graph, (name of a block, which call of it) -> the tensor of it that is quantized)"""
    with tracing(net, observe=True) as tracer:
        graph = from_gluon(net, tracer=tracer)
    ports: dict[tuple[str, int], Port] = {}
    for node in [n for n in graph.toposort() if _PORT in n.name and n.op in ops.IDENTITIES]:
        number = int(node.name.rpartition(_PORT)[2])  # Gluon puts the block's prefix in front
        source = graph.inputs(node)[0]
        graph.replace_uses(node, source)
        graph.remove(node)
        ports[tracer.observed[number].name, number] = source
    return graph, ports


def export(net: Any, path: str, epoch: int) -> None:
    """See `Control.export`."""
    files = dict(checkpoint_files(lower(from_gluon(net), marked=True), path, epoch))
    if sample := sample_of(net):
        files[f"{path}-calib.npz"] = _npz({name: x[:SAMPLE_IMAGES] for name, x in sample.items()})
    write_files(files)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()

