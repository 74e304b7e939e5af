"""The frozen graph of the digits network for every target, as text: what no change of the code may change unseen.

``python tests/frozen_digits.py`` writes golden/frozen/ again: the ranges (calib.json), and a graph per target frozen
with these ranges. So no result depends on the processor: engines sum floats in different orders.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from helpers import DIGITS, GOLDEN

from qgraph.commands.freeze import freeze
from qgraph.options import FreezeOptions
from qgraph.quant.table import CalibrationTable
from qgraph.targets.registry import TARGETS

FOLDER = GOLDEN / "frozen"
TABLE = FOLDER / "calib.json"
# where weights are rounded before channels are paired, their order follows codes that sums of floats decide
OPTIONS = {name: FreezeOptions(target=name, effort="fast" if name == "mxnet" else "standard") for name in TARGETS}
SCALE = re.compile(r"(?<= scale=)(?:\[[^\]]*\]|[^ }]+)")


def calibrated() -> CalibrationTable:
    """Minimum and maximum on the calibration images, for codes of any sign, of channels as they are."""
    table = frozen(FreezeOptions(target="mxnet-sim", effort="fast"), None).table
    assert table is not None
    return table


def frozen(options: FreezeOptions, table: CalibrationTable | None) -> Any:
    return freeze(str(DIGITS / "digits-symbol.json"), options, calib_data=str(DIGITS / "digits-calib.npz"),
                  calib_table=table)


def split_scales(text: str) -> tuple[str, list[np.ndarray]]:
    """The text without its scales, and these."""
    return SCALE.sub("...", text), [np.array(found.strip("[]").split(","), float) for found in SCALE.findall(text)]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    calibrated().save(TABLE)
    table = CalibrationTable.load(TABLE)
    for target, options in OPTIONS.items():
        (FOLDER / f"{target}.txt").write_text(frozen(options, table).graph.text())


if __name__ == "__main__":
    main()
