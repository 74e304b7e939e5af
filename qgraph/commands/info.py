"""What a report of a bug should tell: versions of qgraph, Python and the engines, and the processor. Imports none."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import qgraph
from qgraph.processor import units

ENGINES = ("mxnet", "gluoncv", "onnxruntime", "openvino", "ncnn")
PACKAGES = ("numpy", "onnx", "networkx", "click")


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
    found = units()
    return "yes" if any("vnni" in unit for unit in found) else "no" if "flags" in found else "unknown"


def version_line() -> str:
    """One line for `qgraph --version`."""
    engines = ", ".join(f"{name} {number}" for name, number in installed(ENGINES).items())
    return f"qgraph {qgraph.__version__} (Python {platform.python_version()}; {engines or 'no engine'})"
