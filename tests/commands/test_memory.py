"""Freezing holds little at a time, and its results depend neither on batches nor on threads."""

from __future__ import annotations

import ctypes
import gc
import sys
import tracemalloc
from typing import Callable

import numpy as np
import pytest
from networks import Net
from threadpoolctl import threadpool_limits

import qgraph
from qgraph import FreezeOptions, Graph
from qgraph.calibration import pieces
from qgraph.commands.timing import ResidentSize

pytest.importorskip("onnxruntime")
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size in /proc")
@pytest.mark.parametrize(("make", "most"), [(chain, 17), (concatenated, 12)])
def test_no_step_holds_all_tensors(make: Callable[[Net], Graph], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tensors of a batch at once; all that are watched are `DEPTH` or more, and engines hand over copies.

    most: of resident tensors of a batch; without pieces 24 and 15 were found, with them 13 and 9.
    """
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * TENSOR)
    g = make(Net(3, channels=3, size=SIZE))
    images = np.random.default_rng(4).normal(size=(BATCH, 3, SIZE, SIZE)).astype(np.float32)
    options = FreezeOptions(target="onnx", runtime="onnxruntime", batch_size=BATCH, calib="naive")  # no histograms
    qgraph.freeze(g, options, calib_data=images[:1])  # imports, and what engines keep
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free, and was used before, would hide what is used
    resident = ResidentSize()
    before = resident.now() or 0
    resident.restart()
    tracemalloc.start()
    try:
        qgraph.freeze(g, options, calib_data=images)
        ours = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ours < 8 * BATCH * TENSOR
    assert (resident.peak() or 0) - before < most * BATCH * TENSOR


def wide(n: Net) -> Graph:
    """Layers so wide that several threads of linear algebra would round differently."""
    return n.done(n.head(n.conv(n.conv(n.conv(n.x, 48, stride=2), 64), 64)))


@pytest.mark.slow
def test_batches_and_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    g = wide(Net(5, channels=3, size=24))
    images = np.random.default_rng(6).normal(size=(40, 3, 24, 24)).astype(np.float32)
    found = []
    for batch, threads in ((4, 1), (16, 1), (16, 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        with threadpool_limits(threads, user_api="blas"):
            frozen = qgraph.freeze(g.copy(), FreezeOptions(target="onnx", runtime="onnxruntime", batch_size=batch,
                                                           calib="kl"), calib_data=images)
        found.append({path: content for path, content in frozen.files("net").items() if "report" not in path})
    assert found[0] == found[1] == found[2]
