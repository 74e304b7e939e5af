"""A Gluon block as a graph: it is traced with symbols in memory, no file is written."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from qgraph.errors import MissingDependencyError, OptionError, UnsupportedError
from qgraph.formats.mxnet import load
from qgraph.ir.graph import Graph

Shape = Sequence[int]

# An attribute that blocks can have: a function that is called with the block that is read.  It returns a context
# manager; within it the block is traced, and what it gives is name -> value of the variables that are no parameters.
TRACING = "qgraph_tracing"


def from_gluon(block: object, *shapes: Shape | Mapping[str, Shape]) -> Graph:
    """The graph of a `gluon.HybridBlock` (or SymbolBlock), with its parameters as they are now.

    shapes: one shape per input, such as ``(1, 3, 224, 224)``, or one dict of name -> shape. Inputs given without names
        are called as Gluon's export does: "data", or "data0", "data1", ...
    The block keeps its hybridization and its cache. Parameters whose initialization is deferred are initialized by a
    forward pass on zeros of these shapes, as the first use of the block would.
    A block that trained quantized (`qgraph.qat`) gives the graph of its inference in offline mode, with the trained
    ranges on fake_quantize nodes: one of the blocks in it says so by its attribute `TRACING`.
    Raises UnsupportedError for a block that cannot be traced, OptionError for what the caller can mend, and
    MissingDependencyError without MXNet.
    """
    try:
        import mxnet as mx
    except ImportError as error:
        raise MissingDependencyError("mxnet", "from_gluon", "mxnet") from error
    if not isinstance(block, mx.gluon.HybridBlock):
        raise UnsupportedError(f"from_gluon: found a {type(block).__name__}, want a gluon.HybridBlock (only these "
                               "can be traced)")
    with _tracing(block) as arrays:
        return traced(block, shapes, arrays)


def _tracing(block: Any) -> AbstractContextManager[Mapping[str, np.ndarray]]:
    blocks: list[Any] = []
    block.apply(blocks.append)
    own = next((getattr(inner, TRACING) for inner in blocks if hasattr(inner, TRACING)), None)
    return nullcontext({}) if own is None else own(block)


def traced(block: Any, shapes: Sequence[Shape | Mapping[str, Shape]], arrays: Mapping[str, np.ndarray]) -> Graph:
    """As `from_gluon`, with the forward pass as it is. arrays: values of variables that are no parameters; they are
    read after the forward pass, which may add to them."""
    import mxnet as mx

    inputs = _input_shapes(block, shapes)
    parameters = block.collect_params()
    if any(p._deferred_init for p in parameters.values()):
        if any(shape is None for shape in inputs.values()):
            raise OptionError("from_gluon: the block's parameters have no shapes yet; give the shapes of its inputs")
        with mx.autograd.pause():
            block(*[mx.nd.zeros(shape) for shape in inputs.values()])
    bare = [name for name, p in parameters.items() if p._data is None]
    if bare:
        raise OptionError(f"from_gluon: {bare[0]} and {len(bare) - 1} other parameters have no values; call "
                          "initialize() or load_parameters() first")
    variables = [mx.sym.var(name, shape=shape) if shape else mx.sym.var(name) for name, shape in inputs.items()]
    try:
        outputs = flatten(block(*variables))
    except (AttributeError, TypeError, ValueError, AssertionError, NotImplementedError, mx.MXNetError) as error:
        first_line = str(error).strip().splitlines() or [""]
        raise UnsupportedError(f"from_gluon: {type(block).__name__} cannot be traced with {len(inputs)} symbols as "
                               f"inputs: {type(error).__name__}: {first_line[0]}") from error
    symbol = outputs[0] if len(outputs) == 1 else mx.sym.Group(outputs)
    used = set(symbol.list_inputs())
    values = {name: p.data(p.list_ctx()[0]) for name, p in parameters.items() if name in used}
    return load(symbol, {**values, **arrays})


def input_names(block: Any) -> list[str]:
    """As Gluon's export calls them: what ``hybrid_forward`` wants besides parameters of the block."""
    wanted = list(inspect.signature(type(block).hybrid_forward).parameters.values())[2:]
    count = sum(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
                and p.name not in block._reg_params for p in wanted)
    return ["data"] if count <= 1 else [f"data{i}" for i in range(count)]


def _input_shapes(block: Any, shapes: Sequence[Shape | Mapping[str, Shape]]) -> dict[str, tuple[int, ...] | None]:
    if not shapes:
        return dict.fromkeys(input_names(block))
    if isinstance(shapes[0], Mapping):
        if len(shapes) > 1:
            raise OptionError("from_gluon: give either one dict of shapes or one shape per input")
        named: Mapping[str, Any] = shapes[0]
    elif len(shapes) == 1:
        named = {"data": shapes[0]}
    else:
        named = {f"data{i}": shape for i, shape in enumerate(shapes)}
    for name, shape in named.items():
        if not re.fullmatch(r"\S+", name) or not all(isinstance(d, int) and d > 0 for d in shape):
            raise OptionError(f"from_gluon: {name!r}: found shape {shape!r}, want positive whole numbers, such as "
                              "(1, 3, 224, 224)")
    return {name: tuple(shape) for name, shape in named.items()}


def flatten(outputs: object) -> list[Any]:
    if isinstance(outputs, (list, tuple)):
        return [leaf for item in outputs for leaf in flatten(item)]
    return [outputs]
