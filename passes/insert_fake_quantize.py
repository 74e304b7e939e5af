"""Decide what is quantized, and how: one fake_quantize node per decision."""

from __future__ import annotations

import dataclasses

from qgraph.analysis.codes import quantizer_name
from qgraph.errors import OptionError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.ir.select import select_nodes
from qgraph.passes._choices import check_choices, layer_choices
from qgraph.quant.recipe import IN_FLOAT, LayerChoice, Layers
from qgraph.quant.spec import QSpec, as_granularity
from qgraph.targets.base import Target
from qgraph.targets.registry import check_legal, get_target
from qgraph.targets.spec import ONLINE_FLAG


def layer_verdicts(g: Graph, target: Target, exclude: tuple[str, ...], layers: Layers = ()) -> dict[Node, str]:
    """Every layer with weights -> "" if it is quantized, else the reason why it stays in float.

    layers: what a recipe says of single ones.
    """
    excluded = select_nodes(g, exclude)
    for pattern in dict.fromkeys(excluded.values()):
        named = [n for n, why in excluded.items() if why == pattern]
        if not any(ops.kind(n) == ops.COMPUTE for n in named):
            raise OptionError(f"--exclude {pattern}: names {named[0].name} ({named[0].op}), which has no weights; "
                              "layers with weights decide what is quantized, so exclude those")
    choices = layer_choices(g, layers)
    verdicts = {}
    for node in g.toposort():
        if ops.kind(node) != ops.COMPUTE:
            continue
        inputs = g.inputs(node)
        if node in excluded:
            verdicts[node] = f"excluded by {excluded[node]!r}"
        elif node in choices and choices[node].in_float:
            verdicts[node] = "the recipe leaves it in float"
        elif len(inputs) < 2 or g.param(inputs[1]) is None:
            verdicts[node] = "its weight is computed, not a parameter"
        elif g.param(inputs[0]) is not None:
            verdicts[node] = "its data is a parameter"
        else:
            verdicts[node] = target.refuse(g, node)
    return verdicts


@register
class InsertFakeQuantize(Pass):
    """Put a fake_quantize behind the data and the weight of every layer with weights.

        conv(x, w, b)  ->  conv(fake_quantize(x), fake_quantize(w), b)

    Readers of one tensor share one node.  target: its name, of `qgraph.targets`; it also decides what stays in float.
    granularity: of the weights, layer, group or channel.  act_signed: auto, signed or unsigned.
    exclude: patterns of `qgraph.ir.select` (in Python a tuple, on the command line `--exclude`).
    activations: False quantizes weights alone.  online: their ranges come from the batch that is being run.
    layers: what a recipe says of single layers.  A tensor that several layers read has the most bits that one of them
    wants.  A layer that wants it in float reads it so, unless a later pass gives all readers codes; then it computes in
    float with these (`QSpec.alone`).
    """

    name = "insert-fake-quantize"
    target: str = "mxnet-sim"
    granularity: str = "channel"
    weight_bits: int = 8
    act_bits: int = 8
    act_signed: str = "auto"
    exclude: tuple[str, ...] = ()
    activations: bool = True
    online: bool = False
    layers: Layers = ()

    def run(self, g: Graph) -> int:
        target = get_target(self.target)
        granularity = as_granularity(self.granularity)
        check_legal(target, granularity, self.weight_bits, self.act_bits, self.act_signed,
                    (ONLINE_FLAG,) if self.online else ())
        weight = dataclasses.replace(target.spec.weight, bits=self.weight_bits, granularity=granularity)
        act = target.spec.act_spec(self.act_bits, self.act_signed, self.online)
        default = LayerChoice(self.weight_bits, self.act_bits if self.activations else IN_FLOAT, granularity)
        check_choices(g, target, self.layers, default)
        said = layer_choices(g, self.layers)
        verdicts = layer_verdicts(g, target, self.exclude, self.layers)
        choices = {node: default | said.get(node, LayerChoice()) for node, reason in verdicts.items() if not reason}
        wanted: dict[Port, int] = {}  # bits of what layers read
        for node, choice in choices.items():
            if choice.act_bits != IN_FLOAT:
                port = g.inputs(node)[0]
                wanted[port] = max(wanted.get(port, 0), choice.act_bits or self.act_bits)
        made: dict[tuple[Port, QSpec], Node] = {}
        count = 0
        for node, choice in choices.items():
            data_port, weight_port = g.inputs(node)[:2]
            own = dataclasses.replace(weight, bits=choice.weight_bits or self.weight_bits,
                                      granularity=choice.granularity or granularity,
                                      alone=choice.act_bits == IN_FLOAT)
            specs = [(0, data_port, dataclasses.replace(act, bits=wanted[data_port]))] \
                if choice.act_bits != IN_FLOAT else []
            for slot, port, spec in (*specs, (1, weight_port, weight_spec(node, own))):
                if port.node.op == "fake_quantize":
                    continue
                key = port, spec
                if key not in made:
                    made[key] = g.add("fake_quantize", [port], quantizer_name(port), quant=spec,
                                      origin=port.node.origin or (port.node.name,))
                    made[key].scales = port.node.scales
                g.set_input(node, slot, made[key])
                count += 1
        return count


def weight_spec(node: Node, base: QSpec) -> QSpec:
    """`base` for the weight of this layer: the axis of its output channels, or the number of its groups.

    A group of FullyConnected is one unit; of Deconvolution a slice of axis 0, where its groups lie.
    """
    axis = ops.info(node.op).out_axis
    if base.granularity == "group" and node.op != "FullyConnected":
        return dataclasses.replace(base, axis=0, groups=ops.attr(node, "num_group"))
    granularity = "channel" if base.granularity == "group" else base.granularity
    return dataclasses.replace(base, granularity=granularity, axis=axis if granularity == "channel" else 0)
