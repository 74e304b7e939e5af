"""The notebooks of examples/: their cells run, one after the other, and find what their text says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import forked
import pytest
from helpers import DIGITS, EXAMPLES

NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
pytestmark = pytest.mark.slow


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    return found


def run(name: str, folder: Path, told: str) -> Any:
    """The value of the expression `told` behind the last cell, by JSON."""
    cells = ["".join(cell["source"]) for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    code = "\n".join([*cells, "import json", f"print(json.dumps({told}))"])
    exit_code, printed, said = forked.run_python(forked.server(), code, folder)
    assert exit_code == 0, said[-3000:]
    return json.loads(printed.splitlines()[-1])


@pytest.mark.docs
@pytest.mark.mxnet
@pytest.mark.ncnn
def test_from_gluoncv_to_ncnn(tmp_path: Path) -> None:
    pytest.importorskip("gluoncv")
    paths, noise = run("gluoncv_to_ncnn.ipynb", tmp_path, "[paths, float(signal_to_noise)]")
    assert {"resnet20.param", "resnet20.bin", "resnet20.table"} <= {*paths}
    assert all((tmp_path / path).is_file() for path in paths)
    assert 30 < noise < 60


def test_why_accuracy_dropped(tmp_path: Path) -> None:
    shutil.copytree(DIGITS, tmp_path / "digits")
    results, samples = run("why_accuracy_dropped.ipynb", tmp_path,
                           "[results, sorted({entry.sample for entry in bad.table.entries.values()})]")
    assert samples == ["array[7]"]  # one image sets every range
    assert results["naive"] < 90 < min(results["percentile"], results["auto"]) < 97 < results["without the image"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_hold_no_outputs(name: str) -> None:
    """So they are small, and the same whoever saved them."""
    found = read(name)
    assert found["nbformat"] == 4 and len(found["cells"]) > 5
    for cell in found["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
