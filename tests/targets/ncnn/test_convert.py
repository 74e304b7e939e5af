"""ncnn converters, one op at a time: ncnn and MXNet agree; what ncnn cannot carry is named."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import MXNET, run_mxnet

from qgraph.errors import UnsupportedError
from qgraph.ir import attributes
from qgraph.ir.graph import Fused, Graph, Port
from qgraph.targets.ncnn.emit import to_ncnn
from qgraph.targets.ncnn.runtime import Executor

TOLERANCE = 2e-6  # of the largest value
Shape = tuple[int, ...]


class Case(NamedTuple):
    """An op on inputs x0, x1..., of these shapes behind the batch, and then parameters of these shapes."""

    op: str
    shapes: list[Shape]
    attrs: dict[str, Any] = {}
    params: list[Shape] = []
    low: float = -2.0
    n_out: int = 1
    inner: bool = False  # behind a sum, so that it reads no input of the network
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        return f"{self.op}-{'-'.join('x'.join(map(str, s)) for s in self.shapes)}-{attrs}".replace(" ", "")


IMAGE = (4, 6, 5)
K3 = {"kernel": (3, 3), "num_filter": 8}
POOL = {"kernel": (3, 3), "stride": (2, 2)}
BN = [(4,)] * 4
CASES = [
    # layers with weights
    Case("Convolution", [IMAGE], K3, [(8, 4, 3, 3), (8,)]),
    Case("Convolution", [IMAGE], {**K3, "no_bias": True, "pad": (1, 2), "stride": (2, 1), "dilate": (1, 2)},
         [(8, 4, 3, 3)]),
    Case("Convolution", [IMAGE], {"kernel": (1, 3), "num_filter": 8, "num_group": 2, "pad": (0, 1)},
         [(8, 2, 1, 3), (8,)]),
    Case("Convolution", [IMAGE], {**K3, "num_filter": 4, "num_group": 4}, [(4, 1, 3, 3), (4,)]),
    Case("Convolution", [IMAGE], {**K3, "num_group": 4}, [(8, 1, 3, 3), (8,)]),
    Case("Convolution", [(4, 9)], {"kernel": (3,), "num_filter": 6, "pad": (1,)}, [(6, 4, 3), (6,)]),
    Case("Deconvolution", [IMAGE], {"kernel": (4, 3), "stride": (2, 1), "pad": (1, 0), "num_filter": 6},
         [(4, 6, 4, 3)]),
    Case("Deconvolution", [IMAGE],
         {"kernel": (3, 3), "stride": (2, 2), "adj": (1, 1), "num_filter": 6, "no_bias": False}, [(4, 6, 3, 3), (6,)]),
    Case("Deconvolution", [IMAGE], {"kernel": (4, 4), "stride": (2, 2), "num_filter": 6, "pad": (1, 1),
                                     "target_shape": (12, 10)}, [(4, 6, 4, 4)]),
    Case("Deconvolution", [IMAGE], {"kernel": (4, 4), "stride": (2, 2), "pad": (1, 1), "num_filter": 8, "num_group": 4},
         [(4, 2, 4, 4)]),
    Case("_contrib_ModulatedDeformableConvolution", [IMAGE, (18, 6, 5), (9, 6, 5)], {**K3, "pad": (1, 1)},
         [(8, 4, 3, 3), (8,)], tolerance=1e-5),
    Case("FullyConnected", [IMAGE], {"num_hidden": 7}, [(7, 120), (7,)]),
    Case("FullyConnected", [(9,)], {"num_hidden": 7, "no_bias": True}, [(7, 9)]),
    Case("FullyConnected", [(3, 9)], {"num_hidden": 7, "flatten": False}, [(7, 9), (7,)]),
    # windows
    *(Case("Pooling", [(4, 9, 8)], {**POOL, "pool_type": kind, "pooling_convention": convention, "pad": pad})
      for kind in ("max", "avg") for convention in ("valid", "full") for pad in ((0, 0), (1, 1))
      if (kind, convention, pad) != ("avg", "full", (1, 1))),
    Case("Pooling", [(4, 9, 8)], {**POOL, "pool_type": "avg", "pad": (1, 1), "count_include_pad": False}),
    Case("Pooling", [(4, 8, 8)], {"kernel": (2, 3), "stride": (3, 1), "pool_type": "avg", "pad": (0, 1)}),
    Case("Pooling", [(4, 9, 9)], {**POOL, "pool_type": "avg", "pooling_convention": "full", "pad": (1, 1)}),
    *(Case("Pooling", [IMAGE], {"kernel": (1, 1), "global_pool": True, "pool_type": kind}) for kind in ("max", "avg")),
    Case("_contrib_AdaptiveAvgPooling2D", [(4, 6, 8)], {"output_size": (3, 2)}),
    Case("_contrib_AdaptiveAvgPooling2D", [IMAGE], {"output_size": 1}),
    Case("_contrib_AdaptiveAvgPooling2D", [(4, 7, 8)], {"output_size": (3, 3)}),
    Case("_contrib_BilinearResize2D", [IMAGE], {"height": 9, "width": 11}),
    Case("_contrib_BilinearResize2D", [IMAGE], {"height": 9, "width": 11, "align_corners": False}),
    Case("UpSampling", [IMAGE], {"scale": 2, "sample_type": "nearest", "num_args": 1}),
    Case("UpSampling", [IMAGE], {"scale": 2, "sample_type": "bilinear", "num_args": 2, "num_filter": 4},
         [(4, 1, 4, 4)]),
    # normalizations
    Case("BatchNorm", [IMAGE], {"eps": 1e-3, "fix_gamma": False}, BN), Case("BatchNorm", [IMAGE], {}, BN),
    Case("InstanceNorm", [IMAGE], {}, [(4,), (4,)]), Case("GroupNorm", [IMAGE], {"num_groups": 2}, [(2,), (2,)]),
    Case("LayerNorm", [(4, 6)], {}, [(6,), (6,)]),
    *(Case("L2Normalization", [IMAGE], {"mode": mode, "eps": 1e-3}) for mode in ("instance", "channel", "spatial")),
    Case("LRN", [(8, 5, 5)], {"nsize": 5, "alpha": 0.1}),
    # activations
    *(Case("Activation", [IMAGE], {"act_type": kind}) for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")),
    Case("LeakyReLU", [IMAGE], {"act_type": "leaky", "slope": 0.1}), Case("LeakyReLU", [IMAGE], {}),
    Case("LeakyReLU", [IMAGE], {"act_type": "prelu"}, [(4,)]), Case("LeakyReLU", [IMAGE], {"act_type": "elu"}),
    Case("LeakyReLU", [IMAGE], {"act_type": "selu"}), Case("LeakyReLU", [IMAGE], {"act_type": "gelu"}, tolerance=1e-4),
    Case("clip", [IMAGE], {"a_min": -0.5, "a_max": 1.5}), Case("hard_sigmoid", [IMAGE]), Case("relu", [IMAGE]),
    *(Case("softmax", [IMAGE], {"axis": axis}) for axis in (1, 2, -1)),
    Case("softmax", [(9,)], {"temperature": 2.0}), Case("log_softmax", [(9,)]),
    Case("SoftmaxActivation", [IMAGE], {"mode": "channel"}), Case("SoftmaxActivation", [(9,)]),
    # element by element
    *(Case(f"_{word}_scalar", [IMAGE], {"scalar": 1.25}) for word in (
        "plus", "minus", "rminus", "mul", "div", "rdiv", "maximum", "minimum")),
    Case("_power_scalar", [IMAGE], {"scalar": 3.0}, low=0.1), Case("_rpower_scalar", [IMAGE], {"scalar": 1.5}),
    *(Case(op, [IMAGE]) for op in ("exp", "abs", "negative", "floor", "ceil", "square", "sin", "cos", "reciprocal")),
    *(Case(op, [IMAGE], low=0.1) for op in ("log", "sqrt", "rsqrt")),
    *(Case(op, [IMAGE, IMAGE]) for op in ("elemwise_add", "elemwise_sub", "elemwise_mul", "elemwise_div", "_maximum")),
    Case("elemwise_add", [IMAGE, IMAGE], {"act_type": "relu"}),
    *(Case(f"broadcast_{word}", [IMAGE, other]) for word in ("add", "sub", "mul", "div", "maximum")
      for other in ((4, 1, 1), (1, 6, 1), (1, 6, 5))),
    Case("broadcast_sub", [(4, 1, 1), IMAGE]), Case("broadcast_mul", [(3, 4, 6, 5), (3, 1, 6, 1)]),
    *(Case(f"broadcast_{word}", [IMAGE], {}, [(1, 4, 1, 1)]) for word in ("add", "sub", "div")),
    Case("broadcast_mul", [IMAGE], {}, [(1, 1, 1, 1)]), Case("add_n", [IMAGE, IMAGE, IMAGE], {"num_args": 3}),
    *(Case(op, [IMAGE], {"axis": axis, "keepdims": keep}, low=0.5) for op in ("sum", "mean", "max", "prod")
      for axis, keep in (((2, 3), False), (1, True), ((1, 2, 3), True), ((1, 3), False))),
    # what moves values
    Case("Reshape", [()], {"shape": (-1, 1)}),  # a number for each image
    Case("Flatten", [IMAGE]), *(Case("Reshape", [IMAGE], {"shape": shape}) for shape in (
        (0, -1), (0, 2, 2, -1, 5), (0, -3, 0), (0, -4, 2, 2, -2))),
    *(Case("transpose", [IMAGE], {"axes": (0, *axes)})
      for axes in ((2, 3, 1), (1, 3, 2), (3, 2, 1), (2, 1, 3), (3, 1, 2))),
    Case("transpose", [(3, 4)], {"axes": (0, 2, 1)}),
    *(Case("transpose", [(3, 2, 4, 5)], {"axes": (0, *axes)}) for axes in ((2, 1, 3, 4), (4, 1, 2, 3), (3, 4, 2, 1))),
    Case("SwapAxis", [IMAGE], {"dim1": 1, "dim2": 2}), Case("expand_dims", [(4, 6)], {"axis": 1}),
    Case("squeeze", [(4, 1, 5)], {"axis": 2}), Case("depth_to_space", [(8, 3, 2)], {"block_size": 2}),
    Case("space_to_depth", [(3, 4, 6)], {"block_size": 2}),
    Case("slice_axis", [IMAGE], {"axis": 1, "begin": 1, "end": "None"}),
    Case("slice_axis", [IMAGE], {"axis": -1, "begin": 1, "end": 4}),
    Case("slice", [IMAGE], {"begin": (0, 1, 2), "end": (None, 3, 5)}),
    Case("slice_like", [IMAGE, (2, 3, 4)]), Case("slice_like", [IMAGE, (2, 3, 4)], {"axes": (2, 3)}),
    Case("Crop", [IMAGE, (4, 3, 2)], {"num_args": 2, "offset": (1, 2)}),
    Case("SliceChannel", [IMAGE], {"num_outputs": 2}, n_out=2),
    Case("SliceChannel", [IMAGE], {"num_outputs": 5, "axis": 3, "squeeze_axis": True}, n_out=5),
    Case("Concat", [IMAGE, (2, 6, 5)], {"num_args": 2}), Case("Concat", [IMAGE, (4, 6, 2)], {"dim": 3, "num_args": 2}),
    Case("stack", [IMAGE, IMAGE], {"axis": 1, "num_args": 2}), Case("tile", [IMAGE], {"reps": (1, 2, 1, 3)}),
    Case("repeat", [IMAGE], {"repeats": 2, "axis": 2}), Case("broadcast_axis", [(4, 1, 5)], {"axis": 2, "size": 3}),
    Case("broadcast_like", [(4, 1, 1), IMAGE]),
    *(Case("Pad", [IMAGE], {"mode": mode, "pad_width": (0, 0, 0, 0, 1, 2, 2, 1), "constant_value": value})
      for mode, value in (("constant", 0.0), ("constant", 1.5), ("edge", 0.0), ("reflect", 0.0))),
    Case("Dropout", [IMAGE]), Case("identity", [IMAGE]),
]


def build(case: Case, batch: int) -> tuple[Graph, dict[str, Shape]]:
    g, rng = Graph(), np.random.default_rng(0)
    shapes = {f"x{i}": (batch, *shape) for i, shape in enumerate(case.shapes)}
    inputs = []
    for name in shapes:
        x = g.add("null", name=name)
        inputs.append(g.add("_mul_scalar", [x], f"{name}_twice", scalar=2.0) if case.inner else x)
    for number, shape in enumerate(case.params):
        inputs.append(g.add_param(f"p{number}", (rng.uniform(0.5, 1.5, shape) * (1 if len(shape) == 1 else rng.choice(
            [-1, 1], shape))).astype(np.float32)))
    node = g.add(case.op, inputs, "node", n_out=case.n_out, attrs=case.attrs)
    attributes.take(node)
    g.heads = [Port(node, index) for index in range(case.n_out)]
    return g, shapes


def feeds_of(case: Case, shapes: dict[str, Shape]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.uniform(case.low, 2.0, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.mxnet
@pytest.mark.ncnn
@pytest.mark.parametrize("case", [*CASES, *(case._replace(inner=True) for case in CASES if case.op in (
    "Dropout", "Convolution", "Pooling", "elemwise_add"))], ids=str)
def test_op(case: Case) -> None:
    g, shapes = build(case, 2)
    feeds = feeds_of(case, shapes)
    want = run_mxnet(g, feeds)
    got = Executor(to_ncnn(g, shapes), half=False, winograd=False).run(feeds)
    assert len(want) == len(got) == case.n_out
    for a, b in zip(want, got):
        assert a.shape == b.shape
        assert np.isfinite(a).all() and not np.array_equal(a[0], a[1])
        assert np.abs(a - b).max() <= case.tolerance * max(1.0, np.abs(a).max())


@pytest.mark.parametrize(("case", "words"), [
    (Case("topk", [(5,)]), "no ncnn converter"),
    (Case("transpose", [IMAGE]), "batch axis"), (Case("Concat", [IMAGE, IMAGE], {"dim": 0}), "batch axis"),
    (Case("sum", [IMAGE]), "batch axis"), (Case("Reshape", [IMAGE], {"shape": (-1, 5)}), "one image at a time"),
    (Case("Reshape", [IMAGE], {"shape": (0, 2, 2, 2, 3, 5)}), "at most 4"),
    (Case("slice", [IMAGE], {"begin": (0, 0), "end": (None, 4), "step": (1, 2)}), "steps"),
    (Case("Pooling", [IMAGE], {**POOL, "pool_type": "lp"}), "pool_type lp"),
    (Case("Pooling", [(4, 8, 8)], {**POOL, "pool_type": "avg", "pooling_convention": "full", "pad": (1, 1)}),
     "beyond the padding"),
    (Case("Convolution", [(4, 3, 6, 5)], {"kernel": (1, 3, 3), "num_filter": 2}, [(2, 4, 1, 3, 3), (2,)]), "3-D"),
    (Case("BatchNorm", [IMAGE], {"axis": 3}, [(5,)] * 4), "axis 3"),
    (Case("Cast", [IMAGE], {"dtype": "int32"}), "dtype int32"),
])
def test_refused(case: Case, words: str) -> None:
    g, shapes = build(case, 2)
    with pytest.raises(UnsupportedError, match=words) as error:
        to_ncnn(g, shapes)
    assert str(error.value).startswith(f"node:{case.op}: ")
    assert "--outputs NAME" in str(error.value)


def test_a_shape_that_is_not_known_is_asked_for() -> None:
    g, _ = build(Case("SwapAxis", [IMAGE], {"dim1": -1, "dim2": 1}), 1)
    with pytest.raises(UnsupportedError, match=r"node:SwapAxis: .*--input-shape"):
        to_ncnn(g)


@pytest.mark.ncnn
def test_anchors_are_computed_now() -> None:
    """What follows from parameters and shapes becomes a constant; several outputs, one of them read by others."""
    g = Graph()
    x = g.add("null", name="data")
    grid = g.add_param("grid", np.arange(2 * 8 * 8, dtype=np.float32).reshape(1, 2, 8, 8))
    anchors = g.add("slice_like", [grid, g.add("_mul_scalar", [x], scalar=0.0)], "anchors", axes=(2, 3))
    total = g.add("broadcast_add", [x, g.add("ones_like", [x])], "total")
    shifted = g.add("broadcast_add", [total, anchors], "shifted")
    g.heads = [Port(shifted), Port(total), Port(g.add("Reshape", [anchors], "rows", shape=(1, -1, 2))), Port(total)]
    feeds = {"data": np.random.default_rng(0).normal(size=(2, 2, 6, 5)).astype(np.float32)}
    model = to_ncnn(g, {"data": (1, 2, 6, 5)})
    assert model.outputs == ["shifted", "total", "rows", "total_3"]
    if not MXNET:
        return
    got = Executor(model).run(feeds)
    for want, found in zip(run_mxnet(g, feeds), got):
        np.testing.assert_allclose(found[:len(want)], want, atol=1e-6)


@pytest.mark.ncnn
def test_names_are_the_users() -> None:
    """Layers are called as their nodes, blobs as what the user's network calls the value; two nodes of one origin."""
    g = Graph()
    x = g.add("null", name="data")

    def conv(name: str, origin: tuple[str, ...]) -> Any:
        weight = g.add_param(name + "_weight", np.full((2, 2, 1, 1), 0.5 + len(name), np.float32))
        return g.add("Convolution", [x, weight], name, origin=origin, kernel=(1, 1), num_filter=2, no_bias=True)

    first, second = (conv(name, (name, "bn", "relu")) for name in ("conv", "other"))
    first.fused = second.fused = Fused("relu")
    leaky = g.add("LeakyReLU", [conv("third", ())], "leaky", act_type="leaky", slope=0.1)
    g.heads = [Port(g.add("add_n", [first, second, leaky], "sum", num_args=3, origin=("sum", "out")))]
    model = to_ncnn(g, {"data": (1, 2, 3, 3)})
    assert [(layer.type, layer.name, layer.outputs) for layer in model.layers if layer.type != "Split"] == [
        ("Input", "data", ["data"]), ("Convolution", "conv", ["relu"]), ("Convolution", "other", ["other"]),
        ("Convolution", "third", ["leaky"]), ("Eltwise", "sum", ["out"])]
    assert [layer.params.get(9) for layer in model.layers if layer.type == "Convolution"] == [1, 1, 2]
    if not MXNET:
        return
    feeds = {"data": np.random.default_rng(0).normal(size=(2, 2, 3, 3)).astype(np.float32)}
    np.testing.assert_allclose(Executor(model, half=False).run(feeds)[0], run_mxnet(g, feeds)[0], rtol=1e-6)
