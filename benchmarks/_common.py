"""What the benchmarks share: the cases, networks of the model zoo with random weights, and MXNet's own quantizer.

The cases lie in the folder QGRAPH_CASES (default ../shared/cases beside the checkout): trained networks with images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before mxnet: threads that wait for a busy core spoil every figure
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from qgraph import FreezeOptions, Graph  # noqa: E402
from qgraph.data.open import Data  # noqa: E402
from qgraph.formats.gluon import from_gluon  # noqa: E402
from qgraph.formats.mxnet import load  # noqa: E402
from qgraph.formats.mxnet_writer import to_mxnet  # noqa: E402

CASES = Path(os.environ.get("QGRAPH_CASES", ROOT.parent / "shared" / "cases"))
ISAS = ("native", "AVX2")  # values of DNNL_MAX_CPU_ISA; oneDNN of MXNet 1.9.1 does not know the newer ONEDNN_ name
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
_CHILD = "QGRAPH_BENCHMARK_CHILD"


@dataclass(frozen=True)
class Case:
    """A trained network. size: of the side of its square input; calib, test: FreezeOptions that choose the images."""

    name: str
    size: int
    images: str
    preprocess: dict[str, Any]
    calib: dict[str, Any]
    test: dict[str, Any]

    @property
    def prefix(self) -> str:
        return str(CASES / self.name / self.name)

    @property
    def found(self) -> bool:
        return os.path.isfile(f"{self.prefix}-symbol.json") and (CASES / self.images).is_file()

    def graph(self) -> Graph:
        return load(f"{self.prefix}-symbol.json", f"{self.prefix}-0000.params")

    def options(self, chosen: dict[str, Any], **others: Any) -> FreezeOptions:
        return FreezeOptions(**{**self.preprocess, **chosen, **others})

    def data(self, chosen: dict[str, Any], limit: int | None = None, batch_size: int = 10) -> Data:
        options = self.options(chosen, batch_size=batch_size)
        return options.open(CASES / self.images, {"data": (0, 3, self.size, self.size)}, limit)


_SAMPLE: dict[str, Any] = {"calib": {"select": "::10"}, "test": {"skip": "::10"},
                           "images": "imagenet1k_sample/val.rec"}
_CIFAR: dict[str, Any] = {"calib": {"select": ":50000:500"}, "test": {"select": ":2000"},
                          "images": "cifar10/cifar10_test.rec"}
TRAINED = {case.name: case for case in (
    Case("squeezenet1.1", 224, preprocess={"crop": 224, "bgr": True,
                                           "mean": (104.00698793, 116.66876762, 122.67891434)}, **_SAMPLE),
    Case("mobilenetv1_0.75_192_bn", 192, preprocess={"crop": 192, "mean": (128,) * 3, "std": (128,) * 3}, **_SAMPLE),
    Case("cifar_resnet20_v1", 32, preprocess={"scale": 1 / 255, "mean": (0.4914, 0.4822, 0.4465),
                                              "std": (0.2023, 0.1994, 0.2010)}, **_CIFAR),
)}
CIFAR_TRAIN = "cifar10/cifar10_train.rec"


def calibration_data(case: Case, limit: int | None = None, batch_size: int = 10) -> Data:
    """100 images: every tenth of the ImageNet sample, every 500th training image of CIFAR-10."""
    if case.name.startswith("cifar"):
        options = case.options(case.calib, batch_size=batch_size)
        return options.open(CASES / CIFAR_TRAIN, {"data": (0, 3, case.size, case.size)}, limit)
    return case.data(case.calib, limit, batch_size)


def stacked(data: Data) -> np.ndarray:
    """All its images, N x C x H x W."""
    return np.concatenate([batch.feeds["data"] for batch in data])


def zoo_graph(name: str, seed: int = 0) -> Graph:
    """A gluoncv network with random weights, whose BatchNorms have the statistics of a batch of noise."""
    import mxnet as mx
    from gluoncv import model_zoo

    mx.random.seed(seed)
    net = model_zoo.get_model(name, pretrained=False)
    net.initialize(mx.init.MSRAPrelu(slope=0), ctx=mx.cpu())
    x = mx.nd.array(noise(8, 32 if "cifar" in name else 224, seed))
    net(x)
    norms: list[Any] = []
    net.apply(lambda block: norms.append(block) if isinstance(block, mx.gluon.nn.BatchNorm) else None)
    for norm in norms:
        norm._kwargs["momentum"] = 0.0  # the running statistics become those of this batch
    with mx.autograd.record():
        out = net(x)
    mx.autograd.backward(out)  # MXNet updates the running statistics here
    mx.nd.waitall()
    return from_gluon(net)


def noise(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype(np.float32)


def mxnet_int8(graph: Graph, images: np.ndarray, mode: str, batch_size: int = 10) -> Any:
    """(symbol, arg, aux) of `graph` quantized by MXNet itself. mode: naive or entropy."""
    import mxnet as mx
    from mxnet.contrib.quantization import quantize_model_mkldnn

    symbol, arg, aux = to_mxnet(graph)
    batches = mx.io.NDArrayIter(images, batch_size=batch_size)
    return quantize_model_mkldnn(symbol, arg, aux, label_names=None, calib_mode=mode, calib_data=batches,
                                 quantized_dtype="auto", quantize_granularity="channel-wise")


def module(model: Any, shape: tuple[int, ...]) -> Any:
    """A `mx.mod.Module` as MXNet binds it by default, float layers fused. model: (symbol, arg, aux) or a Graph."""
    import mxnet as mx

    symbol, arg, aux = to_mxnet(model) if isinstance(model, Graph) else model
    bound = mx.mod.Module(symbol, label_names=None)
    bound.bind(data_shapes=[("data", shape)], for_training=False)
    bound.set_params(arg, aux)
    return bound


def parse_isas(parser: argparse.ArgumentParser, alone: tuple[str, ...] = ()) -> argparse.Namespace:
    """The arguments; with several instruction sets, or another than the CPU's own, each runs in a process of its own
    (oneDNN reads its environment once), and this process ends with them.  alone: options that stay in this process."""
    parser.add_argument("--isa", default="native", help="instruction sets, by comma: native and values of "
                        f"DNNL_MAX_CPU_ISA (default %(default)s; {','.join(ISAS)} shows a CPU without VNNI too)")
    args = parser.parse_args()
    if os.environ.get(_CHILD) or args.isa == "native" or any(option in sys.argv for option in alone):
        return args
    codes = []
    for isa in args.isa.split(","):
        env = {**os.environ, _CHILD: isa}
        if isa != "native":
            env["DNNL_MAX_CPU_ISA"] = isa
        codes.append(subprocess.run([sys.executable, *sys.argv], env=env).returncode)
    sys.exit(max(codes))


def this_isa() -> str:
    return os.environ.get(_CHILD, "native")


def _write_figure(folder: Path, title: str, head: list[str], rows: list[list[str]]) -> None:
    """The table as docs/_generate/figures.py reads it, under a name that is made of the title."""
    path = folder / (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".json")
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    figure = {"title": title, "command": command, "note": "", "older": "", "head": head, "rows": rows}
    path.write_text(json.dumps(figure, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table under a title. Where QGRAPH_FIGURES names a folder, a file for the pages is written there."""
    if folder := os.environ.get("QGRAPH_FIGURES"):
        _write_figure(Path(folder), title, head, rows)
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])
