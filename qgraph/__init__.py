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
    "Graph": "ir.graph", "Node": "ir.graph", "Port": "ir.graph",
    "P": "ir.pattern", "MatchFail": "ir.pattern",
    "Pass": "ir.rewrite", "RewritePass": "ir.rewrite", "PassManager": "ir.rewrite", "register": "ir.rewrite",
    "load": "formats.mxnet", "save": "formats.mxnet_writer", "from_gluon": "formats.gluon",
    "QSpec": "quant.spec", "QParams": "quant.spec", "CalibrationTable": "quant.table",
    "Preprocess": "data.preprocess", "open_data": "data.open",
    "FreezeOptions": "options", "freeze": "commands.freeze", "Frozen": "commands.frozen",
    "convert": "commands.convert", "Converted": "commands.convert",
    "to_onnx": "targets.onnx.emit", "OnnxModel": "targets.onnx.model",
    "simulate": "commands.simulate", "Strategy": "commands.strategies",
    "Recipe": "quant.recipe", "tune": "commands.tune", "Goal": "commands.goal",
    "evaluate": "commands.evaluate", "compare": "commands.compare", "QGraphError": "errors",
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
