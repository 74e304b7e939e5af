"""Checkpoints as each generation of MXNet wrote them: small symbols in JSON, and their arrays."""

from __future__ import annotations

import numpy as np

GENERATIONS = ["param", "attr", "attrs"]


def null(name: str, **extra) -> dict:
    return {"op": "null", "name": name, "inputs": [], **extra}


def doc(nodes: list[dict], heads: list[list[int]], version: int | None = 10901) -> dict:
    found = {"nodes": nodes, "arg_nodes": [i for i, n in enumerate(nodes) if n["op"] == "null"], "heads": heads}
    return {**found, "attrs": {"mxnet_version": ["int", version]}} if version else found


def generation(key: str) -> dict:
    """conv - bn - split - softmax as each generation of MXNet wrote it."""
    old = key == "param"
    conv = {"kernel": "(3,3)", "num_filter": "4", "no_bias": "True"}
    user = {"attr": {"ctx_group": "dev1", "weight_lr_mult": "2"}} if old else {}

    def at(*ids):
        return [[i, 0] if old else [i, 0, 0] for i in ids]

    aux = [] if old else [null("bn_moving_mean", **{key: {"__init__": '["zero", {}]'}}), null("bn_moving_var")]
    label = [] if old else [null("softmax_label")]
    nodes = [null("data", **{key: {"__shape__": "(16L, 3L, 8L, 8L)"}}),
             null("conv_weight", **{key: {"kernel": "(3,3)", "__shape__": "(4L, 3L, 3L, 3L)", "__lr_mult__": "1.0"}}),
             {"op": "Convolution", "name": "conv", key: conv, "inputs": at(0, 1), **user},
             null("bn_gamma"), null("bn_beta"), *aux,
             {"op": "BatchNorm", "name": "bn", key: {"eps": "0.001"}, "inputs": at(2, 3, 4, *([] if old else [5, 6]))},
             *label]
    bn = 5 if old else 7
    nodes.append({"op": "SoftmaxOutput", "name": "softmax", key: {"multi_output": "True"},
                  "inputs": at(bn, *([] if old else [8]))})
    if not old:
        nodes[bn]["inputs"][3][2] = nodes[bn]["inputs"][4][2] = 1  # the version of a mutated state
    return doc(nodes, at(len(nodes) - 1), {"param": None, "attr": 1100, "attrs": 10500}[key])


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"arg:conv_weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
            **{f"{kind}:bn_{name}": rng.uniform(0.5, 1.5, 4).astype(np.float32)
               for kind, name in [("arg", "gamma"), ("arg", "beta"), ("aux", "moving_mean"), ("aux", "moving_var")]}}
