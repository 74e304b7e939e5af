"""The plot of a simulation: what accuracy is left with how many bits."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from qgraph.commands.strategies import Simulation, Strategy
from qgraph.errors import OptionError
from qgraph.pages.look import LIGHT, SERIES

_WORDS = {"merge_bn": ("BN apart", "BN merged"), "exclude_first": ("all layers", "w/o 1st conv")}
_MARKERS = "osD^v<>P*X"  # as many as there are colours
_STYLES = ("-", ":", "-.")


def need_matplotlib() -> None:
    """OptionError, with the way out, where it is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise OptionError(f'--plot: {error}; pip install "qgraph[plot]"') from error


def draw(found: Simulation) -> bytes:
    """A PNG: accuracy (without labels, agreement) against bits, one line per strategy."""
    from matplotlib.figure import Figure

    rows = [(s, found.row(s)) for s in found.strategies]
    labelled = found.float_row is not None and bool(found.float_row["scores"])
    values = {s: row["scores"].get(found.score) if labelled else row["agreement"] for s, row in rows if row is not None}
    axis = max(("weight_bits", "act_bits"), key=lambda name: len({getattr(s, name) for s, _ in rows}))
    lines: dict[Strategy, list[tuple[int, float]]] = {}
    for strategy, _ in rows:
        if values.get(strategy) is not None:
            like = _without(strategy, axis)
            lines.setdefault(like, []).append((getattr(strategy, axis), values[strategy]))
    figure = Figure(figsize=(9, 5), layout="constrained", facecolor=LIGHT["surface"])
    axes = figure.add_subplot(facecolor=LIGHT["surface"])
    _dress(axes)
    for number, (like, points) in enumerate(lines.items()):
        points.sort()
        again, marker = divmod(number, len(_MARKERS))
        axes.plot(*zip(*points), marker=_MARKERS[marker], linestyle=_STYLES[again % len(_STYLES)], linewidth=2,
                  color=SERIES[marker], label=_label(like, axis, rows))
    if labelled and found.float_row is not None:
        axes.axhline(found.float_row["scores"][found.score], color=LIGHT["soft"], linestyle="--", label="float32")
    bits = sorted({getattr(s, axis) for s, _ in rows})
    axes.set_xticks(bits)
    axes.set_xlabel({"weight_bits": "bits of the weights", "act_bits": "bits of the inputs"}[axis])
    axes.set_ylabel(f"{found.head[-2].lower()}, %" if labelled else "agreement with the float model, %")
    figure.legend(loc="outside right upper", fontsize="small", frameon=False, labelcolor=LIGHT["ink"])
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _dress(axes: Any) -> None:
    """As the charts of a report look."""
    axes.grid(color=LIGHT["grid"], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["soft"], length=0)
    for name in ("xaxis", "yaxis"):
        getattr(axes, name).label.set_color(LIGHT["soft"])
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LIGHT["line"])


def _without(strategy: Strategy, axis: str) -> Strategy:
    nothing: dict[str, Any] = {axis: 0}
    return dataclasses.replace(strategy, **nothing)


def _label(like: Strategy, axis: str, rows: Sequence[tuple[Strategy, Any]]) -> str:
    """What tells this line from the others."""
    varied = [f.name for f in dataclasses.fields(Strategy)
              if f.name != axis and len({getattr(s, f.name) for s, _ in rows}) > 1]
    told = []
    for name in varied:
        value = getattr(like, name)
        told.append(_WORDS[name][value] if name in _WORDS else f"{name} {value}" if name == "act_bits" else str(value))
    return ", ".join(told) or "quantized"
