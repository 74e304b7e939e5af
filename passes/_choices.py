"""What a recipe says of each layer of a graph, and whether a target can carry it."""

from __future__ import annotations

from qgraph.errors import OptionError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.ir.select import named_by
from qgraph.quant.recipe import IN_FLOAT, LayerChoice, Layers
from qgraph.quant.spec import shown_granularity
from qgraph.targets.base import Target
from qgraph.targets.registry import all_classes
from qgraph.targets.spec import Form

WHERE = "recipe, layer"


def layer_choices(g: Graph, layers: Layers) -> dict[Node, LayerChoice]:
    """Layer with weights -> all that the recipe says of it, the last pattern first.

    Raises OptionError, with close names, for a pattern that names no such layer.
    """
    found: dict[Node, LayerChoice] = {}
    named = named_by(g, [pattern for pattern, _ in layers], WHERE)
    for pattern, said in layers:
        mine = [node for node in named[pattern] if ops.kind(node) == ops.COMPUTE]
        if not mine:
            other = named[pattern][0]
            raise OptionError(f"{WHERE} {pattern}: names {other.name} ({other.op}), which has no weights; layers with "
                              "weights decide what is quantized, so name those")
        for node in mine:
            found[node] = found.get(node, LayerChoice()) | said
    return found


def check_choices(g: Graph, target: Target, layers: Layers, default: LayerChoice) -> None:
    """Raise OptionError, UnsupportedError for what is impossible, by the layer's name. default: for all layers."""
    for node, choice in layer_choices(g, layers).items():
        if not choice.in_float:
            check_choice(node.name, target, default | choice)


def check_choice(name: str, target: Target, choice: LayerChoice) -> None:
    """Raise UnsupportedError where the target has no layer of this kind, naming what it has and who can."""
    weight, act = choice.weight_bits or 8, choice.act_bits or 8
    if target.spec.form(weight, act) is None:
        others = [t.name for t in all_classes() if t.spec.form(weight, act) is not None]
        raise UnsupportedError(
            f"{WHERE} {name}: target {target.name} has no layer of {weight}-bit weights and {_bits(act)} "
            f"activations; it has {'; '.join(map(_form_text, target.spec.forms))}"
            + (f"; {' or '.join(others)} can (--target {others[0]})" if others else ""))
    if choice.granularity is not None and choice.granularity not in target.spec.granularities:
        raise UnsupportedError(f"{WHERE} {name}: target {target.name} cannot carry granularity "
                               f"{shown_granularity(choice.granularity)} exactly, it has "
                               f"{', '.join(map(shown_granularity, target.spec.granularities))}")


def _bits(bits: int) -> str:
    return "float" if bits == IN_FLOAT else f"{bits}-bit"


def _form_text(form: Form) -> str:
    return f"weights {bits_text(form.weight_bits)}, activations {bits_text(form.act_bits)}"


def bits_text(bits: tuple[int, ...]) -> str:
    """``2 to 8``, ``16``, ``2 to 16 or float``."""
    whole = sorted(b for b in bits if b != IN_FLOAT)
    ends = [str(whole[0])] if len(whole) == 1 else [f"{whole[0]} to {whole[-1]}"] if whole else []
    return " or ".join([*ends, *(["float"] if IN_FLOAT in bits else [])])
