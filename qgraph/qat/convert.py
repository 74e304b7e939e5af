"""`convert_model`: a Gluon network, in place, to one that trains quantized."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Protocol, TypeVar, Union, cast

from qgraph.errors import OptionError, UnsupportedError, close_names
from qgraph.formats.gluon import flatten, from_gluon
from qgraph.qat.control import METHODS, Control, Trained
from qgraph.qat.converters import DEFAULT_CONVERT_FN, STAYS, Converter, bypass_bn, is_converter, nn
from qgraph.qat.equalize import equalized
from qgraph.qat.fake_bn import PairedBN
from qgraph.qat.layer import Converted, Quantizer, decide_sign, is_converted
from qgraph.qat.network import Network, examine
from qgraph.qat.statistic import amp_is_on, mx
from qgraph.qat.sums import mark_outputs, sums_as_traced
from qgraph.qat.types import BatchNorm, Block, Forward, Ops, T

Named = Union[Block, str]  # a block, its name or a glob
K = TypeVar("K")
log = logging.getLogger("qgraph")


def convert_model(net: Block, exclude: Iterable[Named] = (), convert_fn: Mapping[type, Converter | None] | None = None,
                  custom_fn: Mapping[Named, Converter | None] | None = None, equalize: object = None) -> Trained:
    """Let a network train with fake quantization, in place; returns it.

    exclude: blocks, their names (with or without the network's prefix) or globs; what lies inside an excluded block
        is left alone, too.
    convert_fn: type of block -> converter, in addition to `converters.DEFAULT_CONVERT_FN`; None leaves a type alone.
    custom_fn: block, name or glob -> converter, for single layers: other bit widths, for example.
    equalize: calibration images, what `qgraph.open_data` takes: channels are scaled between layers first, so that these
        bits fit them; what the network computes in float stays.  Its parameters need values then.
    The network gets the methods of `control.Control`.  ``net.qat_control.reasons`` says what was not done, and why.
    Make the Trainer afterwards, where ranges are learned.
    Raises OptionError for an exclusion that matches nothing and for a network that is converted already, and what the
    converters raise; the network then is as it was.
    """
    if not isinstance(net, mx.gluon.Block):
        raise OptionError(f"convert_model: found a {type(net).__name__}, want a Gluon block")
    if isinstance(getattr(net, "qat_control", None), Control):
        raise OptionError(f"{net.name}: is converted already")
    if amp_is_on():
        log.warning("AMP is on: layers compute in half precision in training, quantizers in float32; the frozen model "
                    "computes in float32, so it will be close to what was trained, not equal")
    blocks = _blocks(net)
    excluded = {id(inner) for item in exclude for block in _named(net, blocks, item, "exclude")
                for inner in _blocks(block)}
    custom = {id(block): fn for item, fn in (custom_fn or {}).items()
              for block in _named(net, blocks, item, "custom_fn")}
    _checked(custom_fn, "custom_fn")
    table = {**DEFAULT_CONVERT_FN, **_checked(convert_fn, "convert_fn")}
    network = examine(net)
    before = None if equalize is None else from_gluon(net)
    norms = {b.gamma.name: b for b in blocks if isinstance(b, nn.BatchNorm)}
    chosen = [(b, custom.get(id(b), _converter(b, table))) for b in blocks if id(b) not in excluded]
    folds = any(getattr(getattr(fn, "args", None), "fake_bn", False) for _, fn in chosen)
    reasons: dict[str, str] = {}
    with _all_or_nothing(blocks):
        for block, fn in chosen:
            if fn is None or (fn is bypass_bn and folds):  # with fake_bn those go that are folded, and no others
                continue
            fn(block)
            if is_converted(block) and block.qat.weight is not None:
                _tell(block, network, norms, excluded, reasons)
        states = [b.qat for b in blocks if is_converted(b)]
        if not states:
            raise OptionError(f"{net.name}: no layer to quantize among its {len(blocks)} blocks; want a network of "
                              "Gluon layers (a SymbolBlock, as imported from files, has none)")
        _check_shared(blocks)
        scaled = {} if before is None else equalized(before, [state.args for state in states], equalize)
    for name, array in scaled.items():
        net.collect_params()[name].set_data(mx.nd.array(array))
    for block in blocks:
        for why in (why for cls, why in STAYS.items() if isinstance(block, cls) and id(block) not in excluded):
            reasons[block.name] = f"it stays in float: {why}"
            log.warning("%s: %s", block.name, reasons[block.name])
    net = cast(Trained, net)
    net.qat_control = Control(net, reasons)
    for method in METHODS:
        setattr(net, method, getattr(net.qat_control, method))
    net.qat_forward, net.forward = net.forward, MethodType(_forward_by_mode, net)
    for block in blocks:
        block.register_forward_hook(mark_outputs)
        if isinstance(block, nn.GlobalAvgPool2D):
            _in_plain_layout(block, states[0])
    return net


def _checked(table: Mapping[K, Converter | None] | None, option: str) -> Mapping[K, Converter | None]:
    if not isinstance(table or {}, Mapping):
        raise OptionError(f"{option}: found a {type(table).__name__}, want a dict of what to convert -> converter")
    for key, fn in (table or {}).items():
        if option == "convert_fn" and not isinstance(key, type):
            raise OptionError(f"{option}: found the key {key!r}, want a type of block, such as nn.Conv2D")
        if fn is not None and not is_converter(fn):
            raise OptionError(f"{option}: found {getattr(fn, '__name__', fn)!r} for {getattr(key, '__name__', key)!r}, "
                              "want a converter, such as gen_conv2d_converter()")
    return table or {}


@contextmanager
def _all_or_nothing(blocks: list[Block]) -> Iterator[None]:
    """If something is raised within, the blocks are what they were."""
    before = [(block, dict(vars(block)), dict(block._reg_params), dict(block.params._params)) for block in blocks]
    try:
        yield
    except Exception:
        for block, attributes, registered, parameters in before:
            for now, then in ((block._reg_params, registered), (block.params._params, parameters),
                              (vars(block), attributes)):
                now.clear()
                now.update(then)
        raise


def _check_shared(blocks: list[Block]) -> None:
    """OptionError for blocks that share a weight and would round it in different ways."""
    seen: dict[int, Converted] = {}
    for block in blocks:
        if is_converted(block) and block.qat.weight is not None:
            first = seen.setdefault(id(block.weight), block)
            if (first.qat.weight, first.qat.args.weight_range) != (block.qat.weight, block.qat.args.weight_range):
                raise OptionError(f"{first.name} and {block.name} share their weight, and are to quantize it in "
                                  "different ways: give them the same converter")


class Pool(Block, Protocol):
    qat_forward: Forward
    qat_of_network: Quantizer


def _in_plain_layout(pool: Pool, state: Quantizer) -> None:
    """pool(x)  ->  pool(x * 1)  in training. state: of any converted layer.

    oneDNN gives the gradient of a global average in a layout of its own.  Sums hand it on to the BatchNorms of residual
    blocks, whose fast kernel does not take it: a step of a small ResNet takes half as long again.
    """
    def multiplied(self: Pool, F: Ops[T], x: T) -> T:
        state = self.qat_of_network
        return self.qat_forward(F, x * 1 if state.training and state.tracer is None else x)

    pool.qat_forward, pool.qat_of_network = pool.hybrid_forward, state
    pool.hybrid_forward = MethodType(multiplied, pool)


def _tell(block: Converted, network: Network, norms: dict[str, BatchNorm], excluded: set[int],
          reasons: dict[str, str]) -> None:
    """What the graph says about a converted layer: calls, sign of its input, the BatchNorm to fold."""
    state = block.qat
    state.calls = max(len(network.layers.get(block.weight.name, [])), 1)
    if (positive := network.nonnegative(block)) is not None:
        decide_sign(state, signed=not positive)
    if not state.args.fake_bn:
        return
    gamma, why = network.bn_behind(block)
    if gamma in norms and id(norms[gamma]) in excluded:
        gamma, why = "", f"its BatchNorm {norms[gamma].name} is excluded"
    if gamma not in norms:
        reasons[block.name] = f"no BatchNorm is folded into it: {why or 'its BatchNorm is no block of the network'}"
        log.warning("%s: %s", block.name, reasons[block.name])
        return
    state.bn = PairedBN(norms[gamma], block)
    state.bn.fixed = bool(norms[gamma]._kwargs["use_global_stats"])
    for parameter in norms[gamma].params.values():
        parameter.shape = (block._channels,)
    bypass_bn(norms[gamma])


def _blocks(block: Block) -> list[Block]:
    """The block and all inside of it, each once, in the order of its children."""
    found: dict[int, Block] = {}
    pending = [block]
    while pending:
        item = pending.pop()
        if id(item) not in found:
            found[id(item)] = item
            pending += list(item._children.values())[::-1]
    return list(found.values())


def _named(net: Block, blocks: list[Block], item: Named, option: str) -> list[Block]:
    """A block itself, or those whose name, with or without the network's prefix, is or matches the text."""
    if not isinstance(item, str):
        if any(b is item for b in blocks):
            return [item]
        raise OptionError(f"{option}: {getattr(item, 'name', item)!r} is no block of this network")
    names = {b.name: b for b in blocks}
    short = {name[len(net.prefix):] if name.startswith(net.prefix) else name: b for name, b in names.items()}
    found = {id(b): b for known in (names, short) for name, b in known.items() if fnmatch.fnmatchcase(name, item)}
    if not found:
        close = close_names(item, [*short, *names], 4, 0.4) or list(short)[1:5]
        raise OptionError(f"{option} {item!r}: no block is called so; close names: {', '.join(close)}")
    return list(found.values())


def _converter(block: Block, table: Mapping[type, Converter | None]) -> Converter | None:
    """By its type, or by the nearest base class whose forward pass it has not changed."""
    for cls in type(block).__mro__:
        if cls in table:
            same = getattr(type(block), "hybrid_forward", None) is getattr(cls, "hybrid_forward", None)
            return table[cls] if same else None
    return None


def _forward_by_mode(self: Trained, *inputs: object) -> object:
    """The network's forward pass with the graph that training, or inference, wants."""
    control = self.qat_control
    training = mx.autograd.is_recording() or mx.autograd.is_training()
    arrays = [x for x in flatten(inputs) if isinstance(x, mx.nd.NDArray)]
    if arrays:
        control.begin(arrays, training)
        if training and not getattr(self, "_active", False):
            return sums_as_traced(self.qat_forward, inputs)
    elif training and not any(b.qat.tracer for b in control.collect_quantized_blocks()):
        raise UnsupportedError(f"{self.name} trains quantized, and is part of a hybridized block, where it cannot tell "
                               "training from inference: convert the outer block, or hybridize only what is inside")
    return self.qat_forward(*inputs)
