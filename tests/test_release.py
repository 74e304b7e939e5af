"""What is released: a wheel and an sdist of the same bytes each time, with what they should have, and its checks."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import DIGITS, ROOT

LARGEST = 2_000_000  # bytes of a file that is released
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".typecheck", ".*_cache", ".hypothesis", "__pycache__", "site",
                                  "dist", "build", "demo", "*.egg-info")
HAS_BUILD = all(importlib.util.find_spec(name) for name in ("build", "twine"))
EPOCH = "1700000000"


def needs_build(test: Callable[..., None]) -> Callable[..., None]:
    reason = "build and twine are not installed: they are in the extra [test]"
    return pytest.mark.slow(pytest.mark.skipif(not HAS_BUILD, reason=reason)(test))


def run(*args: str, cwd: Path, **env: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = subprocess.run(args, cwd=cwd, env={**kept, **env}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(args)}\n{done.stdout}{done.stderr}"
    return done.stdout


def dist(folder: Path) -> dict[str, bytes]:
    """The files that a copy of the checkout gives, in an other folder each time."""
    shutil.copytree(ROOT, folder / "checkout", ignore=LEFT_OUT)
    run(sys.executable, ".ci/release", str(folder / "dist"), cwd=folder / "checkout", SOURCE_DATE_EPOCH=EPOCH)
    return {path.name: path.read_bytes() for path in (folder / "dist").iterdir()}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    dist(folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


@pytest.mark.docs
@needs_build
def test_the_same_bytes_each_time(released: Path, tmp_path: Path) -> None:
    again = dist(tmp_path)
    assert len(again) == 2 and again == {path.name: path.read_bytes() for path in released.iterdir()}


@needs_build
def test_they_are_as_the_index_wants_them(released: Path) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, released.iterdir()), cwd=released)
    assert said.count("PASSED") == 2


@needs_build
def test_they_have_what_they_should(released: Path) -> None:
    (wheel,), (sdist,) = released.glob("*.whl"), released.glob("*.tar.gz")
    assert max(path.stat().st_size for path in released.iterdir()) < LARGEST
    with zipfile.ZipFile(wheel) as found:
        names = {*found.namelist()}
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {("qgraph/" if top != "qgraph" else "") + path.relative_to(ROOT).as_posix()
                       for top in ("qgraph", "passes", "cli") for path in (ROOT / top).rglob("*.py")}
    assert "qgraph/py.typed" in names and not [name for name in names if "test" in name]
    with tarfile.open(sdist) as packed:
        files = {member.name.partition("/")[2]: member for member in packed.getmembers() if member.isfile()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "examples/digits/digits-0000.params", "docs/faq.md",
            "docs/_generate/fill.py"} <= {*files}
    assert not [name for name in files if name.startswith(("tests", "benchmarks")) or name.endswith(".pyc")]
    assert {(member.mtime, member.uid, member.uname) for member in files.values()} == {(int(EPOCH), 0, "")}


@needs_build
def test_the_wheel_works_in_an_environment_of_its_own(released: Path, tmp_path: Path) -> None:
    """The environment sees what qgraph needs, but not this checkout."""
    (wheel,) = released.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index",
        "--disable-pip-version-check", str(wheel), cwd=tmp_path, PYTHONPATH="")
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    needed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "needed.pth").write_text("".join(f"{path}\n" for path in needed))
    for tail in ("-symbol.json", "-0000.params", "-calib.npz"):
        shutil.copy(DIGITS / f"digits{tail}", tmp_path)
    code = "import qgraph, qgraph.passes, qgraph.cli; print(qgraph.__file__, qgraph.cli.__file__)"
    assert run(str(python), "-c", code, cwd=tmp_path, PYTHONPATH="").count(str(site)) == 2
    said = run(str(python.with_name("qgraph")), "freeze", "digits-symbol.json", "--target", "onnx", "--effort",
               "fast", "--runtime", "onnxruntime", cwd=tmp_path, PYTHONPATH="")
    assert "9 of 9 layers" in said and (tmp_path / "digits-quantized.report.html").stat().st_size > 100_000


def test_the_metadata_is_whole(config: configparser.ConfigParser) -> None:
    meta = config["metadata"]
    classifiers = meta["classifiers"].split("\n")
    assert "Typing :: Typed" in classifiers and (ROOT / "qgraph" / "py.typed").is_file()
    assert all(meta[key] for key in ("description", "license", "author", "keywords"))
    assert f">={pythons(config)[0]}" == config["options"]["python_requires"]


def pythons(config: configparser.ConfigParser) -> list[str]:
    return re.findall(r"Python :: (3\.\d+)$", config["metadata"]["classifiers"], re.M)


def test_workflows_run_what_ci_runs(config: configparser.ConfigParser) -> None:
    """On every Python that the metadata names, and three systems; versions of tools are in setup.cfg alone."""
    yaml = pytest.importorskip("yaml")
    folder = ROOT / ".github" / "workflows"
    jobs = yaml.safe_load((folder / "tests.yml").read_text())["jobs"]["tests"]
    matrix = jobs["strategy"]["matrix"]
    assert matrix["python"] == pythons(config)
    assert {re.sub(r"-[\d.]+", "", system) for system in matrix["os"]} == {"ubuntu", "ubuntu-arm", "macos"}
    steps = [step["run"] for step in jobs["steps"] if "run" in step]
    assert steps == ['.ci/venv "$(command -v python)"', "bash .ci/run"]
    targets = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)}
    lines = [(ROOT / ".ci" / "run").read_text(), *(path.read_text() for path in folder.glob("*.yml"))]
    called = " ".join(line for text in lines for line in re.findall(r"^(?: +- run: )?make (.*)$", text, re.M))
    assert {"test", "docs", "docs-test", "dist"} == {*called.split()} <= targets


def test_hooks_of_git_are_those_of_make_test() -> None:
    yaml = pytest.importorskip("yaml")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (style,) = re.findall(r"^STYLE := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert [hook["entry"] for hook in hooks] == [f"make {target}" for target in style.split()]


def test_the_citation_has_the_version() -> None:
    yaml = pytest.importorskip("yaml")
    import qgraph

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == qgraph.__version__ and cited["license"] == "MIT"


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *rest = re.findall(r"^## (.*)$", text, re.M)
    assert first == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", version) for version in rest)
    kinds = re.findall(r"^### (.*)$", text, re.M)
    assert {*kinds} <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        own = re.findall(r"^### (.*)$", part, re.M)
        assert len({*own}) == len(own), "a heading comes twice"
