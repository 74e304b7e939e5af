"""What each target can carry: a table, apart from the code that writes its bytes.

To add a target, add a row here and a writer in `qgraph.formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

from qgraph.errors import OptionError, UnsupportedError, suggest
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.quant.spec import QSpec, shown_granularity

_SUFFIXES = {"fused": "-symbol.json", "simulated": "-symbol.json", "qdq": ".onnx", "float-between": ".param",
             "whole": ".tmfile"}  # by flow


@dataclass(frozen=True)
class Target:
    """A kind of frozen model.

    rounding: how it rounds, a key of `qgraph.quant.spec.ROUNDING`.
    weight, act: the specs its layers start from.
    granularities, weight_bits, act_bits: what it can carry exactly.
    act_signed: the choices of signedness that it can carry.
    signed_input_limit: largest magnitude of a weight code in a layer that reads signed codes, 0 is none.
    beyond: choices that no integer engine has, as the flags that make them.
    refuse: (graph, layer) -> why this layer stays in float, "" if it need not.
    bias_limit: largest code of a bias; a layer whose bias has a larger one adds it in float.
    flow: which line of quantizing passes makes its graph, a key of `qgraph.commands.line.QUANTIZING`.
    """

    name: str
    help: str
    rounding: str
    weight: QSpec
    act: QSpec
    granularities: tuple[str, ...]
    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    flow: str
    act_signed: tuple[str, ...] = ("auto", "signed", "unsigned")
    signed_input_limit: int = 0
    bias_limit: int = 2**31 - 1
    beyond: tuple[str, ...] = ()
    refuse: Callable[[Graph, Node], str] = lambda g, node: ""

    @property
    def suffix(self) -> str:
        """The ending of the file that a model is called by."""
        return _SUFFIXES[self.flow]

    def signed(self, choice: str) -> bool | None:
        """What `--act-signed` means here: None is decided per tensor, or by its zero point."""
        chosen = {"auto": None, "signed": True, "unsigned": False}[choice]
        return self.act.signed if chosen is None and self.act.symmetric else chosen


def _is_2d(conv: Node) -> bool:
    return len(ops.attr(conv, "kernel")) == 2 and ops.attr(conv, "layout") in ("None", "NCHW")


def _is_dense_or_depthwise(g: Graph, conv: Node) -> bool:
    """One group, or one input and one output channel in each."""
    groups, weight = ops.attr(conv, "num_group"), g.param(g.inputs(conv)[1])
    return groups == 1 or (groups == ops.attr(conv, "num_filter") and weight is not None and weight.shape[1] == 1)


def _refuse_mxnet(g: Graph, node: Node) -> str:
    """Layers that MXNet 1.9.1's oneDNN kernels have no int8 form of, or compute wrongly."""
    if node.op == "Deconvolution":
        return "MXNet has no int8 Deconvolution"
    if node.op == "Convolution":
        if not _is_2d(node):
            return "MXNet's int8 convolution is 2-D, NCHW"
        if not _is_dense_or_depthwise(g, node):
            return "MXNet's int8 kernel computes grouped convolutions with wrong scales"
    if ops.attr(node, "act_type") not in ("", "relu", "clip"):
        return f"MXNet's int8 kernel is not used with {ops.attr(node, 'act_type')}"
    return ""


def _refuse_onnx(g: Graph, node: Node) -> str:
    """Layers that onnxruntime has no integer kernel of."""
    return "onnxruntime has no int8 transposed convolution" if node.op == "Deconvolution" else ""


def _refuse_ncnn(g: Graph, node: Node) -> str:
    """Layers that ncnn has no int8 form of, or computes wrongly."""
    if node.op == "Deconvolution":
        return "ncnn has no int8 transposed convolution"
    if node.op == "Convolution":
        if not _is_2d(node):
            return "ncnn's int8 convolution is 2-D, NCHW"
        if not _is_dense_or_depthwise(g, node):
            return "ncnn computes grouped int8 convolutions wrongly on x86, but for depthwise ones"
    return ""


def _refuse_tengine(g: Graph, node: Node) -> str:
    """Layers that Tengine has no int8 form of, or that crash in it."""
    if node.op == "Deconvolution":
        return "it has no int8 transposed convolution that is known to work in Tengine"
    if node.op == "Convolution" and not _is_2d(node):
        return "Tengine's convolution is 2-D, NCHW"
    weight = g.param(g.inputs(node)[1])
    if weight is not None and len(weight) == 1:
        return "Tengine's int8 layers crash with one output channel; give it a second one (of zeros)"
    return ""


