"""What the report and its page cost of the time of `qgraph freeze`, and how large the page is.

    python benchmarks/report_cost.py [--calib METHOD] [--target onnx] [--images 100]

Of the CPU time of a freeze with its defaults: the noise along the network, histograms that are shown with the ranges of
other methods, and the page.  MobileNet v1 and a detector of $QGRAPH_CASES, and a ResNet-50 with random weights where
GluonCV is installed (its page is the largest; 32 images, least effort).
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import qgraph
from qgraph import FreezeOptions
from qgraph.calibration import collect
from qgraph.commands import freeze, frozen, report
from qgraph.commands.steps import Steps

CASES = Path(os.environ.get("QGRAPH_CASES", Path(__file__).resolve().parents[2] / "shared" / "cases"))
CPU = time.process_time
RECORDS = {"select": "::10", "crop": 192, "mean": "128,128,128", "std": "128,128,128"}


class Cost:
    """CPU seconds within functions of a module, while it is replaced by one that is timed."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, module: Any, name: str) -> None:
        setattr(module, name, self.timed(getattr(module, name)))

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            started = CPU()
            try:
                return work(*args, **kwargs)
            finally:
                self.seconds += CPU() - started
        return run


def cases(images: int) -> Iterator[tuple[str, Any, dict[str, Any], Any]]:
    """(name, model, options, data)"""
    model = CASES / "mobilenetv1_0.75_192_bn" / "mobilenetv1_0.75_192_bn-symbol.json"
    records = CASES / "imagenet1k_sample" / "val.rec"
    if model.exists():
        yield "MobileNet v1", str(model), {**RECORDS, "calib_data": str(records), "num_calib": images}, None
    folder = CASES / "detectors" / "retinaface_mnet025_16"
    if folder.exists():
        with np.load(folder / "input.npz") as file:
            yield "RetinaFace", str(folder / f"{folder.name}-symbol.json"), {}, file["data"]
    try:
        from gluoncv.model_zoo import get_model
    except ImportError:
        return
    net = get_model("resnet50_v1", pretrained=False)
    net.initialize()
    yield ("ResNet-50", net, {"effort": "fast", "input_shape": "data:1,3,224,224"},
           np.random.default_rng(0).standard_normal((32, 3, 224, 224)).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calib", default=FreezeOptions.calib)
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--images", type=int, default=100)
    args = parser.parse_args()
    freeze.Steps = functools.partial(Steps, CPU)  # type: ignore[misc,assignment]
    cost = Cost()
    for module, name in ((collect, "shown_histogram"), (freeze, "layer_noise"), (frozen, "report_page"),
                         (report, "weight_codes"), (report, "outline")):
        cost.of(module, name)
    for name, model, options, data in cases(args.images):
        cost.seconds = 0.0
        started = CPU()
        made = qgraph.freeze(model, FreezeOptions(target=args.target, calib=args.calib, **options), calib_data=data)
        files = made.files("x")
        total = CPU() - started
        page = len(str(files["x.report.html"]).encode())
        print(f"{name:<14} {total:6.1f} s of CPU, of them {cost.seconds:5.2f} s for the report "
              f"({100 * cost.seconds / (total - cost.seconds):.1f} % more); page {page / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
