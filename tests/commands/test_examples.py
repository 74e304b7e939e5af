"""Which images the page of a report shows, how they look, and the stop watch of the steps."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DIGITS
from PIL import Image

import qgraph
from qgraph import FreezeOptions
from qgraph.commands.examples import Examples
from qgraph.commands.judge import Judge
from qgraph.commands.steps import Steps
from qgraph.data.open import Batch
from qgraph.data.preprocess import Preprocess
from qgraph.options import JudgeOptions
from qgraph.pages.look import SERIES
from qgraph.pages.report import report_page
from qgraph.tasks.base import Head, Task
from qgraph.tasks.classification import Classification
from qgraph.tasks.detection import Detection
from qgraph.tasks.keypoints import Keypoints
from qgraph.tasks.registry import Assigned
from qgraph.tasks.segmentation import Segmentation


def judge_of(task: Task) -> Judge:
    judge = Judge(["out"])
    judge.tasks = [Assigned(task, (0,), 1.0)]
    return judge


def shown(count: int, channels: int = 3, bgr: bool = False) -> list[dict[str, Any]]:
    """Six images; the answers of number 1 and 4 change, number 2 has most noise."""
    want = np.eye(6, dtype=np.float32)
    found = want.copy()
    found[1, 0], found[4, 3], found[2, 5] = 1.2, 2.0, 0.9
    found[2] *= 50
    images = np.zeros((6, channels, 200, 100), np.float32)
    images[:, 0] = np.arange(6)[:, None, None] + 1
    judge = judge_of(Classification([Head("out", (6, 6), 6)]))
    examples = Examples(count)
    for start in (0, 3):
        part = slice(start, start + 3)
        batch = Batch({"data": images[part]}, None, [f"image {number}" for number in range(start, start + 3)])
        examples.add(batch, [found[part]], [want[part]], judge)
    return examples.to_list(Preprocess(bgr=bgr))


def test_images_whose_answer_changed_come_first() -> None:
    rows = shown(3)
    assert [row["id"] for row in rows] == ["image 4", "image 1", "image 2"]
    assert rows[0]["float"] == "class 4" and rows[0]["int8"].startswith("class 3, noise / signal 4")
    assert shown(0) == [] and len(shown(9)) == 6


def test_what_decode_makes_of_outputs_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decode_one.py").write_text("import numpy as np\ndef boxes(outputs, feeds):\n"
                                            "    return [np.array([[3, 0.9, 4, 4, 20, 20]])] * len(outputs[0])\n")
    monkeypatch.syspath_prepend(tmp_path)
    maps = np.zeros((2, 4, 8, 8), np.float32)
    batch = Batch({"data": np.zeros((2, 3, 64, 64), np.float32)}, None, ["a", "b"])
    judge = Judge(["out"], options=JudgeOptions(decode="decode_one:boxes"))
    judge.add(batch, [maps], [maps])
    examples = Examples(2)
    examples.add(batch, [maps], [maps], judge)
    rows = examples.to_list(Preprocess())
    assert [row["float"] for row in rows] == ["1 box, of class 3"] * 2 and all(row["png_int8"] for row in rows)


def test_words_for_boxes() -> None:
    rows = np.full((2, 3, 6), -1, np.float32)
    rows[0, 0], rows[0, 1] = (7, 0.9, 0, 0, 5, 5), (2, 0.31, 0, 0, 5, 5)
    rows[1, 0] = (7, 0.29, 0, 0, 5, 5)
    task = Detection([Head("boxes", rows.shape, 2)])
    assert task.answers([rows], 2) == ["2 boxes, of class 2, 7", "no box"]


def pairs(task: Task, want: np.ndarray, found: np.ndarray) -> list[np.ndarray]:
    """The two pictures of one black image: what the float model finds, and the frozen one."""
    examples = Examples(1)
    batch = Batch({"data": np.zeros((1, 3, 64, 128), np.float32)}, None, ["image 0"])
    examples.add(batch, [found], [want], judge_of(task))
    row, = examples.to_list(Preprocess())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(row[key])))) for key in ("png", "png_int8")]


def rgb(number: int) -> list[int]:
    return [int(SERIES[number][at:at + 2], 16) for at in (1, 3, 5)]


def test_boxes_are_drawn_side_by_side() -> None:
    rows = np.full((1, 3, 6), -1, np.float32)
    rows[0, 0] = (1, 0.9, 20, 10, 60, 50)
    rows[0, 1] = (2, 0.2, 70, 10, 90, 50)  # seen by nobody
    moved = rows + np.float32([0, 0, 50, 0, 50, 0])
    pictures = pairs(Detection([Head("boxes", rows.shape, 1, like=((1, 3, 64, 128),))]), rows, moved)
    for image, left in zip(pictures, (20, 70)):
        y, x = np.nonzero((image == rgb(1)).all(-1))
        assert image.shape == (64, 128, 3) and [x.min(), x.max(), y.min(), y.max()] == [left, left + 40, 10, 50]
        assert not (image == rgb(2)).all(-1).any()


def test_points_and_pixels_are_drawn() -> None:
    points = np.float32([[[16, 16], [100, 40]]])
    head = Head("points", points.shape, 1, like=((1, 3, 64, 128),))
    pictures = pairs(Keypoints([head]), points, points[:, ::-1])
    for image, numbers in zip(pictures, ((0, 1), (1, 0))):
        assert [image[16, 16].tolist(), image[40, 100].tolist()] == [rgb(number) for number in numbers]

    scores = np.zeros((1, 3, 16, 32), np.float32)
    scores[:, 2, :, :16] = 1
    pictures = pairs(Segmentation([Head("maps", scores.shape, 1)]), scores, scores[..., ::-1])
    for image, numbers in zip(pictures, ((2, 0), (0, 2))):
        assert [(2 * image[32, x].astype(int)).tolist() for x in (10, 120)] == [
            [value // 2 * 2 for value in rgb(number)] for number in numbers]


@pytest.mark.parametrize("channels, bgr, colour", [(3, False, (255, 0, 0)), (3, True, (0, 0, 255)), (1, False, 0)])
def test_pictures(channels: int, bgr: bool, colour: Any) -> None:
    picture = Image.open(io.BytesIO(base64.b64decode(shown(1, channels, bgr)[0]["png"])))
    assert picture.size == (80, 160) and picture.getpixel((5, 5)) == colour


def test_the_page_has_images_only_where_they_are_allowed() -> None:
    for count in (0, 2):
        options = FreezeOptions(target="onnx", effort="fast", num_calib=8, report_images=count)
        report = qgraph.freeze(str(DIGITS / "digits-symbol.json"), options).report
        assert len(report["examples"]) == count
        page = report_page(report)
        assert page.count("data:image/png;base64,") == count and ("int8: <b>class " in page) is bool(count)


def test_steps_add_up() -> None:
    times = iter([1.0, 3.0, 3.0, 4.5, 4.5, 5.0])
    steps = Steps(clock=lambda: next(times))
    for name in ("a", "b", "a"):
        steps.begin(name)
    steps.end()
    assert steps.seconds == {"a": 2.5, "b": 1.5}
