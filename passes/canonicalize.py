"""canonicalize: the inference form, with one spelling per op, that every other pass expects.

    other spellings (_Plus, flatten, BatchNorm_v1 ...)       -> MXNet's present name
    Dropout, BlockGrad, identity, MakeLoss, *RegressionOutput -> gone
    SoftmaxOutput(x, label)                                  -> softmax(x), axis 1 under multi_output, else -1
    LogisticRegressionOutput(x, label)                       -> Activation(x) {act_type=sigmoid}
    _contrib_BatchNormWithReLU(x, ...)                       -> BatchNorm, Activation {act_type=relu}
    Cast(x) of float32 to float32, amp_multicast(x, ...)     -> gone
    relu, LeakyReLU(slope 0), _maximum_scalar(0), clip(0, inf) -> Activation {act_type=relu}
    relu(relu(x)), relu(clip(x, 0, b)), clip(relu(x), a >= 0, b) -> without the relu
    _zeros {shape=(0, H)}, whose batch only its reader knows -> zeros of the input's batch
    labels and whatever no output depends on                 -> gone

Nodes are changed in place and keep their names: ``softmax_output`` stays the output it was.  An identity, or a relu of
what is nonnegative already, stays (as ``_copy``, or as it is) where an output would otherwise become a variable or the
same as another output.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register
from qgraph.passes._begin_states import give_batch
from qgraph.semantics.types import type_of

_SYNC_BN_ONLY = ("ndev", "key")
_NONNEGATIVE_ACTS = ops.NONNEGATIVE_ACTS - {"softrelu"}  # behind a softrelu the relu stays


@register
class Canonicalize(Pass):
    """Inference form: no Dropout, labels, losses or identities, and one spelling for each op."""

    name = "canonicalize"
    preserves_float = True

    def run(self, g: Graph) -> int:
        count = 0
        for node in g.toposort():  # a rule changes or removes `node` alone, so what comes later stays valid
            spelled = _spell(node)
            rule = RULES.get(node.op)
            count += bool(rule and rule(g, node)) or spelled
        params = len(g.params)
        g.prune()
        count += give_batch(g)
        return count + params - len(g.params)


def _spell(node: Node) -> bool:
    if node.op == "_contrib_SyncBatchNorm":
        node.op = "BatchNorm"
        node.attrs = {k: v for k, v in node.attrs.items() if k not in _SYNC_BN_ONLY}
        return True
    if node.op not in ops.ALIASES:
        return False
    node.op = ops.ALIASES[node.op]
    return True


def _bypass(g: Graph, node: Node) -> bool:
    """Readers of `node` read its first input instead; False if an output of the graph forbids it."""
    source = g.inputs(node)[0]
    if g.is_head(node) and (source.node.op == "null" or g.is_head(source)):
        return False
    g.replace_uses(node, source)
    g.remove(node)
    return True


def _identity(g: Graph, node: Node) -> bool:
    if node.op == "Dropout" and ops.attr(node, "mode") != "training":
        return False  # mode=always drops at inference too
    if any(g.uses(Port(node, i)) or g.is_head(Port(node, i)) for i in range(1, node.n_out)):
        return False
    if _bypass(g, node):
        return True
    changed = node.op != "_copy"
    node.op, node.attrs, node.n_out = "_copy", {}, 1
    g.set_inputs(node, g.inputs(node)[:1])
    return changed


def _cast(g: Graph, node: Node) -> bool:
    same = ops.attr(node, "dtype") == "float32" and type_of(g, g.inputs(node)[0]) == "float32"
    return same and _identity(g, node)


def _multicast(g: Graph, node: Node) -> bool:
    """Brings its inputs to one type, and they have one; each of them that is no output is read itself."""
    if any(g.is_head(Port(node, index)) for index in range(node.n_out)):
        return False
    for index, source in enumerate(g.inputs(node)):
        g.replace_uses(Port(node, index), source)
    g.remove(node)
    return True


def _softmax_output(g: Graph, node: Node) -> bool:
    node.attrs = {"axis": "1" if ops.attr(node, "multi_output") else "-1"}
    node.op = "softmax"
    g.set_inputs(node, g.inputs(node)[:1])
    return True


def _logistic_output(g: Graph, node: Node) -> bool:
    node.op, node.attrs = "Activation", {"act_type": "sigmoid"}
    g.set_inputs(node, g.inputs(node)[:1])
    return True


def _bn_relu(g: Graph, node: Node) -> bool:
    name, node.op = node.name, "BatchNorm"
    act = g.insert_after(node, "Activation", act_type="relu")
    g.rename(node, f"{name}_bn")
    g.rename(act, name)
    return True


def _nonnegative(node: Node) -> bool:
    if node.op == "clip":
        return bool(ops.attr(node, "a_min") >= 0)
    return node.op == "Activation" and ops.attr(node, "act_type") in _NONNEGATIVE_ACTS


def _is_relu(node: Node) -> bool:
    """A relu under another op."""
    if node.op == "LeakyReLU":
        return bool(ops.attr(node, "act_type") == "leaky" and ops.attr(node, "slope") == 0)
    if node.op == "_maximum_scalar":
        return bool(ops.attr(node, "scalar") == 0)
    if node.op == "clip":
        return bool(ops.attr(node, "a_min") == 0 and ops.attr(node, "a_max") >= np.finfo(np.float32).max)
    return node.op == "relu"


def _relu_like(g: Graph, node: Node) -> bool:
    changed = _is_relu(node)
    if changed:
        node.op, node.attrs = "Activation", {"act_type": "relu"}
    source = g.inputs(node)[0]
    if node.op == "Activation" and ops.attr(node, "act_type") == "relu" and _nonnegative(source.node):
        return _bypass(g, node) or changed
    if (node.op == "clip" and ops.attr(node, "a_min") >= 0 and source.node.op == "Activation"
            and ops.attr(source.node, "act_type") == "relu"):
        g.set_input(node, 0, g.inputs(source.node)[0])
        return True
    return changed


RULES: dict[str, Callable[[Graph, Node], bool]] = {
    **dict.fromkeys(ops.IDENTITIES, _identity),
    **dict.fromkeys(("relu", "Activation", "LeakyReLU", "_maximum_scalar", "clip"), _relu_like),
    "Cast": _cast,
    "amp_multicast": _multicast,
    "_contrib_BatchNormWithReLU": _bn_relu,
    "SoftmaxOutput": _softmax_output,
    "LogisticRegressionOutput": _logistic_output,
}
