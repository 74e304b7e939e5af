"""One SHA-256 per file that qgraph writes: two runs on one machine tell whether a change of the code changed a result.

    python benchmarks/outputs_digest.py > before.txt
    (change the code)
    python benchmarks/outputs_digest.py > after.txt; diff before.txt after.txt

The digits network, the trained cases, ten small networks of tests/networks.py and three of them with quantizers as
training leaves them: frozen for every target (naive, kl, and 4 bits per layer for mxnet-sim), converted to every
format, simulated. Words that are not results (versions, paths, options' defaults) are left out of the reports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _common

sys.path.insert(0, str(_common.ROOT / "tests"))

import networks  # noqa: E402
import numpy as np  # noqa: E402

import qgraph  # noqa: E402
from qgraph import FreezeOptions, Graph, Strategy  # noqa: E402
from qgraph.errors import QGraphError  # noqa: E402

DIGITS = _common.ROOT / "examples" / "digits" / "digits"
TARGETS = ("mxnet", "mxnet-sim", "onnx", "ncnn", "tengine")
FORMATS = ("onnx", "ncnn", "tengine", "mxnet")
SMALL = ("conv_pool_conv", "concats", "residual_downsample", "residual_linear", "heads", "squeeze_excite",
         "dense_behind_flatten", "grouped", "shared_weight", "fused_clip")
TRAINED = ("conv_pool_conv", "residual_downsample", "concats")
IMAGES = 20
RESULTS = ("quantized", "float", "tensors", "saturation", "agreement", "departure", "ops", "size")


def strategies() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {f"{target} {calib}": {"target": target, "calib": calib}
                                        for target in TARGETS for calib in ("naive", "kl")}
    found["mxnet-sim 4 bits per layer"] = {"target": "mxnet-sim", "weight_bits": 4, "act_bits": 4,
                                           "granularity": "layer"}
    return found


def models() -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """(name, model, images, options)"""
    images = np.load(f"{DIGITS}-calib.npz")
    yield "digits", str(DIGITS), {"data": images["data"][:64]}, {}
    for case in _common.TRAINED.values():
        if case.found:
            data = _common.stacked(_common.calibration_data(case, IMAGES))
            yield case.name, case.prefix, {"data": data}, {"batch_size": 10}
    for name in SMALL:
        g, feeds = networks.build(name)
        yield name, g, feeds, {}


def trained_models() -> Iterator[tuple[str, Graph, Any]]:
    """Networks with quantizers that have their numbers, as `qgraph.qat` leaves them."""
    for name in TRAINED:
        yield (name, *networks.trained(name))


def show(what: str, made: Callable[[], dict[str, bytes]]) -> None:
    try:
        files = made()
    except QGraphError as error:
        files = {"refused": type(error).__name__.encode()}
    for name, content in sorted(files.items()):
        print(f"{hashlib.sha256(content).hexdigest()[:32]}  {what}  {name}", flush=True)


def written(model: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        found = {Path(path).name: Path(path).read_bytes() for path in model.save(os.path.join(folder, "net"))}
    report = found.pop("net.report.json", None)
    if report is not None:
        body = json.loads(report)
        found["report"] = json.dumps({key: body.get(key) for key in RESULTS}, sort_keys=True).encode()
    return found


def simulated(model: Any, data: Any, options: FreezeOptions) -> dict[str, bytes]:
    rows = [Strategy(), Strategy(granularity="layer", act_signed="signed", weight_bits=4),
            Strategy(merge_bn=False, calib="ema"), Strategy(exclude_first=True, calib="kl")]
    found = qgraph.simulate(model, data, rows, options, calib_data=data).to_dict()
    return {"rows": json.dumps([found["float"], found["rows"]], sort_keys=True).encode()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name has this in it")
    only = parser.parse_args().only
    logging.disable(logging.CRITICAL)
    for name, model, data, more in models():
        if only not in name:
            continue
        shape = "data:1," + ",".join(map(str, data["data"].shape[1:]))
        for title, chosen in strategies().items():
            options = FreezeOptions(seed=0, **chosen, **more)
            show(f"{name}  freeze {title}",
                 lambda m=model, o=options, d=data: written(qgraph.freeze(m, o, calib_data=d)))  # type: ignore[misc]
        for to in FORMATS:
            shapes = () if to == "mxnet" else (shape,)
            show(f"{name}  convert {to}",
                 lambda m=model, t=to, s=shapes: written(qgraph.convert(m, t, input_shape=s)))  # type: ignore[misc]
        show(f"{name}  simulate", lambda m=model, d=data, o=more: simulated(m, d, FreezeOptions(**o)))  # type: ignore
    for name, g, data in trained_models():
        if only not in name:
            continue
        for target in TARGETS:
            for fast in (False, True) if target == "mxnet" else (False,):
                options = FreezeOptions(target=f"{target}{{fast=true}}" if fast else target)
                show(f"{name}  trained, freeze {target}{' --fast' if fast else ''}",
                     lambda m=g, o=options, d=data: written(qgraph.freeze(m, o, calib_data=d)))  # type: ignore[misc]


if __name__ == "__main__":
    main()
