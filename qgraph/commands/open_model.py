"""Finding the model that the user means: a path, a prefix, a Graph, a Gluon block, or something frozen."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgraph.errors import OptionError, close_names
from qgraph.ir.graph import Graph
from qgraph.semantics.inputs import inputs_of, known_channels

log = logging.getLogger("qgraph")

_SUFFIX = "-symbol.json"
_NOT_MODELS = {  # what lies beside a model -> what it is, and what to give instead
    ".params": f"these are parameters, want the MODEL{_SUFFIX} that goes with them (and --params)",
    ".bin": f"these are the weights of an ncnn model, give its .param, or a MODEL{_SUFFIX}",
    ".table": f"these are the scales of an ncnn model, give its .param, or a MODEL{_SUFFIX}",
    ".scale": f"these are the scales of a Tengine model, give its .tmfile, or a MODEL{_SUFFIX}",
    ".calib.json": f"this is a table of ranges (for --calib-table), give a MODEL{_SUFFIX}",
    ".report.json": f"this is the report of an earlier run, give a MODEL{_SUFFIX}",
}


@dataclass
class Model:
    """A graph that qgraph may change, or an ONNX model. prefix: of its files, without ``-symbol.json``, or ""."""

    graph: Any
    prefix: str = ""
    files: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its files, or of its parameters."""
        if self.files or not isinstance(self.graph, Graph):
            return sum(os.path.getsize(f) for f in self.files) or int(self.graph.size)
        return sum(a.nbytes for a in self.graph.params.values())

    @property
    def kind(self) -> str:
        return "an MXNet model" if isinstance(self.graph, Graph) else (
            "an ONNX model" if hasattr(self.graph, "proto") else
            "a Tengine model" if hasattr(self.graph, "tm") else "an ncnn model")

    def as_graph(self, what_for: str) -> Graph:
        """The graph. Raises OptionError for an ONNX model, of which there is none."""
        if not isinstance(self.graph, Graph):
            raise OptionError(f"{self.files[0] if self.files else 'the model'}: {what_for} wants an MXNet model "
                              f"(MODEL{_SUFFIX}), found {self.kind}, which is what comes out in the end")
        return self.graph


