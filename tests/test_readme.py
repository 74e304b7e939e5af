"""What README.md shows is what happens: its commands are run on the digits network, its Python is executed.

console blocks: commands behind ``$`` and what they print on stdout; numbers may differ (they depend on the CPU), and a
line ``...`` stands for any lines.  python blocks run in the same folder; one that starts with ``# name.py`` is that
file.  sh blocks need what is not here; their flags are checked.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import DIGITS, ROOT, VNNI

from qgraph.cli.main import main
from qgraph.ir.rewrite import REGISTRY, Pass

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(console|python|sh)\n(.*?)^```$", TEXT, re.M | re.S)


def commands(block: str) -> list[tuple[str, list[str]]]:
    """(command, lines that it prints)"""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def matches(shown: list[str], printed: list[str], vnni: bool = VNNI) -> bool:
    """Equal but for numbers and spaces; ``...`` stands for any lines.

    Without VNNI some codes differ from exact arithmetic, and the line about kernels ends with the worst layer.
    """
    def mask(line: str) -> str:
        if not vnni:
            line = re.sub(r"^(kernels .* exact arithmetic), least in \S+$", r"\1", line)
        line = re.sub(r"(?<![\w-])\d[\d.]*(e-\d+)?", "#", line)
        return " ".join(line.split())

    parts = [re.escape(mask(line)) + "\n" if line != "..." else r"(?:.*\n)*?" for line in shown]
    return re.fullmatch("".join(parts), "".join(mask(line) + "\n" for line in printed)) is not None


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout


def test_matches_knows_a_difference() -> None:
    assert matches(["a  1.5 %", "...", "z"], ["a 22 %", "x", "y", "z"])
    assert not matches(["a  1.5 %", "z"], ["a 22 %", "x", "z"])
    assert not matches(["quantized 8 of 9"], ["quantized 8 of 9 layers"])
    exact = "kernels 100 % of the codes within 1 of exact arithmetic"
    for vnni in (False, True):
        assert matches([exact], [exact], vnni)
        assert matches([exact], [f"{exact.replace('100', '99.9')}, least in conv0"], vnni) is not vnni
        assert not matches([exact], [f"{exact}, least in conv0 and more"], vnni)
        assert not matches(["size 1 KB"], ["size 1 KB, least in conv0"], vnni)


@pytest.mark.slow
@pytest.mark.mxnet
@pytest.mark.ncnn
def test_what_it_shows_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    for tail in ("-symbol.json", "-0000.params", "-calib.npz"):
        shutil.copy(DIGITS / f"digits{tail}", tmp_path / f"model{tail}")
    shutil.copy(DIGITS / "digits-test.npz", tmp_path / "test.npz")
    path = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(REGISTRY, "mean-to-pooling", Pass)  # an example has that name too: what was there comes back
    del REGISTRY["mean-to-pooling"]
    ran = 0
    for kind, block in BLOCKS:
        if kind == "python" and (named := re.match(r"# (\w+\.py)\n", block)):
            (tmp_path / named.group(1)).write_text(block, encoding="utf-8")
        elif kind == "python":
            run(tmp_path, *path[:2], path[2] + block)
        elif kind == "console":
            for command, shown in commands(block):
                program, *args = shlex.split(command)
                assert program == "qgraph", command
                assert main(args) == 0, f"{command}: {capsys.readouterr().err[-3000:]}"
                printed = capsys.readouterr().out.splitlines()
                assert matches(shown, printed), f"{command}\nREADME:\n" + "\n".join([*shown, "printed:", *printed])
                ran += 1
    assert ran >= 5


@pytest.mark.slow
def test_flags_exist() -> None:
    """Of every `qgraph` command anywhere in the text, also of those that need data which are not here."""
    helps: dict[str, str] = {}
    checked = 0
    shell = "".join(block for kind, block in BLOCKS if kind != "python")
    for line in re.findall(r"^(?:\$ )?(qgraph .*)$", shell, re.M):
        name = shlex.split(line)[1]
        if name not in helps:
            helps[name] = run(ROOT, sys.executable, "-m", "qgraph", name, "--help")
        for flag in re.findall(r"(?<!\S)--[\w-]+", line):
            assert re.search(rf"{flag}\b", helps[name]), f"{line}: {name} has no {flag}"
            checked += 1
    assert checked >= 8


def test_names_of_files_and_passes_exist() -> None:
    for name in re.findall(r"`((?:examples|benchmarks|qgraph|passes|cli|tests)/[\w./]*)`", TEXT):
        assert (ROOT / name).exists(), name


def test_every_target_method_and_task_is_described() -> None:
    from qgraph.quant.ranges import METHODS
    from qgraph.targets.registry import TARGETS
    from qgraph.tasks.registry import all_classes

    for task in all_classes():
        row = re.search(rf"^\| `{task.name}` \|.*$", TEXT, re.M)
        assert row and f"{task.ruined:g} {task.metrics[task.main].unit}".strip() in row.group(0), task.name
        assert all(name in row.group(0) for name in task.metrics if task.name != "values"), task.name
    for name in (*METHODS, *TARGETS):
        assert re.search(rf"^\| `{re.escape(name)}` \|", TEXT, re.M), f"README.md has no row for {name}"
