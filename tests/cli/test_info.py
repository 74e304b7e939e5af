"""`qgraph info`, `qgraph --version`, and completion by the shell."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from helpers import ROOT

import qgraph
from qgraph import processor
from qgraph.cli.main import COMMANDS, main
from qgraph.commands import info as module


def qgraph_in_a_shell(*args: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-m", "qgraph", *args], cwd=ROOT, env={**os.environ, **env},
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_info_tells_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["qgraph"] == qgraph.__version__ and found["python"] == platform.python_version()
    assert {"mxnet", "onnxruntime", "openvino", "ncnn", "numpy"} <= {*found}
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines == found


def test_an_engine_that_is_missing_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("mxnet", "ncnn"):
            raise PackageNotFoundError(package)
        return "1.2"

    monkeypatch.setattr(module, "version", version)
    found = module.info()
    assert (found["mxnet"], found["ncnn"], found["onnxruntime"]) == ("not installed", "not installed", "1.2")
    start = f"qgraph {qgraph.__version__} (Python {platform.python_version()}; "
    assert module.version_line() == f"{start}gluoncv 1.2, onnxruntime 1.2, openvino 1.2)"


@pytest.mark.parametrize(("text", "vnni"), [
    ("flags : fpu avx2 avx512_vnni\n", "yes"), ("flags : fpu avx2\n", "no"), ("Features : fp asimd\n", "unknown"),
    (None, "unknown")])
def test_the_processor(text: str | None, vnni: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(processor, "_CPU", path)
    assert module.info()["vnni"] == vnni


def test_version_is_a_line_and_imports_no_engine() -> None:
    said = qgraph_in_a_shell("--version")
    assert said == module.version_line() + "\n"
    code = ("import sys; from qgraph.commands.info import version_line; version_line(); "
            "print([name for name in ('mxnet', 'onnxruntime', 'numpy', 'ncnn') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_the_shell_completes_commands_and_flags() -> None:
    assert "complete -o nosort -F _qgraph_completion qgraph" in qgraph_in_a_shell(_QGRAPH_COMPLETE="bash_source")
    words = qgraph_in_a_shell(_QGRAPH_COMPLETE="bash_complete", COMP_WORDS="qgraph ", COMP_CWORD="1")
    assert words.split() == [f"plain,{name}" for name in COMMANDS]
    flags = qgraph_in_a_shell(_QGRAPH_COMPLETE="bash_complete", COMP_WORDS="qgraph freeze --calib-", COMP_CWORD="2")
    assert flags.split() == ["plain,--calib-data", "plain,--calib-table"]
