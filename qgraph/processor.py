"""What this processor has, and that NumPy makes use of it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

KERNELS = "OPENBLAS_CORETYPE"  # what OpenBLAS reads when NumPy is imported
_CPU = Path("/proc/cpuinfo")
_MOST = 1 << 16  # characters of it that are read: the first processor
_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})


def units() -> frozenset[str]:
    """Its vendor and units, as Linux calls them; none where the system does not tell them."""
    try:
        with _CPU.open(encoding="utf-8", errors="replace") as stream:
            return frozenset(stream.read(_MOST).split())
    except OSError:
        return frozenset()


def choose_kernels() -> None:
    """Let the linear algebra of a NumPy that this process has not imported yet compute with all that Intel's have.

    The OpenBLAS in NumPy before 2 does not know the newest of Intel's processors, takes each for a Pentium 4, and
    multiplies matrices without wide vectors.  On those that it knows these are the kernels that it takes itself.
    What is set already stays.  Child processes inherit it.
    """
    if KERNELS in os.environ or "numpy" in sys.modules or platform.machine() not in ("x86_64", "AMD64"):
        return
    found = units()
    if "GenuineIntel" not in found or int(version("numpy").split(".")[0]) >= 2:
        return
    if found >= _AVX512:
        os.environ[KERNELS] = "SkylakeX"
    elif found >= _AVX2:
        os.environ[KERNELS] = "Haswell"