def open_model(model: Any, params: str | None = None, epoch: int | None = None,
               shapes: Mapping[str, Sequence[int]] | None = None) -> Model:
    """model: path of a symbol JSON or its prefix, or of an .onnx file, a Graph (copied), a Gluon block, or a `Frozen`.

    params: path; without, ``<prefix>-<epoch>.params``; without an epoch the highest there is.
    shapes: of a Gluon block's inputs.  Raises OptionError for files that are not there, and what `load` raises.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, Graph):
        return Model(model.copy())
    if hasattr(model, "lowered"):
        return Model(model.lowered.copy() if isinstance(model.lowered, Graph) else model.lowered)
    if any(hasattr(model, own) for own in ("proto", "int8_layers", "tm")):
        return Model(model)
    if hasattr(model, "hybridize"):
        from qgraph.formats.gluon import from_gluon

        return Model(from_gluon(model, *([dict(shapes)] if shapes else [])))
    if not isinstance(model, (str, os.PathLike)):
        raise OptionError(f"found a {type(model).__name__}, want a path, a qgraph.Graph or a Gluon HybridBlock")
    if os.fspath(model).endswith(".onnx"):
        return _open_onnx(os.fspath(model), params)
    if os.fspath(model).endswith(".param"):
        return _open_ncnn(os.fspath(model), params)
    if os.fspath(model).endswith(".tmfile"):
        return _open_tengine(os.fspath(model), params)
    from qgraph.formats.mxnet import load

    symbol, prefix = find_symbol(model)
    found = params or find_params(prefix, epoch)
    if not os.path.isfile(found):
        what = "a folder" if os.path.isdir(found) else "no such file"
        raise OptionError(f"{found}: {what}; --params FILE names the parameters of {symbol}")
    return Model(load(symbol, found), prefix, (symbol, found))


def _open_onnx(path: str, params: str | None) -> Model:
    from qgraph.targets.onnx.model import load

    _want_file(path, "an .onnx model", params, "an ONNX model has its parameters inside")
    return Model(load(path), path[: -len(".onnx")], (path,))


def _open_ncnn(path: str, params: str | None) -> Model:
    from qgraph.targets.ncnn.model import load

    _want_file(path, "a .param of ncnn", params, "an ncnn model has its parameters in the .bin beside it")
    prefix = path[: -len(".param")]
    return Model(load(path), prefix, (path, prefix + ".bin"))


def _open_tengine(path: str, params: str | None) -> Model:
    from qgraph.targets.tengine.model import load

    _want_file(path, "a .tmfile of Tengine", params, "a Tengine model has its parameters inside")
    return Model(load(path), path[: -len(".tmfile")], (path,))


def _want_file(path: str, what: str, params: str | None, where: str) -> None:
    if params:
        raise OptionError(f"--params {params}: {where}")
    if not os.path.isfile(path):
        raise OptionError(f"{path}: {'a folder' if os.path.isdir(path) else 'no such file'}, want {what}"
                          + _close(path, os.path.splitext(path)[1]))


def find_symbol(model: str | os.PathLike[str]) -> tuple[str, str]:
    """(path of the symbol JSON, prefix)"""
    path = os.fspath(model)
    if not path.endswith(".json") and os.path.isfile(path + _SUFFIX):
        return path + _SUFFIX, path
    if not os.path.splitext(path)[1] and not os.path.isfile(path) and os.path.isfile(path + ".onnx"):
        raise OptionError(f"{path}: there is no {path}{_SUFFIX}, but {path}.onnx: give its whole name")
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no such file"
        raise OptionError(f"{path}: {what}, want a MODEL{_SUFFIX} (or its prefix){_close(path)}")
    for suffix, what in _NOT_MODELS.items():
        if path.endswith(suffix):
            raise OptionError(f"{path}: {what}")
    return path, path[: -len(_SUFFIX)] if path.endswith(_SUFFIX) else os.path.splitext(path)[0]


def _close(path: str, suffix: str = _SUFFIX) -> str:
    folder = Path(path if os.path.isdir(path) else os.path.dirname(path) or ".")
    try:
        names = sorted(n for n in os.listdir(folder) if n.endswith(suffix))
    except OSError:
        return f"; the folder {folder} is not there"
    base = os.path.basename(path)
    wanted = base if base.endswith(suffix) else re.sub(r"(-\d{4,})?\.\w+$", "", base) + suffix
    close = close_names(wanted, names, 3, 0.5) or names[:3]
    return f"; did you mean {' or '.join(str(folder / n) for n in close)}?" if close else ""


def find_params(prefix: str, epoch: int | None) -> str:
    """``<prefix>-NNNN.params`` of that epoch, or of the highest."""
    pattern = re.compile(re.escape(os.path.basename(prefix)) + r"-(\d{4,})\.params")
    folder = os.path.dirname(prefix)
    found = {int(m.group(1)): m.group(0) for m in map(pattern.fullmatch, sorted(os.listdir(folder or "."))) if m}
    if epoch is None:
        if not found:
            raise OptionError(f"{prefix}-NNNN.params: no such file beside the symbol; give --params FILE")
        epoch = max(found)
        if len(found) > 1:
            log.warning("%d files of parameters lie beside the symbol, taking the last: %s (--epoch N takes another)",
                        len(found), found[epoch])
        else:
            log.info("parameters: %s", os.path.join(folder, found[epoch]))
    if epoch not in found:
        raise OptionError(f"{prefix}-{epoch:04d}.params: no such file; "
                          + (f"--epoch can be {', '.join(map(str, sorted(found)))}" if found else "give --params FILE"))
    return os.path.join(folder, found[epoch])


def default_prefix(model: Any) -> str:
    """Where `freeze` writes when nothing is said."""
    return find_symbol(model)[1] + "-quantized"


def input_sizes(model: Any) -> dict[str, tuple[int, ...]]:
    """Input name -> shape as far as it is known (0: any size), or (); of a Graph or an `OnnxModel`."""
    if not isinstance(model, Graph):
        return {name: (0, *shape[1:]) if shape else () for name, shape in model.inputs.items()}
    channels = known_channels(model)
    return {name: channels.get(name, ()) for name in inputs_of(model)}
