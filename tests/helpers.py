"""What several tests share: what this machine has, running a Graph in MXNet, judging two graphs by their outputs."""

from __future__ import annotations

import cProfile
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import numpy as np

from qgraph.ir.graph import Graph

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
EXAMPLES = ROOT / "examples"
DIGITS = EXAMPLES / "digits"  # the bundled network: digits-symbol.json, digits-0000.params, -calib.npz, -test.npz
CASES = Path(os.environ.get("QGRAPH_CASES", ROOT.parent / "shared" / "cases")).absolute()  # real networks and images

PLAIN = ("--effort", "fast", "--calib", "naive")  # for tests of what is frozen, not of how well

MXNET, NCNN, OPENVINO = (importlib.util.find_spec(name) is not None for name in ("mxnet", "ncnn", "openvino"))

_CPU = Path("/proc/cpuinfo")
CPU_FLAGS = _CPU.read_text() if _CPU.exists() else ""
VNNI = "vnni" in CPU_FLAGS  # without, kernels add two products of codes in 16 bits, which saturate


def normal(*shape: int) -> np.ndarray:
    """Random numbers, the same for a shape whichever tests run before."""
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def calls(work: Callable[[], Any]) -> int:
    """How many function calls `work` makes: a cost that is the same on every machine, however busy."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


def load_example(name: str) -> ModuleType:
    """examples/NAME.py, freshly imported."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def run_example(script: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """examples/SCRIPT in a process of its own, with the qgraph of this checkout."""
    return subprocess.run([sys.executable, "-c", f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r})\n"
                           f"sys.argv = {[script, *args]!r}\n"
                           f"runpy.run_path({str(EXAMPLES / script)!r}, run_name='__main__')"],
                          cwd=cwd, capture_output=True, text=True, timeout=300)


def run_mxnet(g: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of `g` in MXNet itself, op by op (its own fusing off), on the CPU.

    Labels need no feed: MXNet infers their shapes and does not read them here.
    """
    import mxnet as mx

    from qgraph.formats.mxnet_writer import to_mxnet

    sym, arg_params, aux_params = to_mxnet(g)
    before = os.environ.get("MXNET_SUBGRAPH_BACKEND")
    os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"
    try:
        exe = sym.simple_bind(mx.cpu(), grad_req="null", **{k: v.shape for k, v in feeds.items()})
    finally:
        if before is None:
            del os.environ["MXNET_SUBGRAPH_BACKEND"]
        else:
            os.environ["MXNET_SUBGRAPH_BACKEND"] = before
    exe.copy_params_from(arg_params, aux_params)
    for name, value in feeds.items():
        exe.arg_dict[name][:] = value
    return [out.asnumpy() for out in exe.forward(is_train=False)]


def assert_same_outputs(g0: Graph, g1: Graph, feeds: Mapping[str, np.ndarray], atol: float = 0.0,
                        rtol: float = 1e-5) -> None:
    """Both graphs give the same outputs in MXNet, within ``atol + rtol * largest output``, and not constant ones.

    Outputs must differ between the samples of the batch (axis 0, at least 2), else the comparison would show nothing.
    """
    want, got = run_mxnet(g0, feeds), run_mxnet(g1, feeds)
    assert len(want) == len(got)
    for index, (a, b) in enumerate(zip(want, got)):
        assert a.shape == b.shape, f"output {index}: shape {b.shape}, want {a.shape}"
        assert np.isfinite(a).all(), f"output {index} of the original is not finite"
        size = np.abs(a).max()
        assert np.abs(a - a[:1]).max() > 1e-3 * size > 0, f"output {index} does not vary with the input"
        error = np.abs(a - b).max()
        assert error <= atol + rtol * size, f"output {index}: differs by {error:.3g}, largest value {size:.3g}"
