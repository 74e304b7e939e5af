"""One op at a time on random inputs, for what knows every op: kernels and shape rules."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from qgraph.ir.graph import Graph, Port


class Case(NamedTuple):
    """One op on uniform random inputs."""

    op: str
    attrs: dict[str, Any]
    shapes: list[tuple[int, ...]]
    low: float = -2.0
    n_out: int = 1
    high: float = 2.0
    whole: bool = False

    def __str__(self) -> str:
        words = " ".join(f"{k}={v}".replace(" ", "") for k, v in self.attrs.items())
        return " ".join([self.op, words, *map(str, self.shapes[:1])]).replace(" ", "_")

    def graph(self) -> tuple[Graph, dict[str, np.ndarray]]:
        """The graph, all inputs fed, and the feeds."""
        rng, g, feeds = np.random.default_rng(3), Graph(), {}
        for slot, shape in enumerate(self.shapes):
            x = rng.uniform(self.low, self.high, shape)
            feeds[f"x{slot}"] = (np.floor(x) if self.whole else x).astype(np.float32)
        node = g.add(self.op, [g.add("null", name=name) for name in feeds], "node", n_out=self.n_out, **self.attrs)
        g.heads = [Port(node, index) for index in range(self.n_out)]
        return g, feeds

    def symbol(self) -> str:
        """The same as MXNet's JSON."""
        count = len(self.shapes)
        nodes: list[dict] = [{"op": "null", "name": f"x{i}", "inputs": []} for i in range(count)]
        nodes.append({"op": self.op, "name": "node", "attrs": {k: str(v) for k, v in self.attrs.items()},
                      "inputs": [[i, 0, 0] for i in range(count)]})
        return json.dumps({"nodes": nodes, "arg_nodes": list(range(count)), "attrs": {"mxnet_version": ["int", 10901]},
                           "heads": [[count, i, 0] for i in range(self.n_out)]})


IMAGE = (2, 6, 7, 9)


