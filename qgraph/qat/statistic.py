"""Parameters that hold a running statistic, and get the batch's through their gradient.

In a hybridized network nothing but gradients comes out of the graph, so a statistic is sent out as one:

    tie(w, p, s) = reshape_like(w, repeat(make_loss(p * s)))         which uses its second input for its shape only

is `w`, and after backward() the gradient of p is s, on every context and with every scaling of the loss: make_loss
hands on a gradient of ones, whatever comes in.
"""

from __future__ import annotations

import sys

from qgraph.qat.types import Array, Block, Context, Ops, Parameter, T
from qgraph.targets.mxnet.runtime import import_mxnet

mx = import_mxnet("qgraph.qat")


def amp_is_on() -> bool:
    """Whether MXNet's automatic mixed precision has been initialized in this process."""
    return bool(getattr(sys.modules.get("mxnet.contrib.amp.amp"), "_amp_initialized", False))


class Statistic(mx.gluon.Parameter):  # type: ignore[name-defined,misc]
    """Not trained: `Trainer`, `zero_grad` and the kvstore see grad_req 'null' and leave it alone, files keep it."""

    def __init__(self, name: str, shape: tuple[int, ...] = (1,), init: str = "zeros") -> None:
        super().__init__(name, grad_req="null", shape=shape, init=init, allow_deferred_init=True, differentiable=False)

    @property
    def grad_req(self) -> str:
        return "null"

    @grad_req.setter
    def grad_req(self, req: str) -> None:
        self._grad_req = "null"

    def _init_grad(self) -> None:
        self._grad = [mx.nd.zeros_like(array) for array in self._data]
        mx.autograd.mark_variables(self._data, self._grad, "write")

    def sent(self, context: Context | None = None) -> list[Array]:
        """What the last backward pass sent since `forget`, per context (or in the one given)."""
        return [sent for data, sent in zip(self._data or [], self._grad or [])
                if data._fresh_grad and context in (None, data.context)]

    def forget(self, context: Context | None = None) -> None:
        """What was sent until now is old."""
        for data in self._data or []:
            if context in (None, data.context):
                data._fresh_grad = False


def register(block: Block, attribute: str, parameter: Parameter) -> Parameter:
    """Give a block a parameter after it was made; it is initialized where the others are.

    Blocks that share their parameters share this one; the first one made stays.
    """
    owner = block.params if block.params._shared is None else block.params._shared
    parameter = owner._params.setdefault(parameter.name, parameter)
    block.params._params[parameter.name] = parameter
    setattr(block, attribute, parameter)
    others = [p for p in block.params.values() if p._data is not None]
    if others and parameter._data is None:
        parameter.initialize(ctx=others[0].list_ctx())
    return parameter


def tie(F: Ops[T], value: T, parameter: T, statistic: T, rows: T | int) -> T:
    """`value`, and the gradient of `parameter` is the statistic (of its shape).

    rows: length of axis 0 of `value`, or an array (length,).
    """
    sent = F.reshape(F.sum(F.make_loss(parameter * F.BlockGrad(statistic))), shape=(1,))
    sent = F.repeat(sent, repeats=rows) if isinstance(rows, int) else F.broadcast_like(sent, F.BlockGrad(rows))
    return F.reshape_like(value, sent, lhs_begin=0, lhs_end=1, rhs_begin=0, rhs_end=1)
