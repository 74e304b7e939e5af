"""`qgraph targets`: what each target makes of the bits that a layer may have."""

from __future__ import annotations

from typing import Any

from qgraph.passes._choices import bits_text
from qgraph.quant.spec import shown_granularity
from qgraph.targets.registry import all_classes


def target_rows() -> list[dict[str, Any]]:
    """A row for each form: {"target", "weights", "activations" (bits), "computes", "stored" (bits), "granularity"}."""
    return [{"target": cls.name, "weights": bits_text(form.weight_bits), "activations": bits_text(form.act_bits),
             "computes": form.computes, "stored": form.stored,
             "granularity": [shown_granularity(name) for name in cls.spec.granularities]}
            for cls in all_classes() for form in cls.spec.forms]
