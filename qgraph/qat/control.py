"""The methods that `convert_model` gives a network: averages, modes, and what to look at."""

from __future__ import annotations

from typing import Callable, Protocol

import numpy as np

from qgraph.errors import CalibrationError, OptionError
from qgraph.qat.converters import nn
from qgraph.qat.export import export
from qgraph.qat.layer import Converted, check_shape, converted, is_learned, require_ranges
from qgraph.qat.statistic import Statistic, mx
from qgraph.qat.types import Array, Block, Context, Parameter

METHODS = ("update_ema", "quantize_online", "quantize_offline", "quantize_input", "enable_quantize", "disable_quantize",
           "fix_params", "collect_quantized_blocks", "export")
_KEY = 1 << 20  # of the averages in a kvstore; its keys are numbers, as those of the Trainer
_CACHE = ("_cached_graph", "_cached_op", "_cached_op_args", "_in_format", "_out_format")


class KVStore(Protocol):
    """mx.kv.KVStore"""

    type: str
    num_workers: int

    def init(self, key: int, value: Array) -> None: ...
    def push(self, key: int, value: Array) -> None: ...
    def pull(self, key: int, out: Array) -> None: ...


class Trainer(Protocol):
    """gluon.Trainer"""

    _kvstore: KVStore | None
    _update_on_kvstore: bool
    _params_to_init: list[Parameter]

    def _init_params(self) -> None: ...


class Trained(Block, Protocol):
    """A converted network. It has the `METHODS` of its control, too."""

    qat_control: Control
    qat_forward: Callable[..., object]


