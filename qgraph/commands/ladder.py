"""What a layer may be turned into, from the cheapest to the dearest, and what that costs.

    latency, onnx          integers  ->  float
    size, onnx             weights of 4 bits, alone  ->  integers  ->  float

A rung is a row of the target's table (`qgraph targets`) with bits.  Costs add up over layers: bytes follow from the
table, seconds are measured on the target, operator by operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qgraph.commands.goal import SIZE
from qgraph.errors import OptionError
from qgraph.quant.recipe import IN_FLOAT, LayerChoice
from qgraph.targets.base import Target
from qgraph.targets.spec import INTEGERS, SIMULATED

FLOAT_BITS = 32
ACT_BITS = 8


@dataclass(frozen=True)
class Rung:
    """weight_bits, act_bits: `FLOAT_BITS` and `IN_FLOAT` for a layer in float.  stored: bits of a weight in the files.

    integers: whether kernels of integers compute it.
    """

    weight_bits: int
    act_bits: int
    stored: int
    integers: bool

    @property
    def choice(self) -> LayerChoice:
        """For a recipe."""
        return LayerChoice(in_float=True) if self.weight_bits == FLOAT_BITS else LayerChoice(
            self.weight_bits, self.act_bits)

    def __str__(self) -> str:
        if self.weight_bits == FLOAT_BITS:
            return "float"
        return f"{self.weight_bits}-bit weights" + (" alone" if self.act_bits == IN_FLOAT else "")


def ladder(target: Target, minimize: str, weight_bits: Sequence[int]) -> list[Rung]:
    """The rungs that are worth trying, the cheapest first. weight_bits: those that are asked for, none by default.

    Raises OptionError for bits that the target has not, or that bring nothing there.
    """
    simulated = any(form.computes == SIMULATED for form in target.spec.forms)
    if minimize != SIZE and simulated:
        raise OptionError(f"--minimize {minimize}: {target.name} simulates, and its time says nothing; give --minimize "
                          f"{SIZE}, or another --target")
    bits = sorted({*weight_bits, ACT_BITS} if weight_bits or minimize != SIZE else {4, ACT_BITS})
    rungs = [rung for wanted in bits if (rung := _cheapest(target, minimize, wanted, simulated)) is not None]
    for wanted in weight_bits:
        if all(rung.weight_bits != wanted for rung in rungs):
            raise OptionError(f"--weight-bits {wanted}: target {target.name} has no such weights (qgraph targets)")
    best = {_cost(rung, minimize): rung for rung in rungs}  # of equally dear ones the last, which has most bits
    for rung in rungs:
        if rung.weight_bits in weight_bits and best[_cost(rung, minimize)] is not rung:
            raise OptionError(f"--weight-bits {rung.weight_bits}: makes {target.name} no better than "
                              f"{best[_cost(rung, minimize)].weight_bits} bits do at --minimize {minimize}"
                              + (f"; --minimize {SIZE} may" if minimize != SIZE else ""))
    found = [best[cost] for cost in sorted(best)]
    return found if target.all_integers else [*found, Rung(FLOAT_BITS, IN_FLOAT, FLOAT_BITS, False)]


def _cheapest(target: Target, minimize: str, weight_bits: int, simulated: bool) -> Rung | None:
    """The form with so many bits of weights that costs least, integers where it makes no difference."""
    rungs = [Rung(weight_bits, act, weight_bits if simulated else form.stored, form.computes == INTEGERS)
             for form in target.spec.forms if weight_bits in form.weight_bits
             for act in (ACT_BITS, IN_FLOAT) if act in form.act_bits]
    if minimize != SIZE:
        rungs = [rung for rung in rungs if rung.integers]
    return min(rungs, key=lambda rung: (rung.stored, rung.act_bits), default=None)


def _cost(rung: Rung, minimize: str) -> int:
    return rung.stored if minimize == SIZE else 1


@dataclass
class Costs:
    """What a network costs, layer by layer. weights: how many each layer has.  rest: bytes of all other parameters.

    seconds: layer -> (in integers, in float), of one image.  other: seconds of all that is no layer.
    """

    weights: Mapping[str, int]
    rest: int
    seconds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    other: float = 0.0

    def size(self, chosen: Mapping[str, Rung]) -> int:
        """Bytes. chosen: the rung of every layer."""
        return self.rest + sum(self.weights[layer] * rung.stored for layer, rung in chosen.items()) // 8

    def time(self, chosen: Mapping[str, Rung]) -> float:
        """Seconds of an image, as predicted; 0 where nothing was measured."""
        return self.other + sum(self.seconds[layer][0 if rung.integers else 1] for layer, rung in chosen.items()
                                if layer in self.seconds)

    def of(self, minimize: str, chosen: Mapping[str, Rung]) -> float:
        return float(self.size(chosen)) if minimize == SIZE else self.time(chosen)

    def extra(self, minimize: str, layer: str, low: Rung, high: Rung) -> float:
        """What a layer costs more on the higher rung; below 0 where it costs less."""
        if minimize == SIZE:
            return self.weights[layer] * (high.stored - low.stored) / 8
        integer, real = self.seconds.get(layer, (0.0, 0.0))
        return real - integer if low.integers and not high.integers else 0.0
