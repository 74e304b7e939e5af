"""What is written for ONNX, in OpenVINO: the integers of exact arithmetic, and the commands that run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from frozen_digits import TABLE
from helpers import DIGITS

import qgraph
from qgraph import FreezeOptions
from qgraph.cli.main import main
from qgraph.commands.departure import kernel_departure
from qgraph.errors import DataError, MissingDependencyError, OptionError
from qgraph.formats.mxnet import load as load_mxnet
from qgraph.ir.rewrite import PassManager
from qgraph.options import JudgeOptions
from qgraph.passes import PIPELINES
from qgraph.semantics.interpreter import run
from qgraph.targets.onnx import openvino_runtime
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.model import load
from qgraph.targets.onnx.openvino_runtime import Executor
from qgraph.targets.onnx.runtime import Executor as OnnxRuntime

MODEL, DATA = str(DIGITS / "digits"), str(DIGITS / "digits-test.npz")
FAMILIES = ("conv_pool_conv", "concats", "residual_downsample", "dense_behind_flatten", "grouped", "squeeze_excite",
            "fused_clip", "leaky")  # their sums do not overflow on CPUs without VNNI


@pytest.mark.openvino
@pytest.mark.parametrize("name", FAMILIES)
def test_codes_are_those_of_exact_arithmetic(name: str) -> None:
    """Each integer tensor on the same integers, which OpenVINO keeps where they are watched; and the outputs as it
    fuses them by itself."""
    g, feeds = networks.build(name)
    q = networks.quantize(g, networks.table_of(g, feeds), "onnx")
    model = to_onnx(q, {key: array.shape for key, array in feeds.items()})
    found = kernel_departure(q, model, feeds, "half-even", lambda m, watch: Executor(m, watch))
    assert len(found["layers"]) == len(model.codes) > 1
    assert found["within_one"] == 100 and found["output"] < 1e-6
    assert min(layer["equal"] for layer in found["layers"].values()) > 99.9
    for want, output in zip(OnnxRuntime(model, exact=True).run(feeds), Executor(model).run(feeds)):
        assert np.ptp(want) > 0
        assert np.abs(want - output).max() <= 0.01 * np.abs(want).max()  # ties, which fused kernels break otherwise


@pytest.mark.openvino
@pytest.mark.parametrize("subsampled", [True, False])
def test_strided_shortcuts_stay_integer(subsampled: bool) -> None:
    """As where a stage of a ResNet ends: without the pass OpenVINO moves strides, and finds no integers."""
    n = networks.Net(3)
    x = n.act(n.op("elemwise_add", n.conv(n.x, 16, act=""), n.conv(n.x, 16, 1, act="")), "relu")
    main = n.conv(n.conv(x, 16, 1, stride=2), 16, act="")
    g = n.done(n.head(n.act(n.op("elemwise_add", main, n.conv(x, 16, 1, "", stride=2)), "relu")))
    feeds = {"data": n.rng.normal(size=(2, *n.shape)).astype(np.float32)}
    PassManager(PIPELINES["float"]).run(g)
    table = networks.table_of(g, feeds)
    line = [step for step in networks.steps("onnx", table) if subsampled or step.name != "subsample-codes"]
    q = g.copy()
    PassManager(tuple(line)).run(q)
    model = to_onnx(q, {"data": feeds["data"].shape})
    compiled = Executor(model)._compile({"data": feeds["data"].shape})
    told = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    kernels = [info["runtimePrecision"].astype(str) for info in told if info["layerType"].astype(str) == "Convolution"]
    assert len(kernels) == 5
    assert (set(kernels) <= {"u8", "i8"}) == subsampled, kernels
    for want, codes in zip(run(g, feeds), OnnxRuntime(model, exact=True).run(feeds)):
        assert np.abs(want - codes).max() < 0.05 * np.abs(want).max()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    prefix = str(tmp_path_factory.mktemp("digits") / "q")
    qgraph.freeze(MODEL, FreezeOptions(target="onnx", effort="fast", calib_table=str(TABLE),
                                       runtime="onnxruntime")).save(prefix)
    return f"{prefix}.onnx"


@pytest.mark.openvino
def test_a_whole_network_by_the_commands(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> Any:
        assert main([*words, "--data", DATA, "--select", ":100", "--runtime", "openvino", "--json", "-q"]) == 0
        return json.loads(capsys.readouterr().out)

    scored = said("eval", digits)
    plain = qgraph.evaluate(digits, DATA, options=JudgeOptions(select=":100"))
    assert abs(scored["top1"] - plain["top1"]) <= 1 and scored["images"] == 100
    plain_model = digits.replace("q.onnx", "float.onnx")
    Path(plain_model).write_bytes(to_onnx(load_mxnet(f"{MODEL}-symbol.json", f"{MODEL}-0000.params"),
                                          {"data": (1, 1, 24, 24)}).to_bytes())
    compared = said("compare", plain_model, digits)
    assert compared["agreement"] >= 99 and compared["output"]["sqnr_db"] > 30 and len(compared["layers"]) >= 9


@pytest.mark.openvino
def test_another_batch_size_and_a_wrong_shape(digits: str) -> None:
    executor = Executor(load(digits))
    with np.load(DATA) as data:
        images = data["data"][:5].astype(np.float32)
    whole, parts = executor.run({"data": images})[0], [executor.run({"data": images[i:i + 1]})[0] for i in range(5)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match="OpenVINO cannot run this model on inputs of shape"):
        executor.run({"data": images.repeat(2, axis=1)})


def test_what_it_cannot_run(digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="--runtime openvino: it runs .onnx models"):
        qgraph.evaluate(MODEL, DATA, runtime="openvino")

    def missing(what_for: str = "this test") -> None:
        raise MissingDependencyError("openvino", what_for, "openvino")

    monkeypatch.setattr(openvino_runtime, "import_openvino", missing)
    with pytest.raises(MissingDependencyError, match=r"qgraph\[openvino\]"):
        qgraph.evaluate(digits, DATA, runtime="openvino")
