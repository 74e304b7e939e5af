"""What converted blocks emit while they are traced: identities that carry the trained numbers.

Blocks are traced in a mode of their own: instead of the arithmetic of `chain` they emit marks
(`qgraph.formats.mxnet_marks`), and their weights are those that the codes stand for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from qgraph.formats.mxnet_marks import MARK, mark_of
from qgraph.qat.fake_bn import folded, scale_of, shifted_bias
from qgraph.qat.layer import Converted, call, converted, is_converted, require_ranges
from qgraph.qat.statistic import mx
from qgraph.qat.types import Block, Ops, T
from qgraph.quant.spec import QParams, QSpec, fake_quantize, with_range
from qgraph.quant.weights import weight_params

ROUNDING = "mxnet"
OBSERVED = "qat_observed_"  # with a number: the name of an identity, see `Tracer`


class Tracer:
    """What converted blocks emit while they are traced. arrays: name -> value of what is not a parameter as it is.

    observe: nothing is quantized; ``observed[i]`` is the block whose data go through the identity `OBSERVED` + i.
    """

    def __init__(self, blocks: Sequence[Converted], others: set[str], observe: bool) -> None:
        self.blocks, self.observe = blocks, observe
        self.arrays: dict[str, np.ndarray] = {}
        self.observed: list[Converted] = []
        self._others = others  # names of the parameters that other blocks read, too

    def data(self, block: Converted, F: Ops[T], x: T) -> T:
        state = block.qat
        if self.observe:
            self.observed.append(block)
            return F.identity(x, name=f"{OBSERVED}{len(self.observed) - 1}") if state.spec is not None else x
        if not state.quantizes_data:
            return x
        assert state.spec is not None and state.high is not None
        high = float(state.high.list_data()[0].asscalar())
        return _marked(F, x, with_range(state.spec, -high if state.spec.signed else 0.0, high))

    def layer(self, block: Converted, F: Ops[T], x: T, weight: T, bias: T | None) -> T:
        state = block.qat
        x = self.data(block, F, x)
        array = block.weight.list_data()[0]
        if state.bn is not None:
            gamma, beta, mean, var = state.bn.arrays(array)
            scale = scale_of(mx.nd, gamma, var, state.bn.eps)
            own = None if bias is None or block.bias is None else block.bias.list_data()[0]
            array = folded(mx.nd, array, scale, state.bn)
            bias = self._constant(F, block.params.prefix + "bias", shifted_bias(own, beta, mean, scale).asnumpy())
            weight = self._constant(F, block.weight.name, array.asnumpy())
        if state.weight is not None and state.enabled and not self.observe:
            params = _weight_params(block, array.asnumpy(), state.weight)
            baked = fake_quantize(array.asnumpy(), params, ROUNDING)
            weight = _marked(F, self._constant(F, block.weight.name, baked), params)
        return call(block, F, x, weight, bias)

    def _constant(self, F: Ops[T], name: str, value: np.ndarray) -> T:
        name = name + "_quantized" if name in self._others else name
        self.arrays[name] = value
        return F.var(name, shape=value.shape)


def _marked(F: Ops[T], x: T, params: QParams) -> T:
    return F.identity(x, attr={MARK: mark_of(params)})


def _weight_params(block: Converted, array: np.ndarray, spec: QSpec) -> QParams:
    learned = block.qat.weight_high
    if learned is None:
        return weight_params(block.name, array, spec)
    high = np.abs(learned.list_data()[0].asnumpy())
    high = high.reshape(()) if spec.granularity == "tensor" else high.reshape(-1)
    return with_range(spec, -high, high)


@contextmanager
def tracing(net: Block, observe: bool = False) -> Iterator[Tracer]:
    """Within it the converted blocks of `net` trace as they will be frozen."""
    everything: list[Block] = []
    net.apply(everything.append)
    others = {p.name for block in everything if not is_converted(block) for p in block._reg_params.values()}
    blocks = converted(net)
    tracer = Tracer(blocks, others, observe)
    if not observe:
        require_ranges([b for b in blocks if b.qat.quantizes_data])
    try:
        for block in blocks:
            block.qat.tracer = tracer
        yield tracer
    finally:
        for block in blocks:
            block.qat.tracer = None


@contextmanager
def frozen(net: Block) -> Iterator[Mapping[str, np.ndarray]]:
    """See `qgraph.formats.gluon.TRACING`."""
    with tracing(net) as tracer:
        yield tracer.arrays
