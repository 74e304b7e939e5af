"""Load, float passes and save of one long synthetic network, at two sizes: is the time linear in the nodes?

    python benchmarks/scale.py [NODES]        (default 100000; also run at a tenth of it)

The network has residual blocks of convolution, BatchNorm, relu, Dropout, a BatchNorm without a convolution and a
lopsided Pad, giving passes work. Prints CPU seconds per step, in all, and of each pass (wall seconds), and the
ratio of the two sizes; exits 3 above 60 s in all or above a ratio of 12. Needs no mxnet.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from qgraph.formats.mxnet import load  # noqa: E402
from qgraph.formats.mxnet_writer import save  # noqa: E402
from qgraph.ir.rewrite import PassManager  # noqa: E402
from qgraph.passes import PIPELINES  # noqa: E402

SECONDS, RATIO = 60, 12
STATISTICS = ("gamma", "beta", "moving_mean", "moving_var")


def chain(nodes: int, channels: int = 4, seed: int = 0) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(symbol JSON as a dict, parameters) of a network with at least `nodes` nodes."""
    rng = np.random.default_rng(seed)
    table: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}

    def add(op: str, name: str, inputs: tuple[int, ...] = (), **attrs: object) -> int:
        item: dict[str, Any] = {"op": op, "name": name, "inputs": [[i, 0, 0] for i in inputs]}
        if attrs:
            item["attrs"] = {k: str(v) for k, v in attrs.items()}
        table.append(item)
        return len(table) - 1

    def param(name: str, *shape: int) -> int:
        arrays[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return add("null", name)

    def norm(x: int, name: str) -> int:
        return add("BatchNorm", name, (x, *(param(f"{name}_{s}", channels) for s in STATISTICS)), fix_gamma=False)

    def conv(x: int, name: str, **attrs: object) -> int:
        return add("Convolution", name, (x, param(f"{name}_weight", channels, channels, 3, 3)), kernel=(3, 3),
                   num_filter=channels, no_bias=True, **attrs)

    x = add("null", "data")
    block = 0
    while len(table) < nodes:
        name = f"block{block}"
        y = conv(x, f"{name}_conv0", pad=(1, 1))
        y = add("Activation", f"{name}_relu0", (norm(y, f"{name}_bn0"),), act_type="relu")
        y = add("Dropout", f"{name}_drop", (y,), p=0.1)
        y = add("Pad", f"{name}_pad", (y,), mode="constant", pad_width=(0, 0, 0, 0, 1, 1, 0, 2))
        y = add("elemwise_add", f"{name}_sum", (x, norm(conv(y, f"{name}_conv1"), f"{name}_bn1")))
        x = add("relu", f"{name}_relu1", (norm(y, f"{name}_bn2"),))
        block += 1
    heads = [[len(table) - 1, 0, 0]]
    return {"nodes": table, "arg_nodes": [i for i, n in enumerate(table) if n["op"] == "null"],
            "node_row_ptr": list(range(len(table) + 1)), "heads": heads,
            "attrs": {"mxnet_version": ["int", 10901]}}, arrays


def measure(nodes: int) -> tuple[dict[str, float], int]:
    """(seconds by step and pass, number of nodes loaded)"""
    symbol, arrays = chain(nodes)
    text = json.dumps(symbol)
    seconds: dict[str, float] = {}
    started = time.process_time()
    g = load(text, arrays)
    size = len(g)
    seconds["load"] = time.process_time() - started
    manager = PassManager(PIPELINES["float"])
    started = time.process_time()
    manager.run(g)
    seconds["passes"] = time.process_time() - started
    assert all(r.changed for r in manager.records if r.name not in ("constants", "fold-bn-forward", "fold-input-norm"))
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        save(g, f"{folder}/net")
        seconds["save"] = time.process_time() - started
    seconds.update({f"  {r.name}": r.seconds for r in manager.records})
    return seconds, size


def main(nodes: int) -> int:
    (small, few), (large, many) = measure(nodes // 10), measure(nodes)
    totals = [sum(s for step, s in run.items() if not step.startswith(" ")) for run in (small, large)]
    ratio = totals[1] / totals[0] * (10 * few / many)
    print(f"{'':<20}{few:>10} nodes{many:>10} nodes")
    for step, seconds in large.items():
        print(f"{step:<20}{small[step]:>14.2f} s{seconds:>14.2f} s")
    print(f"{'in all':<20}{totals[0]:>14.2f} s{totals[1]:>14.2f} s   10x the nodes cost {ratio:.1f}x the time")
    return 0 if totals[1] < SECONDS and ratio <= RATIO else 3


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
