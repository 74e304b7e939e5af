"""Several targets in one run: what they share is made once, and the files are those of each alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest

from qgraph.commands import floatcheck, freeze, network
from qgraph.commands.frozen import Frozen
from qgraph.commands.shared import KEPT_BYTES, Shared, Truth
from qgraph.data.open import Batch
from qgraph.options import FreezeOptions

TARGETS = ("onnx", "tengine")


def content(frozen: Frozen, folder: Path) -> dict[str, Any]:
    """Its files; the report as data."""
    folder.mkdir()
    frozen.save(folder / "m")
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "m.report.json": json.loads(files["m.report.json"])}


@pytest.mark.parametrize("effort", ["standard", "best"])
def test_files_are_those_of_each_target_alone(effort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g, feeds = networks.build("residual_downsample")
    images = np.concatenate([feeds["data"]] * 3) + np.arange(12, dtype=np.float32).reshape(-1, 1, 1, 1) / 50
    np.savez(tmp_path / "images.npz", data=images)
    made: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            made[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in ((floatcheck, "run_checked"), (freeze, "find_images"), (freeze, "open_model"),
                        (freeze, "collect_table"), (network.FloatNetwork, "truth")):
        count(owner, name)
    options = [FreezeOptions(target=target, effort=effort, calib_data=str(tmp_path / "images.npz"), num_calib=8,
                             batch_size=4, runtime="onnxruntime", calib="naive") for target in TARGETS]
    together, _ = freeze.freeze_all(g, options, str(tmp_path / "q"))
    assert set(made.values()) == {1} and len(made) == 5
    assert together[0].report["agreement"]["images"] == 4
    for number, (frozen, alone) in enumerate(zip(together, options)):
        again = freeze.freeze(g, alone, calib_table=together[0].table)
        found = content(frozen, tmp_path / f"together{number}")
        assert len(found) >= 3 and found == content(again, tmp_path / f"alone{number}")


def test_options_that_differ_in_more_than_the_target_share_nothing() -> None:
    shared = Shared(FreezeOptions(target="onnx", output="a"))
    assert shared.fits(FreezeOptions(target="ncnn", output="b"))
    assert not shared.fits(FreezeOptions(target="ncnn", exclude="first"))


class _Executor:
    inputs = ("data",)

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feeds: Any) -> list[np.ndarray]:
        self.runs += 1
        return [feeds["data"] * 2]


def test_outputs_are_kept_for_the_same_images_and_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = _Executor()
    batches = [Batch({"data": np.full((2, 3), i, np.float32)}, None, [f"{i}a", f"{i}b"]) for i in range(3)]
    truth = Truth(lambda: executor)
    for _ in range(2):
        for number, batch in enumerate(batches):
            np.testing.assert_array_equal(truth.outputs(number, batch)[0], batch.feeds["data"] * 2)
    assert executor.runs == 3
    truth.outputs(0, batches[1])
    assert executor.runs == 4
    assert KEPT_BYTES > 24
    monkeypatch.setattr("qgraph.commands.shared.KEPT_BYTES", 24)  # one batch of outputs
    small = Truth(lambda: executor)
    for number in (0, 1, 0, 1):
        small.outputs(number, batches[number])
    assert executor.runs == 7
