"""What `qgraph tune` reaches, judged on images that it never saw, and beside the plain way: excluding the worst layers.

    python benchmarks/tune.py [--minutes N] [CASE ...]

    v1            MobileNet v1, onnx: a drop of 0.5 and 98 % agreement, three splits of 900 images into two halves
    v1-4-bits     the same network with 4-bit weights where they do, for size: a drop of 1, three splits
    retinaface    RetinaFace, 32 dB at every head: 30 are wanted, and a half has 8 images
    ruined-heads  31 dB, and two heads whose channels have scales that differ 400 times
    damaged       MobileNet v1 with uneven channels in front of two layers, hidden by a sigmoid: 97 % agreement
                  and 30 dB
    det3, lffd    the detectors at 28 and 30 dB at every head

For each: what tuning chose, how it stands on the tuning half and on the other one, with one standard error; seconds;
and where time is minimized the time of an image as a part of that of everything in integers.  The plain way ("greedy")
freezes everything, excludes the layer that `qgraph compare` calls worst, then the next, until all bounds hold on the
tuning half; its time is measured side by side with that of the tuned model.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import CASES, TRAINED, table

import qgraph
from qgraph import FreezeOptions, Goal, Graph, Port
from qgraph.commands.goal import Standing
from qgraph.commands.tune import tune
from qgraph.commands.tune_bench import Bench, Candidate
from qgraph.commands.tune_costs import one_image, side_by_side
from qgraph.formats.mxnet import load
from qgraph.quant.recipe import LayerChoice, Recipe
from qgraph.semantics.inputs import inputs_of

V1 = "mobilenetv1_0.75_192_bn"
SEEDS = (0, 1, 2)
UNEVEN = 400.0  # the largest scale of a channel over the smallest one
TINY = 1e-3  # of the sigmoid that hides the scales
MOST = 16  # layers that the plain way excludes


@dataclass(frozen=True)
class Case:
    """detector: of the cases, else it is MobileNet v1.  damaged: layers whose inputs are made uneven."""

    goal: Goal
    detector: str = ""
    damaged: tuple[str, ...] = ()
    weight_bits: tuple[int, ...] = ()
    seeds: Sequence[int] = (0,)


def _decibels(least: float) -> Goal:
    return Goal(min_metrics=(("sqnr_db", least),))


CASES_OF = {
    "v1": Case(Goal(max_drop=0.5, min_agreement=98.0), seeds=SEEDS),
    "v1-4-bits": Case(Goal(max_drop=1.0, minimize="size"), weight_bits=(4,), seeds=SEEDS),
    "retinaface": Case(_decibels(32), "retinaface_mnet025_16"),
    "ruined-heads": Case(_decibels(31), "retinaface_mnet025_16", ("face_rpn_cls_score_stride16",
                                                                  "face_rpn_bbox_pred_stride16")),
    "damaged": Case(Goal(min_agreement=97.0, min_metrics=(("sqnr_db", 30.0),)), damaged=("conv8", "conv22")),
    "det3": Case(_decibels(28), "mtcnn_det3"),
    "lffd": Case(_decibels(30), "lffd_plate"),
}


def network(case: Case) -> Graph:
    prefix = str(CASES / "detectors" / case.detector / case.detector) if case.detector else TRAINED[V1].prefix
    g = load(f"{prefix}-symbol.json", f"{prefix}-0000.params")
    for number, name in enumerate(case.damaged):
        damage(g, name, np.random.default_rng(number))
    return g


def damage(g: Graph, name: str, rng: np.random.Generator) -> None:
    """x -> s x + TINY sigmoid(x) in front of this layer, and its weight divided by s: nearly the same network.

    Scaling channels cannot undo it: it does not go through a sigmoid.
    """
    node = next(node for node in g.toposort() if node.name == name)
    source, weight = g.inputs(node)[:2]
    array = g.params[weight.node.name]
    scales = np.exp(rng.uniform(-np.log(UNEVEN), 0, array.shape[1])).astype(np.float32)
    shape = (1, -1, *(1,) * (array.ndim - 2))
    g.params[weight.node.name] = array / scales.reshape(shape)
    factors = Port(g.add_param(f"{name}_scales", scales.reshape(shape)))
    scaled = g.add("broadcast_mul", [source, factors], f"{name}_scaled")
    gate = g.add("Activation", [source], f"{name}_gate", act_type="sigmoid")
    little = g.add("_mul_scalar", [Port(gate)], f"{name}_little", scalar=TINY)
    g.set_input(node, 0, Port(g.add("elemwise_add", [Port(scaled), Port(little)], f"{name}_uneven")))


def setting(case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """Arguments of `tune`: images in two halves, and some of neither, or of the first one, to calibrate on."""
    if not case.detector:
        trained = TRAINED[V1]
        return {"data": CASES / trained.images, "options": trained.options(trained.test, target="onnx", seed=seed)}
    with np.load(CASES / "detectors" / case.detector / "input.npz") as arrays:
        halves = np.split(arrays["data"], [len(arrays["data"]) // 2])
    paths = [folder / "tuning.npz", folder / "judging.npz"]
    for path, images in zip(paths, halves):
        np.savez(path, data=images)
    return {"data": paths[0], "judge_data": paths[1], "calib_data": paths[0],
            "options": FreezeOptions(target="onnx", batch_size=1)}  # every image is a block of the error bar


def greedy(bench: Bench, model: Graph, options: FreezeOptions) -> tuple[Recipe | None, int]:
    """The recipe of the plain way, None if nothing holds; and how many layers it excludes."""
    frozen = qgraph.freeze(model, dataclasses.replace(options, select=None, skip=None), calib_data=bench.calibration)
    layers = qgraph.compare(model, frozen, one_batch(bench))["layers"]
    worst = sorted((row for row in layers if row["name"] in bench.layers and row["added_noise"] is not None),
                   key=lambda row: -row["added_noise"])
    out: tuple[tuple[str, LayerChoice], ...] = ()
    for count in range(MOST + 1):
        recipe = Recipe(layers=out)
        if bench.measure(Candidate(recipe, f"{count} excluded", 0)).holds:
            return recipe, count
        if count == len(worst):
            break
        out = (*out, (worst[count]["name"], LayerChoice(in_float=True)))
    return None, min(len(worst), MOST)


def one_batch(bench: Bench) -> Any:
    return next(iter(bench.calibration)).feeds[next(iter(inputs_of(bench.source)))]


def row(name: str, case: Case, seed: int, minutes: float) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        given = setting(case, seed, Path(folder))
        model, options = network(case), given.pop("options")
        start = time.monotonic()
        tuned = tune(model, goal=case.goal, options=options, prefix=f"{folder}/net", weight_bits=case.weight_bits,
                     budget=minutes, **given)
        seconds = time.monotonic() - start
        up = [layer for layer, choice in tuned.row.recipe.layers if choice.in_float]
        bench = Bench(network(case), options, case.goal, **given)
        plain, parts, count = None, ["", ""], 0
        if case.goal.minimize != "size":
            plain, count = greedy(bench, network(case), options)
            recipes = {"integers": Recipe(), "tuned": tuned.row.recipe, **({"greedy": plain} if plain else {})}
            runs = {key: bench.runs(*bench.build(recipe)) for key, recipe in recipes.items()}
            times = {key: value["ms_per_image"] for key, value in
                     side_by_side(runs, one_image(bench))["models"].items()}
            parts = [f"{times[key] / times['integers']:.2f}" if key in times else "" for key in ("tuned", "greedy")]
        excluded = "" if case.goal.minimize == "size" else f"{count}" if plain else f"fails with {count}"
        return [name, str(seed), f"{tuned.row.what}; float: {', '.join(up) or 'none'}", told(tuned.row.standings),
                told(tuned.judged), f"{tuned.size / 1e6:.2f}", f"{seconds:.0f}", parts[0], parts[1], excluded]


def told(found: dict[str, Standing]) -> str:
    return ", ".join(f"{name} {one.value:.2f} ± {one.error:.2f}" for name, one in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of one run of tune (default %(default)g)")
    parser.add_argument("cases", nargs="*", default=[*CASES_OF], metavar="CASE")
    args = parser.parse_args()
    rows = []
    for name in args.cases:
        case = CASES_OF[name]
        of_case = [row(name, case, seed, args.minutes) for seed in case.seeds]
        for cells in of_case:
            print(" | ".join(cells), flush=True)
        if len(of_case) > 1:
            print(f"{name}: mean size {statistics.mean(float(cells[5]) for cells in of_case):.2f} MB", flush=True)
        rows += of_case
    print(table("Tuned", ["case", "split", "chosen", "on the tuning half", "on the other half", "MB", "s",
                          "time / integers", "greedy's", "greedy excludes"], rows))


if __name__ == "__main__":
    main()
