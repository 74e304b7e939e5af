"""Tables of targets, from their classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from _generate.markdown import code, table
from qgraph.quant.spec import shown_granularity
from qgraph.targets.base import Target
from qgraph.targets.registry import TARGETS, target_class
from qgraph.targets.spec import Spec

HEAD = ("`--target`", "what comes out", "weights", "activations", "granularity", "file")


def overview() -> str:
    """A row for each of qgraph's own targets."""
    return table(HEAD, map(_row, TARGETS))


def _row(name: str) -> Sequence[str]:
    cls = target_class(name)
    return (f"`{name}`", cls.help, _bits(cls.spec.weight_bits), _acts(cls.spec), _granularities(cls.spec),
            f"`{cls.suffix}`")


def one(name: str) -> str:
    """What a target can carry, its options, its passes and how many ops it has."""
    cls = target_class(name)
    spec, own = cls.spec, cls().ops()
    facts = [("What comes out", cls.help),
             ("Weights", f"{_bits(spec.weight_bits)}, one scale per {_granularities(spec)}"),
             ("Activations", _acts(spec)),
             ("Zero points", "0" if spec.act.symmetric else "any code"),
             ("Rounding", f"`{spec.rounding}`"),
             ("Layers in float", "none: an op without an int8 form is refused" if cls.all_integers else "allowed"),
             ("Ops", f"{len(own)} of MXNet's, in the column `{name}` of [the table of ops](../reference/ops.md)" if own
              else "all of MXNet's, in float where there is no int8 form"),
             ("Extra to install", f'`pip install "qgraph[{cls.extra}]"` runs the result' if cls.extra else "none"),
             ("Files", code(_files(cls)))]
    return "\n\n".join([table(("fact", name), facts), _options(cls),
                        "Its passes, in order: " + ", ".join(f"[`{step}`](../reference/passes.md#{step})"
                                                             for step in cls.passes) + "."])


def _files(cls: type[Target]) -> list[str]:
    weights = ["-0000.params"] if cls.suffix.endswith("-symbol.json") else []
    return [cls.suffix, *weights, *cls.companions]


def _options(cls: type[Target]) -> str:
    fields = dataclasses.fields(cls)
    if not fields:
        return "It has no options of its own."
    rows = [(f"`{field.name}`", f"`{field.default}`", str(field.metadata["help"])) for field in fields]
    return table(("option", "default", "meaning"), rows)


def _bits(bits: Sequence[int]) -> str:
    return f"{bits[0]} bits" if len(bits) == 1 else f"{bits[0]} to {bits[-1]} bits"


def _acts(spec: Spec) -> str:
    signs = "" if "unsigned" in spec.act_signed or spec.act.signed is not True else ", signed"
    return _bits(spec.act_bits) + signs


def _granularities(spec: Spec) -> str:
    return code(map(shown_granularity, spec.granularities))
