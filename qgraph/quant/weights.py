"""The range of a weight: what its own values cover."""

from __future__ import annotations

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import CalibrationError
from qgraph.quant.spec import QParams, QSpec, with_range


def weight_params(name: str, weight: Array, spec: QSpec) -> QParams:
    """Params that cover a weight array, per tensor, group or channel. name: of the layer, for messages."""
    if not np.isfinite(weight).all():
        raise CalibrationError(f"{name}: found NaN or Inf among the weights")
    if spec.granularity == "tensor":
        return with_range(spec, weight.min(initial=0), weight.max(initial=0))
    rows = np.moveaxis(weight, spec.axis, 0)
    count = spec.groups if spec.granularity == "group" else rows.shape[0]
    flat = rows.reshape(count, -1)
    return with_range(spec, flat.min(axis=1, initial=0), flat.max(axis=1, initial=0))
