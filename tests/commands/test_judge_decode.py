"""Raw heads are judged by the boxes that a user's function makes of them, and by their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qgraph.commands.judge import Judge
from qgraph.data.open import Batch
from qgraph.errors import OptionError
from qgraph.options import JudgeOptions

NAMES = ["scores", "moves"]
FUNCTION = """
import numpy as np

def boxes(outputs, feeds):
    scores, moves = outputs  # (N, 4) and (N, 16): an anchor each
    low = np.arange(4)[:, None] * 12 + moves.reshape(-1, 4, 4)[..., :2]
    return np.concatenate([0 * scores[..., None], scores[..., None], low, low + 10], 2)[:, {kept}]
"""


def decode(folder: Path, monkeypatch: pytest.MonkeyPatch, kept: str = ":") -> str:
    name = f"judged_{folder.name}".replace("-", "_")
    (folder / f"{name}.py").write_text(FUNCTION.replace("{kept}", kept))
    monkeypatch.chdir(folder)
    return f"{name}:boxes"


def outputs(images: int, seed: int = 0, far: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    moves = rng.uniform(0, 2, (images, 16)) + far
    return [rng.uniform(0.4, 1, (images, 4)).astype(np.float32), moves.astype(np.float32)]


def batch(images: int, labels: np.ndarray | None = None) -> Batch:
    return Batch({"data": np.zeros((images, 3, 64, 64), np.float32)}, labels, [f"{i}.jpg" for i in range(images)])


def test_the_boxes_come_first_then_the_values_of_every_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(NAMES, options=JudgeOptions(decode=decode(tmp_path, monkeypatch)))
    want, found = outputs(6), outputs(6)
    found[0] = found[0] * np.float32(0.999)
    found[1] = found[1] + np.float32(0.01)
    judge.add(batch(6), found, want)
    result = judge.agreement()
    assert [(row["task"], row["outputs"]) for row in result["tasks"]] \
        == [("detection", [judge.tasks[0].task.heads[0].name]), ("values", ["scores"]), ("values", ["moves"])]
    assert result["tasks"][0]["outputs"][0].endswith(":boxes")
    assert result["tasks"][0]["metrics"]["ap50"] == 100 == result["agreement"] and not result["tasks"][0]["ruined"]
    assert [(row["name"], row["task"]) for row in result["outputs"]] == [("scores", "values"), ("moves", "values")]
    assert result["worst"] == "moves" and all(row["sqnr_db"] for row in result["outputs"])


def test_boxes_in_other_places_are_ruin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(NAMES, options=JudgeOptions(decode=decode(tmp_path, monkeypatch)))
    judge.add(batch(6), outputs(6, far=6.0), outputs(6))
    result = judge.agreement()
    assert result["tasks"][0]["metrics"]["ap50"] < 20 and result["tasks"][0]["ruined"]
    assert result["worst"] == "moves"  # the boxes are ruined; of the heads that they are made of it is the worst


def test_batches_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function = decode(tmp_path, monkeypatch)
    want, found = outputs(9), outputs(9)
    found[1] = found[1] + np.random.default_rng(1).normal(0, 1.5, (9, 16)).astype(np.float32)
    results = []
    for edges in ([0, 9], [0, 2, 9], [0, 1, 2, 5, 9]):
        judge = Judge(NAMES, options=JudgeOptions(decode=function))
        for a, b in zip(edges, edges[1:]):
            judge.add(batch(b - a), [x[a:b] for x in found], [x[a:b] for x in want])
        results.append(judge.agreement())
    assert results[0] == results[1] == results[2] and 10 < results[0]["tasks"][0]["metrics"]["ap"] < 90


def test_labels_are_of_the_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(NAMES, options=JudgeOptions(decode=decode(tmp_path, monkeypatch)))
    found = outputs(3)
    low = np.arange(4)[:, None] * 12 + found[1].reshape(3, 4, 4)[..., :2]
    labels = np.concatenate([np.zeros((3, 4, 1)), low, low + 10], 2).astype(np.float32)
    judge.add(batch(3, labels), found)
    assert judge.scores() == {"map50_voc": 100, "map50": 100, "map": 100}


def test_a_head_can_have_a_task_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(NAMES, options=JudgeOptions(task=("classification:scores",), decode=decode(tmp_path, monkeypatch)))
    judge.add(batch(3), outputs(3), outputs(3))
    assert [row["task"] for row in judge.agreement()["tasks"]] == ["detection", "classification", "values"]


def test_wrong_boxes_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(NAMES, options=JudgeOptions(decode=decode(tmp_path, monkeypatch, kept=":, :5")))
    with pytest.raises(OptionError, match=r":boxes gave float64 \(4, 5\) for image 0 of a batch, want rows of class"):
        judge.add(batch(3), outputs(3), outputs(3))
