"""The mapping of setup.cfg (passes/ and cli/ under qgraph), and what imports what. Nothing is installed here."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers import DIGITS, ROOT


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def folder_of(package: str, mapping: dict[str, str]) -> Path:
    """Where setuptools looks for a package: the longest prefix in package_dir wins."""
    parts = package.split(".")
    for cut in range(len(parts), 0, -1):
        prefix = ".".join(parts[:cut])
        if prefix in mapping:
            return ROOT.joinpath(mapping[prefix], *parts[cut:])
    return ROOT.joinpath(*parts)


def test_every_package_is_installed(config: configparser.ConfigParser) -> None:
    mapping = dict(line.split(" = ") for line in config["options"]["package_dir"].split("\n") if line)
    listed = {folder_of(name, mapping) for name in config["options"]["packages"].split()}
    there = {path.parent for top in ("qgraph", "passes", "cli") for path in (ROOT / top).rglob("*.py")}
    assert listed == there


def test_every_file_of_pages_is_installed(config: configparser.ConfigParser) -> None:
    globs = config["options.package_data"]["qgraph.pages"].split()
    listed = {path for glob in globs for path in (ROOT / "qgraph" / "pages").glob(glob)}
    there = {path for path in (ROOT / "qgraph" / "pages").rglob("*") if path.is_file() and path.suffix not in
             (".py", ".pyc")}
    assert listed == there and len(there) > 8


def test_the_entry_point_is_there(config: configparser.ConfigParser) -> None:
    _, _, target = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, name = target.partition(":")
    assert callable(getattr(import_module(module), name))


def test_tests_import_no_tests() -> None:
    """What several need is in a module of its own, beside helpers.py."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(?:from|import) test_", path.read_text(encoding="utf-8"), re.M), path


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the root of the checkout."""
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)


def python(*code: str) -> str:
    """What the code prints."""
    done = run("-c", "\n".join(code))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


NO_ENGINE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mxnet", "gluoncv", "onnxruntime"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Refuse())
"""


def test_everything_imports_without_an_engine() -> None:
    names = [".".join(("qgraph", *path.relative_to(ROOT / top).with_suffix("").parts) if top == "qgraph" else
                      ("qgraph", *path.relative_to(ROOT).with_suffix("").parts))
             for top in ("qgraph", "passes", "cli") for path in sorted((ROOT / top).rglob("*.py"))
             if path.name not in ("__init__.py", "__main__.py") and path.parent.name != "qat"]  # wants MXNet
    assert "qgraph.passes.fold_bn" in names and "qgraph.targets.mxnet.runtime" in names
    python(NO_ENGINE, "from importlib import import_module", f"for name in {names}: import_module(name)")
    said = python(NO_ENGINE, "from qgraph.errors import MissingDependencyError", "try: import qgraph.qat",
                  "except MissingDependencyError as error: print(error)")
    assert said.startswith("qgraph.qat needs mxnet, which is not installed")


def test_float_passes_run_without_an_engine(tmp_path: Path) -> None:
    prefix = str(DIGITS / "digits")
    nodes = python(
        NO_ENGINE, "import qgraph", "from qgraph.passes import PIPELINES",
        f"g = qgraph.load({prefix + '-symbol.json'!r}, {prefix + '-0000.params'!r})",
        "qgraph.PassManager(PIPELINES['float']).run(g)",
        f"qgraph.save(g, {str(tmp_path / 'folded')!r})",
        "print(len(g.nodes('BatchNorm')), len(g.nodes('Convolution')))")
    assert nodes == "0 8"
    assert (tmp_path / "folded-symbol.json").is_file() and (tmp_path / "folded-0000.params").is_file()


def test_what_needs_mxnet_says_how_to_get_it() -> None:
    prefix = str(DIGITS / "digits")
    flags = ["eval", prefix, "--data", prefix + "-test.npz", "--runtime", "mxnet"]
    done = run("-c", NO_ENGINE + f"sys.argv[1:] = {flags!r}\n"
               "from qgraph.cli.main import main\nsys.exit(main())")
    assert done.returncode == 1
    assert 'pip install "qgraph[mxnet]"' in done.stderr and "Traceback" not in done.stderr


def test_import_qgraph_is_light() -> None:
    loaded = python("import sys", "import qgraph", "print(sorted(m for m in sys.modules if '.' not in m))")
    for heavy in ("mxnet", "onnx", "networkx", "numpy", "rich", "PIL"):
        assert f"'{heavy}'" not in loaded, f"import qgraph loads {heavy}"


def test_every_public_name_resolves() -> None:
    import qgraph

    for name in qgraph.__all__:
        assert getattr(qgraph, name) is not None


def test_python_m_qgraph() -> None:
    import qgraph

    done = run("-m", "qgraph", "--version")
    assert done.returncode == 0 and qgraph.__version__ in done.stdout
