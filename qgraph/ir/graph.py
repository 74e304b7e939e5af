"""The graph every pass works on: a networkx MultiDiGraph of `Node` objects, plus the parameters.

Edges are the only truth.  An edge u -> v carries the input slot of v as its key and the output index of u as `out`, so
``add(x, x)`` is two parallel edges.  `Graph.dag` is public for reading (`networkx.ancestors`, drawing); only methods of
`Graph` write.  Shapes and dtypes are not stored: `qgraph.semantics.infer.infer` computes them.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import networkx as nx
import numpy as np

from qgraph.arrays import Array, dtype_name
from qgraph.errors import GraphError
from qgraph.ir import ops
from qgraph.ir.node import ChannelOrder, ChannelScales, Fused, Node, Port, Rounded, Value, as_port
from qgraph.quant.spec import QParams, QSpec

__all__ = ["ChannelOrder", "ChannelScales", "Fused", "Graph", "Node", "Port", "Rounded", "Value", "as_port",
           "collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """For what makes very many objects and no garbage, as a ``with`` or a decorator.

    Python's cyclic collector would walk all of them again and again: a third of the time at 100,000 nodes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Graph:
    """A computation with named nodes, ordered heads (outputs) and parameter arrays by node name."""

    def __init__(self) -> None:
        self.dag: nx.MultiDiGraph = nx.MultiDiGraph()
        # the dicts behind dag.pred and dag.succ, whose read-only views cost three times as much to walk
        self._pred, self._succ = self.dag._pred, self.dag._succ
        self.heads: list[Port] = []
        self.params: dict[str, Array] = {}
        self._names: set[str] = set()
        self._next_suffix: dict[str, int] = {}
        self._order: list[Node] = []  # of the last toposort, for these heads; any rewired edge drops it
        self._order_heads: list[Port] = []
        self._inputs: dict[Node, list[Port]] = {}  # of nodes that were asked for them; a rewired edge drops its reader

    # ---- reading ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.dag)

    def __contains__(self, node: Node) -> bool:
        return node in self.dag

    def inputs(self, node: Node) -> list[Port]:
        """What the node reads, in slot order."""
        known = self._inputs.get(node)
        if known is None:
            by_slot = {slot: Port(u, data["out"])
                       for u, edges in self._pred[node].items() for slot, data in edges.items()}
            known = self._inputs[node] = [by_slot[slot] for slot in sorted(by_slot)]
        return list(known)

    def uses(self, value: Value) -> list[tuple[Node, int]]:
        """(reader, slot) of every edge that reads this output, by reader's name and slot."""
        port = as_port(value)
        found = [(v, slot) for v, edges in self._succ[port.node].items()
                 for slot, data in edges.items() if data["out"] == port.index]
        if len(found) > 1:
            found.sort(key=lambda use: (use[0].name, use[1]))
        return found

    def readers(self, node: Node) -> list[Node]:
        """Distinct nodes that read any output of `node`, by name."""
        return sorted(self._succ[node], key=lambda n: n.name)

    def is_head(self, value: Value) -> bool:
        """Whether it is an output of the graph."""
        return as_port(value) in self.heads

    def has_one_use(self, value: Value) -> bool:
        """Read exactly once, by an edge, and not a head. Stops at the second use: a hub may have very many."""
        port = as_port(value)
        reads = (1 for edges in self._succ[port.node].values() for data in edges.values()
                 if data["out"] == port.index)
        return sum(itertools.islice(reads, 2)) == 1 and not self.is_head(port)

    def nodes(self, op: str | None = None) -> list[Node]:
        """Nodes in topological order, of one op if given."""
        return [n for n in self.toposort() if op is None or n.op == op]

    def find(self, name: str) -> Node:
        """The node of that name; a linear search, for users and tests. Raises GraphError if there is none."""
        nodes: Iterable[Node] = self.dag
        for node in nodes:
            if node.name == name:
                return node
        raise GraphError(f"no node is called {name!r}")

    def is_param(self, node: Node) -> bool:
        """Whether it is a variable with an array."""
        return node.op == "null" and node.name in self.params

    def param(self, value: Value) -> Array | None:
        """The array behind an input, of the parameter's own shape; None if it is not a parameter."""
        return self.params.get(as_port(value).node.name) if as_port(value).node.op == "null" else None

    def data_inputs(self) -> list[Node]:
        """Variables without an array: what the user feeds, in topological order."""
        return [n for n in self.nodes("null") if n.name not in self.params]

    def toposort(self) -> list[Node]:
        """Post-order walk from the heads along input slots: MXNet's own file order, whatever the rewrite history.

        The order is kept until an edge between existing nodes, or a head, changes.  Raises GraphError for a cycle.
        """
        if self._order and self._order_heads == self.heads:
            return list(self._order)
        done: set[Node] = set()
        order: list[Node] = []
        for head in self.heads:
            if head.node in done:
                continue
            stack: list[tuple[Node, Iterator[Port]]] = [(head.node, iter(self.inputs(head.node)))]
            on_path = {head.node}
            while stack:
                node, pending = stack[-1]
                for port in pending:
                    if port.node in on_path:
                        raise GraphError(f"{node}: found a cycle through {port.node}, want an acyclic graph")
                    if port.node not in done:
                        stack.append((port.node, iter(self.inputs(port.node))))
                        on_path.add(port.node)
                        break
                else:
                    stack.pop()
                    on_path.discard(node)
                    done.add(node)
                    order.append(node)
        self._order, self._order_heads = order, list(self.heads)
        return list(order)

    # ---- writing ----------------------------------------------------------------------------------------------------

    def unique_name(self, base: str) -> str:
        """`base`, or `base` with the smallest free number behind it. Remembers what it gave out."""
        if not self._names:
            self._names = {n.name for n in self.dag}
        name = base
        while name in self._names:
            suffix = self._next_suffix.get(base, 0)
            self._next_suffix[base] = suffix + 1
            name = f"{base}{suffix}"
        self._names.add(name)
        return name

    def add(self, op: str, inputs: Sequence[Value] = (), name: str | None = None, *, n_out: int = 1,
            quant: QSpec | QParams | None = None, origin: Iterable[str] = (),
            attrs: Mapping[str, object] | None = None, **more: object) -> Node:
        """A new node reading `inputs`. Without a name it gets a free one made from the op.

        Attributes, in `attrs` or as keywords, are stored as MXNet writes them: ``str(value)``.
        Raises GraphError for an input of another graph.
        """
        ports = [as_port(v) for v in inputs]
        for port in ports:
            if port.node not in self.dag:
                raise GraphError(f"{name or op}: input {port.node} is not in this graph")
        texts = {k: str(v) for k, v in {**(attrs or {}), **more}.items()}
        node = Node(op, self.unique_name(name or op.lower()), texts, n_out, quant, tuple(dict.fromkeys(origin)))
        self.dag.add_node(node)
        for slot, port in enumerate(ports):
            self.dag.add_edge(port.node, node, key=slot, out=port.index)
        return node

    def add_param(self, name: str, value: Array, origin: Iterable[str] = ()) -> Node:
        """A new parameter; its name is made unique. value: of any shape."""
        node = self.add("null", name=name, origin=origin)
        self.params[node.name] = value
        return node

    def rename(self, node: Node, name: str) -> None:
        """Give a node another name; a parameter's array follows."""
        name = name if name == node.name else self.unique_name(name)
        if node.op == "null" and node.name in self.params and name != node.name:
            self.params[name] = self.params.pop(node.name)
        self._names.discard(node.name)
        self._names.add(name)
        node.name = name

    def _rewired(self, node: Node) -> None:
        """Forget what a reader's old edges said."""
        self._order = []
        self._inputs.pop(node, None)

    def set_input(self, node: Node, slot: int, value: Value) -> None:
        """Let input `slot` of `node` read another value; ``slot == number of inputs`` appends one."""
        port = as_port(value)
        self._rewired(node)
        for u, edges in list(self._pred[node].items()):
            if slot in edges:
                self.dag.remove_edge(u, node, key=slot)
        self.dag.add_edge(port.node, node, key=slot, out=port.index)

    def set_inputs(self, node: Node, values: Sequence[Value]) -> None:
        """Let `node` read exactly these values."""
        ports = [as_port(v) for v in values]
        self._rewired(node)
        self.dag.remove_edges_from(list(self.dag.in_edges(node, keys=True)))
        for slot, port in enumerate(ports):
            self.dag.add_edge(port.node, node, key=slot, out=port.index)

    def replace_uses(self, old: Value, new: Value, keep: Iterable[Node] = ()) -> int:
        """Every reader (and head) of `old`, but those in `keep`, reads `new` instead. Returns how many did."""
        old, new = as_port(old), as_port(new)
        kept = set(keep)
        uses = [(v, slot) for v, slot in self.uses(old) if v not in kept]
        for v, slot in uses:
            self._rewired(v)
            self.dag.remove_edge(old.node, v, key=slot)
            self.dag.add_edge(new.node, v, key=slot, out=new.index)
        heads = sum(h == old for h in self.heads)
        self.heads = [new if h == old else h for h in self.heads]
        return len(uses) + heads

    def replace(self, old: Node, new: Value) -> None:
        """Readers and heads of `old` read `new`; `old` goes. A new Node takes over name and origin, a Port the origin.

        An `old` of several outputs needs a Node of at least as many.
        """
        port = as_port(new)
        for index in range(old.n_out):
            self.replace_uses(Port(old, index), Port(port.node, index) if isinstance(new, Node) else port,
                              keep=[port.node])
        own = port.node.origin if isinstance(new, Node) else port.node.origin or (port.node.name,)
        port.node.origin = tuple(dict.fromkeys((*own, *(old.origin or (old.name,)))))
        self.remove(old)
        if isinstance(new, Node) and new.op != "null":
            self.rename(new, old.name)

    def insert_after(self, value: Value, op: str, name: str | None = None, *, keep: Iterable[Node] = (),
                     quant: QSpec | QParams | None = None, **attrs: object) -> Node:
        """A new one-input node behind `value`; everybody who read `value`, but those in `keep`, reads the new node."""
        port = as_port(value)
        node = self.add(op, [port], name, quant=quant, origin=port.node.origin or (port.node.name,), attrs=attrs)
        self.replace_uses(port, node, keep=[node, *keep])
        return node

    def remove(self, node: Node) -> None:
        """Take a node out. Raises GraphError while it has readers or is a head, and names them."""
        readers = [n.name for n in self.readers(node) if n is not node]
        if readers or any(h.node is node for h in self.heads):
            raise GraphError(f"{node}: cannot be removed, still read by {', '.join(readers[:5]) or 'a head'}")
        self.dag.remove_node(node)
        self._inputs.pop(node, None)
        self._names.discard(node.name)
        if node.op == "null":
            self.params.pop(node.name, None)

    def prune(self) -> int:
        """Drop what no head depends on. Returns the number of nodes dropped."""
        alive = set(self.toposort())
        dead = [n for n in self.dag if n not in alive]
        self.dag.remove_nodes_from(dead)
        for node in dead:
            self._inputs.pop(node, None)
            self._names.discard(node.name)
            if node.op == "null":
                self.params.pop(node.name, None)
        return len(dead)

    @collector_paused()
    def copy(self) -> Graph:
        """An independent graph with new nodes; parameter arrays are shared until they are replaced."""
        twin = Graph()
        mapping = {n: copy.copy(n) for n in self.dag}
        for node in mapping.values():
            node.attrs = dict(node.attrs)
        twin.dag.add_nodes_from(mapping[n] for n in self.dag)
        twin.dag.add_edges_from((mapping[u], mapping[v], slot, dict(data))
                                for u, v, slot, data in self.dag.edges(keys=True, data=True))
        twin.heads = [Port(mapping[h.node], h.index) for h in self.heads]
        twin.params = dict(self.params)
        return twin

    # ---- checking ---------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Raise GraphError ``"<name>:<op>: found X, want Y"`` unless the graph is valid."""
        seen: dict[str, Node] = {}
        for node, pred in self._pred.items():
            if not node.name:
                raise GraphError(f"{node!r}: found an empty name, want a name")
            if seen.setdefault(node.name, node) is not node:
                raise GraphError(f"{node}: found a second node of that name ({seen[node.name]}), want unique names")
            slots = []
            for u, edges in pred.items():
                for slot, data in edges.items():
                    slots.append(slot)
                    if not 0 <= data["out"] < u.n_out:
                        raise GraphError(f"{node}: found output {data['out']} of {u} in slot {slot}, "
                                         f"want 0 to {u.n_out - 1}")
            if len(slots) != len(set(slots)) or (slots and max(slots) != len(slots) - 1):
                raise GraphError(f"{node}: found input slots {sorted(slots)}, want 0 to {len(slots) - 1}, each once")
            if node.op == "null" and slots:
                raise GraphError(f"{node}: found {len(slots)} inputs on a variable, want none")
            if (node.quant is not None) != (node.op == "fake_quantize"):
                raise GraphError(f"{node}: found quant={node.quant}, want one on every fake_quantize and on no other")
            if "act_type" in node.attrs and node.op in ops.FUSING:
                raise GraphError(f"{node}: found the attribute act_type, want Node.fused, which writers look at")
            if node.op == "fake_quantize" and len(slots) != 1:
                raise GraphError(f"{node}: found {len(slots)} inputs, want 1")
        if not self.heads:
            raise GraphError("graph: found no heads, want at least one output")
        for head in self.heads:
            if head.node not in self.dag or not 0 <= head.index < head.node.n_out:
                raise GraphError(f"{head.node}: found head {head.index}, want a node of this graph and an output of it")
        for name in self.params:
            if name not in seen or seen[name].op != "null":
                raise GraphError(f"{name}: found an array for {seen.get(name, 'no node')}, want a variable")
        self.toposort()

    def digest(self) -> str:
        """Hash of structure, attributes, quantization and parameter values; equal graphs have equal digests."""
        h = hashlib.blake2b(self.text().encode(), digest_size=16)
        for name in sorted(self.params):
            array = np.ascontiguousarray(self.params[name])
            h.update(f"{name}{dtype_name(array.dtype)}{array.shape}".encode())
            h.update(array.data if array.size else b"")
        return h.hexdigest()

    def fingerprint(self) -> int:
        """Tells the graph from what it was before, as `digest` does, but in this process alone: large arrays are hashed
        several times as fast."""
        arrays = [np.ascontiguousarray(self.params[name]) for name in sorted(self.params)]
        return hash((self.text(), *((dtype_name(array.dtype), array.shape, zlib.crc32(array.data) if array.size else 0)
                                    for array in arrays)))

    # ---- text -------------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """One node a line, in topological order: what golden tests and pass dumps show."""
        from qgraph.ir.text import format_graph

        return format_graph(self)

    @staticmethod
    def parse(text: str) -> Graph:
        """Read back what `text` wrote; parameters come without their values (see `qgraph.ir.text`)."""
        from qgraph.ir.text import parse_graph

        return parse_graph(text)
