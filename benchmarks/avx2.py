"""Runs a script in which onnxruntime takes this CPU for one with AVX2 only: no AVX-512, no VNNI, no AMX.

    python benchmarks/avx2.py SCRIPT [ARGS...]      (or -m MODULE, -c CODE: whatever python takes)
    python benchmarks/avx2.py --check

Without VNNI the u8 x s8 kernels of onnxruntime (MLAS) use `vpmaddubsw`, which saturates sums of two products to int16,
silently.  oneDNN has DNNL_MAX_CPU_ISA to show that on any CPU (set here too); MLAS has no such switch.  So the script
gets a copy of onnxruntime whose `cpuid` instructions are traps, and a preloaded library (avx2.c) that answers them with
those features masked.  The copy is links but for one file; it is made once, in ~/.cache/qgraph-avx2.  The installed
package stays as it is.

`--check` prints two Markdown tables.  The first proves that it works: a convolution of codes 255 with weights 127,
exact as the CPU is and halved with AVX2.  The second says which two products are added in 16 bits, found by giving
weights to two positions of K at a time, and proved by predicting accumulators of random codes, every one exactly.

Needs x86-64 Linux, gcc and objdump (binutils).  Where the CPU has no VNNI there is nothing to hide: the script runs as
it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import table

SOURCE = Path(__file__).with_suffix(".c")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qgraph-avx2"
ORDERS = TAP_CHANNEL, ALONE, CHANNEL_TAP, PADDED = (
    "tap, channel", "no pairs", "channel, tap", "tap, channel padded to even")
CPUID, TRAP = b"\x0f\xa2", b"\xcc\x90"


# ---- the environment -------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """The environment in which a Python process sees an AVX2 CPU; as it is if the CPU has no VNNI."""
    env = {**os.environ, "DNNL_MAX_CPU_ISA": "AVX2"}
    if not has_vnni():
        print("avx2.py: this CPU has no VNNI; onnxruntime runs as it is", file=sys.stderr)
        return env
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit(f"avx2.py: needs x86-64 Linux, this is {platform.machine()} {platform.system()}")
    folder = _prepared()
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), env.get("PYTHONPATH")]))
    env["LD_PRELOAD"] = " ".join(filter(None, [str(folder / "avx2.so"), env.get("LD_PRELOAD")]))
    return env


def has_vnni() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux: cannot tell
        return platform.machine().lower() in ("x86_64", "amd64")
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _prepared() -> Path:
    """The folder with the copy of the package and the library that answers; made if it is not there."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("avx2.py: onnxruntime is not installed; pip install onnxruntime")
    package = Path(spec.submodule_search_locations[0])
    if package.parent.parent == CACHE:  # called where it has been called before
        return package.parent
    missing = [tool for tool in ("gcc", "objdump") if not shutil.which(tool)]
    if missing:
        raise SystemExit(f"avx2.py: needs {' and '.join(missing)}; install gcc and binutils")
    binary = next((package / "capi").glob("onnxruntime_pybind11_state*.so"))
    stat = binary.stat()
    key = f"{binary} {stat.st_size} {stat.st_mtime_ns} {SOURCE.read_text()}"
    folder = CACHE / hashlib.sha256(key.encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=CACHE))
    try:
        _link(package, work / "onnxruntime")
        _link(package / "capi", work / "onnxruntime" / "capi")
        target = work / "onnxruntime" / "capi" / binary.name
        target.unlink()
        target.write_bytes(_trapped(binary))
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", work / "avx2.so", SOURCE], check=True)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work)
        if not folder.is_dir():  # else another process was faster
            raise
    return folder


def _link(source: Path, target: Path) -> None:
    """A folder of links to what is in another one, in the place of a link."""
    target.unlink(missing_ok=True)
    target.mkdir()
    for item in source.iterdir():
        if item.name != "__pycache__":
            (target / item.name).symlink_to(item)


