"""Target `mxnet-sim`: the quantized graph simulated in float by MXNet's own ops.

    fq(x)                        ->  codes of x, as floats
    conv(fq(x), fq(w), fq(b))    ->  conv(codes of x, codes of w, codes of b) * (s_x s_w)
    fq(x), read by other ops     ->  codes of x * s_x
    conv(x, w) {__wide__}        ->  in float64, rounded to float32

A float32 sum of whole numbers is exact in whatever order it is computed, as long as it stays below 2^24.  So the codes
are those of the NumPy reference, which adds integers, and not only near them.  What is multiplied, and in which order,
is the reference's too: each product is rounded once.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from qgraph.analysis.codes import are_bias_steps, before_quantizer, channel_scales
from qgraph.errors import UnsupportedError
from qgraph.formats.mxnet_marks import AS_IS, BIAS, CODES_ENDING, MARK, SUMS, mark_of
from qgraph.ir import ops
from qgraph.ir.graph import Fused, Graph, Node, Port
from qgraph.quant.spec import ROUNDER, QParams, quantize
from qgraph.targets.mxnet.channel_ops import ChannelOps
from qgraph.targets.mxnet.codes import CodesWriter

_ROUNDING = "mxnet"


def lower(g: Graph, marked: bool = False) -> Graph:
    """A copy of `g` in MXNet's ops. Raises UnsupportedError for a quantizer that these ops cannot carry.

    marked: `qgraph.load` gets the quantizers back, see `mxnet_marks`.
    """
    return _Lowering(g, marked).run()


def lower_with_codes(g: Graph) -> tuple[Graph, dict[Node, Port]]:
    """`lower`, and activation quantizer of `g` -> the tensor of the copy that holds its codes, less the zero point."""
    lowering = _Lowering(g, marked=False)
    twins = dict(zip(g.toposort(), lowering.out.toposort()))
    out = lowering.run()
    found = {fq: lowering.codes.port(twins[fq]) for fq in g.nodes("fake_quantize") if twins[fq] in lowering.codes}
    return out, {fq: port for fq, port in found.items() if port.node in out}


class _Lowering:
    """out: the copy, in which nodes are replaced in topological order."""

    def __init__(self, g: Graph, marked: bool) -> None:
        self.out = g.copy()
        self.marked = marked
        self.channel_ops = ChannelOps(self.out)
        self.codes = CodesWriter(self.out, self.channel_ops, marked)
        self._params: dict[Node, Port] = {}

    def run(self) -> Graph:
        out = self.out
        nodes = out.nodes()
        for node in nodes:
            if node.op == "fake_quantize" and out.param(out.inputs(node)[0]) is None:
                self.codes.write(node)
            elif ops.kind(node) == ops.COMPUTE and self._is_whole(node):
                self._whole(node)
            elif node.wide:
                self._wide(node)
        for node in nodes:
            if node.op == "fake_quantize":
                self._drop(node)
        out.prune()
        _keep_batchnorms(out, self.marked)
        avoid_sum_fusion(out)
        return out

    def _drop(self, fq: Node) -> None:
        """What is left reads values."""
        source = self.out.inputs(fq)[0]
        if self.out.param(source) is None:
            if self.out.uses(fq) or self.out.is_head(fq):
                self.out.replace(fq, self.codes.values(fq))
        elif self.marked:
            self.out.replace(fq, Port(self._marked_copy(source, fq, codes=False)))
        else:
            self.out.replace_uses(fq, source)
            self.out.remove(fq)

    def _marked_copy(self, source: Port, fq: Node, codes: bool) -> Node:
        assert isinstance(fq.quant, QParams)
        return self.out.add("_copy", [source], fq.name + "_copy", attrs={MARK: mark_of(fq.quant, codes)})

    # ---- layers with weights ----------------------------------------------------------------------------------------

    def _is_whole(self, node: Node) -> bool:
        """Multiplies codes with codes of one scale for each output channel."""
        data, weight = (port.node for port in self.out.inputs(node)[:2])
        if data not in self.codes or weight.op != "fake_quantize" or not isinstance(weight.quant, QParams):
            return False
        array = self.out.param(self.out.inputs(weight)[0])
        return (array is not None and weight.quant.bits <= 16
                and channel_scales(node, weight.quant, array.shape) is not None)

    def _whole(self, node: Node) -> None:
        """Codes times codes, and one multiplication behind them."""
        out = self.out
        data, weight = (port.node for port in out.inputs(node)[:2])
        array, params = out.param(out.inputs(weight)[0]), weight.quant
        assert isinstance(params, QParams) and array is not None
        scales = channel_scales(node, params, array.shape)
        assert scales is not None
        inputs = [self.codes.port(data), self._param(weight, quantize(array, params, _ROUNDING))]
        bias = out.inputs(node)[2] if len(out.inputs(node)) > 2 else None
        factors = self._factors(node, data, scales)
        if bias is not None and (found := self._bias_codes(node, bias, data, scales, factors)):
            inputs.append(found)
            bias = None
        act = _take_act(node)
        early = bias is None and act is not None and act.act in ("relu", "clip") and act.low == 0
        node.attrs["no_bias"] = str(len(inputs) < 3)
        out.set_inputs(node, inputs)
        chain = _Chain(out, node)
        if early:  # the kernel's own; the order of a relu and a positive factor does not matter
            node.fused = Fused("relu")
        self._multiply(chain, node, factors, len(scales))
        if bias is not None:
            self._add_bias(chain, node, bias)
        self._activate(chain, act, early)
        chain.close()

    def _param(self, fq: Node, codes: np.ndarray) -> Port:
        """The codes as a parameter, one for all readers of `fq`."""
        source = self.out.inputs(fq)[0].node
        known = self._params.get(fq)
        if known is None:
            known = Port(self.out.add_param(source.name + CODES_ENDING, codes.astype(np.float32),
                                            origin=source.origin or (source.name,)))
            if self.marked:
                known = Port(self._marked_copy(known, fq, codes=True))
            self._params[fq] = known
        return known

    def _factors(self, node: Node, data: Node, scales: np.ndarray) -> Port:
        """s_x s_w[c], (channels,)"""
        step = self.codes.step(data)
        if isinstance(step, np.ndarray):
            return Port(self.out.add_param(f"{node.name}_steps", (np.float64(step) * scales).astype(np.float32)))
        own = self.out.add_param(f"{node.name}_weight_steps", scales.astype(np.float32))
        return Port(self.out.add("broadcast_mul", [own, step], f"{node.name}_steps"))

    def _bias_codes(self, node: Node, bias: Port, data: Node, scales: np.ndarray, factors: Port) -> Port | None:
        """Whole numbers for the kernel to add, or None for a bias in float."""
        step, out, params = self.codes.step(data), self.out, bias.node.quant
        if bias.node.op != "fake_quantize" or params is None:
            return None
        source = out.inputs(bias.node)[0]
        if isinstance(step, Port):
            if not params.online:
                return None
            steps = out.add("broadcast_div", [source, factors], f"{node.name}_bias_steps")
            up = out.add("_plus_scalar", [steps], f"{node.name}_bias_up", scalar=ROUNDER)  # its rint rounds ties down
            return Port(out.add("_minus_scalar", [up], f"{node.name}_bias_codes", scalar=ROUNDER))
        array = out.param(source)
        if array is None or not isinstance(params, QParams) or not are_bias_steps(params, step * scales):
            return None
        return self._param(bias.node, quantize(array, params, _ROUNDING))

    def _multiply(self, chain: _Chain, node: Node, gamma: Port, channels: int) -> None:
        """* s_x s_w[c]"""
        out, mark = self.out, {MARK: AS_IS} if self.marked else {}
        axis = _channel_axis(node)
        if any(reader.op == "BatchNorm" for reader in chain.readers):
            # MXNet would fold it into the weights; and in this layout it computes what Gluon's block does
            steps = out.param(gamma)
            if steps is not None and (steps == steps[0]).all():
                chain.add("_mul_scalar", "scaled", attrs={**mark, "scalar": str(float(steps[0]))})
                return
            shape = (1, -1, *[1] * (len(ops.attr(node, "kernel")) if node.op != "FullyConnected" else 0))
            shaped = gamma if axis == -1 else Port(out.add("Reshape", [gamma], f"{node.name}_steps_nd", shape=shape))
            chain.add("broadcast_mul", "scaled", shaped, attrs=mark)
            return
        if node.op == "Convolution" and node.fused is None:  # another thing that is not folded, and is free
            chain.add("LeakyReLU", "as_is", attrs={**mark, "act_type": "leaky", "slope": "1.0"})
        chain.append(self.channel_ops.affine(Port(chain.last), channels, gamma, 0.0, f"{node.name}_scaled", node.origin,
                                             axis, attrs=mark).node)

    def _add_bias(self, chain: _Chain, node: Node, bias: Port) -> None:
        """+ b[c]; a factor of 1 is exact."""
        out = self.out
        array = out.param(before_quantizer(out, bias))
        if array is None:
            raise UnsupportedError(f"{node}: its bias is computed, which no layer with quantized weights can have")
        chain.append(self.channel_ops.affine(Port(chain.last), len(array), 1.0, array, f"{node.name}_biased",
                                             node.origin, _channel_axis(node),
                                             attrs={MARK: BIAS} if self.marked else {}).node)

    def _activate(self, chain: _Chain, act: Fused | None, early: bool) -> None:
        """early: what is below zero is gone already."""
        if act is None:
            return
        if act.act == "clip" and act.low != 0:
            chain.add("clip", "act", attrs={"a_min": str(act.low), "a_max": str(act.high)})
            return
        if not early:
            chain.add("Activation", "act", attrs={"act_type": act.act.replace("clip", "relu")})
        if act.act == "clip" and (chain.was_head or not self.codes.end_at(chain.readers, float(act.high))):
            chain.add("_minimum_scalar", "top", attrs={"scalar": str(act.high)})

    def _wide(self, node: Node) -> None:
        """In float64, which no order of the terms shows in."""
        out, act = self.out, _take_act(node)
        node.wide = False
        out.set_inputs(node, [Port(out.add("Cast", [port], f"{node.name}_{i}_wide", dtype="float64"))
                              for i, port in enumerate(out.inputs(node))])
        chain = _Chain(out, node)
        chain.add("Cast", "rounded", attrs={"dtype": "float32"})
        self._activate(chain, act, early=False)
        chain.close()


class _Chain:
    """Nodes behind a layer, the last of which takes over its readers and its name."""

    def __init__(self, out: Graph, node: Node) -> None:
        self.out, self.node, self.last = out, node, node
        self.readers, self.was_head = out.readers(node), out.is_head(node)
        self._first: Optional[Node] = None

    def add(self, op: str, name: str, *more: Port, attrs: dict[str, str]) -> None:
        self.append(self.out.add(op, [self.last, *more], f"{self.node.name}_{name}", origin=self.node.origin,
                                 attrs=attrs))

    def append(self, made: Node) -> None:
        """A node that reads the last one."""
        self.last = made
        self._first = self._first or self.last

    def close(self) -> None:
        assert self._first is not None
        self.out.replace_uses(self.node, self.last, keep=[self._first])
        name = self.node.name
        self.out.rename(self.node, name + SUMS)
        self.out.rename(self.last, name)
        self.last.scales, self.node.scales = self.node.scales, None


def _channel_axis(node: Node) -> int:
    return -1 if node.op == "FullyConnected" and not ops.attr(node, "flatten") else 1


def _take_act(node: Node) -> Fused | None:
    act, node.fused = node.fused, None
    return act


def _keep_batchnorms(out: Graph, marked: bool) -> None:
    """conv -> BatchNorm  becomes  conv -> * 1 -> BatchNorm.

    MXNet's default bind would fold the BatchNorm into the weight, which changes the rounding.  A `_copy` in between
    does not prevent the folding; a multiplication by 1 does.
    """
    for bn in out.nodes("BatchNorm"):
        layer = out.inputs(bn)[0].node
        if ops.kind(layer) == ops.COMPUTE and layer.fused is None:
            out.set_input(bn, 0, out.add("_mul_scalar", [layer], layer.name + "_as_is", scalar=1.0,
                                         attrs={MARK: AS_IS} if marked else {}))


def avoid_sum_fusion(out: Graph) -> None:
    """elemwise_add -> broadcast_add where it adds a float convolution that has other readers.

    MXNet 1.9.1's default bind fuses the former with the convolution and computes ``conv2(relu(c)) + c`` wrongly.
    """
    for add in out.nodes("elemwise_add"):
        if any(p.node.op == "Convolution" and not out.has_one_use(p) for p in out.inputs(add)):
            add.op = "broadcast_add"
