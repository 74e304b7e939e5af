"""Ops of mx.np and mx.npx: each as MXNet itself computes it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from qgraph.formats.mxnet import load
from qgraph.ir import ops
from qgraph.semantics.interpreter import run

IMAGE = (2, 6, 3, 4)
CASES: list[tuple[str, dict[str, Any], list[tuple[int, ...]]]] = [
    ("_npx_relu", {}, [IMAGE]), ("_npi_absolute", {}, [IMAGE]), ("_npi_exp", {}, [IMAGE]),
    ("_npi_add", {}, [IMAGE, (3, 1)]), ("_npi_subtract", {}, [IMAGE, (1,)]),
    ("_npi_true_divide", {}, [IMAGE, (6, 1, 1)]),
    ("_npi_less_equal", {}, [IMAGE, (4,)]),
    ("_npi_multiply_scalar", {"scalar": 2.0, "is_int": True}, [IMAGE]),
    ("_npi_rsubtract_scalar", {"scalar": 0.5, "is_int": False}, [IMAGE]),
    ("_npi_rtrue_divide_scalar", {"scalar": 0.5, "is_int": False}, [IMAGE]),
    ("_npi_power_scalar", {"scalar": 2, "is_int": True}, [IMAGE]),
    ("_npi_concatenate", {"axis": 1, "num_args": 2}, [IMAGE, IMAGE]),
    ("_npi_stack", {"axis": 1, "num_args": 2}, [IMAGE, IMAGE]),
    ("_np_transpose", {"axes": (0, 2, 3, 1)}, [IMAGE]), ("_np_transpose", {"axes": None}, [IMAGE]),
    ("_np_reshape", {"newshape": (2, -1), "order": "C"}, [IMAGE]),
    ("_npx_reshape", {"newshape": (-2, -5, -4)}, [IMAGE]),
    ("_npx_reshape", {"newshape": (-2, -6, 2, -1, -4)}, [IMAGE]),
    ("_npi_mean", {"axis": (2, 3), "keepdims": True, "dtype": None, "initial": None}, [IMAGE]),
    ("_np_sum", {"axis": -1}, [IMAGE]), ("_np_max", {"axis": 1, "keepdims": False}, [IMAGE]),
    ("_np_squeeze", {"axis": (1,)}, [(2, 1, 3)]), ("_npi_flip", {"axis": (1,)}, [IMAGE]),
]


@pytest.mark.mxnet
@pytest.mark.parametrize("op, attrs, shapes", CASES, ids=lambda value: str(value).replace(" ", ""))
def test_each_equals_mxnet(op: str, attrs: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
    import mxnet as mx

    count = len(shapes)
    nodes: list[dict[str, Any]] = [{"op": "null", "name": f"x{i}", "inputs": []} for i in range(count)]
    nodes.append({"op": op, "name": "out", "attrs": {key: str(value) for key, value in attrs.items()},
                  "inputs": [[i, 0, 0] for i in range(count)]})
    text = json.dumps({"nodes": nodes, "arg_nodes": list(range(count)), "heads": [[count, 0, 0]],
                       "attrs": {"mxnet_version": ["int", 10901]}})
    rng = np.random.default_rng(0)
    feeds = {f"x{i}": rng.uniform(0.2, 2, shape).astype(np.float32) for i, shape in enumerate(shapes)}
    arrays = {name: mx.nd.array(x) for name, x in feeds.items()}
    want = mx.sym.load_json(text).bind(mx.cpu(), arrays).forward()[0].asnumpy()
    g = load(text)
    (found,) = run(g, feeds)
    assert g.find("out").op in ops.OPS
    assert found.shape == want.shape and want.std() > 0
    np.testing.assert_allclose(found, want.astype(np.float32), rtol=1e-5)


def test_what_has_no_older_op_keeps_its_name() -> None:
    g = load(json.dumps({"nodes": [{"op": "null", "name": "x", "inputs": []}, {
        "op": "_npx_reshape", "name": "out", "attrs": {"newshape": "(-2, -3)"}, "inputs": [[0, 0, 0]]}],
        "arg_nodes": [0], "heads": [[1, 0, 0]], "attrs": {"mxnet_version": ["int", 10901]}}))
    assert g.find("out").op == "_npx_reshape"
