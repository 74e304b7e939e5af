"""Situations that users reported, as commands on small models: each does what its `# right:` line says.

A folder of the cases has `cmd`, shell lines of `qgraph ...`, or `run.py`, which prints what it measures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import CASES, ROOT

from qgraph import engines
from qgraph.analysis.difference import Difference
from qgraph.commands.open_model import open_model

PUBLIC = CASES / "public"
EVERY_OUTPUT = {"rows_not_images", "second_output_lost"}  # about the judge of every output
pytestmark = [pytest.mark.cases("public"), pytest.mark.mxnet, pytest.mark.ncnn]


class Right(NamedTuple):
    """What a command must do. code: its exit code.  db: what each output of the written model must have at least, on
    test.npz against want.npz.  says, never: patterns of what it prints."""

    code: int = 0
    db: float = 0.0
    says: str = ""
    never: str = ""


QUANTIZED = Right(db=25.0)
FLOAT = Right(db=90.0)
ONE_LINE = r"\Aqgraph: error: [^\n]*{}[^\n]*\Z"
RIGHT: dict[str, tuple[Right, ...]] = {
    "constant_in_graph": (QUANTIZED, QUANTIZED),
    "conv1d_onnx": (QUANTIZED, QUANTIZED, QUANTIZED),
    "dense_reason": (Right(says="signed"), Right(says="signed")),
    "dropout_always": (Right(1, says="mc.*mode=always", never="a bug of qgraph|pass canonicalize"),) * 2,
    "fp16_casts": (QUANTIZED, FLOAT),
    "no_kernel_attention": (QUANTIZED,),
    "no_kernel_depth_to_space": (QUANTIZED, QUANTIZED),
    "no_kernel_square": (QUANTIZED, QUANTIZED),
    "no_kernel_upsampling": (QUANTIZED, QUANTIZED),
    "numpy_interface": (QUANTIZED, FLOAT),
    "op_mxnet_cannot_run": (Right(1, says="--runtime onnxruntime"), Right(1, says="--runtime onnxruntime")),
    "op_mxnet_lacks": (Right(1, says="tail.*PSROIPooling"),),
    "resize_like": (QUANTIZED,),
    "resize_onnx": (QUANTIZED, QUANTIZED),
    "rois_segfault": (QUANTIZED,),
    "sequence_npz": (QUANTIZED,),
    "training_symbol": (Right(1, says="--outputs fc1"), QUANTIZED),
}
TRAINED = ("qat_range_widened", "qat_unsigned_ncnn")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With `qgraph` on the PATH: that of this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "qgraph"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qgraph "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def copied(case: str, tmp_path: Path) -> Path:
    folder = tmp_path / case
    folder.mkdir()
    for path in (PUBLIC / case).iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def worst_sqnr(folder: Path, model: str) -> float:
    """Of the outputs of a written model, on test.npz against want.npz."""
    feeds = dict(np.load(folder / "test.npz"))
    found = open_model(str(folder / model)).model
    values = engines.executor(found, "judging").run({name: feeds[name] for name in found.inputs})
    worst = np.inf
    for want, got in zip(np.load(folder / "want.npz").values(), values):
        difference = Difference()
        difference.update(want, got)
        worst = min(worst, np.inf if difference.sqnr is None else difference.sqnr)
    return worst


@pytest.mark.parametrize("case", RIGHT)
def test_commands(case: str, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = copied(case, tmp_path)
    lines = (folder / "cmd").read_text().partition("# right:")[0]
    commands = [part.strip() for part in re.split(r"[;\n]", lines) if part.strip().startswith("qgraph ")]
    assert len(commands) == len(RIGHT[case])
    for command, right in zip(commands, RIGHT[case]):
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True,
                              timeout=120)
        text = done.stdout + done.stderr
        assert done.returncode == right.code and "Traceback" not in text, f"{command}: {text[-1500:]}"
        assert re.search(right.says, text), f"{command}: {text[-1500:]}"
        assert not right.never or not re.search(right.never, text), f"{command}: {text[-1500:]}"
        if right.db:
            model = re.search(r"^wrote +(\S+(?:-symbol\.json|\.onnx|\.param))$", done.stdout, re.MULTILINE)
            assert model, done.stdout
            assert worst_sqnr(folder, model[1]) >= right.db, command


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_trained(case: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """run.py prints a line for each target: refused, or how near its model is to the network in offline mode."""
    folder = copied(case, tmp_path)
    done = subprocess.run([sys.executable, "-W", "ignore", "run.py"], cwd=folder, env=environment, capture_output=True,
                          text=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if re.search(r"equal|dB|refused", line)]
    assert done.returncode == 0 and len(lines) >= 3, done.stderr[-1500:]
    for line in lines:
        if "mxnet-sim" in line:
            assert line.endswith("equal"), line
        elif "refused: " not in line and not line.endswith("equal"):
            figure = re.search(r"(-?[\d.]+) dB$", line)
            assert figure and float(figure[1]) >= 30, line


@pytest.mark.slow
def test_every_case_is_judged() -> None:
    assert {path.name for path in PUBLIC.iterdir() if path.is_dir()} == {*RIGHT, *TRAINED, *EVERY_OUTPUT}
