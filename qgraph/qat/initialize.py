"""`qparams_init`: values for the parameters that quantization has added."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qgraph.calibration.collect import collect
from qgraph.errors import CalibrationError, OptionError
from qgraph.options import FreezeOptions
from qgraph.qat.control import Trained
from qgraph.qat.export import quantized_ports
from qgraph.qat.layer import Converted, check_shape, converted, decide_sign, is_learned
from qgraph.qat.statistic import mx
from qgraph.qat.types import Block


def qparams_init(net: Trained, calib_data: object = None, calib: str = "naive", num_calib: int | None = 512) -> Trained:
    """Initialize what `convert_model` has added; returns the network.

    Without data ranges begin with those of the first training batch.  With data (what `qgraph.open_data` takes) they
    are calibrated first, with the method `calib` of `qgraph freeze`, on the float network, and inputs of signedness
    "auto" are signed if something negative was seen.  Learned ranges ("lsq", "pact") need data.
    Raises OptionError for a network that is not converted, CalibrationError for ranges that cannot be determined.
    """
    if not hasattr(net, "collect_quantized_blocks"):
        raise OptionError(f"qparams_init: {getattr(net, 'name', net)} is not converted: call convert_model(net) first")
    blocks = converted(net)
    contexts = next((p.list_ctx() for p in net.collect_params().values() if p._data is not None), None)
    for block in blocks:
        for parameter in (block.qat.high, block.qat.weight_high):
            if parameter is not None and parameter._data is None:
                parameter.initialize(ctx=contexts)
        _start_weight_range(block)
    if calib_data is None:
        learned = [b.name for b in blocks if b.qat.high is not None and is_learned(b.qat)]
        if learned:
            raise CalibrationError(f"{learned[0]}: a learned range needs a start: qparams_init(net, calib_data=...)")
    else:
        for block, low, high in _observed(net, blocks, calib_data, calib, num_calib):
            state = block.qat
            decide_sign(state, signed=low < 0)
            assert state.spec is not None and state.high is not None
            state.high.set_data(mx.nd.array([max(high, -low if state.spec.signed else 0.0, 0.0)]))
    for block in blocks:  # nothing is known that says otherwise
        decide_sign(block.qat, signed=True)
    return net


def _observed(net: Block, blocks: list[Converted], calib_data: object, calib: str,
              num_calib: int | None) -> Iterator[tuple[Converted, float, float]]:
    """(block, low, high) of everything that is quantized and not a weight."""
    graph, ports = quantized_ports(net)
    options = FreezeOptions(num_calib=num_calib)
    data = options.open(calib_data, {node.name: () for node in graph.data_inputs()}, num_calib)
    bits = {block.qat.spec.bits for block in blocks if block.qat.spec is not None}
    for width in sorted(bits):
        table = collect(graph, data, calib, act_bits=width, ports=ports.values(),
                        wanted=[port.key for port in ports.values()])
        for block in blocks:
            if block.qat.spec is not None and block.qat.spec.bits == width:
                entries = [table.entries[port.key] for name, port in ports.items() if name[0] == block.name]
                if not entries:
                    raise CalibrationError(f"{block.name}: the network's forward pass does not use it: exclude it")
                yield block, min(e.low for e in entries), max(e.high for e in entries)


def _start_weight_range(block: Converted) -> None:
    """LSQ begins with the step 2 mean|w| / sqrt(qmax) (arXiv 1902.08153, section 2.1), per scale."""
    parameter, spec = block.qat.weight_high, block.qat.weight
    if parameter is None or spec is None:
        return
    check_shape(block)
    if parameter.list_data()[0].asnumpy().any():
        return
    size = np.abs(block.weight.list_data()[0].asnumpy())
    if spec.granularity == "channel":
        mean = size.mean(axis=tuple(d for d in range(size.ndim) if d != spec.axis))
    else:
        mean = size.reshape(parameter.shape[0], -1).mean(axis=1)
    parameter.set_data(mx.nd.array((2 * mean * np.sqrt(spec.qmax)).reshape(parameter.shape)))
