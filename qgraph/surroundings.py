"""What results depend on besides their inputs, told of one process to another: versions, the processor, files."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import qgraph
from qgraph.processor import units

PACKAGES = ("numpy", "networkx", "Pillow", "onnx", "onnxruntime", "mxnet", "ncnn", "openvino", "distributed")
_VECTORS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
_ENDS = 1 << 16  # bytes of a file's beginning and of its end


@dataclass(frozen=True)
class Surroundings:
    """versions: by package, "none" where it is not installed.  processor: its kind, and the units that engines use."""

    versions: Mapping[str, str]
    processor: str


def surroundings() -> Surroundings:
    """Those of this process."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2]),
             "qgraph": f"{qgraph.__version__} (sources {_digest_of_sources()})"}
    return Surroundings({**found, **{name: _version(name) for name in PACKAGES}}, _processor())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    """x86_64 with avx2, avx_vnni; without the units where the system does not tell them."""
    flags = units()
    return " with ".join(part for part in (platform.machine(), ", ".join(v for v in _VECTORS if v in flags)) if part)


def _digest_of_sources() -> str:
    digest = hashlib.blake2b(digest_size=4)
    for name, path in sorted(_sources()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterator[tuple[str, Path]]:
    """(name below the package, path) of each module, alike in a checkout and installed."""
    package = Path(qgraph.__file__).parent
    for root in (package, *(Path(entry) / room for entry in qgraph.__path__ for room in ("passes", "cli"))):
        base = package if root == package else root.parent
        yield from ((path.relative_to(base).as_posix(), path) for path in root.rglob("*.py"))


def stamps(paths: Sequence[Path]) -> list[str]:
    """What tells other files at these paths: sizes, and the ends of a file or the names in a folder; "" for nothing."""
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders.sort()
                for name in sorted(names):
                    file = Path(folder, name)
                    digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        else:
            with open(path, "rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                digest.update(f"{size}\0".encode())
                for start in (0, max(0, size - _ENDS)):
                    stream.seek(start)
                    digest.update(stream.read(_ENDS))
    except OSError:
        return ""
    return digest.hexdigest()
