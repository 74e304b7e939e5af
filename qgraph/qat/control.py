"""The methods that `convert_model` gives a network: averages, modes, and what to look at."""

from __future__ import annotations

from typing import Any

from qgraph.errors import CalibrationError, OptionError
from qgraph.qat.converters import nn
from qgraph.qat.layer import LEARNED, Quantizer
from qgraph.qat.statistic import mx

METHODS = ("update_ema", "quantize_online", "quantize_offline", "quantize_input", "enable_quantize", "disable_quantize",
           "fix_params", "collect_quantized_blocks", "export")
_KEY = 1 << 20  # of the averages in a kvstore; its keys are numbers, as those of the Trainer
_CACHE = ("_cached_graph", "_cached_op", "_cached_op_args", "_in_format", "_out_format")
_AT_ONCE = 48  # arrays that MXNet's multi_sgd_update takes


class Control:
    """State and methods of one converted network.

    steps: how often `update_ema` was called, which starts and ends what a layer delays; set it to resume a training.
    reasons: name of a block -> why something that was asked for was not done to it.
    sample: the inputs of the last training step, on which `qgraph.freeze` measures what training does not quantize.
    """

    def __init__(self, net: Any, reasons: dict[str, str]) -> None:
        self.net, self.reasons = net, reasons
        self.steps = 0
        self.training = False
        self._put_aside: dict[int, dict[str, Any]] = {}
        self.sample: tuple[Any, ...] = ()
        self._in_kvstore: Any = None
        self._cold: list[Any] = [p for p, _ in self._ranges()]

    # ---- averages ---------------------------------------------------------------------------------------------------

    def update_ema(self, momentum: float = 0.99, trainer: Any = None) -> None:
        """Move ranges towards those of the last batch; call it after ``backward()``.

            range <- momentum * range + (1 - momentum) * batch's        the first batch's is taken as it is

        Several contexts are averaged.  trainer: one on a distributed kvstore, to average over its workers, too.
        """
        if not 0 <= momentum < 1:
            raise OptionError(f"momentum: found {momentum}, want 0 <= momentum < 1")
        moving = self._ranges()
        batches = self._over_workers([_over_contexts(p.batch) for p, _ in moving], trainer)
        self._warm(moving, batches)
        for start in range(0, len(moving), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            _average(moving[part], batches[part], momentum)
        self.steps += 1
        self._start_and_end()

    def _ranges(self) -> list[tuple[Any, int]]:
        """(parameter of an averaged range, how often the network calls its block), each parameter once."""
        found = {id(b.qat.high): (b.qat.high, b.qat.calls) for b in self.collect_quantized_blocks() if b.qat.observes}
        return list(found.values())

    def _over_workers(self, batches: list[Any], trainer: Any) -> list[Any]:
        kvstore = getattr(trainer, "_kvstore", None)
        if kvstore is None or "dist" not in kvstore.type or not batches:
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

    def _warm(self, moving: list[tuple[Any, int]], batches: list[Any]) -> None:
        """Ranges that are zero take the first batch's; looked at until there is none."""
        for (parameter, calls), batch in zip(moving, batches) if self._cold else ():
            if any(parameter is p for p in self._cold):
                if not parameter.list_data()[0].asnumpy().any():
                    parameter.set_data(batch / calls)
                    if not batch.asnumpy().any():
                        continue
                self._cold = [p for p in self._cold if p is not parameter]

    def _start_and_end(self) -> None:
        changed = False
        for block in self.collect_quantized_blocks():
            state: Quantizer = block.qat
            if state.waiting and self.steps >= state.args.start_step:
                state.waiting, changed = False, True
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

        def use_running(block: Any) -> None:
            if isinstance(block, nn.BatchNorm):
                block._kwargs["use_global_stats"] = True

        self.net.apply(use_running)

    def collect_quantized_blocks(self) -> list[Any]:
        """The converted blocks, in the order of the network's children."""
        blocks: list[Any] = []

        def collect(block: Any) -> None:
            if hasattr(block, "qat") and isinstance(block.qat, Quantizer) and all(b is not block for b in blocks):
                blocks.append(block)

        self.net.apply(collect)
        return blocks

    def export(self, path: str, epoch: int = 0, remove_amp_cast: bool = True) -> None:
        """Write ``path-symbol.json``, ``path-NNNN.params``: the network at inference in offline mode, for MXNet as it
        is and for `qgraph freeze`, and ``path-calib.npz``, some inputs of the last training step (if there was one)."""
        from qgraph.qat.export import export

        export(self.net, path, epoch)

    def _set(self, **flags: bool) -> None:
        for block in self.collect_quantized_blocks():
            for name, value in flags.items():
                setattr(block.qat, name, value)
        self.clear()

    def clear(self) -> None:
        """Forget the traced graphs; hybridized blocks trace again when they are next called."""
        self._put_aside.clear()
        self.net.apply(lambda block: block._clear_cached_op() if hasattr(block, "_clear_cached_op") else None)

    def switch(self, training: bool) -> None:
        """Training and inference have graphs of their own: the one not in use is put aside."""
        if training == self.training:
            return
        self.training = training
        for block in self.collect_quantized_blocks():
            block.qat.training = training

        def swap(block: Any) -> None:
            if hasattr(block, "_clear_cached_op"):
                now = {name: getattr(block, name) for name in _CACHE if hasattr(block, name)}
                other = self._put_aside.pop(id(block), None)
                block._clear_cached_op()
                for name, value in (other or {}).items():
                    setattr(block, name, value)
                self._put_aside[id(block)] = now

        self.net.apply(swap)


def _over_contexts(batches: list[Any]) -> Any:
    if len(batches) == 1:
        return batches[0]
    return sum(b.as_in_context(batches[0].context) for b in batches) / len(batches)


def _average(moving: list[tuple[Any, int]], batches: list[Any], momentum: float) -> None:
    """As one op per context: value <- (1 - rate) value + rate batch / calls, which is what an SGD update computes."""
    for context in moving[0][0].list_ctx():
        values = [p.data(context) for p, _ in moving]
        pairs = [array for value, batch in zip(values, batches) for array in (value, batch.as_in_context(context))]
        mx.nd.multi_sgd_update(*pairs, lrs=[(1 - momentum) / calls for _, calls in moving],
                               wds=[float(calls) for _, calls in moving], rescale_grad=-1.0, num_weights=len(values),
                               out=values)


def require_ranges(blocks: list[Any]) -> None:
    """CalibrationError if what one of the blocks reads has no range yet."""
    bare = [b.name for b in blocks
            if b.qat.high is not None and (b.qat.high._data is None or not b.qat.high.list_data()[0].asnumpy() > 0)]
    if bare:
        raise CalibrationError(f"no range for the input of {', '.join(bare[:4])}{', ...' if len(bare) > 4 else ''}"
                               " yet: train with net.update_ema(), or qparams_init(net, calib_data=...)")


def is_learned(state: Quantizer) -> bool:
    return state.args.input_range in LEARNED
