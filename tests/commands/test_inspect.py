"""`inspect` and `freeze` give the same reasons."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.commands.freeze import freeze
from qgraph.commands.inspect import inspect_model
from qgraph.ir.graph import Graph, Port

pytestmark = pytest.mark.mxnet
RNG = np.random.default_rng(0)


def test_a_dense_layer_that_reads_signed_values() -> None:
    g = Graph()
    value: object = g.add("null", name="data")
    for name, act in (("signed", ""), ("behind", "relu"), ("unsigned", "")):
        weight = g.add_param(f"{name}_weight", RNG.normal(0, 0.5, (8, 8)).astype(np.float32))
        value = g.add("FullyConnected", [value, weight], name, num_hidden="8", no_bias="True")
        if act:
            value = g.add("Activation", [value], f"{name}_act", act_type=act)
    g.heads = [Port(value)]
    inspected = {row["name"]: row["float"] for row in inspect_model(g)["layers"]}
    report = freeze(g, calib_data=RNG.normal(size=(16, 8)).astype(np.float32)).report
    assert {row["name"]: row["reason"] for row in report["float"]} == {n: why for n, why in inspected.items() if why}
    assert "its input can be negative" in inspected["signed"] and inspected["signed"] == inspected["behind"]
    assert [row["name"] for row in report["quantized"]] == ["unsigned"] and inspected["unsigned"] == ""
