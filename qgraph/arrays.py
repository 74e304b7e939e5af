"""The type of a NumPy array, and the name of what it holds."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]  # of any type and shape
else:
    Array = np.ndarray  # numpy.typing takes a while to import


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """``str(dtype)``, which NumPy finds anew each time, and which a graph is asked for by the ten thousand."""
    return str(dtype)
