"""Freezing holds little at a time, and its results depend neither on batches nor on threads."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT
from networks import Net
from threadpoolctl import threadpool_limits

import qgraph
from qgraph import FreezeOptions, Graph

pytest.importorskip("onnxruntime")
PIECE = 4 * 131072  # bytes: a layer's output of four images, see freezing_memory.py


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size in /proc")
@pytest.mark.parametrize("network", ["chain", "concatenated"])
def test_no_step_holds_all_tensors(network: str) -> None:
    """A few tensors of a batch at once; 12 or more are watched, and engines hand over copies.

    Resident were found 13 to 15 tensors of a batch (the float network is walked beside the quantized one), and 18 to
    22 without pieces; of our own arrays 9.0.
    """
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "freezing_memory.py"), network, str(PIECE)],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ours"] < 11
    assert 0 < found["resident"] < 16.5


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
