"""qgraph: a quantization compiler for Apache MXNet networks."""

from __future__ import annotations

from pathlib import Path

# In a checkout passes/ and cli/ lie beside qgraph/; setup.cfg maps them under it on install.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file():
    __path__.append(str(_root))

__version__ = "0.1.0"
