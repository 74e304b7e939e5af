"""A layer that trains quantized: its settings, and the forward pass that takes the place of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from qgraph.errors import CalibrationError, OptionError, UnsupportedError
from qgraph.qat import chain
from qgraph.qat.compute import compute
from qgraph.qat.fake_bn import PairedBN, running, trained
from qgraph.qat.statistic import tie
from qgraph.qat.types import Block, Forward, Layer, Ops, Parameter, T
from qgraph.quant.spec import QSpec, as_granularity

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

LEARNED = ("lsq", "pact")


@dataclass(frozen=True)
class QuantizeArgs:
    """How one layer is quantized, as its converter was told.

    in_signed: True, False or "auto", by what is known of the input.  quant_type: layer, group or channel.
    input_range, weight_range: "ema" or "minmax", else learned: "lsq", "pact" (inputs only).
    clip_gradient: no gradient for what is clipped.  start_step: so many updates pass before inputs are quantized.
    fake_bn: fold the BatchNorm behind the convolution while training, see `fake_bn`.  freeze_bn_step: so many updates
    pass before its statistics stay as they are (None: never).
    """

    quantize_input: bool = True
    in_signed: bool | str = False
    in_width: int = 8
    wt_width: int = 8
    quant_type: str = "layer"
    fake_bn: bool = False
    input_range: str = "ema"
    weight_range: str = "minmax"
    clip_gradient: bool = False
    start_step: int = 0
    freeze_bn_step: int | None = None

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[object, ...]] = {
            "in_signed": (True, False, "auto"), "quant_type": ("layer", "group", "channel"),
            "input_range": ("ema", *LEARNED), "weight_range": ("minmax", "lsq"),
            "in_width": tuple(range(2, 9)), "wt_width": tuple(range(2, 9))}
        for name, values in allowed.items():
            found = getattr(self, name)
            if not any(found is value or (found == value and type(found) is type(value)) for value in values):
                raise OptionError(f"{name}: found {found!r}, want one of {', '.join(map(str, values))}")
        for name in ("start_step", "freeze_bn_step"):
            count = getattr(self, name)
            if not (isinstance(count, int) and count >= 0) and not (count is None and name == "freeze_bn_step"):
                raise OptionError(f"{name}: found {count!r}, want a whole number of updates")

    def input_spec(self) -> QSpec:
        return QSpec(bits=self.in_width, signed=None if self.in_signed == "auto" else bool(self.in_signed))

    def weight_spec(self, out_axis: int, groups: int) -> QSpec:
        """out_axis: of the weight's output channels, 1 for transposed convolutions, whose groups lie on axis 0."""
        granularity = as_granularity(self.quant_type)
        return QSpec(bits=self.wt_width, signed=True, narrow=True, granularity=granularity,
                     axis=out_axis if granularity == "channel" else 0, groups=groups if granularity == "group" else 1)


class Converted(Layer, Protocol):
    """A layer that trains quantized; or an Activation that does, which has no weight."""

    qat: Quantizer


class Tracer(Protocol):
    """What takes the place of the arithmetic while a network is traced, see `tracer`."""

    def data(self, block: Converted, F: Ops[T], x: T) -> T: ...
    def layer(self, block: Converted, F: Ops[T], x: T, weight: T, bias: T | None) -> T: ...


@dataclass
class Quantizer:
    """What a converted block keeps in its attribute ``qat``.

    spec: of its data; signed may be None until `qparams_init` decides.  weight: of its weight, if it has one.
    high: the parameter that holds where the range ends.  calls: how often the network calls the block.
    training: whether the graph of training is wanted, or that of inference (see `Control.switch`).
    """

    args: QuantizeArgs
    forward: Forward
    spec: QSpec | None
    weight: QSpec | None = None
    high: Parameter | None = None
    weight_high: Parameter | None = None
    bn: PairedBN | None = None
    calls: int = 1
    enabled: bool = True
    online: bool = True
    quantize_input: bool = True
    fixed: bool = False
    waiting: bool = False
    training: bool = False
    tracer: Tracer | None = field(default=None, repr=False)

    @property
    def quantizes_data(self) -> bool:
        return self.enabled and self.spec is not None and self.quantize_input and not self.waiting

    @property
    def observes(self) -> bool:
        """Whether the range of the running batch is measured for the average."""
        return self.spec is not None and self.args.input_range == "ema" and not self.fixed


