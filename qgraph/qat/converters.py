"""What turns a Gluon block into one that trains quantized. A converter is a function: block -> None, in place.

`convert_model` calls them by the type of the block.  One of your own is any function that does something to a block.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Callable, cast

from qgraph.errors import OptionError, UnsupportedError
from qgraph.formats.gluon import TRACING
from qgraph.ir import ops
from qgraph.qat.layer import LEARNED, Converted, QuantizeArgs, Quantizer, activation_forward, layer_forward
from qgraph.qat.statistic import Statistic, mx, register
from qgraph.qat.tracer import frozen
from qgraph.qat.types import Block, Layer, Ops, T
from qgraph.quant.spec import QSpec

Converter = Callable[[Block], None]
nn = mx.gluon.nn

_CONVOLUTIONS = (nn.Conv1D, nn.Conv2D, nn.Conv3D, nn.Conv1DTranspose, nn.Conv2DTranspose)


def gen_conv2d_converter(quantize_input: bool = True, in_signed: bool | str = False, in_width: int = 8,
                         wt_width: int = 8, quant_type: str = "layer", fake_bn: bool = False,
                         **more: Any) -> Converter:
    """For convolutions of any rank, transposed ones of up to two. more: the other fields of `layer.QuantizeArgs`.

    The converter raises OptionError for another block, and UnsupportedError for a layout with channels last.
    """
    args = QuantizeArgs(quantize_input, in_signed, in_width, wt_width, quant_type, fake_bn, **more)

    def convert(block: Block) -> None:
        if not isinstance(block, _CONVOLUTIONS):
            raise OptionError(f"{block.name}: found a {type(block).__name__}, want a convolution")
        if block._kwargs["layout"] not in ops.CHANNEL_FIRST:
            raise UnsupportedError(f"{block.name}: its layout is {block._kwargs['layout']}, want one of "
                                   f"{', '.join(ops.CHANNEL_FIRST)}: exclude it")
        groups = block._kwargs["num_group"]
        weight = args.weight_spec(int(block._op_name == "Deconvolution"), groups)
        _convert(block, args, weight)

    convert.args = args  # type: ignore[attr-defined]
    return convert


def gen_dense_converter(quantize_input: bool = True, in_signed: bool | str = False, in_width: int = 8,
                        wt_width: int = 8, quant_type: str = "layer", **more: Any) -> Converter:
    """For Dense. A group is one unit, as a channel is. more: the other fields of `layer.QuantizeArgs`.

    The converter raises OptionError for another block.
    """
    args = QuantizeArgs(quantize_input, in_signed, in_width, wt_width,
                        "channel" if quant_type == "group" else quant_type, **more)

    def convert(block: Block) -> None:
        if not isinstance(block, nn.Dense):
            raise OptionError(f"{block.name}: found a {type(block).__name__}, want a Dense")
        _convert(block, args, args.weight_spec(0, 1))

    convert.args = args  # type: ignore[attr-defined]
    return convert


def _replace(block: Block, forward: Callable[..., object], state: Quantizer) -> None:
    """Put `forward` in the place of the block's ``hybrid_forward``; once per block."""
    if hasattr(block, "qat"):
        raise OptionError(f"{block.name}: is converted already")
    cast(Converted, block).qat = state
    setattr(block, TRACING, frozen)
    if state.spec is not None:
        learned = state.args.input_range in LEARNED
        parameter = (mx.gluon.Parameter(block.params.prefix + "input_max", shape=(1,), init="zeros") if learned
                     else Statistic(block.params.prefix + "input_max"))
        state.high = register(block, "input_max", parameter)
    block.hybrid_forward = MethodType(forward, block)
    block._clear_cached_op()


def _add_learned_weight_range(block: Layer, state: Quantizer, spec: QSpec, count: int) -> None:
    """count: of scales. The start is set by `qparams_init`."""
    shape: tuple[int, ...] = (count,)
    if spec.granularity == "channel":
        rank = len(block.weight.shape)
        shape = tuple(count if d == spec.axis else 1 for d in range(rank))
    parameter = mx.gluon.Parameter(block.params.prefix + "weight_max", shape=shape, init="zeros")
    state.weight_high = register(block, "weight_max", parameter)


def _convert(block: Layer, args: QuantizeArgs, weight: QSpec) -> None:
    state = Quantizer(args, block.hybrid_forward, args.input_spec() if args.quantize_input else None, weight,
                      waiting=args.start_step > 0)
    _replace(block, layer_forward, state)
    if args.weight_range == "lsq":
        count = {"tensor": 1, "group": weight.groups}.get(weight.granularity)
        channels = (block._kwargs["num_filter"] // _groups_on_axis_0(block, weight) if hasattr(block, "_kwargs")
                    else block._units)
        _add_learned_weight_range(block, state, weight, count or channels)


def _groups_on_axis_0(block: Layer, weight: QSpec) -> int:
    """The rows of a transposed convolution's axis 1 are the channels of one group."""
    return int(block._kwargs["num_group"]) if weight.axis == 1 else 1


def gen_act_converter(width: int = 8, quantize_act: bool = True, **more: Any) -> Converter:
    """For Activation: what comes out is quantized, to unsigned codes if it cannot be negative.

    The converter raises OptionError for another block.
    """
    def convert(block: Block) -> None:
        if not isinstance(block, nn.Activation):
            raise OptionError(f"{block.name}: found a {type(block).__name__}, want an Activation")
        args = QuantizeArgs(quantize_act, block._act_type not in ops.NONNEGATIVE_ACTS, width, **more)
        state = Quantizer(args, block.hybrid_forward, args.input_spec() if quantize_act else None,
                          waiting=args.start_step > 0)
        _replace(block, activation_forward, state)

    return convert


def convert_relu_to_relu6(block: Block) -> None:
    """Activation relu(x)  ->  clip(x, 0, 6). Raises OptionError for another block."""
    if not isinstance(block, nn.Activation) or block._act_type != "relu":
        raise OptionError(f"{block.name}: found {block}, want Activation('relu')")

    def forward(self: Block, F: Ops[T], x: T) -> T:
        return F.clip(x, 0.0, 6.0, name="fwd")

    block.hybrid_forward = MethodType(forward, block)
    block._clear_cached_op()


def bypass_bn(block: Block) -> None:
    """BatchNorm bn(x)  ->  x. Its parameters stay with it, so that files of parameters fit.

    Raises OptionError for another block.
    """
    if not isinstance(block, nn.BatchNorm):
        raise OptionError(f"{block.name}: found a {type(block).__name__}, want a BatchNorm")

    def forward(self: Block, F: Ops[T], x: T, gamma: T, beta: T, running_mean: T, running_var: T) -> T:
        return x

    block.hybrid_forward = MethodType(forward, block)
    block._clear_cached_op()


STAYS = {  # type of block -> why it stays in float
    mx.gluon.SymbolBlock: "it is a SymbolBlock, whose layers have no blocks of their own",
    nn.Conv3DTranspose: "MXNet 1.9.1 has no gradient of its weight where that is computed",
}


def is_converter(fn: object) -> bool:
    """Return True unless `fn` is a converter factory, passed by mistake."""
    return callable(fn) and fn not in (gen_conv2d_converter, gen_dense_converter, gen_act_converter)


DEFAULT_CONVERT_FN: dict[type, Converter | None] = {
    **dict.fromkeys(_CONVOLUTIONS, gen_conv2d_converter()),
    nn.Dense: gen_dense_converter(),
    nn.Activation: None,  # gen_act_converter(), convert_relu_to_relu6
    nn.BatchNorm: None,  # bypass_bn
}
