"""Target `mxnet`: the quantized graph on MXNet's oneDNN int8 kernels.

    fq(act(conv(fq(x), fq(w), fq(b))))           ->  _sg_mkldnn_conv, calibrated with the range of the outer fq
    fq(act(conv(fq(x), fq(w)) + fq(y)))          ->  the same with a fused sum
    conv(fq(x), fq(w), fq(b)) read by floats     ->  _sg_mkldnn_conv without a range, which writes sums; * s_x s_w + b
    fully_connected(fq(x), fq(w), fq(b))         ->  _sg_mkldnn_fully_connected, which writes floats or codes
    pool/concat/flatten of codes                 ->  their _contrib_quantized_ op
    fq(x) of floats, a float op that reads codes ->  _contrib_quantize_v2, _contrib_dequantize

The kernels take float weights and quantize them again; `weights.dictate` makes them find our codes.  Where it
cannot (no code of a channel is the largest), a convolution writes its sums too; what is left is computed in float.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from qgraph.analysis.codes import before_quantizer, is_dense, passes_integers
from qgraph.errors import UnsupportedError
from qgraph.formats.mxnet_json import SUBGRAPHS
from qgraph.ir import ops
from qgraph.ir.graph import Fused, Graph, Node, Port
from qgraph.quant.spec import QParams, mxnet_range, quantize
from qgraph.targets.mxnet.channel_ops import ChannelOps
from qgraph.targets.mxnet.sim import avoid_sum_fusion
from qgraph.targets.mxnet.weights import can_dictate, dictate

_STEP = np.array([1.3], np.float32)  # any step will do where only codes matter; near 1.3 a float32 lies below the tie
_RANGES = ((-128, 127), (0, 255))


@dataclass(frozen=True)
class Codes:
    """An integer tensor of the written graph: its codes with the minimum and maximum that MXNet carries beside them."""

    ports: tuple[Port, Port, Port]
    params: QParams


def lower(g: Graph) -> Graph:
    """A new graph in MXNet's int8 ops. Raises UnsupportedError naming the node that they cannot carry."""
    return lower_with_codes(g)[0]


def lower_with_codes(g: Graph) -> tuple[Graph, dict[Node, Port]]:
    """`lower`, and activation quantizer of `g` -> the tensor of the new graph that holds its codes."""
    lowering = _Lowering(g)
    out = lowering.run()
    found = {port.node: codes.ports[0] for port, codes in lowering.codes.items() if port.node.op == "fake_quantize"}
    return out, {fq: port for fq, port in found.items() if port.node in out}