def is_converted(block: object) -> TypeGuard[Converted]:
    return isinstance(getattr(block, "qat", None), Quantizer)


def converted(net: Block) -> list[Converted]:
    """The converted blocks, in the order of the network's children, each once."""
    blocks: list[Block] = []
    net.apply(blocks.append)
    return list({id(block): block for block in blocks if is_converted(block)}.values())


def check_shape(block: Converted) -> None:
    if block.qat.weight is not None and not all(d > 0 for d in block.weight.shape or (0,)):
        raise OptionError(f"{block.name}: the shape of its weight is not known yet: run one batch through the network "
                          "before convert_model")


def check_dtype(block: Converted) -> None:
    if str(block.weight.dtype) not in ("float32", "<class 'numpy.float32'>"):
        raise UnsupportedError(f"{block.name}: its weight is {block.weight.dtype}; quantization-aware training "
                               "computes in float32: do not cast the network")


def running_range(block: Converted, F: Ops[T], x: T, high: T, rank: int) -> T:
    """(1,), where the range of the data ends at inference: that of the batch, or the one that was trained."""
    state = block.qat
    spec = known_spec(block)
    if state.online and state.args.input_range == "ema" and not state.fixed:
        return chain.batch_range(F, x, spec, rank)[0]
    return high


def known_spec(block: Converted) -> QSpec:
    spec = block.qat.spec
    assert spec is not None
    if spec.signed is None:
        raise CalibrationError(f"{block.name}: the signedness of its input is not known yet: call qparams_init(net) "
                               "before the first forward pass")
    return spec


def quantized_data(block: Converted, F: Ops[T], x: T, high: T | None,
                   rank: int) -> tuple[T, tuple[T, T] | None]:
    """(what the block computes with, what to send out: the batch's range and that of its images, or None)"""
    state = block.qat
    spec = state.spec
    if spec is None or not state.enabled:
        return x, None
    assert state.high is not None and high is not None
    spec = known_spec(block)
    online = state.online and state.args.input_range == "ema" and not state.fixed
    observes = state.observes and state.training
    two_passes = chain.in_two_passes(state.high)
    fixed = chain.cut(F, x, two_passes)
    batch = chain.batch_range(F, fixed, spec, rank) if observes or (online and state.quantizes_data) else None
    if state.quantizes_data:
        args = state.args
        high = batch[0] if online and batch else high
        learn = args.input_range if args.input_range in LEARNED else ""
        if state.training and two_passes and not args.clip_gradient and not learn:
            x, error = chain.straight_through(F, x, fixed, high, spec)
            batch = batch and (chain.read_again(F, batch[0], error), batch[1])
        else:
            x = chain.fake_quantize(F, x, fixed, high, spec, state.training, args.clip_gradient, learn)
    return x, batch if observes else None


