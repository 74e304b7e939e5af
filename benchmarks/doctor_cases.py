"""Sick models, each with one illness, and whether `qgraph doctor` finds it and names the remedy; and healthy ones.

    python benchmarks/doctor_cases.py [--healthy]

A small colour network is built, its BatchNorms hold the statistics of a set of images, and each row of `SICK` makes it
ill.  --healthy: the trained cases and detectors of QGRAPH_CASES instead, which may have notes alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np
from _common import CASES

from qgraph.commands.doctor import doctor
from qgraph.data.candidates import Feeding
from qgraph.data.preprocess import PRESETS
from qgraph.formats.mxnet_writer import save
from qgraph.formats.ndarray import dump_params
from qgraph.ir.graph import Graph, Node, Port
from qgraph.options import FreezeOptions
from qgraph.semantics.interpreter import run

SIDE, IMAGES = 16, 24
FED = {"preprocess": "imagenet", "resize": SIDE, "crop": SIDE}


@dataclass
class Patient:
    """A model and its images. pixels: uint8 images (N, H, W, 3), or ready floats.  extra: arrays beside its own.

    looked_at: whether the doctor is given the images.
    """

    g: Graph
    pixels: np.ndarray
    fed: dict[str, Any]
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    looked_at: bool = True

    def scale(self, name: str, index: Any, factor: float) -> None:
        self.g.params[name][index] *= factor

    def put(self, name: str, index: Any, value: float) -> None:
        self.g.params[name][index] = value

    def examine(self, folder: Path) -> dict[str, Any]:
        """Write the files, and ask the doctor."""
        save(self.g, str(folder / "net"))
        arrays = {f"arg:{name}": array for name, array in {**self.g.params, **self.extra}.items()
                  if name not in self.left_out}
        with open(folder / "net-0000.params", "wb") as stream:
            dump_params(stream, arrays)
        np.savez(folder / "images.npz", data=self.pixels)
        return doctor(str(folder / "net"), str(folder / "images.npz") if self.looked_at else None,
                      targets=self.targets, options=FreezeOptions(**self.fed))


def healthy(middle: str = "relu", head: str = "") -> Patient:
    """conv - bn - relu three times, a global pooling, a dense layer. middle: the second activation.  head: "bn" is an
    embedding."""
    rng = np.random.default_rng(21)
    g = Graph()
    x = g.add("null", name="data")
    width = 3
    for number, filters in enumerate((16, 24, 32)):
        weight = g.add_param(f"conv{number}_weight", _normal(rng, filters, width, 3, 3) * (2 / width / 9) ** 0.5)
        conv = g.add("Convolution", [x, weight], f"conv{number}", kernel=(3, 3), pad=(1, 1), num_filter=filters,
                     no_bias=True)
        bn = _batch_norm(g, conv, f"bn{number}", filters, rng)
        act = middle if number == 1 else "relu"
        x = g.add("LeakyReLU" if act == "leaky" else "Activation", [bn], f"act{number}", act_type=act)
        width = filters
    x = g.add("Pooling", [x], "pool", kernel=(1, 1), global_pool=True, pool_type="avg")
    dense = g.add("FullyConnected", [x, g.add_param("fc_weight", _normal(rng, 10, width)),
                                     g.add_param("fc_bias", _normal(rng, 10))], "fc", num_hidden=10)
    g.heads = [Port(_batch_norm(g, dense, "bn_fc", 10, rng) if head else dense)]
    patient = Patient(g, _photographs(rng), dict(FED))
    _learn(g, Feeding(PRESETS["imagenet"]).apply(patient.pixels.transpose(0, 3, 1, 2).astype(np.float32)))
    return patient


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _batch_norm(g: Graph, x: Node, name: str, channels: int, rng: np.random.Generator) -> Node:
    arrays = {"gamma": rng.uniform(0.7, 1.4, channels), "beta": rng.uniform(-0.3, 0.5, channels),
              "moving_mean": np.zeros(channels), "moving_var": np.ones(channels)}
    params = [g.add_param(f"{name}_{part}", array.astype(np.float32)) for part, array in arrays.items()]
    return g.add("BatchNorm", [x, *params], name, fix_gamma=False, eps=1e-5)


def _photographs(rng: np.random.Generator) -> np.ndarray:
    """Smooth images, brighter in red than in blue, uint8 (N, H, W, 3)."""
    coarse = rng.uniform(0, 1, (IMAGES, 5, 5, 3))
    rows = np.clip(np.linspace(0, 4, SIDE).round().astype(int), 0, 4)
    smooth = coarse[:, rows][:, :, rows] + rng.normal(0, 0.05, (IMAGES, SIDE, SIDE, 3))
    return np.clip(smooth * (250, 180, 90) + (5, 20, 10), 0, 255).astype(np.uint8)


def _learn(g: Graph, fed: np.ndarray) -> None:
    """The statistics of these inputs, BatchNorm by BatchNorm."""
    for bn in g.nodes("BatchNorm"):
        data, _, _, mean, var = g.inputs(bn)
        value = run(g, {"data": fed}, [data])[0]
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        g.params[mean.node.name], g.params[var.node.name] = value.mean(axes), value.var(axes)


# ---- the illnesses --------------------------------------------------------------------------------------------------

def _fed(**given: Any) -> Patient:
    patient = healthy()
    patient.fed.update(given)
    return patient


def _with(change: Callable[[Patient], None], looked_at: bool = False, **built: str) -> Patient:
    patient = healthy(**built)
    patient.looked_at = looked_at
    change(patient)
    return patient


def _uneven(patient: Patient) -> None:
    steps = np.geomspace(1, 1 / 1000, 24).astype(np.float32)
    patient.g.params["bn1_gamma"] *= steps
    patient.g.params["bn1_beta"] *= steps


def _exploding(patient: Patient) -> None:
    fed = Feeding(PRESETS["imagenet"]).apply(patient.pixels.transpose(0, 3, 1, 2).astype(np.float32))
    fed[7] *= 40
    patient.pixels, patient.fed = fed, {}


def _tiny_gammas(patient: Patient) -> None:
    patient.g.params["bn_fc_gamma"] *= np.float32(1e-3)


def _long_sum(patient: Patient) -> None:
    """Weights of one sign, more of them than int32 can add."""
    flat = patient.g.find("act2")
    weight = patient.g.add_param("long_weight", np.full((2, 32 * SIDE * SIDE * 9), 0.01, np.float32))
    wide = patient.g.add("Concat", [flat] * 9, "wide", dim=1, num_args=9)
    patient.g.heads.append(Port(patient.g.add("FullyConnected", [wide, weight], "long", num_hidden=2, no_bias=True)))


def _upsampled(patient: Patient) -> None:
    up = patient.g.add("UpSampling", [patient.g.find("act2")], "up", scale=2, sample_type="nearest", num_args=1)
    patient.g.heads.append(Port(up))
    patient.targets = ("tengine",)


def _extra(patient: Patient) -> None:
    patient.extra = {"old_fc_weight": np.ones((100, 32), np.float32), "old_fc_bias": np.ones(100, np.float32)}


def _missing(patient: Patient) -> None:
    patient.left_out = ("bn1_gamma",)
    patient.extra = {"bn1_gama": np.ones(24, np.float32)}


def _misshapen(patient: Patient) -> None:
    patient.g.params["conv1_weight"] = patient.g.params["conv1_weight"][:, :15].copy()


@dataclass(frozen=True)
class Sick:
    """make: the patient.  check, severity: of the finding.  where: a name in it.  remedy: a part of its remedy."""

    make: Callable[[], Patient]
    check: str
    severity: str
    where: str
    remedy: str


SICK: Mapping[str, Sick] = {
    "wrong mean": Sick(lambda: _fed(mean="0"), "preprocessing", "error", "data", "--preprocess imagenet"),
    "swapped BGR": Sick(lambda: _fed(bgr=True), "preprocessing", "warning", "data", "--preprocess imagenet"),
    "scale 255": Sick(lambda: _fed(scale=1.0), "preprocessing", "error", "data", "--preprocess imagenet"),
    "another preset": Sick(lambda: _fed(preprocess="tf"), "preprocessing", "warning", "data", "--preprocess imagenet"),
    "dead channels": Sick(lambda: _with(lambda p: p.put("bn1_gamma", slice(0, 14), 0.0)), "dead-channels", "warning",
                          "conv1", "prune"),
    "a dominating channel": Sick(lambda: _with(lambda p: p.scale("bn1_gamma", 5, 200)), "dominating-channels",
                                 "warning", "conv1", "--effort best"),
    "a dominating channel of a tensor": Sick(lambda: _with(lambda p: p.scale("bn1_gamma", 5, 30), True),
                                             "dominating-channels", "warning", "act1", "--effort best"),
    "uneven channels": Sick(lambda: _with(_uneven, True), "uneven-channels", "warning", "act1", "--effort best"),
    "NaN": Sick(lambda: _with(lambda p: p.put("conv1_weight", (3, 2, 1, 1), np.nan)), "not-finite", "error",
                "conv1_weight", "--epoch"),
    "a huge weight": Sick(lambda: _with(lambda p: p.put("fc_weight", (0, 0), 1e20)), "huge", "error", "fc_weight",
                          "--epoch"),
    "variance 1e-12": Sick(lambda: _with(lambda p: p.put("bn1_moving_var", 3, 1e-12)), "variance", "warning", "bn1",
                           "--exclude conv1"),
    "negative variance": Sick(lambda: _with(lambda p: p.put("bn1_moving_var", 3, -1.0)), "variance", "error", "bn1",
                              "export the network again"),
    "missing params": Sick(lambda: _with(_missing), "missing-parameters", "error", "bn1_gamma", "--params"),
    "extra params": Sick(lambda: _with(_extra), "unused-parameters", "warning", "old_fc_weight", "one export"),
    "params of another shape": Sick(lambda: _with(_misshapen, True), "shapes", "error", "conv1", "--params"),
    "tiny gammas": Sick(lambda: _with(_tiny_gammas, head="bn"), "tiny-gammas", "warning", "bn_fc", "--exclude fc"),
    "an exploding image": Sick(lambda: _with(_exploding, True), "exploding-range", "warning", "images.npz[7]",
                               "--skip"),
    "sums beyond int32": Sick(lambda: _with(_long_sum), "overflow", "warning", "long", "--exclude long"),
    "an activation in float": Sick(lambda: _with(lambda p: None, middle="leaky"), "integer-flow", "note", "act1",
                                   "relu or clip"),
    "an op without a target": Sick(lambda: _with(_upsampled), "refused", "error", "tengine", "--outputs"),
}


def judge(sick: Sick, folder: Path) -> tuple[bool, list[dict[str, Any]]]:
    """(whether the illness was found and named with its remedy, everything above a note)"""
    findings = sick.make().examine(folder)["findings"]
    hit = any(f["check"] == sick.check and f["severity"] == sick.severity and sick.where in f["where"]
              and sick.remedy in f["remedy"] for f in findings)
    return hit, [f for f in findings if f["severity"] != "note"]


# ---- the healthy ----------------------------------------------------------------------------------------------------

_SAMPLE = "imagenet1k_sample/val.rec"
HEALTHY: Mapping[str, tuple[str, str, dict[str, Any]]] = {  # name -> (prefix, images, options)
    "mobilenetv1_0.75_192_bn": ("mobilenetv1_0.75_192_bn/mobilenetv1_0.75_192_bn", _SAMPLE,
                                {"crop": 192, "mean": "128", "std": "128", "select": "::31"}),
    "squeezenet1.1": ("squeezenet1.1/squeezenet1.1", _SAMPLE,
                      {"bgr": True, "crop": 224, "mean": "104.00698793,116.66876762,122.67891434", "select": "::31"}),
    "cifar_resnet20_v1": ("cifar_resnet20_v1/cifar_resnet20_v1", "cifar10/cifar10_test.rec",
                          {"preprocess": "cifar10", "select": "::312"}),
    **{name: (f"detectors/{name}/{name}", f"detectors/{name}/input.npz", {})
       for name in ("lffd_plate", "mtcnn_det2", "mtcnn_det3", "retinaface_mnet025_16")},
}
_MISFED: Mapping[str, dict[str, Any]] = {  # the first of them, fed wrongly
    "without its mean": {"mean": "0"}, "swapped BGR": {"bgr": True}, "pixels 0..255": {"mean": "0", "std": "1"},
    "ImageNet's mean and std": {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225", "scale": 1 / 255},
}


def _examine(name: str, **others: Any) -> dict[str, Any]:
    prefix, images, options = HEALTHY[name]
    return doctor(str(CASES / prefix), str(CASES / images), options=FreezeOptions(**{**options, **others}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--healthy", action="store_true", help="the trained cases instead")
    wrong = 0
    if parser.parse_args().healthy:
        for name in HEALTHY:
            start = time.perf_counter()
            found = _examine(name)
            above = [f["check"] for f in found["findings"] if f["severity"] != "note"]
            wrong += bool(above)
            print(f"{name:<28} {'ALARM ' + ', '.join(above) if above else 'healthy':<28} {found['counts']}, departure "
                  f"{found['departure']}, {time.perf_counter() - start:.1f} s")
        name = next(iter(HEALTHY))
        for title, fed in _MISFED.items():
            found = _examine(name, **fed)
            told = [f for f in found["findings"] if f["check"] == "preprocessing"]
            wrong += not told
            print(f"{name} {title:<26} {found['departure']:<10} "
                  f"{told[0]['severity'] + ': ' + told[0]['remedy'] if told else 'MISSED'}")
        return wrong
    with tempfile.TemporaryDirectory() as place:
        for number, (title, sick) in enumerate(SICK.items()):
            folder = Path(place) / str(number)
            folder.mkdir()
            hit, above = judge(sick, folder)
            wrong += not hit
            others = sorted({f["check"] for f in above} - {sick.check})
            print(f"{title:<34} {'found' if hit else 'MISSED':<7} {sick.severity} {sick.check}"
                  + (f"; also {', '.join(others)}" if others else ""))
        found = healthy().examine(Path(place))
        print(f"{'healthy':<34} {found['counts']}, departure {found['departure']}")
        wrong += found["counts"]["error"] + found["counts"]["warning"]
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
