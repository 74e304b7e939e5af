"""What judging costs: the time and memory of `evaluate` beyond the forward passes of its two models.

    python benchmarks/judging.py [--images 1000]

Classification: cifar_resnet20_v1 on its test images. Segmentation: GluonCV's fcn_resnet50 with random weights on noise
of 64 x 64. The model is compared with itself, so both forward passes are those of the float model; CPU seconds of the
passes with judging over those of the passes alone, and resident size after a quarter and after all of the images.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from _common import TRAINED, noise, table
from gluoncv import model_zoo

from qgraph.commands.evaluate import runnable
from qgraph.commands.judge import Judge
from qgraph.commands.open_model import open_model
from qgraph.commands.timing import ResidentSize
from qgraph.data.open import Data
from qgraph.engines import executor
from qgraph.formats.gluon import from_gluon
from qgraph.options import JudgeOptions

BATCH, SIZE = 16, 64


def measure(graph: Any, data: Data, task: str) -> list[str]:
    model = runnable(open_model(graph).model)
    first, second = (executor(model, "judging") for _ in range(2))
    judge = Judge(model.outputs, model.ir, JudgeOptions(task=(task,)))
    forward = judging = 0.0
    memory, sizes = ResidentSize(), []
    count = data.num_items or 0
    for number, batch in enumerate(data):
        started = time.process_time()
        want, found = first.run(batch.feeds), second.run(batch.feeds)
        passed = time.process_time()
        judge.add(batch, found, want)
        if number:  # the first one compiles
            forward += passed - started
            judging += time.process_time() - passed
        if number in (count // BATCH // 4, count // BATCH - 1):
            sizes.append((memory.now() or 0) / 2**20)
    main = next(row for row in judge.agreement()["tasks"] if row["task"] == task)
    return [str(judge.images), f"{forward:.2f}", f"{judging:.2f}", f"{(forward + judging) / forward:.3f}",
            f"{sizes[-1] - sizes[0]:.1f}", f"{main['main']} {main['metrics'][main['main']]:g}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    count = parser.parse_args().images
    rows = []
    case = TRAINED["cifar_resnet20_v1"]
    if case.found:
        data = case.data({"select": f":{count}"}, batch_size=BATCH)
        rows.append(["classification", case.name, *measure(case.graph(), data, "classification")])
    net = model_zoo.get_model("fcn_resnet50_voc", pretrained=False, pretrained_base=False, crop_size=SIZE)
    net.initialize()
    fcn = from_gluon(net, {"data": (1, 3, SIZE, SIZE)})
    images = np.concatenate([noise(50, SIZE)] * -(-count // 50))[:count]
    few = JudgeOptions(batch_size=BATCH).open(images, {"data": (0, 3, SIZE, SIZE)})
    rows.append(["segmentation", "fcn_resnet50_voc", *measure(fcn, few, "segmentation")])
    print(table("Judging", ["task", "network", "images", "two forward passes, s", "judging, s", "all / forward",
                            "MiB grown", "agreement"], rows))


if __name__ == "__main__":
    main()