def _trapped(binary: Path) -> bytes:
    """The file with every `cpuid` instruction a trap.  The bytes alone occur elsewhere too: objdump says where."""
    head = subprocess.run(["objdump", "-h", "-j", ".text", binary], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\.text\s+\w+\s+(\w+)\s+\w+\s+(\w+)", head)
    if not found:
        raise SystemExit(f"avx2.py: {binary} has no section .text")
    shift = int(found[2], 16) - int(found[1], 16)  # file offset of an address
    code = bytearray(binary.read_bytes())
    with subprocess.Popen(["objdump", "-d", "-j", ".text", binary], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        at = [int(line.split(":")[0], 16) + shift for line in process.stdout if line.endswith("\tcpuid\n")]
    if process.returncode or not at:
        raise SystemExit(f"avx2.py: objdump found no cpuid instruction in {binary}")
    for i in at:
        assert code[i:i + 2] == CPUID, f"{binary}: {code[i:i + 2].hex()} at offset {i:#x}, expected a cpuid"
        code[i:i + 2] = TRAP
    return bytes(code)


# ---- what is measured ------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """A QDQ Conv with s8 weights, or a Gemm if kernel is 0.  Codes of x are always counted as u8.

    channels, outputs: of one group.  zero: of x, as u8.  signed: x and y are declared as s8, of codes less by 128.
    level: of the optimizer; layers become NHWC at ALL only.
    """

    title: str
    channels: int
    kernel: int
    outputs: int
    group: int = 1
    signed: bool = False
    zero: int = 0
    pad: int = 0
    stride: int = 1
    level: str = "ALL"

    @property
    def taps(self) -> int:
        return max(1, self.kernel ** 2)

    def shape(self, size: int) -> tuple[int, ...]:
        """Of x: images of this size, or as many rows."""
        return (1, self.group * self.channels, size, size) if self.kernel else (size, self.channels)

    def session(self, w: np.ndarray, y_step: float, precise: bool = False) -> Any:
        """From x in float, and b in units of the accumulator, to y in float; w: (all outputs, channels * taps)."""
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper

        n, shift, byte = len(w), 128 * self.signed, np.int8 if self.signed else np.uint8
        constants = {"xs": np.float32(1), "xz": np.array(self.zero - shift, byte), "ys": np.float32(y_step),
                     "yz": np.array(-shift, byte), "ones": np.ones(n, np.float32), "wz": np.zeros(n, np.int8),
                     "bz": np.zeros(n, np.int32),
                     "w": w.reshape((n, self.channels, self.kernel, self.kernel) if self.kernel else w.shape)}
        attrs = {"group": self.group, "pads": [self.pad] * 4, "strides": [self.stride] * 2} if self.kernel else \
            {"transB": 1}
        make = helper.make_node
        nodes = [make("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
                 make("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
                 make("DequantizeLinear", ["w", "ones", "wz"], ["wd"], axis=0),
                 make("DequantizeLinear", ["b", "ones", "bz"], ["bd"], axis=0),
                 make("Conv" if self.kernel else "Gemm", ["xd", "wd", "bd"], ["sum"], **attrs),
                 make("QuantizeLinear", ["sum", "ys", "yz"], ["yq"]),
                 make("DequantizeLinear", ["yq", "ys", "yz"], ["y"])]
        shape = [None] * (4 if self.kernel else 2)
        graph = helper.make_graph(
            nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
                             helper.make_tensor_value_info("b", TensorProto.INT32, [n])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{self.level}")
        options.add_session_config_entry("session.x64quantprecision", str(int(precise)))
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, session: Any, codes: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """(positions, all outputs)"""
        feeds = {"x": codes.astype(np.float32) - self.zero, "b": bias.astype(np.int32)}
        y = session.run(None, feeds)[0]
        return y.transpose(0, 2, 3, 1).reshape(-1, y.shape[1]) if self.kernel else y

    def patches(self, codes: np.ndarray) -> np.ndarray:
        """(positions, group, channels * taps) of what is read."""
        if not self.kernel:
            return codes[:, None]
        x = np.pad(codes, [(0, 0), (0, 0), *[(self.pad, self.pad)] * 2], constant_values=self.zero)
        windows = np.lib.stride_tricks.sliding_window_view(x, (self.kernel, self.kernel), (2, 3))
        windows = windows[:, :, ::self.stride, ::self.stride].transpose(0, 2, 3, 1, 4, 5)
        return windows.reshape(-1, self.group, self.channels * self.taps)


def ordered(order: str, channels: int, taps: int) -> np.ndarray:
    """K in the order in which a kernel reads it, neighbours 2m and 2m + 1 in a pair; -1 is a zero between."""
    k = np.arange(channels * taps).reshape(channels, taps).T
    if order == CHANNEL_TAP:
        k = k.T
    elif order == PADDED:
        k = np.pad(k, [(0, 0), (0, channels % 2)], constant_values=-1)
    elif order == ALONE:
        k = np.stack([k, np.full_like(k, -1)], axis=2)
    flat = k.ravel()
    return np.pad(flat, (0, len(flat) % 2), constant_values=-1).reshape(-1, 2)


LAYERS = [  # title, channels, kernel, outputs
    Layer("3x3, 16 channels", 16, 3, 32),
    Layer("3x3, 6 channels", 6, 3, 10),
    Layer("3x3, 5 channels", 5, 3, 16),
    Layer("3x3, 3 channels", 3, 3, 16),
    Layer("3x3, 3 channels, NCHW", 3, 3, 16, level="EXTENDED"),
    Layer("3x3, 6 channels, NCHW", 6, 3, 10, level="EXTENDED"),
    Layer("3x3, 5 channels, s8, zero point, pad, stride", 5, 3, 16, signed=True, zero=113, pad=1, stride=2),
    Layer("7x7, 3 channels, pad, stride", 3, 7, 64, pad=3, stride=2),
    Layer("1x1, 64 channels", 64, 1, 32),
    Layer("1x1, 63 channels", 63, 1, 32),
    Layer("3x3, 4 groups of 8 channels", 8, 3, 8, group=4),
    Layer("3x3, 4 groups of 3 channels", 3, 3, 5, group=4),
    Layer("3x3, 8 groups of 1 channel, 2 outputs each", 1, 3, 2, group=8),
    Layer("3x3 depthwise", 1, 3, 1, group=32),
    Layer("7x7 depthwise", 1, 7, 1, group=32),
    Layer("Gemm, K = 64", 64, 0, 32),
    Layer("Gemm, K = 63", 63, 0, 10),
]


def worst(layer: Layer, weight: int, precise: bool) -> float:
    """The accumulator of codes all 255 with weights all alike, in steps of x 1 / 255 and of w 1 / 127."""
    n = layer.outputs * layer.group
    w = np.full((n, layer.channels * layer.taps), weight, np.int8)
    y_step = 255 * int(w[0].sum(dtype=np.int64)) / 255
    y = layer.run(layer.session(w, y_step, precise), np.full(layer.shape(8), 255), np.zeros(n))
    assert np.ptp(y) == 0, f"{layer.title}: all outputs of such a layer are the same"
    return float(y.flat[0]) / (255 * 127)


def paired(layer: Layer) -> set[tuple[int, int]]:
    """The pairs of K whose products are added in 16 bits: codes are 255, each output has two weights of 127."""
    couples = list(itertools.combinations(range(layer.channels * layer.taps), 2))
    w = np.zeros((len(couples), layer.channels * layer.taps), np.int8)
    for row, couple in zip(w, couples):
        row[list(couple)] = 127
    if layer.channels == layer.outputs == 1:  # depthwise: one output a group
        probe = replace(layer, group=len(couples), zero=0, pad=0)
    else:
        probe, w = replace(layer, outputs=len(couples), zero=0, pad=0), np.tile(w, (layer.group, 1))
    y = probe.run(probe.session(w, 400), np.full(probe.shape(layer.kernel + 2), 255), np.zeros(len(w)))
    halved = (y < 255 * 127 * 1.5).reshape(-1, len(couples))
    assert (halved == halved[0]).all(), f"{layer.title}: positions or groups differ"
    return {couple for couple, half in zip(couples, halved[0]) if half}


def predicted(layer: Layer, codes: np.ndarray, w: np.ndarray, order: str) -> np.ndarray:
    """The accumulators, (positions, all outputs), if sums of these pairs saturate."""
    k = ordered(order, layer.channels, layer.taps)
    x = np.pad(layer.patches(codes), [(0, 0), (0, 0), (0, 1)]).astype(np.int64)[:, :, k]
    rows = np.pad(w, [(0, 0), (0, 1)]).astype(np.int64)[:, k].reshape(layer.group, layer.outputs, *k.shape)
    sums = np.clip(np.einsum("pgmi,gomi->pgomi", x, rows).sum(axis=4), -(1 << 15), (1 << 15) - 1)
    return sums.sum(axis=3).reshape(len(x), -1) - layer.zero * w.sum(axis=1, dtype=np.int64)


def hits(layer: Layer, positions: int = 8, seed: int = 0) -> dict[str, float]:
    """Order -> part of the accumulators of random codes that it predicts, every bit.

    The step of y is 1 and the bias 128 less what is predicted at one position: there y has to be 128.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, layer.shape(9))
    w = rng.integers(-127, 128, (layer.outputs * layer.group, layer.channels * layer.taps)).astype(np.int8)
    session = layer.session(w, 1)
    result = {}
    for order in ORDERS:
        accumulator = predicted(layer, codes, w, order)
        rows = np.linspace(0, len(accumulator) - 1, positions).astype(int)
        found = [layer.run(session, codes, 128 - accumulator[row])[row] == 128 for row in rows]
        result[order] = float(np.mean(found))
    return result


# ---- the tables ------------------------------------------------------------------------------------------------------


def measure() -> dict[str, list]:
    """In this process: rows of the worst case, exact and measured twice, and of the pairs."""
    dense, point, depthwise = (Layer(*args) for args in (
        ("3x3 dense", 32, 3, 32), ("1x1 dense", 32, 1, 32), ("3x3 depthwise", 1, 3, 1, 32)))
    signed = replace(dense, title="3x3 dense, s8", signed=True)
    grid = [(dense, 127), (point, 127), (signed, 127), (dense, 64), (depthwise, 127)]
    proof = [[f"{layer.title}, weights {weight}", layer.channels * layer.taps * weight / 127,
              worst(layer, weight, False), worst(layer, weight, True)] for layer, weight in grid]
    pairs = []
    for layer in LAYERS:
        found = paired(layer)
        match = [order for order in ORDERS if found == {
            tuple(sorted(pair)) for pair in ordered(order, layer.channels, layer.taps).tolist() if -1 not in pair}]
        pairs.append([layer.title, len(found), match[0] if match else "none of these", hits(layer)])
    return {"proof": proof, "pairs": pairs}


def check() -> None:
    """Prints the proof and the pairs."""
    native, avx2 = (json.loads(subprocess.run([sys.executable, __file__, "--measure"], env=env, check=True,
                                              stdout=subprocess.PIPE).stdout) for env in (os.environ, environment()))
    rows = [[title, *(f"{value:.1f}" for value in (exact, as_is, seen, precise))]
            for (title, exact, as_is, _), (_, _, seen, precise) in zip(native["proof"], avx2["proof"])]
    print(table("Codes 255", ["layer", "exact", "this CPU", "AVX2", "AVX2, x64quantprecision=1"], rows))
    rows = [[title, str(count), match, *(f"{100 * share[order]:.1f}" for order in ORDERS)]
            for title, count, match, share in avx2["pairs"]]
    print(table("Sums of 16 bits with AVX2: order of K, and predicted accumulators, %",
                ["layer", "pairs", "order found", *ORDERS], rows))


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        check()
    elif sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
    elif len(sys.argv) > 1:
        os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment())
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
