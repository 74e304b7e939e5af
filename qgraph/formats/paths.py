"""From a path or a prefix to the files of an MXNet checkpoint."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from qgraph.errors import OptionError, close_names
from qgraph.formats.mxnet_json import SYMBOL_SUFFIX

log = logging.getLogger("qgraph")


def missing_file(path: str) -> str:
    """Why the path is no file: "no such file" or "a folder"."""
    return "a folder" if os.path.isdir(path) else "no such file"


def close_paths(path: str, suffix: str = SYMBOL_SUFFIX) -> str:
    """"; did you mean ...?" with files of that ending beside a path that is not there, or ""."""
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
