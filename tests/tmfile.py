"""What Tengine itself wants of its files."""

from __future__ import annotations

import numpy as np

from qgraph.targets.tengine.files import CONST, FP32, INPUT, INT8, INT32, Model


def check_structure(tm: Model) -> None:
    """What the engine wants of a file, besides what `from_bytes` checks: quantization in all of it or in none."""
    values = [t for t in tm.tensors if t.kind != CONST]
    int8 = {t.dtype for t in values} == {INT8}
    assert int8 or {t.dtype for t in values} == {FP32}
    for tensor in values:
        assert (tensor.scales is not None and len(tensor.scales) == 1) == int8
        assert tensor.zeros is None or not tensor.zeros.any()
    assert [tm.layers[i].op for i in tm.inputs] == ["InputOp"] * len(tm.inputs)
    assert all((tm.tensors[layer.outputs[0]].kind == INPUT) == (layer.op == "InputOp") for layer in tm.layers)
    for layer in tm.layers:
        if layer.op not in ("Convolution", "FullyConnected"):
            continue
        x, weight, *bias = (tm.tensors[i] for i in layer.inputs)
        assert weight.array is not None and weight.dtype == (INT8 if int8 else FP32)
        assert [b.dtype for b in bias] == ([INT32 if int8 else FP32] * len(bias))
        if int8:
            assert x.scales is not None and weight.scales is not None and len(weight.array) > 1
            assert len(weight.scales) == len(weight.array) and abs(weight.array.astype(int)).max() <= 127
            for b in bias:
                np.testing.assert_allclose(b.scales, x.scales * weight.scales, rtol=1e-6)
