"""Files: input of bounded size, output all or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Callable, Union, cast

from qgraph.errors import OptionError, QGraphError

Content = Union[bytes, str, Callable[[BinaryIO], None]]

_PIECE = 1 << 20


def read_at_most(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a file; of a longer one than `limit` more than that, but not all. Memory: what is there."""
    with open(path, "rb") as stream:  # read(limit) would take the memory at once
        return b"".join(islice(iter(lambda: stream.read(_PIECE), b""), limit // _PIECE + 1))


def check_output(prefix: str, files: Sequence[str], source: Sequence[str]) -> None:
    """The folder of these files is there and may be written, and none of them is the model itself."""
    folder = os.path.dirname(prefix) or "."
    if not os.path.isdir(folder):
        raise OptionError(f"--output {prefix}: the folder {folder} does not exist; create it first")
    if os.path.basename(prefix) in ("", ".", "..") or os.path.isdir(prefix):
        raise OptionError(f"--output {prefix}: this is a folder, want a prefix for files, such as "
                          f"{os.path.join(prefix, 'model-int8')}")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"--output {prefix}: no permission to write in the folder {folder}")
    if {os.path.realpath(path) for path in files} & {os.path.realpath(path) for path in source}:
        raise OptionError(f"--output {prefix}: would overwrite the model itself, want another prefix")


class _Counter:
    """A stream that only counts."""

    size = 0

    def write(self, chunk: Any) -> int:
        count = memoryview(chunk).nbytes
        self.size += count
        return count


def size_text(count: int) -> str:
    """Bytes for people."""
    power = min((len(str(count)) - 1) // 3, 3)
    return f"{count / 1000 ** power:.4g} {('B', 'KB', 'MB', 'GB')[power]}"


def written_size(files: Mapping[str, Content]) -> int:
    """Bytes that `write_files` would write."""
    counter = _Counter()
    for content in files.values():
        if callable(content):
            content(cast(BinaryIO, counter))
        else:
            counter.write(content.encode() if isinstance(content, str) else content)
    return counter.size


def write_files(files: Mapping[str, Content]) -> None:
    """Write a set of files such that each is the old one or the new one at any moment, never a part.

    files: path -> bytes, text (written as UTF-8), or a function that writes to the binary stream it is given.
    Every file is first written beside its place and synced to the disk; when all are there they are renamed in the
    order given. On an error nothing is renamed, and the unfinished files are removed. A path that is a symbolic link
    keeps being one. Raises QGraphError for a folder that is missing or may not be written, and for a full disk.
    """
    staged: list[tuple[str, str, str]] = []  # temporary, final, as the user called it
    path = ""
    try:
        for path, content in files.items():
            final = os.path.realpath(path)
            temporary = os.path.join(os.path.dirname(final), f".qgraph-{secrets.token_hex(8)}.tmp")
            _check_place(final, path)
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
            staged.append((temporary, final, path))
            with os.fdopen(descriptor, "wb") as stream:
                if callable(content):
                    content(stream)
                else:
                    stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            if os.path.exists(final):
                os.chmod(temporary, stat.S_IMODE(os.stat(final).st_mode))
        while staged:
            temporary, final, path = staged[0]
            os.replace(temporary, final)
            staged.pop(0)
        for folder in {os.path.dirname(os.path.realpath(p)) for p in files}:
            _sync_folder(folder)
    except OSError as error:
        raise QGraphError(f"{path}: cannot be written: {_reason(error, path)}") from error
    finally:
        for temporary, _, _ in staged:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _check_place(final: str, path: str) -> None:
    """Refuse what the rename at the end would stumble over, or would destroy (a device)."""
    if os.path.exists(final) and not os.path.isfile(final):
        raise QGraphError(f"{path}: cannot be written: it is there already and not a regular file")


def _reason(error: OSError, path: str) -> str:
    folder = Path(path).parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run again (the previous files are untouched)"
    if error.errno == errno.ENOENT and not folder.is_dir():
        return f"the folder {folder} does not exist; create it first"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write in the folder {folder}"
    return error.strerror or str(error)


def _sync_folder(folder: str) -> None:
    """Make the renames durable; where folders cannot be opened (Windows) there is nothing to do."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