def conv(filters: int = 4, kernel: Any = (3, 3), data: Any = IMAGE, bias: bool = True, **attrs: Any) -> Case:
    weight = (filters, data[1] // attrs.get("num_group", 1), *kernel)
    return Case("Convolution", {"kernel": kernel, "num_filter": filters, "no_bias": not bias, **attrs},
                [data, weight, *([(filters,)] if bias else [])])


def deconv(filters: int = 4, kernel: Any = (3, 3), data: Any = IMAGE, bias: bool = False, **attrs: Any) -> Case:
    weight = (data[1], filters // attrs.get("num_group", 1), *kernel)
    return Case("Deconvolution", {"kernel": kernel, "num_filter": filters, "no_bias": not bias, **attrs},
                [data, weight, *([(filters,)] if bias else [])])


def dense(data: Any, units: int, inputs: int, bias: bool = True, **attrs: Any) -> Case:
    return Case("FullyConnected", {"num_hidden": units, "no_bias": not bias, **attrs},
                [data, (units, inputs), *([(units,)] if bias else [])])


def pool(data: Any = IMAGE, **attrs: Any) -> Case:
    return Case("Pooling", attrs, [data])


def one(op: str, data: Any = IMAGE, low: float = -2.0, **attrs: Any) -> Case:
    return Case(op, attrs, [data], low)


LOGIC = ("equal", "not_equal", "greater", "greater_equal", "lesser", "lesser_equal", "logical_and", "logical_or",
         "logical_xor")
TABLE = [
    conv(), conv(pad=(1, 1), stride=(2, 2)), conv(kernel=(1, 1)), conv(kernel=(1, 1), stride=(2, 2), bias=False),
    conv(dilate=(2, 2), pad=(2, 1)), conv(kernel=(3, 2), pad=(0, 1), stride=(1, 3)), conv(num_group=2),
    conv(filters=6, num_group=6, pad=(1, 1)), conv(filters=12, num_group=6, pad=(1, 1), stride=(2, 2)),
    conv(filters=6, num_group=6, dilate=(2, 1)), conv(kernel=(7, 7), pad=(3, 3), stride=(2, 2), data=(1, 3, 20, 20)),
    conv(kernel=(3,), data=(2, 6, 11), pad=(1,), stride=(2,)),
    conv(kernel=(2, 3, 2), data=(1, 4, 5, 6, 4), pad=(1, 0, 1)),
    deconv(), deconv(stride=(2, 2), pad=(1, 1)), deconv(stride=(2, 2), pad=(1, 1), adj=(1, 1), bias=True),
    deconv(kernel=(4, 4), stride=(2, 2), pad=(1, 1), num_group=2),
    deconv(filters=6, num_group=6, kernel=(2, 2), stride=(2, 2)),
    deconv(kernel=(2, 2), pad=(1, 1)), deconv(dilate=(2, 2), stride=(2, 1)),
    deconv(kernel=(1, 1), stride=(2, 2), adj=(1, 1)), deconv(kernel=(3,), data=(2, 6, 5), stride=(2,)),
    dense((3, 5), 4, 5), dense((3, 2, 4), 4, 8), dense((3, 2, 4), 4, 4, flatten=False), dense((3, 5), 4, 5, bias=False),
    *(pool(kernel=k, stride=s, pad=p, pool_type=t, pooling_convention=c)
      for k, s, p in (((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 2), (1, 0)))
      for t in ("max", "avg", "sum") for c in ("valid", "full")),
    pool(kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="avg", count_include_pad=False),
    pool(kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="avg", count_include_pad=False, pooling_convention="full",
         data=(1, 3, 8, 8)),
    pool(kernel=(3, 3), stride=(2, 2), pool_type="avg", pooling_convention="full", data=(1, 3, 8, 8)),
    pool(kernel=(3, 3), pool_type="max"), pool(kernel=(3,), stride=(2,), pool_type="max", data=(2, 3, 8)),
    *(pool(global_pool=True, kernel=(1, 1), pool_type=t) for t in ("max", "avg", "sum")),
    pool(global_pool=True, pool_type="avg"),
    *(one("Activation", act_type=t) for t in ("relu", "sigmoid", "tanh", "softrelu", "softsign")),
    *(one(op) for op in ("relu", "sigmoid", "tanh", "exp", "abs", "hard_sigmoid", "Flatten")), one("sqrt", low=0.1),
    one("clip", a_min=0.0, a_max=1.5), one("hard_sigmoid", alpha=0.3, beta=0.4),
    one("LeakyReLU"), one("LeakyReLU", slope=0.1, act_type="leaky"), one("LeakyReLU", act_type="elu", slope=0.7),
    one("LeakyReLU", act_type="selu"), one("LeakyReLU", act_type="gelu"),
    Case("LeakyReLU", {"act_type": "prelu"}, [IMAGE, (6,)]), Case("LeakyReLU", {"act_type": "prelu"}, [IMAGE, (1,)]),
    *(one(op, scalar=1.7) for op in ("_plus_scalar", "_minus_scalar", "_rminus_scalar", "_mul_scalar", "_div_scalar",
                                     "_maximum_scalar", "_minimum_scalar")),
    one("_power_scalar", low=0.1, scalar=1.7), one("_rdiv_scalar", low=0.1, scalar=1.7),
    *(Case(f"elemwise_{op}", {}, [IMAGE, IMAGE], 0.1) for op in ("add", "sub", "mul", "div")),
    *(Case(f"broadcast_{op}", {}, [IMAGE, (1, 6, 1, 9)], 0.1) for op in ("add", "sub", "mul", "div")),
    Case("add_n", {"num_args": 3}, [IMAGE] * 3), Case("Concat", {"dim": 1, "num_args": 2}, [IMAGE, (2, 3, 7, 9)]),
    Case("Concat", {"dim": -1, "num_args": 2}, [IMAGE, (2, 6, 7, 2)]),
    Case("BatchNorm", {"fix_gamma": False}, [IMAGE] + [(6,)] * 4, 0.1),
    Case("BatchNorm", {"eps": 1e-5}, [IMAGE] + [(6,)] * 4, 0.1),
    Case("_contrib_BatchNormWithReLU", {"fix_gamma": False}, [IMAGE] + [(6,)] * 4, 0.1),
    Case("BatchNorm", {"fix_gamma": False, "axis": 3}, [IMAGE] + [(9,)] * 4, 0.1),
    Case("BatchNorm", {"fix_gamma": False}, [(4, 6)] + [(6,)] * 4, 0.1),
    Case("InstanceNorm", {"eps": 1e-2}, [IMAGE, (6,), (6,)]), Case("LayerNorm", {}, [IMAGE, (9,), (9,)]),
    Case("LayerNorm", {"axis": 1, "eps": 1e-3}, [IMAGE, (6,), (6,)]),
    *(one("L2Normalization", mode=m) for m in ("instance", "channel", "spatial")),
    one("LRN", nsize=3), one("LRN", nsize=5, alpha=0.1, beta=0.5, knorm=1.0),
    one("softmax"), one("softmax", axis=1, temperature=2.0), one("log_softmax", axis=1),
    one("SoftmaxActivation"), one("SoftmaxActivation", mode="channel"),
    Case("SoftmaxOutput", {}, [(3, 5), (3,)]), Case("SoftmaxOutput", {}, [(2, 3, 4), (2, 3)]),
    Case("SoftmaxOutput", {"multi_output": True}, [IMAGE, (2, 7, 9)]),
    Case("SoftmaxOutput", {"preserve_shape": True}, [(2, 3, 4), (2, 3)]),
    Case("LinearRegressionOutput", {}, [(3, 5), (3, 5)]), Case("LogisticRegressionOutput", {}, [(3, 5), (3, 5)]),
    Case("MAERegressionOutput", {}, [(3, 5), (3, 5)]), Case("SVMOutput", {}, [(3, 5), (3,)]),
    *(one("Reshape", shape=s) for s in (
        "(0, -1)", "(2, 6, 63)", "(-1,)", "(0, -2)", "(-3, -3)", "(-3, 0, -1)", "(0, -4, 2, 3, -2)",
        "(0, -4, -1, 2, 0, 0)", "(-2, 1, 1)", "(0, 0, -3)", "(0, 7, 6, -2)")),
    one("Reshape", shape="(-1, 0)", reverse=True), one("Reshape", shape="(0, -1, 9)", reverse=True),
    one("transpose"), one("transpose", axes=(0, 2, 3, 1)), one("SwapAxis", dim1=1, dim2=3),
    one("expand_dims", axis=1), one("expand_dims", axis=-1), one("squeeze", (2, 1, 3, 1)),
    one("squeeze", (2, 1, 3, 1), axis=(1,)),
    one("slice", begin="(0, 1)", end="(2, 5)"),
    one("slice", begin="(None, 1, -4)", end="(None, None, -1)", step="(1, 2, 1)"),
    one("slice", begin="(None, 5)", end="(None, 0)", step="(1, -2)"),
    one("slice_axis", axis=1, begin=2, end=5), one("slice_axis", axis=-1, begin=-4, end="None"),
    Case("slice_like", {"axes": (2, 3)}, [IMAGE, (1, 1, 5, 4)]), Case("slice_like", {}, [IMAGE, (1, 2, 5, 4)]),
    Case("SliceChannel", {"num_outputs": 3}, [IMAGE], n_out=3),
    Case("_zeros", {"shape": (1,)}, []), Case("_ones", {"shape": (1,)}, []),
    Case("_full", {"shape": (1,), "value": -2.5}, []), Case("_arange", {"start": 5}, []),
    Case("_arange", {"start": 0.5, "stop": 3, "step": 0.7, "repeat": 2}, []),
    Case("SliceChannel", {"num_outputs": 6, "axis": 1, "squeeze_axis": True}, [IMAGE], n_out=6),
    Case("Crop", {"num_args": 2}, [IMAGE, (2, 3, 5, 4)]),
    Case("Crop", {"num_args": 2, "center_crop": True}, [IMAGE, (2, 3, 5, 4)]),
    Case("Crop", {"num_args": 1, "offset": (1, 2), "h_w": (3, 4)}, [IMAGE]),
    one("UpSampling", scale=2, sample_type="nearest", num_args=1),
    Case("UpSampling", {"scale": 2, "sample_type": "nearest", "num_args": 2}, [(1, 3, 4, 4), (1, 2, 2, 2)]),
    *(one("Pad", mode=m, pad_width=(0, 0, 0, 0, 1, 2, 3, 1)) for m in ("constant", "edge", "reflect")),
    one("Pad", mode="constant", pad_width=(0, 0, 0, 0, 1, 2, 3, 1), constant_value=1.5),
    *(one("_contrib_AdaptiveAvgPooling2D", output_size=s) for s in ("(3, 4)", "2", "(1,)")),
    one("_contrib_AdaptiveAvgPooling2D"),
    one("_contrib_BilinearResize2D", height=13, width=5), one("_contrib_BilinearResize2D", height=1, width=20),
    one("_contrib_BilinearResize2D", height=13, width=5, align_corners=False),
    one("_contrib_BilinearResize2D", scale_height=2.0, scale_width=1.5),
    one("_contrib_BilinearResize2D", mode="odd_scale", scale_height=2.0, scale_width=0.5, data=(2, 3, 5, 6)),
    *(one("_contrib_BilinearResize2D", mode=f"to_{parity}_{way}", data=(2, 3, 5, 6)) for parity in ("even", "odd")
      for way in ("down", "up")),
    Case("_contrib_BilinearResize2D", {"mode": "like"}, [IMAGE, (2, 3, 5, 4)]),
    *(one(op, axis=axis, keepdims=keep) for op in ("sum", "mean", "max")
      for axis, keep in (("(2, 3)", True), ("1", False), ("()", False))),
    one("mean", axis=(1,), exclude=True),
    *(one(op) for op in ("BlockGrad", "_copy", "identity", "make_loss", "MakeLoss", "Dropout")),
    one("Cast", dtype="float16"),
    # carried in float
    *(one(op) for op in ("softsign", "square", "sign", "floor", "ceil", "trunc", "fix", "round", "rint", "negative",
                         "erf", "sin", "cos", "tan", "arctan", "sinh", "cosh", "arcsinh", "cbrt", "expm1")),
    *(one(op, low=0.1) for op in ("log", "log2", "log10", "log1p", "rsqrt", "rcbrt", "reciprocal")),
    *(Case(op, {}, [IMAGE], -0.9, high=0.9) for op in ("arcsin", "arccos", "arctanh")), one("arccosh", low=1.1),
    one("logical_not")._replace(whole=True),
    *(one(f"_{word}_scalar", low=0.1, scalar=0.7) for word in ("rpower", "mod", "rmod", "hypot")),
    *(one(f"_{word}_scalar", scalar=float(word == "logical_and"))._replace(whole=True) for word in LOGIC),
    one("smooth_l1", scalar=1.3), one("LeakyReLU", act_type="rrelu"),
    *(Case(f"_{word}", {}, [IMAGE, IMAGE], 0.1) for word in ("maximum", "minimum", "mod", "power", "hypot")),
    *(Case(f"broadcast_{word}", {}, [IMAGE, (1, 6, 1, 9)], 0.1) for word in ("maximum", "minimum", "mod", "power",
                                                                             "hypot")),
    *(Case(f"{family}_{word}", {}, [IMAGE, IMAGE], whole=True) for family in ("", "broadcast") for word in LOGIC),
    Case("where", {}, [(3, 4)] * 3, whole=True), Case("where", {}, [(3,), (3, 4), (3, 4)], 0.0, whole=True),
    Case("stack", {"num_args": 2}, [(2, 3)] * 2), Case("stack", {"num_args": 3, "axis": -1}, [(2, 3)] * 3),
    Case("_split_v2", {"indices": "(0, 2)", "axis": 1}, [IMAGE], n_out=2),
    Case("_split_v2", {"sections": 6, "indices": "()", "axis": 1, "squeeze_axis": True}, [IMAGE], n_out=6),
    Case("reshape_like", {}, [(2, 6), (3, 4)]),
    Case("reshape_like", {"lhs_begin": 1, "lhs_end": 2, "rhs_begin": 0, "rhs_end": 2}, [(2, 6), (3, 2, 9)]),
    *(Case(op, {"block_size": 2}, [(2, 8, 4, 6)]) for op in ("depth_to_space", "space_to_depth")),
    one("reverse", axis=(1, 3)), one("tile", (2, 3), reps=(2, 1, 3)), one("repeat", (2, 3), repeats=2, axis=1),
    one("repeat", (2, 3), repeats=3), one("broadcast_axis", (2, 1, 3), axis=1, size=4),
    one("broadcast_to", (2, 1, 3), shape=(0, 4, 0)), Case("broadcast_like", {}, [(2, 1, 3), (2, 4, 3)]),
    Case("take", {}, [(5, 3), (2, 4)], 0.0), Case("take", {"axis": 1, "mode": "wrap"}, [(2, 3), (7,)], 0.0, high=6.0),
    Case("Embedding", {"input_dim": 5, "output_dim": 3}, [(2, 7), (5, 3)], -3.0, high=8.0),
    Case("dot", {}, [(3, 4), (4, 5)]), Case("dot", {"transpose_a": True, "transpose_b": True}, [(4, 3), (5, 4)]),
    Case("dot", {}, [(2, 3, 4), (4, 5)]), Case("batch_dot", {}, [(2, 3, 4), (2, 4, 5)]),
    Case("batch_dot", {"transpose_a": True, "transpose_b": True}, [(2, 4, 3), (2, 5, 4)]),
    Case("GroupNorm", {"num_groups": 2}, [IMAGE, (2,), (2,)]),
    *(one(op, low=0.5, axis="(1, 3)") for op in ("min", "prod")), one("norm"), one("norm", ord=1, axis=(1,)),
    one("softmin", axis=1),
    *(Case("UpSampling", {"scale": n, "sample_type": "bilinear", "num_filter": 3, "num_args": 2},
           [(2, 3, 4, 5), (3, 1, 2 * n - n % 2, 2 * n - n % 2)]) for n in (1, 2, 3, 4)),
    *(Case("_contrib_DeformableConvolution", {"kernel": (3, 3), "pad": (1, 1), "num_filter": 4, **more},
           [(2, 4, 6, 7), (2, 18 * more.get("num_deformable_group", 1), 6, 7), (4, 4 // more.get("num_group", 1), 3, 3),
            (4,)]) for more in ({}, {"num_deformable_group": 2}, {"num_group": 2})),
    *(Case("_contrib_ModulatedDeformableConvolution", {"kernel": (3, 3), "pad": (1, 1), "num_filter": 4, **more},
           [(2, 4, 6, 7), (2, 18 * more.get("num_deformable_group", 1), 6, 7),
            (2, 9 * more.get("num_deformable_group", 1), 6, 7), (4, 4, 3, 3), (4,)])
      for more in ({}, {"num_deformable_group": 2})),
    Case("RNN", {"mode": "lstm", "state_size": 3, "num_layers": 1, "state_outputs": True},
         [(5, 2, 4), (108,), (1, 2, 3), (1, 2, 3)], n_out=3),
    Case("RNN", {"mode": "gru", "state_size": 3, "num_layers": 1, "bidirectional": True},
         [(5, 2, 4), (162,), (2, 2, 3)]),
    Case("_rnn_param_concat", {"dim": 0, "num_args": 2}, [(5,), (7,)]),
    one("_contrib_div_sqrt_dim"),
    Case("_contrib_interleaved_matmul_selfatt_qk", {"heads": 2}, [(5, 3, 24)]),
    Case("_contrib_interleaved_matmul_selfatt_valatt", {"heads": 2}, [(5, 3, 24), (6, 5, 5)]),
    Case("_contrib_interleaved_matmul_encdec_qk", {"heads": 2}, [(4, 3, 8), (5, 3, 16)]),
    Case("_contrib_interleaved_matmul_encdec_valatt", {"heads": 2}, [(5, 3, 16), (6, 4, 5)]),
    Case("_contrib_SyncBatchNorm", {"fix_gamma": False, "key": "k"}, [IMAGE] + [(6,)] * 4, 0.1),
]
