"""What the standard line of passes reaches: agreement with the float network, top-1 and SQNR, as means over splits.

    python benchmarks/accuracy_recipe.py [--only PATTERN,...] [--splits 0,3,7] [--images N] [--calib METHOD]
                                         [--results FILE]

ImageNet cases: calibrated on the 100 images with index % 10 equal to the split, judged on the other 900.  CIFAR-10:
calibrated on 500 training images from the split on, judged on the 10,000 test images.  Detectors: calibrated on the
first half of their input.npz, judged on the second, every output for itself; they have one split.  Data-free lines see
no images, and the split is the seed of the distilled ones.

--only chooses lines by pattern ("sq *", "v1 layer*,detector*"); --images judges on N of the images, spread evenly.
What is measured is kept in the results file, by line, split, images and method, and not measured again: a new file is
wanted when the code has changed.  Needs QGRAPH_CASES.  The whole takes about two hours of one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from _common import CASES, CIFAR_TRAIN, TRAINED, table

from qgraph import FreezeOptions, Graph, freeze
from qgraph.commands.judge import Judge
from qgraph.data.open import Batch, Data, open_data
from qgraph.engines import executor, runtime
from qgraph.formats.mxnet import load
from qgraph.options import JudgeOptions
from qgraph.passes.canonicalize import Canonicalize

SPLITS = (0, 3, 7)
EVERY = 10  # of the ImageNet sample, one image in so many is for calibration
CIFAR_STEP = 100  # of the training images, for 500
BATCH = 20
DETECTORS = ("lffd_plate", "mtcnn_det2", "mtcnn_det3", "retinaface_mnet025_16")
SQ, V1, CIFAR = "squeezenet1.1", "mobilenetv1_0.75_192_bn", "cifar_resnet20_v1"


@dataclass(frozen=True)
class Line:
    """A row of the table. network: a case or a detector.  options: of `FreezeOptions`.  asked: what it should reach."""

    name: str
    network: str
    asked: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    data_free: bool = False

    @property
    def splits(self) -> tuple[int, ...]:
        return SPLITS[:1] if self.network in DETECTORS else SPLITS


_W4: dict[str, Any] = {"target": "mxnet-sim", "weight_bits": 4}
_ENGINES = {"sq": {"ncnn": "agreement 96.5", "tengine": "agreement 95.5"}, "v1": {}}
LINES = (
    *(Line(f"{short} {target}", network, _ENGINES[short].get(target, f"agreement {least}"), {"target": target})
      for short, network, least in (("sq", SQ, 97.5), ("v1", V1, 98.0))
      for target in ("mxnet-sim", "mxnet", "onnx", "ncnn", "tengine")),
    *(Line(f"{short} layer {target}", network, asked, {"target": target, "granularity": "layer"})
      for short, network, asked in (("sq", SQ, ""), ("v1", V1, "top-1 78")) for target in ("mxnet-sim", "onnx")),
    Line("sq W4A8", SQ, "agreement 90", _W4),
    Line("v1 W4A8", V1, "agreement 90", _W4),
    Line("v1 layer W4A8", V1, "top-1 75", {**_W4, "granularity": "layer"}),
    Line("v1 data-free", V1, "agreement 97.5", {"target": "mxnet-sim"}, data_free=True),
    Line("cifar mxnet-sim", CIFAR, "agreement 99.5", {"target": "mxnet-sim"}),
    Line("cifar W4A8", CIFAR, "agreement 98.5", _W4),
    Line("cifar uint4 x int4", CIFAR, "top-1 84.5", {
        **_W4, "act_bits": 4, "act_signed": "unsigned", "exclude": ("cifarresnetv10_conv0_fwd",)}),
    *(Line(f"detector {name}", name, f"SQNR {least}", {"target": "mxnet-sim"})
      for name, least in zip(DETECTORS, (32.8, 30.6, 28.9, 26.5))),
)


@lru_cache(maxsize=1)
def network(name: str) -> Graph:
    folder = CASES / "detectors" / name if name in DETECTORS else CASES / name
    g = load(str(folder / f"{name}-symbol.json"), str(folder / f"{name}-0000.params"))
    Canonicalize().run(g)  # without labels
    return g


def options_of(line: Line, **others: Any) -> FreezeOptions:
    preprocess = {} if line.network in DETECTORS else TRAINED[line.network].preprocess
    return FreezeOptions(**{**preprocess, "batch_size": BATCH, **line.options, **others})


def calibration(line: Line, split: int) -> Data:
    if line.network in DETECTORS:
        images = _crops(line.network)
        return open_data(images[:len(images) // 2], batch_size=BATCH)
    case = TRAINED[line.network]
    if line.network != CIFAR:
        return case.data({"select": f"{split}::{EVERY}"}, batch_size=BATCH)
    return options_of(line, select=f"{split}::{CIFAR_STEP}").open(CASES / CIFAR_TRAIN, {
        "data": (0, 3, case.size, case.size)})


def judged(name: str, split: int, count: int) -> Data:
    """The images that calibration has not seen, or so many of them. count: 0 is all."""
    if name in DETECTORS:
        images = _crops(name)
        images = images[len(images) // 2:]
        return open_data(images[::_step(len(images), count)], batch_size=BATCH)
    case = TRAINED[name]
    total = len(case.data({}))
    numbers = [i for i in range(total) if name == CIFAR or i % EVERY != split]
    return case.data({"select": numbers[::_step(len(numbers), count)]}, batch_size=BATCH)


def _crops(name: str) -> np.ndarray:
    with np.load(CASES / "detectors" / name / "input.npz") as arrays:
        return arrays["data"]


def _step(total: int, count: int) -> int:
    return max(1, total // count) if count else 1


@lru_cache(maxsize=len(SPLITS))
def truth(name: str, split: int, count: int) -> list[list[np.ndarray]]:
    """The outputs of the float network on the images that judge, batch by batch."""
    run = runtime("judging")(network(name))
    return [run.run(batch.feeds) for batch in judged(name, split, count)]


def measure(line: Line, split: int, count: int, calib: str | None) -> dict[str, float | None]:
    """{"agreement": in percent or None, "top1": the same, "sqnr": of the worst output, in dB}"""
    g = network(line.network)
    others: dict[str, Any] = {} if calib is None else {"calib": calib}
    if line.data_free:
        size = TRAINED[line.network].size
        others.update(seed=split, input_shape=(f"data:1,3,{size},{size}",))
    frozen = freeze(g, options_of(line, **others), calib_data=None if line.data_free else calibration(line, split))
    judge = Judge([head.key for head in g.heads], g, JudgeOptions())
    run = executor(frozen.model, "judging")
    for batch, want in _with_truth(line.network, split, count):
        judge.add(batch, run.run(batch.feeds), want)
    found = judge.agreement()
    is_case = line.network not in DETECTORS
    worst = min(float("inf") if row["sqnr_db"] is None else row["sqnr_db"] for row in found["outputs"])
    return {"agreement": found["top1"] if is_case else None, "top1": judge.scores().get("top1") if is_case else None,
            "sqnr": worst}


def _with_truth(name: str, split: int, count: int) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    yield from zip(judged(name, split, count), truth(name, split, count))


def row(line: Line, found: list[dict[str, Any]]) -> list[str]:
    cells = []
    for key, digits in (("agreement", 2), ("top1", 2), ("sqnr", 2)):
        values = [one[key] for one in found if one[key] is not None]
        text = f"{np.mean(values):.{digits}f}" if values else ""
        spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
        cells.append(text + spread)
    return [line.name, *cells, line.asked]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN,...", help="names of lines: "
                        + ", ".join(line.name for line in LINES))
    parser.add_argument("--splits", default=",".join(map(str, SPLITS)), metavar="N,...")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="judge on so many; 0 is all")
    parser.add_argument("--calib", metavar="METHOD", help="instead of the default one")
    parser.add_argument("--results", type=Path, default=Path("accuracy_recipe.json"), metavar="FILE")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    splits = [int(split) for split in args.splits.split(",")]
    kept: dict[str, dict[str, Any]] = json.loads(args.results.read_text()) if args.results.is_file() else {}
    rows = []
    chosen = [line for line in LINES if any(fnmatchcase(line.name, pattern) for pattern in args.only.split(","))]
    for line in chosen:
        found = []
        for split in [split for split in line.splits if split in splits]:
            key = "; ".join([line.name, f"split {split}", f"images {args.images}", f"calib {args.calib or 'default'}"])
            if key not in kept:
                kept[key] = measure(line, split, args.images, args.calib)
                beside = args.results.with_suffix(".part")
                beside.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
                os.replace(beside, args.results)
            found.append(kept[key])
        if found:
            rows.append(row(line, found))
            print("| " + " | ".join(rows[-1]) + " |", file=sys.stderr, flush=True)
    print(table(f"Means over the splits {args.splits}, {args.images or 'all'} images, ranges: "
                f"{args.calib or 'the default'}", ["line", "agreement", "top-1", "SQNR dB", "asked"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
