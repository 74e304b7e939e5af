"""Without MXNet, as a user has it: the installed `qgraph` command, in a folder of its own. `make test-core` runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CASES, DIGITS, MXNET, PLAIN

pytestmark = pytest.mark.skipif(MXNET, reason="MXNet is here, `make test-core` does without")

SHAPE = ("--input-shape", "data:1,1,24,24")
SYMBOL, PARAMS = "net-symbol.json", "net-0000.params"


def qgraph(folder: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command in that folder. It must end with `code`, and never with a traceback."""
    done = subprocess.run([str(Path(sys.executable).with_name("qgraph")), *args], cwd=folder, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == code and "Traceback" not in done.stderr, f"{args}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done


def result(folder: Path, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(qgraph(folder, *args, "--json", "-q").stdout)
    return found


def error(folder: Path, *args: str) -> str:
    """The one line that a mistake prints."""
    done = qgraph(folder, *args, "-q", code=1)
    lines = done.stderr.splitlines()
    assert done.stdout == "" and len(lines) == 1 and lines[0].startswith("qgraph: error: "), done.stderr
    return lines[0]


# ---- a small network ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits network as net-*, calib.npz and test.npz, and what `freeze` makes of it as kl.onnx."""
    folder = tmp_path_factory.mktemp("core")
    for name in (SYMBOL, PARAMS):
        shutil.copy(DIGITS / name.replace("net", "digits"), folder / name)
    shutil.copy(DIGITS / "digits-calib.npz", folder / "calib.npz")
    shutil.copy(DIGITS / "digits-test.npz", folder / "test.npz")
    qgraph(folder, "freeze", SYMBOL, "--target", "onnx", "--calib", "kl", "--calib-data", "calib.npz", "--output", "kl")
    return folder


def test_the_installed_package_runs_on_numpy_2() -> None:
    import qgraph as package

    assert "site-packages" in package.__file__ and int(np.__version__.split(".")[0]) >= 2


def test_convert_to_onnx(net: Path) -> None:
    found = result(net, "convert", SYMBOL, "--to", "onnx", *SHAPE, "--output", "float")
    assert found["files"] == ["float.onnx"] and found["compared_with"] and found["difference"] < 1e-5
    judged = result(net, "eval", "float.onnx", "--data", "test.npz", "--reference", "net")
    assert judged["images"] == 600 and judged["agreement"] == 100 and judged["top1"] > 98


def test_convert_to_mxnet(net: Path) -> None:
    found = result(net, "convert", SYMBOL, "--to", "mxnet", "--output", "new")
    assert found["files"] == ["new-symbol.json", "new-0000.params"]
    assert result(net, "eval", "new", "--data", "test.npz", "--reference", "net")["agreement"] == 100


@pytest.mark.parametrize("method", ["naive", "kl"])
def test_freeze_for_onnx(net: Path, method: str) -> None:
    found = result(net, "freeze", SYMBOL, "--target", "onnx", "--calib", method, "--calib-data", "calib.npz",
                   "--output", f"int8-{method}")
    assert len(found["quantized"]) == 9 and found["float"] == [] and found["onnxruntime"]["float"] == {}
    assert found["calibration"]["images"] == 100 and found["agreement"]["top1"] >= 98
    assert found["size"]["after"] < 0.4 * found["size"]["before"]
    judged = result(net, "eval", f"int8-{method}.onnx", "--data", "test.npz", "--reference", "net")
    assert judged["agreement"] >= 98.5 and judged["top1"] > 97.5


def test_what_one_run_prints(net: Path) -> None:
    done = qgraph(net, "freeze", SYMBOL, *PLAIN, "--target", "onnx", "--calib-data", "calib.npz", "--output", "said")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("quantized   9 of 9 layers")
    assert [line.split()[-1] for line in lines if line.startswith("wrote")] == ["said.onnx", "said.calib.json",
                                                                                 "said.recipe.yaml",
                                                                                 "said.report.json", "said.report.html"]
    assert "calibrated" in done.stderr and "Warning" not in done.stderr


def test_compare(net: Path) -> None:
    found = result(net, "compare", "net", "kl.onnx", "--data", "test.npz")
    assert found["images"] == 600 and found["output"]["sqnr_db"] > 25 and found["agreement"] >= 98.5
    rows = {row["name"]: row["sqnr_db"] for row in found["layers"]}
    assert {"digits_depthwise_fwd", "digits_dense_fwd"} <= set(rows)
    assert all(sqnr is None or sqnr > 20 for sqnr in rows.values()), rows
    qgraph(net, "compare", "net", "kl.onnx", "--data", "test.npz", "--min-sqnr", "200", "-q", code=3)


def test_inspect(net: Path) -> None:
    found = result(net, "inspect", "net", "--target", "onnx", *SHAPE)
    assert found["frozen"] is False and found["outputs"] == {"digits_dense_fwd": [1, 10]}
    assert len(found["layers"]) == 9 and all(row["float"] == "" for row in found["layers"])
    assert result(net, "inspect", "kl.onnx")["frozen"] is True
    assert "QuantizeLinear" in qgraph(net, "inspect", "kl.onnx").stdout


def test_freeze_for_mxnet_is_judged_by_simulation(net: Path) -> None:
    done = qgraph(net, "freeze", SYMBOL, "--calib", "kl", "--calib-data", "calib.npz", "--output", "mx")
    assert "judged by simulation" in done.stderr
    report = json.loads((net / "mx.report.json").read_text())
    assert len(report["quantized"]) == 9 and report["agreement"]["top1"] >= 98 and report["departure"] is None
    found = result(net, "inspect", "mx")
    assert found["frozen"] is True and found["ops"]["_sg_mkldnn_conv"] == 8


def test_freeze_for_the_simulation(net: Path) -> None:
    found = result(net, "freeze", SYMBOL, "--target", "mxnet-sim", "--weight-bits", "4", "--calib-data", "calib.npz",
                   "--output", "sim")
    assert {row["weight"] for row in found["quantized"]} == {"s4"} and found["agreement"]["top1"] >= 90
    assert (net / "sim-symbol.json").is_file() and (net / "sim-0000.params").is_file()


def test_two_targets_share_one_calibration(net: Path) -> None:
    reports = result(net, "freeze", SYMBOL, "--target", "onnx", "--target", "mxnet", "--calib", "kl", "--calib-data",
                     "calib.npz", "--output", "both")
    assert set(reports) == {"onnx", "mxnet"} and all(r["agreement"]["top1"] >= 98 for r in reports.values())
    names = {f"both{tail}" for tail in (".onnx", "-symbol.json", "-0000.params", ".calib.json", ".recipe.yaml",
                                        ".onnx.report.json", ".mxnet.report.json", ".onnx.report.html",
                                        ".mxnet.report.html")}
    assert {name for name in os.listdir(net) if name.startswith("both")} == names
    assert (net / "both.onnx").read_bytes() == (net / "kl.onnx").read_bytes()


def test_without_data_one_line_says_what_to_give(net: Path) -> None:
    line = error(net, "freeze", SYMBOL, "--target", "onnx", *SHAPE, "--output", "nothing")
    assert "mxnet" in line and "--calib-data" in line and 'pip install "qgraph[mxnet]"' in line
    line = error(net, "freeze", SYMBOL, "--target", "onnx", "--output", "nothing")
    assert "--calib-data" in line
    assert not [name for name in os.listdir(net) if name.startswith("nothing")]


def test_what_only_mxnet_can_run_says_so_on_one_line(net: Path) -> None:
    qgraph(net, "freeze", SYMBOL, *PLAIN, "--calib-data", "calib.npz", "--output", "frozen", "-q")
    for args in (("eval", "frozen", "--data", "test.npz"), ("compare", "net", "frozen", "--data", "test.npz"),
                 ("eval", "net", "--data", "test.npz", "--runtime", "mxnet")):
        assert 'pip install "qgraph[mxnet]"' in error(net, *args)
    assert "--target onnx" in error(net, "eval", "frozen", "--data", "test.npz")
    asked = ("freeze", SYMBOL, "--runtime", "mxnet", "--calib-data", "calib.npz", "--output", "x")
    assert 'pip install "qgraph[mxnet]"' in error(net, *asked)


def test_in_python(net: Path) -> None:
    code = """
        import numpy as np, qgraph
        images = np.load("calib.npz")["data"]
        frozen = qgraph.freeze("net-symbol.json", qgraph.FreezeOptions(target="onnx", calib="kl"), calib_data=images)
        print(qgraph.evaluate(frozen, "test.npz", reference="net")["agreement"])
        print(frozen.save("api"))
        print(qgraph.compare("net", "api.onnx", "test.npz")["agreement"])"""
    done = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:qgraph", "-c", re.sub(r"\n +", "\n", code)],
                          cwd=net, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, files, second = done.stdout.splitlines()
    assert float(first) == float(second) >= 98.5 and "api.onnx" in files


# ---- trained ImageNet networks --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Case:
    flags: str  # how its images are prepared
    layers: int
    agreement: float  # percent of 40 images

    def args(self, images: str, select: str) -> list[str]:
        return [images, str(CASES / "imagenet1k_sample" / "val.rec"), "--select", select, *self.flags.split()]


NETWORKS = {
    "mobilenetv1_0.75_192_bn": Case("--crop 192 --mean 128,128,128 --std 128,128,128", 28, 92.5),
}


@pytest.mark.cases(*NETWORKS, "imagenet1k_sample/val.rec")
@pytest.mark.parametrize("name", NETWORKS)
def test_imagenet(name: str, tmp_path: Path) -> None:
    case, prefix = NETWORKS[name], str(CASES / name / name)
    size = case.flags.split()[1]
    found = result(tmp_path, "convert", f"{prefix}-symbol.json", "--to", "onnx", "--output", "float", "--input-shape",
                   f"data:1,3,{size},{size}")
    assert found["compared_with"] and found["difference"] < 1e-4

    onnx = result(tmp_path, "freeze", f"{prefix}-symbol.json", "--target", "onnx", "--calib", "kl",
                  *case.args("--calib-data", ":200:10"), "--output", "int8")
    assert len(onnx["quantized"]) == case.layers
    assert onnx["calibration"]["images"] == 20 and onnx["onnxruntime"]["float"] == {} and onnx["float"] == []
    assert onnx["size"]["after"] < 0.3 * onnx["size"]["before"]

    for model, least in (("float.onnx", 100.0), ("int8.onnx", case.agreement)):
        judged = result(tmp_path, "eval", model, *case.args("--data", "1:400:10"), "--reference", prefix)
        assert judged["images"] == 40 and judged["agreement"] >= least and judged["top1"] > 50, (model, judged)
    found = result(tmp_path, "compare", prefix, "int8.onnx", *case.args("--data", "1:400:40"))
    assert found["images"] == 10 and found["output"]["sqnr_db"] > 20 and len(found["layers"]) >= case.layers
    assert result(tmp_path, "inspect", prefix, "--target", "onnx")["frozen"] is False
    assert result(tmp_path, "inspect", "int8.onnx")["frozen"] is True
