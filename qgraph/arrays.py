"""The type of a NumPy array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]  # of any type and shape
else:
    Array = np.ndarray  # numpy.typing takes a while to import
