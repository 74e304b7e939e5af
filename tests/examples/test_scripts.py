"""The scripts of examples/ do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import DIGITS, assert_same_outputs, load_example, run_example

from qgraph import PassManager, freeze, load
from qgraph.ir.graph import Graph


def test_custom_pass_prints_before_and_after(tmp_path: Path) -> None:
    done = run_example("custom_pass.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split("# after")
    assert "= mean(%relu)" in before and "Pooling" not in before
    assert "mean(" not in after and "Pooling(%conv)" in after and "BatchNorm" not in after
    assert "mean-to-pooling  1 changed" in after


@pytest.mark.mxnet
def test_custom_pass_keeps_the_outputs() -> None:
    example = load_example("custom_pass")
    before, after = Graph.parse(example.NETWORK), Graph.parse(example.NETWORK)
    step = example.MeanToPooling()
    assert PassManager((step,)).run(after) == 1
    assert step.run(after) == 0
    feeds = {"data": np.random.default_rng(0).normal(size=(4, 3, 7, 9)).astype(np.float32)}
    assert_same_outputs(before, after, feeds, rtol=1e-6)


@pytest.mark.parametrize("attrs", ["axis=(2, 3) keepdims=True", "axis=(1, 2)"])
def test_custom_pass_refuses(attrs: str) -> None:
    example = load_example("custom_pass")
    g = Graph.parse(example.NETWORK.replace("axis=(2, 3)", attrs))
    text = g.text()
    assert PassManager((example.MeanToPooling(),)).run(g) == 0
    assert g.text() == text


@pytest.mark.slow
@pytest.mark.mxnet
def test_demo_prints_both_checkpoints(tmp_path: Path) -> None:
    freeze(f"{DIGITS}/digits-symbol.json").save(tmp_path / "frozen")
    done = run_example("demo.py", str(DIGITS / "digits"), "frozen", "--runs", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"(float32|frozen) .*?│ +([\d.]+) │ +(\d+) │ +([\d.]+) │", done.stdout)
    assert [row[0] for row in rows] == ["float32", "frozen"]
    assert all(97 < float(top1) <= 100 and float(ms) > 0 for _, top1, _, ms in rows)


def test_the_demo_network_is_the_one_described() -> None:
    g = load(f"{DIGITS}/digits-symbol.json", f"{DIGITS}/digits-0000.params")
    groups = [int(n.attrs.get("num_group", "1")) for n in g.nodes("Convolution")]
    assert g.nodes("Convolution")[0].name == "digits_conv0_fwd"
    assert max(groups) > 1 and g.nodes("BatchNorm") and g.nodes("elemwise_add")
    assert sum(path.stat().st_size for path in DIGITS.iterdir()) < 500_000


def test_gluoncv_freeze_says_what_it_lacks(tmp_path: Path) -> None:
    pytest.importorskip("gluoncv")
    done = run_example("gluoncv_freeze.py", "--model", "mobilenet1.1", "--no-pretrained", cwd=tmp_path)
    assert done.returncode == 1 and "mobilenet1.0" in done.stderr and "Traceback" not in done.stderr
