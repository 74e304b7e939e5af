"""The ops of MXNet's NumPy interface (mx.np, mx.npx; 1.6 to 2.0) under the names and attributes of the older ops.

They differ in names, in a few attributes, and in codes of `reshape`.  A result without axes has one of 1 here.
"""

from __future__ import annotations

from qgraph.formats.mxnet_json import JsonNode
from qgraph.ir import ops

_PREFIXES = ("_np_", "_npi_", "_npx_")
_WORDS = {"add": "plus", "subtract": "minus", "multiply": "mul", "true_divide": "div", "less": "lesser",
          "less_equal": "lesser_equal", **{word: word for word in (
              "power", "mod", "maximum", "minimum", "hypot", "equal", "not_equal", "greater", "greater_equal",
              "logical_and", "logical_or", "logical_xor")}}
_BROADCASTS = {"plus": "add", "minus": "sub"}  # the same words in names of ops of two tensors

_OPS = {
    **{name: name for name in (*ops.UNARY, "softmax", "log_softmax", "clip", "slice", "take", "tile", "repeat", "stack",
                               "transpose", "squeeze", "expand_dims", "mean", "sum", "max", "min", "prod", "argmax",
                               "argmin", "argsort", "sort", "batch_dot", "smooth_l1", "one_hot", "pick", "topk",
                               "gather_nd", "reshape_like", "shape_array")},
    **{name: f"broadcast_{_BROADCASTS.get(word, word)}" for name, word in _WORDS.items()},
    **{f"{name}_scalar": f"_{word}_scalar" for name, word in _WORDS.items()},
    **{f"r{name}_scalar": f"_r{_WORDS[name]}_scalar" for name in ("subtract", "true_divide", "power", "mod")},
    "absolute": "abs", "amax": "max", "amin": "min", "product": "prod", "copy": "_copy", "cast": "Cast",
    "concatenate": "Concat", "split": "_split_v2", "swapaxes": "SwapAxis", "flip": "reverse", "reshape": "Reshape",
    "zeros": "_zeros", "ones": "_ones", "full": "_full", "arange": "_arange", "arange_like": "_contrib_arange_like",
    "activation": "Activation", "leaky_relu": "LeakyReLU", "convolution": "Convolution",
    "deconvolution": "Deconvolution", "fully_connected": "FullyConnected", "pooling": "Pooling",
    "batch_flatten": "Flatten", "batch_norm": "BatchNorm", "layer_norm": "LayerNorm", "group_norm": "GroupNorm",
    "instance_norm": "InstanceNorm", "l2_normalization": "L2Normalization", "dropout": "Dropout",
    "embedding": "Embedding", "rnn": "RNN", "roi_pooling": "ROIPooling", "sequence_mask": "SequenceMask",
}
_RENAMED = {"Concat": {"axis": "dim"}, "Reshape": {"newshape": "shape"}}
_UNTOLD = ("is_int", "order", "initial")  # say nothing where they are at their defaults
_CODES = {-2: 0, -4: -2, -5: -3, -6: -4}  # of npx.reshape, as the older one has them; it has none that drops an axis


def as_older_op(item: JsonNode) -> JsonNode:
    """The node with the op that means the same, or as it is where there is none."""
    prefix = next((p for p in _PREFIXES if item.op.startswith(p)), "")
    op = _OPS.get(item.op[len(prefix):]) if prefix else None
    if op is None:
        return item
    renamed = _RENAMED.get(op, {})
    attrs = {renamed.get(key, key): value for key, value in item.attrs.items()
             if key not in _UNTOLD and not (key in ("dtype", "axis", "axes") and value == "None")}
    if op == "Concat" and item.attrs.get("axis") == "None" or item.attrs.get("initial", "None") != "None":
        return item
    if op == "Reshape":
        try:
            codes = ops.parse_tuple(attrs.get("shape", "()"))
        except ValueError:
            return item
        if -3 in codes:
            return item
        attrs["shape"] = str(tuple(_CODES.get(code, code) for code in codes))
    return item._replace(op=op, attrs=attrs)
