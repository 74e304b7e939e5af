"""What a target can carry: bits, granularities, rounding, and the forms that single layers may have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qgraph.quant.spec import QSpec

BEYOND = ONLINE_FLAG, APART_FLAG, WINOGRAD_FLAG = "--calib online", "--no-merge-bn", "--winograd"
"""Choices that no integer engine has, as the flags that make them: for `Spec.beyond`."""

INTEGERS, FLOATS, SIMULATED = "integers", "floats", "floats on the grid of the codes"


@dataclass(frozen=True)
class Form:
    """Bits that a layer may have, and what comes of them: a row of `qgraph targets`.

    weight_bits, act_bits: any of these together; `IN_FLOAT` among act_bits: weights alone are quantized.
    computes: INTEGERS are faster; with FLOATS the files alone are smaller; SIMULATED is neither.
    stored: bits that a weight takes in the files.
    """

    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    computes: str = INTEGERS
    stored: int = 8


@dataclass(frozen=True)
class Spec:
    """What a target can carry: the row of the table.

    rounding: how it rounds, a key of `qgraph.quant.spec.ROUNDING`.
    weight, act: the specs its layers start from.
    granularities, weight_bits, act_bits, act_signed: what it can carry exactly.
    signed_input_limit: largest magnitude of a weight code in a layer that reads signed codes; 0 sets no limit.
    bias_limit: largest code of a bias; a layer whose bias has a larger one adds it in float.
    beyond: those of `BEYOND` that it carries.
    forms: what single layers may have instead [default: any of weight_bits with any of act_bits].
    """

    rounding: str
    weight: QSpec
    act: QSpec
    granularities: tuple[str, ...]
    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    act_signed: tuple[str, ...] = ("auto", "signed", "unsigned")
    signed_input_limit: int = 0
    bias_limit: int = 2**31 - 1
    beyond: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "forms", self.forms or (Form(self.weight_bits, self.act_bits),))

    def form(self, weight_bits: int, act_bits: int) -> Form | None:
        """The form that a layer with these bits has, None if there is none."""
        return next((form for form in self.forms if weight_bits in form.weight_bits and act_bits in form.act_bits),
                    None)

    def act_spec(self, bits: int, choice: str, online: bool = False) -> QSpec:
        """How an activation is quantized, with so many bits and this choice of `--act-signed`.

        A sign that is chosen, and a range of the running batch, have no zero point.
        """
        signed = self.act.signed if choice == "auto" else self._signed(choice)
        return replace(self.act, bits=bits, signed=signed, online=online,
                       symmetric=self.act.symmetric or choice != "auto" or online)

    def range_spec(self, bits: int, choice: str) -> QSpec:
        """For which codes the ranges of activations are looked for; the sign may be found by what is observed."""
        return QSpec(bits, self._signed(choice), symmetric=self.act_spec(bits, choice).symmetric)

    def _signed(self, choice: str) -> bool | None:
        """What `--act-signed` means here: None is decided per tensor, or by its zero point."""
        chosen = {"auto": None, "signed": True, "unsigned": False}[choice]
        return self.act.signed if chosen is None and self.act.symmetric else chosen
