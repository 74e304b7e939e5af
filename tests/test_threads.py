"""The number of threads reaches every engine, and changes no bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import DIGITS, ROOT
from threadpoolctl import threadpool_limits

from qgraph import engines
from qgraph.commands.evaluate import runnable
from qgraph.commands.open_model import open_model
from qgraph.engines import set_thread_count, thread_count
from qgraph.errors import OptionError
from qgraph.quant.adaptive import second_moment
from qgraph.targets.registry import get_target
from qgraph.threads import one_for_linear_algebra, side_by_side


@pytest.fixture(autouse=True)
def without_mxnet(monkeypatch):
    """As in a process that has not imported MXNet; what a test sets in the environment is undone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delitem(sys.modules, "mxnet", raising=False)


@pytest.mark.parametrize("text, count", [("3", 3), ("4,2", 4), (" 2 ", 2), ("", 0), ("many", 0), ("-1", 0), ("²", 0)])
def test_the_environment_is_read(monkeypatch, text, count):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert thread_count() == count
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert thread_count() == 0


def test_a_number_is_wanted():
    for count in (0, -2):
        with pytest.raises(OptionError, match=f"found {count}, want at least 1"):
            set_thread_count(count)
    assert thread_count() == 1


def test_mxnet_that_is_imported_keeps_its_number(monkeypatch):
    monkeypatch.setitem(sys.modules, "mxnet", SimpleNamespace())
    set_thread_count(1)
    with pytest.raises(OptionError, match="found 2, but MXNet is imported already .* set OMP_NUM_THREADS=2 before"):
        set_thread_count(2)
    assert thread_count() == 1


def digits(name: str):
    model = runnable(open_model(str(DIGITS / "digits-symbol.json")).model)
    return get_target(name).convert(model.ir, {"data": (1, 1, 24, 24)})


def test_onnxruntime_takes_it():
    from qgraph.targets.onnx.runtime import open_session

    model = digits("onnx").to_bytes()
    for count in (2, 3):
        engines.set_thread_count(count)
        assert open_session(model).get_session_options().intra_op_num_threads == count


@pytest.mark.ncnn
def test_ncnn_takes_it():
    model = digits("ncnn")
    for count in (2, 3):
        engines.set_thread_count(count)
        assert model.executor()._net.opt.num_threads == count


def test_linear_algebra_rounds_as_on_one_core():
    """A mean of products, as rounding takes it: two threads would add in another order."""
    x = np.random.default_rng(7).normal(size=(1, 4096, 576)).astype(np.float32)
    found = []
    for count in (1, 2):
        with threadpool_limits(count, user_api="blas"), one_for_linear_algebra():
            found.append(second_moment(x, x))
    assert np.array_equal(*found)


@pytest.mark.parametrize("count", [1, 3])
def test_work_is_done_side_by_side(monkeypatch, count):
    monkeypatch.setenv("OMP_NUM_THREADS", str(count))
    meeting = threading.Barrier(count, timeout=30)
    done = []

    def run(item):
        meeting.wait()  # nobody goes on before all are there
        done.append(item)

    side_by_side(run, range(6))
    assert sorted(done) == list(range(6))
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda item: 1 / item, [1, 0, 2])


CONVOLVE = """
import os
from qgraph.engines import set_thread_count
set_thread_count(4)
import mxnet as mx
x, w = mx.nd.ones((2, 32, 56, 56)), mx.nd.ones((32, 32, 3, 3))
mx.nd.waitall()
before = len(os.listdir("/proc/self/task"))
mx.nd.Convolution(x, w, no_bias=True, kernel=(3, 3), num_filter=32).wait_to_read()
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.mxnet
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_mxnet_takes_it_before_it_is_imported():
    """The thread that computes is joined by three others."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CONVOLVE], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "3"
