"""What a report of a bug should tell: versions of qgraph, Python and the engines, and the processor. Imports none."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import qgraph

ENGINES = ("mxnet", "gluoncv", "onnxruntime", "openvino", "ncnn")
PACKAGES = ("numpy", "onnx", "networkx", "click")
_CPU = Path("/proc/cpuinfo")
_MOST = 1 << 16  # characters of it that are read: the first processor


def installed(packages: tuple[str, ...] = (*ENGINES, *PACKAGES)) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def info() -> dict[str, str]:
    """What it is about -> the fact, in the order in which people read it."""
    missing = {package: "not installed" for package in ENGINES}
    return {"qgraph": qgraph.__version__, "python": platform.python_version(), "platform": platform.platform(),
            "vnni": _vnni(), **missing, **installed()}


def _vnni() -> str:
    """Whether the processor adds products of codes in 32 bits, where the system tells: without, sums saturate."""
    try:
        with _CPU.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(_MOST)
    except OSError:
        return "unknown"
    return "yes" if "vnni" in text else "no" if "flags" in text else "unknown"


def version_line() -> str:
    """One line for `qgraph --version`."""
    engines = ", ".join(f"{name} {number}" for name, number in installed(ENGINES).items())
    return f"qgraph {qgraph.__version__} (Python {platform.python_version()}; {engines or 'no engine'})"
