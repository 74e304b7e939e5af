"""Networks of GluonCV in ncnn, in float, against MXNet.

    python benchmarks/ncnn_float.py [NAME ...]

Random weights and lively statistics, small images where the network allows (zoo_coverage.py), 3 images.  Freezing's
float passes run first, as they do for a file.  The difference is the largest one as a part of the largest output, with
ncnn's half precision and Winograd's transforms off, and with its defaults.  Detectors end before the ops that ncnn does
not have: what these read, and what else goes on, are the outputs.
Prints a Markdown table; exit code 3 if one of the default list differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import TRAINED, stacked, table
from zoo_coverage import before_stops, build, difference, kind_of, noise, randomize, truth, varies

from qgraph import Graph, PassManager
from qgraph.errors import UnsupportedError
from qgraph.formats.gluon import from_gluon
from qgraph.passes import PIPELINES, Canonicalize
from qgraph.targets.mxnet import runtime as mxnet_runtime
from qgraph.targets.ncnn.emit import to_ncnn
from qgraph.targets.ncnn.runtime import Executor

LIMIT = 1e-5
CLASSIFIERS = (
    "alexnet", "vgg11_bn", "squeezenet1.0", "squeezenet1.1", "densenet121", "inceptionv3", "googlenet", "xception",
    "mobilenet0.25", "mobilenet1.0", "mobilenetv2_0.5", "mobilenetv2_1.0", "mobilenetv3_small", "mobilenetv3_large",
    "resnet18_v1", "resnet18_v2", "resnet50_v1b", "resnet50_v1d", "resnet50_v2", "resnext50_32x4d", "se_resnet18_v1",
    "se_resnext50_32x4d", "senet_154", "resnest14", "residualattentionnet56", "hrnet_w18_small_v1_c", "dla34",
    "shufflenet_v1", "cifar_resnet20_v1", "cifar_resnet56_v2", "cifar_wideresnet16_10", "cifar_resnext29_32x4d",
)
DETECTORS = ("ssd_512_mobilenet1.0_voc", "ssd_300_vgg16_atrous_voc", "yolo3_mobilenet1.0_voc",
             "center_net_resnet18_v1b_voc", "center_net_resnet18_v1b_dcnv2_voc", "faster_rcnn_resnet50_v1b_voc")


def zoo(name: str) -> tuple[Graph, np.ndarray]:
    rng = np.random.default_rng(0)
    net, shape = build(name)
    images = noise(rng, (3, *shape), smooth=kind_of(name) == "seg")
    g = from_gluon(net, images[:1].shape)
    if kind_of(name) == "det":
        before_stops(g)
        before_missing(g, images.shape)
    randomize(g, {"data": images}, rng)
    return g, images


def before_missing(g: Graph, shape: tuple[int, ...]) -> list[str]:
    """End the graph before every op that to_ncnn refuses; which they are."""
    found: list[str] = []
    stops: set[Any] = set()
    while True:
        canonical = g.copy()
        Canonicalize().run(canonical)
        try:
            to_ncnn(canonical, {"data": shape})
            return list(dict.fromkeys(found))
        except UnsupportedError as error:
            name = str(error).split(":")[0]
            stops.update(node for node in g.dag if node.name == name)
            found.append(str(error).split(":")[1])
        behind: set[Any] = set()
        for node in g.toposort():
            if node in stops or any(port.node in behind for port in g.inputs(node)):
                behind.add(node)
        ends = [port for node in g.toposort() if node in behind for port in g.inputs(node)] + g.heads
        g.heads = [p for p in dict.fromkeys(ends) if p.node not in behind and p.node.op != "null"]
        g.prune()


def trained(name: str) -> tuple[Graph, np.ndarray]:
    case = TRAINED[name]
    return case.graph(), stacked(case.data(case.test, limit=3))


def one_by_one(run: Callable[[np.ndarray], list[np.ndarray]], images: np.ndarray) -> list[np.ndarray]:
    return [np.concatenate(values) for values in zip(*(run(image[None]) for image in images))]


def check(name: str, g: Graph, images: np.ndarray) -> tuple[list[str], float]:
    # ncnn takes an image at a time: an output that tells the place in the batch is 0 for each
    run = mxnet_runtime.Executor(g).run
    want = one_by_one(lambda image: run({"data": image}), images)
    kept = [i for i, out in enumerate(want) if varies(out)]
    exact = one_by_one(lambda image: truth(g, image), images)
    folded = g.copy()
    PassManager(PIPELINES["float"]).run(folded)
    model = to_ncnn(folded, {"data": images.shape})
    plain, default = (Executor(model, **options).run({"data": images})
                      for options in ({"half": False, "winograd": False}, {}))

    def only(values: list[Any]) -> list[Any]:
        return [values[i] for i in kept]

    errors = [difference(only(want), only(plain)), difference(only(want), only(default)),
              difference(only(exact), only(want)), difference(only(exact), only(plain))]
    shape = "x".join(map(str, images.shape[1:]))
    return [name, shape, f"{len(kept)} of {len(want)}", *(f"{e:.1e}" for e in errors)], errors[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows, bad = [], []
    networks: list[tuple[str, Any]] = [(name, zoo) for name in args.models or (*CLASSIFIERS, *DETECTORS)]
    if not args.models:
        networks += [(name, trained) for name, case in TRAINED.items() if case.found]
    for name, source in networks:
        started = time.perf_counter()
        try:
            row, error = check(name, *source(name))
        except Exception as problem:  # it belongs in the table
            text = " ".join(f"{type(problem).__name__}: {problem}".split())[:150].replace("|", "/")
            row, error = [name, "", "", text, "", "", ""], float("inf")
        rows.append([*row, "trained" if source is trained else "random"])
        if not error <= LIMIT:
            bad.append(name)
        print(f"{name:<32}{error:>9.1e}{time.perf_counter() - started:>8.1f} s", file=sys.stderr, flush=True)
    print(table("ncnn in float", ["network", "image", "outputs", "from MXNet", "with ncnn's defaults",
                                  "MXNet from float64", "ncnn from float64", "weights"], rows))
    print(f"{len(rows) - len(bad)} of {len(rows)} within {LIMIT:g}" + (f"; not: {', '.join(bad)}" if bad else ""))
    return 3 if bad and not args.models else 0


if __name__ == "__main__":
    sys.exit(main())
