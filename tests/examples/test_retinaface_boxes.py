"""examples/retinaface_boxes.py finds the faces of a real RetinaFace."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import CASES, EXAMPLES, load_example

from qgraph.commands.judge import Judge
from qgraph.data.open import Batch
from qgraph.options import JudgeOptions
from qgraph.semantics.detect import overlaps

CASE = CASES / "detectors" / "retinaface_mnet025_16"
pytestmark = pytest.mark.cases("detectors/retinaface_mnet025_16")

# Faces that can be seen: image number and corners, by hand
FACES = {3: [(110, 105, 168, 180), (5, 128, 52, 195), (48, 48, 102, 120)], 6: [(78, 42, 145, 132)],
         7: [(118, 40, 180, 130)], 14: [(51, 122, 98, 182)]}


def case() -> tuple[Batch, list[str], list[np.ndarray]]:
    golden, data = (np.load(CASE / name) for name in ("golden.npz", "input.npz"))
    batch = Batch(dict(data), None, [f"crop {i}" for i in range(len(data["data"]))])
    return batch, list(golden), [golden[name] for name in golden]


def test_it_finds_faces_where_they_are() -> None:
    batch, _, outputs = case()
    found = load_example("retinaface_boxes").boxes(outputs, batch.feeds)
    assert len(found) == 16
    for image in found:
        assert image.shape[1] == 6 and (image[:, 0] == 0).all() and (np.diff(image[:, 1]) <= 0).all()
        assert (image[:, 2:] >= 0).all() and (image[:, 2:] <= 256).all() and (image[:, 4:] > image[:, 2:4]).all()
    assert sum((image[:, 1] > 0.5).any() for image in found) == 13  # the faces of the first three are too small
    for number, faces in FACES.items():
        best = found[number][:len(faces), 2:]
        shared = overlaps(np.array(faces, float)[:, None], best[None])
        assert (found[number][:len(faces), 1] > 0.9).all() and (shared.max(axis=1) > 0.7).all(), number


def test_it_judges_raw_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    batch, names, outputs = case()
    results = []
    for found in (outputs, [outputs[0], outputs[1] + np.float32(0.3)], [outputs[0][::-1], outputs[1][::-1]]):
        judge = Judge(names, options=JudgeOptions(decode="retinaface_boxes:boxes"))
        judge.add(batch, found, outputs)
        results.append(judge.agreement()["tasks"])
    assert all(sorted(row["task"] for row in rows) == ["detection", "values", "values"] for rows in results)
    same, moved, another = (next(row for row in rows if row["task"] == "detection") for rows in results)
    assert same["metrics"]["ap50"] == 100 and not same["ruined"]
    assert moved["metrics"]["ap50"] < 75 and moved["ruined"] and another["metrics"]["ap50"] < 30 and another["ruined"]
