"""The zeros that an unrolled recurrent network begins with."""

from __future__ import annotations

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.semantics.inputs import inputs_of

_LIKE = {"_zeros": "zeros_like", "_ones": "ones_like"}


def give_batch(g: Graph) -> int:
    """Give states the batch of the network's first input; how many there are.

        _zeros() {shape=(0, H)}  ->  broadcast_axis(zeros_like(one value of each row of the input)) {axis=1 size=H}

    MXNet finds the 0 by what a reader wants, shape inference that goes forward does not.  A network that takes its
    input apart along axis 0 has its batch elsewhere, and stays.
    """
    states = [node for node in g.toposort() if _is_state(node)]
    inputs = {node.name: node for node in g.data_inputs()}
    names = inputs_of(g) if states else []
    if not names or any(reader.op == "SliceChannel" and ops.attr(reader, "axis") == 0
                        for reader in g.readers(inputs[names[0]])):
        return 0
    for node in states:
        sizes = ops.attr(node, "shape")[1:]

        def op(kind: str, source: Node, part: str, origin: Node = node, **attrs: object) -> Node:
            return g.add(kind, [Port(source)], f"{origin.name}_{part}", origin=(origin.name,), attrs=attrs)

        row = op("Reshape", inputs[names[0]], "rows", shape=(0, -1))
        one = op("slice_axis", row, "one", axis=1, begin=0, end=1)
        filled = op("Reshape", op(_LIKE[node.op], one, "like"), "flat", shape=(0, *[1] * len(sizes)))
        node.op, node.attrs = "broadcast_axis", {"axis": str(tuple(range(1, len(sizes) + 1))), "size": str(sizes)}
        g.set_inputs(node, [Port(filled)])
    return len(states)


def _is_state(node: Node) -> bool:
    if node.op not in _LIKE or node.attrs.get("dtype", "float32") not in ("None", "float32"):
        return False
    batch, *sizes = ops.attr(node, "shape") or (1,)
    return bool(batch == 0 and sizes and min(sizes) > 0)
