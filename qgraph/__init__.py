"""qgraph: a quantization compiler for Apache MXNet networks.

    frozen = qgraph.freeze("net-symbol.json", qgraph.FreezeOptions(calib="kl"), calib_data="images/")
    frozen.save("net-quantized")

The names of this page are loaded when they are first used: `import qgraph` is fast and needs no engine.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

# In a checkout passes/ and cli/ lie beside qgraph/; setup.cfg maps them under it on install.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file():
    __path__.append(str(_root))

__version__ = "0.1.0"

_HOME = {
    "Graph": "ir", "Node": "ir", "Port": "ir",
    "P": "pattern", "MatchFail": "pattern",
    "Pass": "rewrite", "RewritePass": "rewrite", "PassManager": "rewrite", "register": "rewrite",
    "load": "formats.mxnet", "save": "formats.mxnet", "from_gluon": "formats.gluon",
    "QSpec": "quant.spec", "QParams": "quant.spec", "CalibrationTable": "quant.table",
    "Preprocess": "preprocess", "open_data": "data",
    "FreezeOptions": "options", "freeze": "freezing", "Frozen": "freezing",
    "convert": "converting", "Converted": "converting",
    "to_onnx": "formats.onnx", "OnnxModel": "formats.onnx_model",
    "simulate": "simulation", "Strategy": "simulation_rows",
    "evaluate": "evaluation", "compare": "comparison", "QGraphError": "errors",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qgraph' has no attribute {name!r}")
    value = getattr(import_module(f"qgraph.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
