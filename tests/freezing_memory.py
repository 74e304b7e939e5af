"""What freezing a small network holds, measured in a process of its own: a test's own memory would hide it.

    python freezing_memory.py chain|concatenated BYTES

BYTES: of a piece.  Prints {"ours", "resident"}, in tensors of a batch.
"""

from __future__ import annotations

import json
import sys
import tracemalloc

import numpy as np
from networks import Net

import qgraph
from qgraph import FreezeOptions, Graph
from qgraph.calibration import pieces
from qgraph.commands.timing import ResidentSize

DEPTH, SIZE, WIDTH, BATCH = 12, 64, 8, 16
TENSOR = 4 * WIDTH * SIZE * SIZE  # bytes of one image in float32


def chain(n: Net) -> Graph:
    x = n.x
    for _ in range(DEPTH):
        x = n.conv(x, WIDTH)
    return n.done(n.head(x))


def concatenated(n: Net) -> Graph:
    x = n.conv(n.x, WIDTH)
    for _ in range(DEPTH // 2):
        x = n.op("Concat", n.conv(x, WIDTH // 2), n.conv(x, WIDTH // 2), channels=WIDTH, dim=1, num_args=2)
    return n.done(n.head(x))


def main(name: str, piece: str) -> None:
    pieces.PIECE_BYTES = int(piece)
    g = {"chain": chain, "concatenated": concatenated}[name](Net(3, channels=3, size=SIZE))
    images = np.random.default_rng(4).normal(size=(BATCH, 3, SIZE, SIZE)).astype(np.float32)
    options = FreezeOptions(target="onnx", runtime="onnxruntime", batch_size=BATCH, calib="naive")  # no histograms
    qgraph.freeze(g, options, calib_data=images[:1])  # imports, and what engines keep
    resident = ResidentSize()
    before = resident.now() or 0
    resident.restart()
    tracemalloc.start()
    qgraph.freeze(g, options, calib_data=images)
    ours = tracemalloc.get_traced_memory()[1]
    print(json.dumps({"ours": ours / (BATCH * TENSOR),
                      "resident": ((resident.peak() or 0) - before) / (BATCH * TENSOR)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
