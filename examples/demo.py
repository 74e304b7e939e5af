"""A float checkpoint and its frozen one side by side, run by ``mx.mod.Module``: what `make demo` ends with.

    python examples/demo.py demo/model demo/model-quantized
    python examples/demo.py FLOAT-PREFIX FROZEN-PREFIX --data images.npz
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

HELD_OUT = Path(__file__).resolve().parent / "digits" / "digits-test.npz"


def load_module(mx: Any, prefix: str, shape: tuple[int, ...]) -> Any:
    """The checkpoint ``prefix-symbol.json``, ``prefix-0000.params``, bound for inference as MXNet does by default."""
    module = mx.mod.Module.load(prefix, 0, label_names=None)
    module.bind([("data", shape)], for_training=False)
    return module


def accuracy(mx: Any, prefix: str, data: np.ndarray, label: np.ndarray) -> float:
    """Percentage of images whose largest output is the label."""
    batches = mx.io.NDArrayIter(data, batch_size=50)
    outputs = load_module(mx, prefix, (50, *data.shape[1:])).predict(batches).asnumpy()
    return float(100 * (outputs.argmax(axis=1) == label).mean())


def latencies(mx: Any, prefixes: list[str], image: np.ndarray, runs: int) -> list[float]:
    """Milliseconds for one image: medians of runs that alternate between the checkpoints, so that both see the same
    machine."""
    batch = mx.io.DataBatch([mx.nd.array(image[None])])
    modules = [load_module(mx, prefix, (1, *image.shape)) for prefix in prefixes]
    times: list[list[float]] = [[] for _ in modules]
    for run in range(runs + 10):
        for module, found in zip(modules, times):
            started = time.perf_counter()
            module.forward(batch, is_train=False)
            module.get_outputs()[0].wait_to_read()
            if run >= 10:  # behind the warm-up
                found.append(1000 * (time.perf_counter() - started))
    return [statistics.median(found) for found in times]


def size(prefix: str) -> float:
    """KB on disk, symbol and parameters."""
    return sum(Path(prefix + tail).stat().st_size for tail in ("-symbol.json", "-0000.params")) / 1000


@click.command()
@click.argument("float_prefix")
@click.argument("frozen_prefix")
@click.option("--data", default=HELD_OUT, show_default=True, type=click.Path(path_type=Path, exists=True),
              help="An .npz with `data` (N,C,H,W, ready to be fed) and `label`.")
@click.option("--runs", default=200, show_default=True, type=click.IntRange(min=1), help="Timed runs of each.")
def main(float_prefix: str, frozen_prefix: str, data: Path, runs: int) -> None:
    """Print accuracy, size and latency of two checkpoints."""
    try:
        import mxnet as mx
    except ImportError:
        sys.exit('the demo runs MXNet: pip install "qgraph[mxnet]" (Python 3.9 to 3.11, x86-64)')
    with np.load(data) as held_out:
        images, labels = held_out["data"], held_out["label"]
    prefixes = [float_prefix, frozen_prefix]
    times = latencies(mx, prefixes, images[0], runs)

    table = Table(title=f"{len(images)} held-out images, mx.mod.Module", title_justify="left")
    table.add_column("checkpoint")
    for head in ("top-1 %", "size KB", "ms per image"):
        table.add_column(head, justify="right")
    for name, prefix, ms in zip(("float32", "frozen"), prefixes, times):
        top1 = accuracy(mx, prefix, images, labels)
        table.add_row(f"{name:<8} {prefix}", f"{top1:.2f}", f"{size(prefix):.0f}", f"{ms:.3f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    main()
