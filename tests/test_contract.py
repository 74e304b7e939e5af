"""The rooms of the house: what may import what, and which words stay in one room."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
from helpers import ROOT

from qgraph.targets.registry import TARGETS

grimp = pytest.importorskip("grimp", reason="import-linter is not installed (Python 3.10 and later)")
pytest.importorskip("importlinter")

FOLDERS = ("qgraph", "passes", "cli")
ENGINES = tuple(TARGETS)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """passes/ and cli/ where setup.cfg puts them, under qgraph, as copies."""
    folder = tmp_path_factory.mktemp("view")
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "qgraph", folder / "qgraph", ignore=leave)
    for name in ("passes", "cli"):
        shutil.copytree(ROOT / name, folder / "qgraph" / name, ignore=leave)
    return folder


def lint(view: Path) -> subprocess.CompletedProcess[str]:
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run([sys.executable, "-c", command, "--no-cache", str(ROOT / "setup.cfg")], cwd=view,
                          env={"PYTHONPATH": str(view), "PATH": "", "COLUMNS": "200"}, capture_output=True, text=True,
                          timeout=120)


def test_the_contract_holds(view: Path) -> None:
    done = lint(view)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


@pytest.mark.parametrize(("file", "line"), [
    ("ir/graph.py", "from qgraph.cli import console"), ("passes/fold_bn.py", "from qgraph.commands import freeze"),
    ("formats/gluon.py", "import qgraph.qat"), ("cli/eval.py", "from qgraph.targets.onnx import emit"),
    ("targets/ncnn/emit.py", "from qgraph.targets.onnx import emit"), ("data/open.py", "from qgraph.ir import ops")])
def test_a_forbidden_import_is_caught(view: Path, tmp_path: Path, file: str, line: str) -> None:
    shutil.copytree(view, tmp_path / "view")
    path = tmp_path / "view" / "qgraph" / file
    path.write_text(path.read_text() + f"\n\ndef planted() -> None:\n    {line}\n")
    done = lint(tmp_path / "view")
    assert done.returncode == 1
    assert f"qgraph.{file[:-3].replace('/', '.')} -> {line.split()[1]}" in done.stdout


def test_modules_import_each_other_in_no_circle(view: Path) -> None:
    """But for a graph and its text form, each of which is a function of the other."""
    script = ("import grimp, json; g = grimp.build_graph('qgraph', cache_dir=None); "
              "print(json.dumps([[a, b] for a in g.modules for b in g.find_modules_directly_imported_by(a)]))")
    done = subprocess.run([sys.executable, "-c", script], cwd=view, env={"PYTHONPATH": str(view), "PATH": ""},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    imports = [(a, b) for a, b in json.loads(done.stdout) if b != "qgraph"]
    circles = [sorted(part) for part in nx.strongly_connected_components(nx.DiGraph(imports)) if len(part) > 1]
    assert circles == [["qgraph.ir.graph", "qgraph.ir.text"]]


def sources(*skip: str) -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
            if not path.relative_to(ROOT).as_posix().startswith(skip)]


def test_only_targets_know_which_model_they_have() -> None:
    for path in sources("qgraph/targets/"):
        assert not re.search(r"isinstance\(.*Model\b", path.read_text()), path


def test_no_code_outside_targets_branches_on_the_name_of_one() -> None:
    """``target.name == "onnx"`` and the like; names of engines, formats and extras, and defaults, are no branches."""
    name = "|".join(map(re.escape, ENGINES))
    branch = re.compile(rf"(?:==|!=|\bin)\s*\(?\s*[\"'](?:{name})[\"']|[\"'](?:{name})[\"']\s*(?:==|!=|in\b)|\.flow\b")
    packages = {"qgraph/engines.py", "qgraph/threads.py", "qgraph/commands/report.py"}  # which name engines' packages
    found = [(path.relative_to(ROOT).as_posix(), line.strip()) for path in sources("qgraph/targets/")
             for line in path.read_text().splitlines() if branch.search(line)]
    assert [row for row in found if row[0] not in packages] == []
    assert branch.search('if target.name == "onnx":') and branch.search("if options.target in ('ncnn', 'tengine'):")
