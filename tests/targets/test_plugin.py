"""Packages of other authors bring a target and a pass: the recipes of docs/extend, followed to the letter."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import DIGITS, PLAIN, ROOT

MODULES = {"target": "listing.py", "pass": "my_passes.py"}  # of the pages


def block(page: str, kind: str, name: str) -> str:
    """The fenced block of a page whose first line is the name of a file."""
    page = (ROOT / "docs" / "extend" / f"{page}.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^```{kind}\n(# {re.escape(name)}\n.*?)^```$", page, re.M | re.S)
    return str(text)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip leaves one: the modules, and for each a .dist-info with the entry points of its setup.cfg."""
    folder = tmp_path_factory.mktemp("site")
    for page, module in MODULES.items():
        (folder / module).write_text(block(page, "python", module))
        config = configparser.ConfigParser()
        config.read_string(block(page, "ini", "setup.cfg"))
        name, version = config["metadata"]["name"], config["metadata"]["version"]
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = {group: lines.strip() for group, lines in config["options.entry_points"].items()}
        (info / "entry_points.txt").write_text("".join(f"[{group}]\n{lines}\n" for group, lines in groups.items()))
    return folder


@pytest.fixture()
def model(tmp_path: Path) -> Path:
    for name in ("digits-symbol.json", "digits-0000.params", "digits-calib.npz"):
        shutil.copy(DIGITS / name, tmp_path / name.replace("digits-", "model-", 1))
    return tmp_path


def qgraph(package: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    paths = [str(package), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return subprocess.run([sys.executable, "-m", "qgraph", *args], cwd=folder, env=env, capture_output=True, text=True,
                          timeout=300)


def test_its_target_freezes(package: Path, model: Path) -> None:
    done = qgraph(package, model, "freeze", "model-symbol.json", *PLAIN, "--target", "listing", "--runtime",
                  "onnxruntime")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agreement   100 % top-1" in done.stdout and "model-quantized.listing" in done.stdout
    text = (model / "model-quantized.listing").read_text()
    assert text.count("= fake_quantize(") > 10 and "= Convolution(" in text
    report = json.loads((model / "model-quantized.report.json").read_text())
    assert report["target"] == "listing" and len(report["quantized"]) == 9
    read = qgraph(package, model, "inspect", "model-quantized.listing")
    assert read.returncode == 1 and "target listing only writes such files" in read.stderr


@pytest.mark.slow
def test_its_options_are_flags(package: Path, model: Path) -> None:
    for choice in (("--target", "listing{names=false}"), ("--target", "listing", "--no-names")):
        done = qgraph(package, model, "freeze", "model-symbol.json", *PLAIN, *choice, "--runtime", "onnxruntime")
        assert done.returncode == 0, done.stderr[-3000:]
        assert "digits_conv0" not in (model / "model-quantized.listing").read_text()
    done = qgraph(package, model, "freeze", "model-symbol.json", *PLAIN, "--target", "onnx", "--no-names")
    assert done.returncode == 1 and "--no-names: target onnx has no choice; it is for --target listing" in done.stderr


@pytest.mark.slow
def test_its_pass_runs(package: Path, model: Path) -> None:
    done = qgraph(package, model, "freeze", "model-symbol.json", *PLAIN, "--target", "onnx", "--runtime", "onnxruntime",
                  "--pass", "mean-to-pooling@canonicalize", "-v")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mean-to-pooling" in done.stderr
    listed = qgraph(package, model, "passes")
    assert "mean-to-pooling" in listed.stdout and "fold-bn" in listed.stdout


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded_is_named_and_hurts_nobody(package: Path, model: Path) -> None:
    broken = model / "site"
    shutil.copytree(package, broken)
    (broken / "listing.py").write_text("import missing_module\n")
    asked = qgraph(broken, model, "freeze", "model-symbol.json", "--target", "listing")
    assert asked.returncode == 2 and "target listing: listing:Listing cannot be loaded" in asked.stderr
    assert "Traceback" not in asked.stderr
    other = qgraph(broken, model, "freeze", "model-symbol.json", *PLAIN, "--target", "onnx", "--runtime", "onnxruntime")
    assert other.returncode == 0 and "target listing" in other.stderr