class Control:
    """State and methods of one converted network.

    steps: how often `update_ema` was called, which starts and ends what a layer delays; set it to resume a training.
    passes: context -> how often the network was called in training since, for one backward pass.
    reasons: name of a block -> why something that was asked for was not done to it.
    sample: the inputs of the last training step, see `feeds`.
    """

    def __init__(self, net: Block, reasons: dict[str, str]) -> None:
        self.net, self.reasons = net, reasons
        self._steps = 0
        self.passes: dict[Context, int] = {}
        self.training = False
        self._put_aside: dict[int, dict[str, object]] = {}
        self.sample: tuple[Array, ...] = ()
        self._in_kvstore: tuple[KVStore, tuple[int, ...]] | None = None
        self._started = False
        self._statistics = [p for p, _ in self._ranges()]

    # ---- averages ---------------------------------------------------------------------------------------------------

    def update_ema(self, momentum: float = 0.99, trainer: Trainer | None = None) -> None:
        """Move ranges towards those of the last batch; call it after ``backward()``.

            range <- momentum * range + (1 - momentum) * batch's        the first batch's is taken as it is

        Several contexts are averaged.  trainer: one on a distributed kvstore, to average over its workers, too.
        Of several forward passes before one ``backward()`` it is their mean.
        What is zero, infinite or no number moves no range.  Raises OptionError if there was no training step.
        """
        if not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
            raise OptionError(f"momentum: found {momentum!r}, want a number, 0 <= momentum < 1")
        if not self.passes:
            raise OptionError(f"update_ema: {self.net.name} was not called under autograd.record() since the last "
                              "time. As a part of a larger hybridized network it is not: convert that one")
        moving = self._ranges()
        if moving:
            if not any(p.sent() for p, _ in moving):
                raise OptionError("update_ema: no statistic has come back from the network: call it after "
                                  "loss.backward()")
            batches = self._over_workers([self._over_contexts(p) / calls for p, calls in moving], trainer)
            _average([p for p, _ in moving], batches, momentum)
        for parameter in self._statistics:
            parameter.forget()
        self.passes.clear()
        self.steps += 1

    @property
    def steps(self) -> int:
        return self._steps

    @steps.setter
    def steps(self, count: int) -> None:
        self._steps = count
        self._start_and_end()

    def _ranges(self) -> list[tuple[Statistic, int]]:
        """(parameter of an averaged range, how often the network calls its block), each parameter once."""
        found = {id(b.qat.high): (b.qat.high, b.qat.calls) for b in self.collect_quantized_blocks()
                 if b.qat.enabled and b.qat.observes and isinstance(b.qat.high, Statistic)}
        return list(found.values())

    def _over_contexts(self, parameter: Statistic) -> Array:
        """The mean of what was sent, (1,); 0 if nothing was."""
        sent = [array / self.passes.get(array.context, 1) for array in parameter.sent()]
        first = parameter.list_ctx()[0]
        return sum((array.as_in_context(first) for array in sent), mx.nd.zeros(1, ctx=first)) / max(len(sent), 1)

    def _over_workers(self, batches: list[Array], trainer: Trainer | None) -> list[Array]:
        kvstore: KVStore | None = getattr(trainer, "_kvstore", None)
        if trainer is None or kvstore is None or "dist" not in kvstore.type or not batches:
            return batches
        if trainer._update_on_kvstore:
            raise OptionError("update_ema: the servers of this Trainer's kvstore apply the optimizer to whatever they "
                              "get; make the Trainer with update_on_kvstore=False")
        if trainer._params_to_init:
            trainer._init_params()
        flat = mx.nd.concat(*batches, dim=0)
        if self._in_kvstore != (kvstore, flat.shape):
            kvstore.init(_KEY + len(batches), mx.nd.zeros_like(flat))
            self._in_kvstore = (kvstore, flat.shape)
        kvstore.push(_KEY + len(batches), flat)
        kvstore.pull(_KEY + len(batches), out=flat)
        flat /= kvstore.num_workers
        return [flat[i:i + 1] for i in range(len(batches))]

    def _start_and_end(self) -> None:
        changed = False
        for block in self.collect_quantized_blocks():
            state = block.qat
            if state.waiting != (waits := self.steps < state.args.start_step):
                state.waiting, changed = waits, True
            end = state.args.freeze_bn_step
            if state.bn is not None and not state.bn.fixed and end is not None and self.steps >= end:
                state.bn.fixed = changed = True
        if changed:
            self.clear()

    # ---- modes ------------------------------------------------------------------------------------------------------

    def quantize_online(self) -> None:
        """Inputs are quantized to the range of the running batch."""
        self.quantize_input(enable=True, online=True)

    def quantize_offline(self) -> None:
        """Inputs are quantized to the averaged (or calibrated, or learned) range, as the frozen model will."""
        self.quantize_input(enable=True, online=False)

    def quantize_input(self, enable: bool = True, online: bool = True) -> None:
        """Whether inputs are quantized, and to which range, see `quantize_online`, `quantize_offline`."""
        if enable and not online:
            require_ranges(self.collect_quantized_blocks())
        for block in self.collect_quantized_blocks():
            block.qat.quantize_input, block.qat.online = enable, online
        self.clear()

    def enable_quantize(self) -> None:
        """Compute with quantized inputs and weights."""
        self._set(enabled=True)

    def disable_quantize(self) -> None:
        """Compute in float. Paired BatchNorms stay folded, and no range moves."""
        self._set(enabled=False)

    def fix_params(self) -> None:
        """For good: ranges stay as they are, and so do the running statistics of every BatchNorm."""
        require_ranges(self.collect_quantized_blocks())
        self._set(fixed=True, online=False)
        for block in self.collect_quantized_blocks():
            if block.qat.bn is not None:
                block.qat.bn.fixed = True
            for parameter in (block.qat.high, block.qat.weight_high):
                if parameter is not None:
                    parameter.grad_req = "null"

        def use_running(block: Block) -> None:
            if isinstance(block, nn.BatchNorm):
                block._kwargs["use_global_stats"] = True

        self.net.apply(use_running)

    def collect_quantized_blocks(self) -> list[Converted]:
        """The converted blocks, in the order of the network's children."""
        return converted(self.net)

    def export(self, path: str, epoch: int = 0, remove_amp_cast: bool = True) -> None:
        """Write ``path-symbol.json``, ``path-NNNN.params``: the network at inference in offline mode, for MXNet as it
        is and for `qgraph freeze`, and ``path-calib.npz``, some inputs of the last training step (if there was one)."""
        export(self.net, path, epoch, self.feeds())

    def feeds(self) -> dict[str, np.ndarray]:
        """Inputs of the last training step, by name; {} if there was none. `qgraph.freeze` measures on them what
        training does not quantize."""
        names = ["data"] if len(self.sample) == 1 else [f"data{i}" for i in range(len(self.sample))]
        return {name: x.asnumpy() for name, x in zip(names, self.sample)}

    def _set(self, **flags: bool) -> None:
        for block in self.collect_quantized_blocks():
            for name, value in flags.items():
                setattr(block.qat, name, value)
        self.clear()

    def clear(self) -> None:
        """Forget the traced graphs; hybridized blocks trace again when they are next called."""
        self._put_aside.clear()
        self.net.apply(lambda block: block._clear_cached_op() if hasattr(block, "_clear_cached_op") else None)

    def begin(self, inputs: list[Array], training: bool) -> None:
        """Before a forward pass."""
        if not self._started:
            for block in self.collect_quantized_blocks():
                check_shape(block)
            bare = [b.name for b in self.collect_quantized_blocks() for p, learned in (
                (b.qat.high, is_learned(b.qat)), (b.qat.weight_high, True)) if learned and p is not None
                and p._data is not None and not p.list_data()[0].asnumpy().any()]
            if bare:
                raise CalibrationError(f"{bare[0]}: a learned range needs a start: qparams_init(net, calib_data=...)")
            self._started = True
        self.switch(training)
        if training:
            self.sample = tuple(inputs)
        if mx.autograd.is_recording():
            context = inputs[0].context
            if any(parameter.sent(context) for parameter in self._statistics):  # by a backward pass in between
                self.passes.pop(context, None)
                for parameter in self._statistics:
                    parameter.forget(context)
            self.passes[context] = self.passes.get(context, 0) + 1

    def switch(self, training: bool) -> None:
        """Training and inference have graphs of their own: the one not in use is put aside."""
        if training == self.training:
            return
        self.training = training
        for block in self.collect_quantized_blocks():
            block.qat.training = training

        def swap(block: Block) -> None:
            if hasattr(block, "_clear_cached_op"):
                now = {name: getattr(block, name) for name in _CACHE if hasattr(block, name)}
                other = self._put_aside.pop(id(block), None)
                block._clear_cached_op()
                for name, value in (other or {}).items():
                    setattr(block, name, value)
                self._put_aside[id(block)] = now

        self.net.apply(swap)


def _average(moving: list[Statistic], batches: list[Array], momentum: float) -> None:
    """See `Control.update_ema`; all ranges at once, and without waiting for a number."""
    for context in moving[0].list_ctx():
        values = [parameter.data(context) for parameter in moving]
        old = mx.nd.concat(*values, dim=0)
        new = mx.nd.concat(*[b.as_in_context(context) for b in batches], dim=0)
        new = mx.nd.where((new > 0) * (new < np.inf), new, old)
        rate = mx.nd.where(old > 0, mx.nd.ones_like(old) * (1 - momentum), mx.nd.ones_like(old))
        mx.nd.split(old + rate * (new - old), num_outputs=len(values), axis=0, out=values)