def layer_forward(self: Converted, F: Ops[T], x: T, weight: T, bias: T | None = None, input_max: T | None = None,
                  weight_max: T | None = None) -> T:
    """conv(x, w, b)  ->  conv(fq(x), fq(w), b), and with a paired BatchNorm  conv(fq(x), fq(w s), b')."""
    state = self.qat
    if state.tracer is not None:
        return state.tracer.layer(self, F, x, weight, bias)
    check_dtype(self)
    if state.quantizes_data and not state.training and input_max is not None:
        return whole_forward(self, F, x, weight, bias, input_max, weight_max)
    x, batch = quantized_data(self, F, x, input_max, rank=len(self.weight.shape) - 2)
    spec, shape, two_passes = state.weight, self.weight.shape, chain.in_two_passes(self.weight)
    assert spec is not None
    if state.bn is not None and state.training and not state.bn.fixed:
        weight = weight if batch is None or input_max is None else tie(F, weight, input_max, batch[0], shape[0])
        y = trained(F, state.bn, x, weight, bias,
                    (lambda folded: chain.weight_values(F, folded, spec, shape, two_passes=two_passes))
                    if state.enabled else None)
        return y if self.act is None else self.act(y)
    if state.bn is not None:
        weight, bias = running(F, state.bn, weight, bias)
    if state.enabled:
        weight = chain.fake_quantize_weight(F, weight, spec, shape, weight_max, state.training, two_passes)
    if batch is not None and input_max is not None:  # here it needs no copy
        weight = tie(F, weight, input_max, batch[0], shape[0])
    return call(self, F, x, weight, bias)


def whole_forward(self: Converted, F: Ops[T], x: T, weight: T, bias: T | None, input_max: T,
                  weight_max: T | None) -> T:
    """conv(codes of x, codes of w) * (s_x s_w) + b, at inference."""
    state = self.qat
    spec, shape = state.weight, self.weight.shape
    rank: int = len(shape) - 2
    assert spec is not None and state.spec is not None
    high = running_range(self, F, x, input_max, rank)
    if state.bn is not None:
        weight, bias = running(F, state.bn, weight, bias)
    codes, step = chain.data_codes(F, x, high, state.spec)
    weights, steps = chain.weight_codes(F, weight, spec, shape, weight_max)
    groups = self._kwargs["num_group"] if getattr(self, "_op_name", "") == "Deconvolution" else 0
    steps = F.broadcast_mul(chain.channel_steps(F, steps, spec, shape, groups), step)
    if rank:
        sums = compute(self, F, codes, weights, None, False)
        nd = (1, -1, *(1,) * rank)
        steps, bias = F.reshape(steps, shape=nd), None if bias is None else F.reshape(bias, shape=nd)
    else:
        sums = F.FullyConnected(codes, weights, no_bias=True, num_hidden=self._units, flatten=self._flatten, name="fwd")
    y = F.broadcast_mul(sums, steps)
    y = y if bias is None else F.broadcast_add(y, bias)
    return y if self.act is None else self.act(y)


def call(block: Converted, F: Ops[T], x: T, weight: T, bias: T | None) -> T:
    """Compute the layer. A bias from a folded BatchNorm is added by the same op, even if the block has no bias."""
    state = block.qat
    if not hasattr(block, "_op_name"):
        return state.forward(F, x, weight, bias)
    y = compute(block, F, x, weight, bias, state.training and state.tracer is None)
    return y if block.act is None else block.act(y)


def activation_forward(self: Converted, F: Ops[T], x: T, input_max: T | None = None) -> T:
    """act(x)  ->  fq(act(x))."""
    state = self.qat
    y = state.forward(F, x)
    if state.tracer is not None:
        return state.tracer.data(self, F, y)
    value, batch = quantized_data(self, F, y, input_max, rank=0)
    return value if batch is None or input_max is None else tie(F, value, input_max, batch[0], batch[1])


def decide_sign(state: Quantizer, signed: bool) -> None:
    if state.spec is not None and state.spec.signed is None:
        state.spec = dataclasses.replace(state.spec, signed=signed)


def require_ranges(blocks: Sequence[Converted]) -> None:
    """CalibrationError if what one of the blocks reads has no range yet."""
    bare = [b.name for b in blocks
            if b.qat.high is not None and (b.qat.high._data is None or not b.qat.high.list_data()[0].asnumpy() > 0)]
    if bare:
        raise CalibrationError(f"no range for the input of {', '.join(bare[:4])}{', ...' if len(bare) > 4 else ''}"
                               " yet: train with net.update_ema(), or qparams_init(net, calib_data=...); exclude what "
                               "is never used or, where unsigned, never positive")


def is_learned(state: Quantizer) -> bool:
    return state.args.input_range in LEARNED
