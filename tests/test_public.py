"""Situations that users reported, as commands on small models: each does what its `# right:` line says.

A folder of the cases has `cmd`, shell lines of `qgraph ...`, or `run.py`, which prints what it measures.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import forked
import numpy as np
import pytest
from helpers import CASES, ROOT

from qgraph import engines
from qgraph.analysis.difference import Difference
from qgraph.commands.open_model import open_model

PUBLIC = CASES / "public"
pytestmark = [pytest.mark.cases("public"), pytest.mark.mxnet, pytest.mark.ncnn]


class Right(NamedTuple):
    """What a command must do. code: its exit code.  db: what each output of the written model must have at least, on
    test.npz against want.npz.  says, never: patterns of what it prints."""

    code: int = 0
    db: float = 0.0
    says: str = ""
    never: str = ""


QUANTIZED = Right(db=25.0)
FLOAT = Right(db=60.0)  # ncnn computes with half precision by default
OTHER_ENGINE = "--runtime onnxruntime runs it"
RIGHT: dict[str, tuple[Right, ...]] = {
    "constant_in_graph": (QUANTIZED, QUANTIZED),
    "conv1d_onnx": (QUANTIZED, QUANTIZED, QUANTIZED),
    "dense_reason": (Right(says="f0 .*its input can be negative"),) * 2,
    "dropout_always": (Right(1, says="mc.*mode=always", never="a bug of qgraph|pass canonicalize"),) * 2,
    "fp16_casts": (QUANTIZED, FLOAT),
    "no_kernel_attention": (QUANTIZED,),
    "no_kernel_depth_to_space": (QUANTIZED, QUANTIZED),
    "no_kernel_square": (QUANTIZED, QUANTIZED),
    "no_kernel_upsampling": (QUANTIZED, QUANTIZED),
    "numpy_interface": (QUANTIZED, FLOAT),
    "op_mxnet_cannot_run": (Right(1, says=OTHER_ENGINE), Right(says=OTHER_ENGINE)),
    "op_mxnet_lacks": (Right(1, says="tail.*PSROIPooling"),),
    "resize_like": (QUANTIZED,),
    "resize_onnx": (QUANTIZED, QUANTIZED),
    "rois_segfault": (QUANTIZED,),
    "rows_not_images": (Right(says=r"agreement +\d\d\.?\d* % top-1"), Right(3, says="want at least 98 %")),
    "second_output_lost": (Right(says="worst output h2"), Right(3, says="SQNR of h2 is .*, want at least 30 dB")),
    "sequence_npz": (QUANTIZED,),
    "training_symbol": (Right(1, says="--outputs fc1"), QUANTIZED),
}
TRAINED = ("qat_range_widened", "qat_unsigned_ncnn")


@pytest.fixture(scope="module")
def processes() -> Any:
    return forked.server()


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


@pytest.mark.slow
@pytest.mark.parametrize("case", RIGHT)
def test_commands(case: str, tmp_path: Path, processes: Any) -> None:
    folder = copied(case, tmp_path)
    lines = (folder / "cmd").read_text().partition("# right:")[0]
    commands = [part.strip() for part in re.split(r"[;\n]", lines) if part.strip().startswith("qgraph ")]
    assert len(commands) == len(RIGHT[case])
    for command, right in zip(commands, RIGHT[case]):
        program, *args = shlex.split(command)
        assert program == "qgraph"
        code, stdout, stderr = forked.run_command(processes, args, folder)
        text = f"{command}: {stdout}{stderr}"
        assert code == right.code and "Traceback" not in text, text
        assert re.search(right.says, text), text
        assert not right.never or not re.search(right.never, text), text
        assert code == 0 or len(re.findall("^qgraph: (error|check failed): ", stderr, re.MULTILINE)) == 1, text
        if right.db:
            model = re.search(r"^wrote +(\S+(?:-symbol\.json|\.onnx|\.param))$", stdout, re.MULTILINE)
            assert model, text
            assert worst_sqnr(folder, model[1]) >= right.db, text


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_trained(case: str, tmp_path: Path) -> None:
    """run.py prints a line for each target: refused, or how near its model is to the network in offline mode."""
    folder = copied(case, tmp_path)
    done = subprocess.run([sys.executable, "-W", "ignore", "run.py"], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    lines = [line for line in done.stdout.splitlines() if re.search(r"equal|dB|refused", line)]
    assert done.returncode == 0 and len(lines) >= 3, done.stderr[-1500:]
    for line in lines:
        if "mxnet-sim" in line:
            assert line.endswith("equal"), line
        elif "refused: " not in line and not line.endswith("equal"):
            figure = re.search(r"(-?[\d.]+) dB$", line)
            assert figure and float(figure[1]) >= 30, line


def test_every_case_is_judged() -> None:
    assert {path.name for path in PUBLIC.iterdir() if path.is_dir()} == {*RIGHT, *TRAINED}
