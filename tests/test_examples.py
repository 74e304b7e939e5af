"""The scripts of examples/ do what they say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import assert_same_outputs

from qgraph import PassManager, freeze, load
from qgraph.ir.graph import Graph

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DIGITS = EXAMPLES / "digits" / "digits"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def run(script: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", f"import sys, runpy; sys.path.insert(0, {str(EXAMPLES.parent)!r})\n"
                           f"sys.argv = {[script, *args]!r}\n"
                           f"runpy.run_path({str(EXAMPLES / script)!r}, run_name='__main__')"],
                          cwd=cwd, capture_output=True, text=True, timeout=300)


def test_custom_pass_prints_before_and_after(tmp_path: Path) -> None:
    done = run("custom_pass.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split("# after")
    assert "= mean(%relu)" in before and "Pooling" not in before
    assert "mean(" not in after and "Pooling(%conv)" in after and "BatchNorm" not in after
    assert "mean-to-pooling  1 changed" in after


def test_custom_pass_keeps_the_outputs() -> None:
    example = module("custom_pass")
    before, after = Graph.parse(example.NETWORK), Graph.parse(example.NETWORK)
    step = example.MeanToPooling()
    assert PassManager((step,)).run(after) == 1
    assert step.run(after) == 0
    feeds = {"data": np.random.default_rng(0).normal(size=(4, 3, 7, 9)).astype(np.float32)}
    assert_same_outputs(before, after, feeds, rtol=1e-6)


@pytest.mark.parametrize("attrs", ["axis=(2, 3) keepdims=True", "axis=(1, 2)"])
def test_custom_pass_refuses(attrs: str) -> None:
    example = module("custom_pass")
    g = Graph.parse(example.NETWORK.replace("axis=(2, 3)", attrs))
    text = g.text()
    assert PassManager((example.MeanToPooling(),)).run(g) == 0
    assert g.text() == text


def test_demo_prints_both_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("mxnet")
    freeze(f"{DIGITS}-symbol.json").save(tmp_path / "frozen")
    done = run("demo.py", str(DIGITS), "frozen", "--runs", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"(float32|frozen) .*?│ +([\d.]+) │ +(\d+) │ +([\d.]+) │", done.stdout)
    assert [row[0] for row in rows] == ["float32", "frozen"]
    assert all(97 < float(top1) <= 100 and float(ms) > 0 for _, top1, _, ms in rows)


def test_the_demo_network_is_the_one_described() -> None:
    g = load(f"{DIGITS}-symbol.json", f"{DIGITS}-0000.params")
    groups = [int(n.attrs.get("num_group", "1")) for n in g.nodes("Convolution")]
    assert g.nodes("Convolution")[0].name == "digits_conv0_fwd"
    assert max(groups) > 1 and g.nodes("BatchNorm") and g.nodes("elemwise_add")
    assert sum(path.stat().st_size for path in DIGITS.parent.iterdir()) < 500_000


def test_gluoncv_freeze_says_what_it_lacks(tmp_path: Path) -> None:
    pytest.importorskip("gluoncv")
    done = run("gluoncv_freeze.py", "--model", "mobilenet1.1", "--no-pretrained", cwd=tmp_path)
    assert done.returncode == 1 and "mobilenet1.0" in done.stderr and "Traceback" not in done.stderr
