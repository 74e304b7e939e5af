"""The frozen digits network is the golden one for every target: each node and attribute, each scale within 1e-4."""

from __future__ import annotations

import numpy as np
import pytest
from frozen_digits import FOLDER, OPTIONS, TABLE, calibrated, frozen, split_scales

from qgraph.quant.table import CalibrationTable
from qgraph.targets.registry import TARGETS

RTOL = 1e-4  # of scales and ranges


def test_every_target_has_a_golden_graph() -> None:
    assert set(OPTIONS) == set(TARGETS) == {path.stem for path in FOLDER.glob("*.txt")}


def test_the_ranges_are_the_golden_ones() -> None:
    want, found = CalibrationTable.load(str(TABLE)), calibrated()
    assert found.entries.keys() == want.entries.keys()
    for name, entry in want.entries.items():
        np.testing.assert_allclose([found.entries[name].min, found.entries[name].max], [entry.min, entry.max], RTOL,
                                   err_msg=name)


@pytest.mark.parametrize("target", OPTIONS)
def test_the_graph_is_the_golden_one(target: str) -> None:
    want, scales = split_scales((FOLDER / f"{target}.txt").read_text())
    found, found_scales = split_scales(frozen(OPTIONS[target], CalibrationTable.load(str(TABLE))).graph.text())
    assert found.splitlines() == want.splitlines()
    assert len(scales) > 10
    for line, (a, b) in enumerate(zip(scales, found_scales)):
        np.testing.assert_allclose(b, a, RTOL, err_msg=f"scale number {line}")
