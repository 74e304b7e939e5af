"""Which targets there are: a name and a class each. To add one, see `qgraph.targets.base`.

Targets of other packages come from the entry-point group ``qgraph.targets``::

    [options.entry_points]
    qgraph.targets =
        listing = my_package:Listing
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from qgraph.errors import OptionError, UnsupportedError
from qgraph.ir.rewrite import read_options
from qgraph.quant.spec import shown_granularity
from qgraph.registry import Classes
from qgraph.targets.base import Target

GROUP = "qgraph.targets"
TARGETS = {  # name -> module:class, which is imported when it is asked for
    "mxnet": "qgraph.targets.mxnet.target:Mxnet",
    "mxnet-sim": "qgraph.targets.mxnet.target:MxnetSim",
    "onnx": "qgraph.targets.onnx.target:Onnx",
    "ncnn": "qgraph.targets.ncnn.target:Ncnn",
    "tengine": "qgraph.targets.tengine.target:Tengine",
}
_TEXT = re.compile(r"\s*([\w\-]+)\s*(?:\{([^}]*)\})?\s*")
_classes = Classes("target", GROUP, TARGETS, Target)  # type: ignore[type-abstract]
target_class, names, all_classes = _classes.__getitem__, _classes.names, _classes.all


def get_target(text: str) -> Target:
    """The target of a name, with options or without: ``onnx``, ``onnx{isa=avx2 int4=true}``."""
    match = _TEXT.fullmatch(text)
    if not match:
        raise OptionError(f"--target: cannot read {text!r}, want a name, or name{{option=value ...}}")
    cls = target_class(match.group(1))
    return cls(**read_options(cls, match.group(2) or ""))


def formats() -> list[str]:
    """Names of the targets that have float models, for `convert`."""
    return [cls.name for cls in all_classes() if cls.convert is not Target.convert]


def option_fields() -> dict[str, tuple[dataclasses.Field[Any], list[str]]]:
    """Option -> (its field, the targets that have it), for flags of the command line."""
    options: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for cls in all_classes():
        for option in dataclasses.fields(cls):
            options.setdefault(option.name, (option, []))[1].append(cls.name)
    return options


def with_options(text: str, **given: Any) -> str:
    """The text of a target with those options that it has."""
    target = get_target(text)
    own = {option.name for option in dataclasses.fields(target)} & given.keys()
    return str(dataclasses.replace(target, **{name: given[name] for name in own}))


def no_open_sizes(target: Target) -> str:
    """Why ``--input-shape data:1,3,?,?`` cannot be for this target; "" where it can."""
    able = [cls.name for cls in all_classes() if cls.open_sizes]
    if target.open_sizes:
        return ""
    return f"sizes can be left open for {', '.join(able)} (--target, --to); {target.name} wants numbers"


def check_legal(target: Target, granularity: str, weight_bits: int, act_bits: int,
                act_signed: str = "auto", beyond: tuple[str, ...] = ()) -> None:
    """UnsupportedError, naming the targets that can, if the target cannot carry these choices exactly."""
    for flag in beyond:
        if flag not in target.spec.beyond:
            others = [t.name for t in all_classes() if flag in t.spec.beyond]
            raise UnsupportedError(f"target {target.name} cannot carry {flag}; {' or '.join(others)} can "
                                   f"(--target {others[0]})")
    wanted = {"granularities": ("--granularity", granularity), "weight_bits": ("--weight-bits", weight_bits),
              "act_bits": ("--act-bits", act_bits), "act_signed": ("--act-signed", act_signed)}
    for field, (flag, value) in wanted.items():
        if value in getattr(target.spec, field):
            continue
        others = [t.name for t in all_classes() if value in getattr(t.spec, field)]
        shown = _listed((value,))
        if not others:
            takes = "; ".join(f"{t.name} takes {_listed(getattr(t.spec, field))}" for t in all_classes())
            raise OptionError(f"{flag} {shown}: {takes}")
        raise UnsupportedError(f"target {target.name} cannot carry {flag} {shown} exactly; "
                               f"{' or '.join(others)} can (--target {others[0]})")


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(shown_granularity(str(value)) for value in values)
