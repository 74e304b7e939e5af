"""``+`` of arrays as it is in a traced network, so that training is the same, to the last bit, hybridized or not.

For symbols ``a + b`` is elemwise_add.  For arrays it is broadcast_add, which leaves oneDNN's layouts: BatchNorm then
adds its gradients in another order, and a last bit becomes a step where a value is rounded.

Networks add what their blocks put out.  While a converted network runs, these arrays are of a class of their own, whose
``+`` is elemwise_add.  The sum of two arrays that no block has put out, as in ``F.relu(x) + F.sigmoid(x)``, stays a
broadcast_add: there call F.elemwise_add.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from qgraph.formats.gluon import flatten
from qgraph.qat.statistic import mx
from qgraph.qat.types import Array, Block

NDArray = mx.nd.NDArray
_thread = threading.local()  # running: whether a network runs in this thread whose sums are to be as traced


class Summand(NDArray):  # type: ignore[misc,valid-type]
    """An array whose sums with others of its shape are elemwise_add, and summands again."""

    __slots__ = ()

    def __add__(self, other: Array | float) -> Array:
        if isinstance(other, NDArray) and type(other) in (NDArray, Summand) and (
                self.shape, self.dtype) == (other.shape, other.dtype):
            return _summand(mx.nd.elemwise_add(self, other))
        return super().__add__(other)

    __radd__ = __add__


def _summand(array: Array) -> Array:
    array.__class__ = Summand
    return array


def mark_outputs(block: Block, inputs: object, outputs: object) -> None:
    """A forward hook: what the block has made is summands. What it hands on is somebody else's, and stays as it is."""
    if getattr(_thread, "running", False):
        own = [array for p in block._reg_params.values() for array in p._data or ()]
        handed_on = {id(array) for array in [*flatten(inputs), *own]}
        for array in flatten(outputs):
            if type(array) is NDArray and id(array) not in handed_on:
                _summand(array)


@contextmanager
def _running() -> Iterator[None]:
    before = getattr(_thread, "running", False)
    _thread.running = True
    try:
        yield
    finally:
        _thread.running = before


def sums_as_traced(forward: Callable[..., object], inputs: Sequence[object]) -> object:
    """forward(*inputs), where blocks have the hook `mark_outputs`; what comes out are arrays like any other."""
    with _running():
        outputs = forward(*inputs)
    for array in flatten(outputs):
        if type(array) is Summand:
            array.__class__ = NDArray
    return outputs
