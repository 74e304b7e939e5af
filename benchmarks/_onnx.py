"""What the ONNX benchmarks share: float and frozen models, onnxruntime's own quantizer, and runs on an AVX2 CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import avx2
import numpy as np

from qgraph import FreezeOptions, Frozen, Graph, PassManager, freeze
from qgraph.passes import PIPELINES
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.model import OnnxModel, load
from qgraph.targets.onnx.runtime import open_session

CPUS = ("this CPU", "AVX2")
THEIRS = {"naive": "MinMax", "kl": "Entropy"}


def folded(graph: Graph) -> Graph:
    """A copy behind the float passes."""
    g = graph.copy()
    PassManager(PIPELINES["float"]).run(g)
    return g


def float_model(graph: Graph, images: np.ndarray) -> OnnxModel:
    """The folded network in float."""
    return to_onnx(folded(graph), {"data": images.shape})


def ours(graph: Graph | str, data: Any, **options: Any) -> Frozen:
    """Frozen for ONNX, without MXNet."""
    table = options.pop("calib_table", None)
    return freeze(graph, FreezeOptions(target="onnx", runtime="onnxruntime", **options), calib_data=data,
                  calib_table=table)


def theirs(model: OnnxModel, images: np.ndarray, method: str, batch_size: int = 10) -> OnnxModel:
    """A float model quantized by `quantize_static`, as its documentation advises: `quant_pre_process`, QDQ, u8
    activations, s8 weights per channel.  method: of `CalibrationMethod`."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = next(iter(model.inputs))
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (os.path.join(folder, f"{stem}.onnx") for stem in ("float", "prepared", "int8"))
        Path(source).write_bytes(model.to_bytes())
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # that is for transformers, and needs sympy
        quantize_static(prepared, target, _Reader(name, images, batch_size), quant_format=QuantFormat.QDQ,
                        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        calibrate_method=getattr(CalibrationMethod, method))
        return load(target)


class _Reader:
    """Feeds images as quantize_static wants them: one `get_next` after another, None at the end."""

    def __init__(self, name: str, images: np.ndarray, batch_size: int) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = (
            {name: images[start:start + batch_size]} for start in range(0, len(images), batch_size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._feeds


def scores(model: OnnxModel, images: np.ndarray, batch_size: int = 20, exact: bool = False) -> np.ndarray:
    """The first output for every image, one row each."""
    session = open_session(model.to_bytes(), exact=exact)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[start:start + batch_size]})[0]
             for start in range(0, len(images), batch_size)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts])


def run_on(cpu: str, script: str, *args: str) -> str:
    """What a script prints in a process of its own, that sees this CPU, or one with AVX2 only."""
    env = avx2.environment() if cpu == "AVX2" else dict(os.environ)
    return subprocess.run([sys.executable, script, *args], env=env, check=True, stdout=subprocess.PIPE,
                          text=True).stdout
