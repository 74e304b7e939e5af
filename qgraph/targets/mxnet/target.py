"""Targets `mxnet` and `mxnet-sim`: frozen models in MXNet's own files."""

from __future__ import annotations

from dataclasses import dataclass, field

from qgraph.analysis.codes import nonnegative
from qgraph.errors import OptionError
from qgraph.formats.mxnet_json import SYMBOL_SUFFIX
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node
from qgraph.quant.recipe import IN_FLOAT
from qgraph.quant.spec import QSpec
from qgraph.targets.base import KEEP_CODES, KEEP_GRAPH, KEEP_RANGES, Model, Shapes, Target, Writing
from qgraph.targets.equivalents import is_dense_or_depthwise
from qgraph.targets.spec import BEYOND, SIMULATED, Form, Spec

_ANY_BITS = tuple(range(2, 17))


@dataclass(frozen=True)
class Mxnet(Target):
    name = "mxnet"
    help = "int8 on MXNet's oneDNN kernels (x86-64)"
    suffix = SYMBOL_SUFFIX
    extra = "mxnet"
    # oneDNN rounds the largest weight of a channel to 127 or to -128
    spec = Spec(rounding="mxnet", weight=QSpec(bits=8, signed=True), act=QSpec(bits=8, signed=None),
                granularities=("channel",), weight_bits=(8,), act_bits=(8,), act_signed=("auto",),
                signed_input_limit=64, forms=(Form((8,), (8,), stored=32),))
    # values stay integers from layer to layer, with sums and activations inside MXNet's kernels
    passes = ("insert-fake-quantize", "integer-flow", "share-scales", "calibrate", "signed-residual", "signed-dense",
              "round-weights", "pair-channels", "limit-saturation", "quantize-bias", "bake-weights")
    float_inputs = False
    rewrites = False
    quantizes_between = True
    keeps_simulation = True

    fast: bool = field(default=False, metadata={
        "help": "networks trained quantized: what training left in float is quantized too, to ranges that are "
        "observed. Faster, and near to what was trained."})

    @property
    def trained(self) -> str:
        return KEEP_RANGES if self.fast else KEEP_CODES

    @property
    def parts_shortcuts(self) -> bool:
        return self.fast

    def check_network(self, trained: bool) -> None:
        if self.fast and not trained:
            raise OptionError("--fast: is for networks that were trained quantized, and this one was not")

    def refuse(self, g: Graph, layer: Node) -> str:
        """Layers that MXNet 1.9.1's oneDNN kernels have no int8 form of, or compute wrongly."""
        if layer.op == "Deconvolution":
            return "MXNet has no int8 Deconvolution"
        if layer.op == "Convolution":
            if not ops.is_2d(layer):
                return "MXNet's int8 convolution is 2-D, NCHW"
            if not is_dense_or_depthwise(g, layer):
                return "MXNet's int8 kernel computes grouped convolutions with wrong scales"
        if layer.fused is not None and layer.fused.act not in ("relu", "clip"):
            return f"MXNet's int8 kernel is not used with {layer.fused.act}"
        return ""

    def doubts(self, g: Graph) -> dict[Node, str]:
        """Fully connected layers that pass signed-dense leaves in float."""
        unsigned = nonnegative(g)
        return {layer: "MXNet's int8 dense kernel reads unsigned values, and its input can be negative"
                for layer in g.nodes("FullyConnected") if g.inputs(layer)[0] not in unsigned}

    def write(self, g: Graph, writing: Writing) -> Model:
        from qgraph.targets.mxnet.int8 import lower_with_codes
        from qgraph.targets.mxnet.model import MxnetModel

        return MxnetModel(*lower_with_codes(g))

    def convert(self, g: Graph, shapes: Shapes) -> Model:
        from qgraph.targets.mxnet.model import MxnetModel

        return MxnetModel(g)


@dataclass(frozen=True)
class MxnetSim(Target):
    name = "mxnet-sim"
    help = "simulated in float on MXNet: any bit width and granularity, anywhere"
    suffix = SYMBOL_SUFFIX
    extra = "mxnet"
    spec = Spec(rounding="mxnet", weight=QSpec(bits=8, signed=True, narrow=True),
                act=QSpec(bits=8, signed=None, symmetric=False),
                granularities=("tensor", "group", "channel"), weight_bits=_ANY_BITS, act_bits=_ANY_BITS,
                bias_limit=2**22,  # floats add whole numbers exactly below 2**24
                beyond=BEYOND,
                forms=(Form(_ANY_BITS, (*_ANY_BITS, IN_FLOAT), SIMULATED, stored=32),))
    # only what layers with weights read is quantized
    passes = ("insert-fake-quantize", "winograd-weights", "calibrate", "round-weights", "absorb-bn",
              "fuse-relu", "quantize-bias", "bake-weights", "wide-sums")

    @property
    def trained(self) -> str:
        return KEEP_GRAPH

    def write(self, g: Graph, writing: Writing) -> Model:
        from qgraph.targets.mxnet.model import MxnetModel
        from qgraph.targets.mxnet.sim import lower_with_codes

        return MxnetModel(*lower_with_codes(g), centered=True)
