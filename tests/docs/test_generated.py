"""The parts of the pages that are made from the code: they are complete, and what they state is so."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from _generate import classes, command_line, figures, fill, house, names, readme, targets, tolerances
from helpers import ROOT
from page_blocks import PAGES

import qgraph
from qgraph import errors
from qgraph.cli.main import COMMANDS
from qgraph.commands.ops import ops_table
from qgraph.ir.rewrite import registered
from qgraph.quant.ranges import METHODS
from qgraph.targets.registry import TARGETS
from qgraph.tasks.registry import TASKS, task_class

FIGURES = sorted(path.stem for path in figures.FIGURES.glob("*.json"))
HAS_MKDOCS = all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings"))
TEXT = "\n".join(PAGES.values())


def test_every_mark_has_a_generator_and_every_generator_a_mark() -> None:
    found = [match for text in PAGES.values() for match in re.findall(r"<!-- generated: (\S+)", text)]
    exact = [match.group(1) for text in PAGES.values() for match in fill.MARK.finditer(text)]
    assert found == exact  # none is misspelled, so that it would stay in the page
    assert {*found} == {*fill.GENERATORS}


def test_an_unknown_mark_is_named() -> None:
    with pytest.raises(ValueError, match="a.md: <!-- generated: opps -->: no generator 'opps', want one of"):
        fill.fill("text\n<!-- generated: opps -->\n", "a.md")


def test_targets_have_a_row_and_a_page() -> None:
    table = targets.overview()
    for name in TARGETS:
        assert f"\n| `{name}` | " in table
        assert f"<!-- generated: target {name} -->" in PAGES[f"docs/targets/{name}.md"]
    assert "| `isa` | `auto` | " in targets.one("onnx") and "8 bits, signed" in targets.one("ncnn")


def test_tasks_methods_and_errors_have_a_row() -> None:
    table = classes.tasks()
    for name in TASKS:
        task = task_class(name)
        (row,) = re.findall(rf"^\| `{name}` \|.*$", table, re.M)
        assert row.endswith(f"{task.ruined:g} {task.metrics[task.main].unit}".rstrip() + " |")
        assert all(f"`{metric}`: " in row for metric in task.metrics)
    for name in METHODS:
        assert f"\n| `{name}` |" in PAGES["docs/guides/calibration.md"], name
    own = [name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__
           and isinstance(value, type)]
    assert len(own) >= 11 and all(f"\n| `{name}` | " in classes.errors() for name in own)


def test_passes_ops_and_commands_have_a_section() -> None:
    assert re.findall("^## (.*)$", names.passes(), re.M) == [*names.listed()]
    assert {*names.listed()} == {*registered()}
    rows, help_texts = names.ops(), command_line.commands()
    assert all(f"| `{op}` | " in rows for op in ops_table())
    assert re.findall("^## (.*)$", help_texts, re.M) == ["qgraph", *(f"qgraph {name}" for name in COMMANDS)]
    assert "--calib-data PATH" in help_texts


def test_public_names_are_those_of_the_package() -> None:
    documented = re.findall(r"^::: qgraph\.[\w.]+\.(\w+)$", names.python().partition("## qgraph.qat")[0], re.M)
    assert sorted([*documented, "__version__"]) == sorted(qgraph.__all__)


@pytest.mark.mxnet
def test_names_of_training_are_those_of_its_package() -> None:
    import qgraph.qat as qat

    assert sorted(names.QAT) == sorted(qat.__all__)


def test_the_picture_of_the_rooms_is_the_contract() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    rows = config["importlinter:contract:rooms"]["layers"].split("\n")[1:]
    picture = house.rooms()
    assert re.findall(r">([\w ]+)</text>", picture) == [room.strip() for row in rows for room in row.split("|")]
    heights = re.findall(r'<rect x="0" y="(\d+)"', picture)
    assert len(heights) == len(rows) and heights == sorted(heights, key=int)


# ---- figures --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_printed_it(name: str) -> None:
    found, shown = figures.read(name), figures.figure(name)
    assert found["rows"] and all(any(row) for row in found["rows"])
    commands = found["command"] if isinstance(found["command"], list) else [found["command"]]
    for command in commands:
        program, script = command.split()[:2]
        assert (program == "qgraph" and script in COMMANDS) or (ROOT / script).is_file(), command
        assert f"`{command}`" in shown
    assert ("older than the code" in shown) == bool(found["older"])
    assert TEXT.count(f"<!-- generated: figure {name} -->") == 1


def test_a_bad_figure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    whole = {"title": "t", "command": "c", "note": "", "older": "", "head": ["a", "b"], "rows": [["1", "2"]]}
    for name, body, said in (("short", {**whole, "rows": [["1"]]}, "has 1 cells, want 2"),
                             ("keys", {"title": "t"}, "has the keys title, want")):
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
        with pytest.raises(ValueError, match=said):
            figures.read(name)


def test_benchmarks_write_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import _common

    monkeypatch.setattr(sys, "argv", ["/elsewhere/benchmarks/speed.py", "--batch", "1"])
    assert "| net | 0.5 |" in _common.table("Speed, AVX2", ["network", "ratio"], [["net", "0.5"]])
    assert not [*tmp_path.iterdir()]
    monkeypatch.setenv("QGRAPH_FIGURES", str(tmp_path))
    _common.table("Speed, AVX2", ["network", "ratio"], [["net", "0.5"]])
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    assert figures.read("speed-avx2") == {
        "title": "Speed, AVX2", "command": "python benchmarks/speed.py --batch 1", "note": "", "older": "",
        "head": ["network", "ratio"], "rows": [["net", "0.5"]]}


def test_tables_of_readme_are_those_of_today() -> None:
    text = PAGES["README.md"]
    assert readme.renewed(text) == text, "run `python -m _generate.readme` in docs/"
    changed = text.replace("| SqueezeNet 1.1 | 0.44", "| SqueezeNet 1.1 | 0.45")
    assert changed != text and readme.renewed(changed) == text


def test_tolerances_are_told() -> None:
    table = tolerances.tolerances()
    assert "| % | 1 |" in table and "| dB | 2 |" in table and "| KB | 2% of it |" in table


# ---- the report -----------------------------------------------------------------------------------------------------

def test_every_key_of_a_report_is_explained() -> None:
    frozen = qgraph.freeze(str(ROOT / "examples/digits/digits-symbol.json"),
                           qgraph.FreezeOptions(target="onnx", effort="fast", runtime="onnxruntime"))
    page = PAGES["docs/reference/files.md"].partition("## The report")[2].partition("## The calibration table")[0]
    explained = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", page, re.M)))
    assert sorted(explained) == sorted({*frozen.report} - {"onnxruntime"})


# ---- the site -------------------------------------------------------------------------------------------------------

@pytest.mark.docs
@pytest.mark.slow
@pytest.mark.skipif(not HAS_MKDOCS, reason="mkdocs is not installed: it is in the extra [docs]")
def test_the_site_is_built_without_warnings_and_asks_no_network(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)], cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    built = {path.relative_to(tmp_path): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(built) > len(PAGES) - 2
    for path, text in built.items():
        assert "<!-- generated:" not in text, path
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)|'
                            r'<link[^>]*rel="(?:stylesheet|icon|preconnect)"[^>]*href="([^"]+)', text)
        assert loaded and not [url for pair in loaded for url in pair if re.match(r"(https?:)?//", url)], path
        assert "unpkg.com" not in text, path
    assert "add_scalar" not in built[Path("reference/ops.html")]  # it is an alias
    assert 'id="qgraph.ir.graph.Graph"' in built[Path("reference/python.html")]