class _Lowering:
    def __init__(self, g: Graph) -> None:
        self.g = g
        self.out = Graph()
        self.floats: dict[Port, Port] = {}
        self.codes: dict[Port, Codes] = {}
        self.channel_ops = ChannelOps(self.out)

    def run(self) -> Graph:
        for node in self.g.toposort():
            if node.op == "null":
                self._copy(node, ())
            elif node.op == "fake_quantize":
                self._quantizer(node)
            elif self._is_integer(node):
                if passes_integers(node):
                    self._pass_on(node)
                # a layer or sum waits: its reader decides what it writes
            else:
                self._copy(node, [self.as_float(p) for p in self.g.inputs(node)])
        self.out.heads = [self.as_float(p) for p in self.g.heads]
        self.out.prune()
        avoid_sum_fusion(self.out)
        return self.out

    # ---- float side -------------------------------------------------------------------------------------------------

    def _copy(self, node: Node, inputs: list[Port] | tuple) -> None:
        twin = _as(node, self.out.add(node.op, inputs, node.name, n_out=node.n_out, origin=node.origin,
                                      attrs=node.attrs))
        twin.fused = node.fused
        if node.name in self.g.params:
            self.out.params[twin.name] = self.g.params[node.name]
        for index in range(node.n_out):
            self.floats[Port(node, index)] = Port(twin, index)

    def as_float(self, port: Port) -> Port:
        """The written tensor that holds this value in float."""
        if port in self.floats:
            return self.floats[port]
        if port not in self.codes:
            self._write_float(port.node)
            return self.floats[port]
        codes = self.codes[port]
        known = self.floats.get(Port(codes.ports[0].node, -1))
        if known is None:
            name = codes.ports[0].node.name
            known = Port(self.out.add("_contrib_dequantize", codes.ports, name + "_dequantize",
                                      origin=port.node.origin))
            self.floats[Port(codes.ports[0].node, -1)] = known
        self.floats[port] = known
        return known

    def _write_float(self, node: Node) -> None:
        """A waiting layer whose readers want floats."""
        if ops.kind(node) != ops.COMPUTE:
            raise UnsupportedError(f"{node}: its output is not quantized, and MXNet's int8 kernel cannot write floats")
        (codes, qp), signed = self._weight_codes(node), bool(self._codes_of(node).params.signed)
        if self._keeps_codes(node) and (node.op == "FullyConnected" or is_dense(self.g, node)):
            self.floats[Port(node)] = Port(self._fully_connected(node, None))
        elif node.op == "Convolution" and not signed and can_dictate(codes.reshape(1, -1), _STEP, qp.qmin, qp.qmax):
            self.floats[Port(node)] = self._accumulators(node)
        else:
            data, *params = self.g.inputs(node)
            sources = (before_quantizer(self.g, port) for port in params)
            own = [Port(self.out.add_param(f"{node.name}_{name}_value", self.g.params[source.node.name]))
                   for name, source in zip(("weight", "bias"), sources)]
            self._copy(node, [self.as_float(data), *own])

    def _keeps_codes(self, layer: Node) -> bool:
        """Whether the kernel, which quantizes weights again, per channel, can be made to find their codes.

        On signed data it halves them on CPUs without VNNI.
        """
        codes, qp = self._weight_codes(layer)
        halved = bool(self._codes_of(layer).params.signed) and qp.qmax > 64
        return not halved and qp.granularity == "channel" and can_dictate(codes, qp.scale, qp.qmin, qp.qmax)

    def _weight_codes(self, layer: Node) -> tuple[np.ndarray, QParams]:
        fq = self.g.inputs(layer)[1].node
        assert isinstance(fq.quant, QParams)
        return quantize(self.g.params[self.g.inputs(fq)[0].node.name], fq.quant), fq.quant

    def _accumulators(self, conv: Node) -> Port:
        """The integer sums of a convolution, as floats: x w s_x s_w + b.

        Without a range the kernel writes int32, in units of the range that it says over 2^31 - 1, and has one weight
        scale.  So it gets the codes as weights, and floats are multiplied by the scales of the channels.
        """
        data, (codes, qp) = self._codes_of(conv), self._weight_codes(conv)
        source = self.g.inputs(self.g.inputs(conv)[1].node)[0].node
        flat = dictate(codes.reshape(1, -1), _STEP, qp.qmin, qp.qmax)
        weight = self.out.add_param(f"{conv.name}_codes", flat.reshape(codes.shape), origin=(source.name,))
        steps = [("Convolution", {**conv.attrs, "no_bias": "True"}, ["data", "weight"])]
        sums = self._subgraph("_sg_mkldnn_conv", conv, [data.ports[0], Port(weight), *data.ports[1:]],
                              {"quantized": "true"}, ["data", "weight"], steps, origin=(conv,))
        self.out.rename(sums, conv.name + "_sums")

        def op(kind: str, inputs: list[Port], name: str, **attrs: object) -> Port:
            return Port(self.out.add(kind, inputs, f"{conv.name}_{name}", origin=sums.origin, attrs=attrs))

        scales = (np.broadcast_to(qp.scale, len(codes)) / _STEP).astype(np.float32)
        # it says 127 and 255 where it computes with 127.5 and 255.5
        said = 127 / 127.5 * (127 / 127.5 if data.params.signed else 255 / 255.5)
        unit = op("_mul_scalar", [Port(sums, 2)], "unit", scalar=said / (2 ** 31 - 1))
        steps_of = op("broadcast_mul", [Port(self.out.add_param(f"{conv.name}_scales", scales)), unit], "steps")
        own_bias = [before_quantizer(self.g, port) for port in self.g.inputs(conv)[2:]]
        bias = self.g.params[own_bias[0].node.name] if own_bias else np.zeros(len(codes), np.float32)
        # by way of float64: int32 would become float32 in place, and ops of oneDNN go on to take it for integers
        value = op("Cast", [op("Cast", [Port(sums)], "wide", dtype="float64")], "floats", dtype="float32")
        value = self.channel_ops.affine(value, len(codes), steps_of, bias, f"{conv.name}_scaled", sums.origin)
        act = conv.fused
        if act is not None:
            value = op("Activation", [value], "act", act_type="relu" if act.act == "clip" else act.act)
            if act.act == "clip":  # from zero, as all that are fused
                value = op("_minimum_scalar", [value], "top", scalar=float(act.high))
        return value

    # ---- integer side -----------------------------------------------------------------------------------------------

    def _is_integer(self, node: Node) -> bool:
        inputs = self.g.inputs(node)
        if ops.kind(node) == ops.COMPUTE:
            return len(inputs) > 1 and inputs[1].node.op == "fake_quantize"
        if node.op == "elemwise_add":
            if self._reader(node) is None or not all(p in self.codes or self._waits(p) for p in inputs):
                return False
            waiting = sum(map(self._waits, inputs))  # the kernel adds the codes of one operand to the sums of the other
            return waiting == 1 or (not waiting and node.fused is None)
        return passes_integers(node) and all(p in self.codes for p in inputs)

    def _waits(self, port: Port) -> bool:
        return (port not in self.codes and port not in self.floats and port.node.op == "Convolution"
                and not is_dense(self.g, port.node))

    def _reader(self, node: Node) -> Node | None:
        uses = self.g.uses(node)
        return uses[0][0] if len(uses) == 1 and uses[0][0].op == "fake_quantize" else None

    def _quantizer(self, fq: Node) -> None:
        source = self.g.inputs(fq)[0]
        if self.g.param(source) is not None:
            return
        qp = fq.quant
        halved = qp is not None and qp.limit == 127 and source.node.op == "elemwise_add"  # see signed-residual
        if not (isinstance(qp, QParams) and qp.granularity == "tensor"
                and not qp.zero_point.any() and (halved or (qp.qmin, qp.qmax) in _RANGES)):
            raise UnsupportedError(f"{fq.name}: MXNet's int8 tensors are 8 bits with one scale and no zero point; "
                                   "--target mxnet-sim carries others")
        waits = source not in self.floats and source not in self.codes
        if waits and self._reader(source.node) is fq and (ops.kind(source.node) != ops.COMPUTE
                                                          or self._keeps_codes(source.node)):
            node = self._layer(source.node, qp)
            self.codes[Port(fq)] = Codes((Port(node), Port(node, 1), Port(node, 2)), qp)
        elif source in self.codes and self.codes[source].params.key == qp.key:
            self.codes[Port(fq)] = self.codes[source]
        else:
            node = quantize_v2(self.out, self.as_float(source), qp, fq.name)
            node.origin = fq.origin
            _as(fq, node)
            self.codes[Port(fq)] = Codes((Port(node), Port(node, 1), Port(node, 2)), qp)

    def _pass_on(self, node: Node) -> None:
        inputs = [self.codes[p] for p in self.g.inputs(node)]
        qp = inputs[0].params
        if node.op == "Concat":
            if any(c.params.scale != qp.scale or c.params.signed != qp.signed for c in inputs):
                self._copy(node, [self.as_float(p) for p in self.g.inputs(node)])
                return
            ports = [c.ports[0] for c in inputs] + [p for c in inputs for p in c.ports[1:]]
            op = "_contrib_quantized_concat"
        else:
            ports, op = list(inputs[0].ports), f"_contrib_quantized_{node.op.lower()}"
        twin = _as(node, self.out.add(op, ports, node.name, n_out=3, origin=node.origin, attrs=node.attrs))
        self.codes[Port(node)] = Codes((Port(twin), Port(twin, 1), Port(twin, 2)), qp)

    def _layer(self, node: Node, qp: QParams) -> Node:
        if node.op == "FullyConnected":
            return self._fully_connected(node, qp)
        if node.op == "Convolution":
            return self._convolution(node, qp)
        ports = self.g.inputs(node)
        waiting = [p for p in ports if self._waits(p)]
        if not waiting:
            return self._add(node, qp)
        main = waiting[-1]
        operand = self.codes[ports[1 - ports.index(main)]]
        if operand.params.signed and node.fused is not None and qp.qmax != 127:
            raise UnsupportedError(f"{node}: MXNet's kernel ends at code 127 here; run the pass signed-residual")
        return self._convolution(main.node, qp, node, operand)

    def _convolution(self, conv: Node, qp: QParams, add: Node | None = None, operand: Codes | None = None) -> Node:
        """_sg_mkldnn_conv: inputs data, weight, [bias], [sum], data min, max, [sum min, max]; codes, min, max."""
        last = add or conv
        data = self._codes_of(conv)
        inputs = [data.ports[0], *self._weights(conv)]
        names = ["data", "weight", "bias"][: len(inputs)]
        if operand is not None:
            inputs.append(operand.ports[0])
            names.append("sum")
        inputs += data.ports[1:]
        if operand is not None:
            inputs += operand.ports[1:]
        act = last.fused
        self._check_range(last, qp)
        attrs = {"quantized": "true", **self._range(qp)}
        if add is not None:
            attrs["with_sum"] = "true"
        if act is not None:
            attrs["with_postsum_act" if add is not None else "with_act"] = "true"
        steps = [("Convolution", dict(conv.attrs), names)]
        if operand is not None:
            steps = [("Convolution", steps[0][1], names[:-1]), ("elemwise_add", {}, ["", "sum"])]
        if act is not None:
            steps.append(_activation(act))
        return self._subgraph("_sg_mkldnn_conv", last, inputs, attrs, names, steps, origin=(conv, last))

    def _fully_connected(self, node: Node, qp: QParams | None) -> Node:
        """_sg_mkldnn_fully_connected with one scale per unit: inputs data, weight, [bias], data min, max."""
        data = self._codes_of(node)
        inputs = [data.ports[0], *self._weights(node, flat=True)]
        names = ["data", "weight", "bias"][: len(inputs)]
        inputs += data.ports[1:]
        act = node.fused
        attrs = {"quantized": "true", "channel_wise_quantize": "true"}
        if qp is None:
            attrs["enable_float_output"] = "true"
        else:
            self._check_range(node, qp)
            attrs.update(self._range(qp))
        if act is not None:
            attrs["with_eltwise"] = "true"
        own = dict(node.attrs)
        if node.op == "Convolution":
            own = {"num_hidden": own["num_filter"], "no_bias": str(len(names) < 3), "flatten": "True"}
        steps = [("FullyConnected", own, names)]
        if act is not None:
            steps.append(("clip", {"a_min": str(act.low), "a_max": str(act.high)}, [""])
                         if act.act == "clip" and qp is None else _activation(act))
        dense = self._subgraph("_sg_mkldnn_fully_connected", node, inputs, attrs, names, steps, origin=(node,),
                               n_out=1 if qp is None else 3)
        if node.op == "Convolution":
            self.out.rename(dense, node.name + "_dense")
            return self.out.add("Reshape", [dense], node.name, shape="(0, -1, 1, 1)", origin=dense.origin)
        return dense

    def _add(self, add: Node, qp: QParams) -> Node:
        """_contrib_quantized_elemwise_add of two integer tensors, for sums that no convolution can take in."""
        left, right = (self.codes[p] for p in self.g.inputs(add))
        if add.fused is not None:
            raise UnsupportedError(f"{add}: MXNet's int8 addition has no fused activation")
        return _as(add, self.out.add("_contrib_quantized_elemwise_add",
                                     [left.ports[0], right.ports[0], *left.ports[1:], *right.ports[1:]], add.name,
                                     n_out=3, origin=add.origin, attrs=self._range(qp)))

    def _codes_of(self, layer: Node) -> Codes:
        """What a layer with integer weights reads."""
        port = self.g.inputs(layer)[0]
        if port not in self.codes:
            raise UnsupportedError(f"{layer}: has integer weights, but {port.key} comes in floats; a pipeline for this "
                                   "target needs integer-flow and share-scales")
        return self.codes[port]

    def _weights(self, node: Node, flat: bool = False) -> list[Port]:
        """The layer's parameters, written so that the kernel finds the codes that the graph says."""
        _, weight_port, *bias = self.g.inputs(node)
        qp = weight_port.node.quant
        assert isinstance(qp, QParams)
        source = self.g.inputs(weight_port.node)[0].node
        codes, _ = self._weight_codes(node)
        if not self._keeps_codes(node):
            raise UnsupportedError(f"{node}: MXNet's int8 kernel, which computes the sum behind it too, cannot be made "
                                   f"to find its codes (per {qp.granularity}, no code of a channel the largest, or on "
                                   "signed data); --target mxnet-sim carries them")
        weight = dictate(codes, qp.scale, qp.qmin, qp.qmax)
        ports = [self._param(source, weight.reshape(len(weight), -1) if flat else weight)]
        for port in bias:
            origin = port.node if port.node.op == "null" else self.g.inputs(port.node)[0].node
            ports.append(self._param(origin, self.g.params[origin.name]))
        return ports

    def _param(self, source: Node, value: np.ndarray) -> Port:
        known = self.floats.get(Port(source))
        if known is None:
            known = self.floats[Port(source)] = Port(self.out.add_param(source.name, value))
        elif not np.array_equal(self.out.params[known.node.name], value):
            self.out.params[known.node.name] = value
        return known

    def _range(self, qp: QParams) -> dict[str, str]:
        high = float(mxnet_range(qp.scale, bool(qp.signed)))
        return {"min_calib_range": str(-high if qp.signed else 0.0), "max_calib_range": str(high)}

    def _check_range(self, node: Node, qp: QParams) -> None:
        act = node.fused
        if qp.signed == (act is not None):
            raise UnsupportedError(f"{node}: MXNet's kernel writes {'u8' if act else 's8'} here, found {qp.dtype}")
        if act is not None and act.act == "clip" and float(qp.scale) * 255 > act.high * (1 + 1e-6):
            raise UnsupportedError(f"{node}: behind a fused clip the range must end at a_max")

    def _subgraph(self, op: str, last: Node, inputs: list[Port], attrs: dict[str, str], names: list[str],
                  steps: list, origin: tuple[Node, ...], n_out: int = 3) -> Node:
        """A fused node with MXNet's nested JSON of what it stands for.

        steps: (op, attrs, names of its inputs; "" is the step before).
        """
        nodes: list[dict] = [{"op": "null", "name": name, "inputs": []} for name in names]
        for number, (step_op, step_attrs, step_inputs) in enumerate(steps):
            refs = [[len(nodes) - 1 if name == "" else names.index(name), 0, 0] for name in step_inputs]
            entry = {"op": step_op, "name": f"{last.name}_{number}", "inputs": refs}
            if step_attrs:
                entry["attrs"] = dict(sorted(step_attrs.items()))
            nodes.append(entry)
        graph = {"nodes": nodes, "arg_nodes": list(range(len(names))), "heads": [[len(nodes) - 1, 0, 0]]}
        attrs[SUBGRAPHS] = json.dumps([graph], separators=(",", ":"))
        names_of = [name for n in origin for name in (n.origin or (n.name,))]
        return _as(last, self.out.add(op, inputs, last.name, n_out=n_out, origin=names_of, attrs=attrs))


def quantize_v2(out: Graph, source: Port, qp: QParams, name: str) -> Node:
    """float -> (codes, min, max). The range is written with all digits; MXNet's own passes write six decimals."""
    high = float(mxnet_range(qp.scale, bool(qp.signed)))
    return out.add("_contrib_quantize_v2", [source], name, n_out=3, out_type="int8" if qp.signed else "uint8",
                   min_calib_range=-high if qp.signed else 0.0, max_calib_range=high)


def _as(node: Node, twin: Node) -> Node:
    """`twin`, which computes what `node` does: its channels, their factors and its shift are the same."""
    twin.layout, twin.scales, twin.shift = node.layout, node.scales, node.shift
    return twin


def _activation(act: Fused) -> tuple[str, dict[str, str], list[str]]:
    """The fused step. A clip is written as relu: the kernel ignores its upper bound, which is where the codes end."""
    return ("Activation", {"act_type": "relu" if act.act == "clip" else act.act}, [""])
