"""The noise along a frozen network: each of its tensors against the same one of the float network."""

from __future__ import annotations

from typing import Any

from qgraph.commands.compare import compare
from qgraph.commands.network import FloatNetwork
from qgraph.errors import QGraphError
from qgraph.options import JudgeOptions
from qgraph.targets.base import Feeds, Model

IMAGES = 2
_ONE_BY_ONE = JudgeOptions(batch_size=1)  # all layers of an image are held at once


def layer_noise(network: FloatNetwork, model: Model, feeds: Feeds | None) -> dict[str, Any] | None:
    """{"images", "layers": rows of `compare`, then those outputs that are none of them, "worst": names of the layers
    that add most}; None where it cannot be told.

    feeds: some images, of which the first ones are taken.
    """
    if feeds is None or model.absent():
        return None
    images = {name: array[:IMAGES] for name, array in feeds.items()}
    try:
        found = compare(network.bare(), model, images, options=_ONE_BY_ONE, runtime=network.options.runtime)
    except QGraphError:  # models of some engines have no layers to compare
        return None
    names = {row["name"] for row in found["layers"]}
    outputs = [{"name": row["name"], "op": "", "origin": [row["name"]], "added_noise": None,
                **{key: row[key] for key in ("sqnr_db", "cosine", "max_error")}}
               for row in found["judged"]["outputs"] if row["name"] not in names]
    return {"images": found["images"], "layers": [*found["layers"], *outputs], "worst": found["worst"]}