BEYOND = ONLINE_FLAG, APART_FLAG, WINOGRAD_FLAG = "--calib online", "--no-merge-bn", "--winograd"
_BITS, _MORE_BITS = tuple(range(2, 9)), tuple(range(2, 17))
_WEIGHT = QSpec(bits=8, signed=True, narrow=True)
_WIDE_WEIGHT = QSpec(bits=8, signed=True)  # oneDNN rounds the largest weight of a channel to 127 or to -128
_ACT = QSpec(bits=8, signed=None)
_AFFINE_ACT = QSpec(bits=8, signed=False, symmetric=False)
_NARROW_ACT = QSpec(bits=8, signed=True, narrow=True)

TARGETS: dict[str, Target] = {t.name: t for t in (
    Target("mxnet", "int8 on MXNet's oneDNN kernels (x86-64)", "mxnet", _WIDE_WEIGHT, _ACT,
           granularities=("channel",), weight_bits=(8,), act_bits=(8,), flow="fused",
           act_signed=("auto",), signed_input_limit=64, refuse=_refuse_mxnet),
    Target("mxnet-sim", "simulated in float on MXNet: any bit width and granularity, anywhere", "mxnet", _WEIGHT, _ACT,
           granularities=("tensor", "group", "channel"), weight_bits=_MORE_BITS, act_bits=_MORE_BITS, flow="simulated",
           bias_limit=2**22, beyond=BEYOND),  # floats add whole numbers exactly below 2**24
    Target("onnx", "QDQ for onnxruntime and others: 2 to 8 bits, any granularity", "half-even", _WEIGHT, _AFFINE_ACT,
           granularities=("tensor", "group", "channel"), weight_bits=_BITS, act_bits=_BITS, flow="qdq",
           act_signed=("auto",), refuse=_refuse_onnx),
    # fewer bits and fewer scales are int8 codes of a smaller range, and scales that are repeated
    Target("ncnn", "int8 on ncnn: .param, .bin and the scale table of its tools", "half-away", _WEIGHT, _NARROW_ACT,
           granularities=("tensor", "group", "channel"), weight_bits=_BITS, act_bits=(8,), flow="float-between",
           act_signed=("auto", "signed"), refuse=_refuse_ncnn),
    Target("tengine", "int8 on Tengine: .tmfile, and the scale file of its tools", "half-away", _WEIGHT, _NARROW_ACT,
           granularities=("tensor", "group", "channel"), weight_bits=_BITS, act_bits=(8,), flow="whole",
           act_signed=("auto", "signed"), refuse=_refuse_tengine),
)}


def get_target(name: str) -> Target:
    """The row of that name; OptionError names the valid ones."""
    if name not in TARGETS:
        raise OptionError(f"no target is called {name!r}; want one of {', '.join(TARGETS)}"
                          + suggest(name, TARGETS, " (did you mean {}?)"))
    return TARGETS[name]


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(shown_granularity(str(value)) for value in values)


def check_legal(target: Target, granularity: str, weight_bits: int, act_bits: int,
                act_signed: str = "auto", beyond: tuple[str, ...] = ()) -> None:
    """UnsupportedError, naming the targets that can, if the target cannot carry these choices exactly."""
    for flag in beyond:
        if flag not in target.beyond:
            others = [t.name for t in TARGETS.values() if flag in t.beyond]
            raise UnsupportedError(f"target {target.name} cannot carry {flag}; {' or '.join(others)} can "
                                   f"(--target {others[0]})")
    wanted = {"granularities": ("--granularity", granularity), "weight_bits": ("--weight-bits", weight_bits),
              "act_bits": ("--act-bits", act_bits), "act_signed": ("--act-signed", act_signed)}
    for field, (flag, value) in wanted.items():
        allowed = getattr(target, field)
        if value not in allowed:
            others = [t.name for t in TARGETS.values() if value in getattr(t, field)]
            shown = _listed((value,))
            if not others:
                takes = "; ".join(f"{t.name} takes {_listed(getattr(t, field))}" for t in TARGETS.values())
                raise OptionError(f"{flag} {shown}: {takes}")
            raise UnsupportedError(f"target {target.name} cannot carry {flag} {shown} exactly; "
                                   f"{' or '.join(others)} can (--target {others[0]})")
