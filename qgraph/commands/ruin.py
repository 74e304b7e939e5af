"""What a user is told of a frozen model that is of no use: which output, by which layers, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgraph.commands.network import FloatNetwork
from qgraph.commands.noise import layer_noise
from qgraph.options import FreezeOptions
from qgraph.targets.base import Feeds, Model, Target
from qgraph.tasks.registry import task_class


def ruin(agreement: Mapping[str, Any] | None, network: FloatNetwork, model: Model, feeds: Feeds | None,
         target: Target, noise: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """{"outputs": [{"names", "task", "metric", "value", "least"}], "layers": the worst, "try": [what would help, the
    cheapest first]}, None where every output is of use.

    agreement: of the frozen model.  feeds: some images.  noise: of `layer_noise`, where it is known already.
    """
    rows = [row for row in agreement["tasks"] if row["ruined"]] if agreement else []
    if not rows:
        return None
    outputs = [{"names": row["outputs"], "task": row["task"], "metric": row["main"],
                "value": row["metrics"][row["main"]], "least": task_class(row["task"]).ruined} for row in rows]
    noise = noise or layer_noise(network, model, feeds)
    layers = noise["worst"] if noise else []
    return {"outputs": outputs, "layers": layers, "try": _remedies(network.options, target, layers)}


def _remedies(options: FreezeOptions, target: Target, layers: list[str]) -> list[str]:
    found = []
    if options.effort != "best":
        found.append("--effort best: passes that measure do so on more images, in minutes")
    if options.calib_table is None and options.calib in (FreezeOptions.calib, "minmax"):
        found.append("--calib kl, or mse: other ranges, in seconds")
    if options.granularity != FreezeOptions.granularity:
        found.append("--granularity channel: a scale per output channel")
    if min(options.weight_bits, options.act_bits) < FreezeOptions.weight_bits:
        found.append("--weight-bits 8 --act-bits 8")
    if layers and not target.all_integers:
        found.append(" ".join(f"--exclude {name}" for name in layers) + ": these layers stay in float, and slower")
    found.append("training with quantization (qgraph.qat): an epoch or two")
    return found
