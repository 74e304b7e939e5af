"""The reference interpreter: float kernels against MXNet, integer arithmetic against loops over Python integers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from helpers import CASES, calls, run_mxnet
from op_cases import IMAGE, TABLE, Case, conv, deconv, dense, one, pool

from qgraph.analysis.codes import channel_scales
from qgraph.data.open import Preprocess, open_data
from qgraph.errors import DataError, GraphError, UnsupportedError
from qgraph.formats.mxnet import load
from qgraph.ir import ops
from qgraph.ir.graph import Fused, Graph, Node, Port
from qgraph.quant.spec import QParams, quantize
from qgraph.semantics import interpreter as reference
from qgraph.semantics import linear
from qgraph.semantics.interpreter import Executor, Tensor, accumulate, partial_sum_bound, run
from qgraph.semantics.kernels import KERNELS, kernel
from qgraph.targets.mxnet import runtime as mxnet_runtime
from qgraph.targets.onnx.emit import CONVERTERS, to_onnx

IMAGES = CASES / "imagenet1k_sample" / "val.rec"


@pytest.mark.mxnet
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_kernel_equals_mxnet(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXNET_SUBGRAPH_BACKEND", "NONE")
    import mxnet as mx
    g, feeds = case.graph()
    symbol = mx.sym.load_json(case.symbol())
    arrays = {name: mx.nd.array(array) for name, array in feeds.items()}
    aux = {name: arrays.pop(name) for name in symbol.list_auxiliary_states()}
    executor = symbol.bind(mx.cpu(), {name: arrays[name] for name in symbol.list_arguments()}, aux_states=aux,
                           grad_req="null")
    want = [array.asnumpy() for array in executor.forward(is_train=False)]
    found = run(g, feeds)
    assert [a.shape for a in found] == [a.shape for a in want]
    for a, b in zip(found, want):
        assert a.dtype == np.float32
        assert b.std() > 0 or b.size == 1, "the case says nothing: its output is constant"
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(b).max())) * 0.2)


@pytest.mark.mxnet
@pytest.mark.parametrize("attrs", [{}, {"axis": 1, "temperature": 2.0}], ids=str)
def test_softmax_over_lengths(attrs: dict[str, Any]) -> None:
    """In MXNet, in the reference and in ONNX; MXNet takes lengths as integers."""
    g = Graph()
    lengths = g.add("Cast", [g.add("null", name="lengths")], dtype="int32")
    g.heads = [Port(g.add("softmax", [g.add("null", name="data"), lengths], use_length=True, attrs=attrs))]
    x = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
    feeds = {"data": x, "lengths": np.array([[1, 2, 3, 4, 5], [5, 1, 5, 2, 1]], np.float32)}
    (want,) = run_mxnet(g, feeds)
    assert (want == 0).any() and want.std() > 0
    for found in (run(g, feeds), to_onnx(g, {name: v.shape for name, v in feeds.items()}).executor().run(feeds)):
        np.testing.assert_allclose(found[0], want, rtol=1e-5, atol=1e-6)


def test_target_shape_of_a_deconvolution() -> None:
    """MXNet without oneDNN takes 19 of 21 rows by pad 1; its oneDNN refuses target_shape."""
    (short, feeds), (padded, _) = deconv(stride=(3, 2), target_shape=(19, 16)).graph(), deconv(stride=(3, 2)).graph()
    padded.find("node").attrs.update(pad="(1, 2)", adj="(0, 1)")
    assert (run(short, feeds)[0] == run(padded, feeds)[0]).all()
    assert run(short, feeds)[0].shape == (2, 4, 19, 16)


def test_every_op_of_the_table_has_a_kernel_and_a_case() -> None:
    special = {"null", "fake_quantize"}
    assert set(ops.OPS) - special - set(KERNELS) <= set(CONVERTERS)  # detectors' decoding is for ONNX only
    boxes = ("MultiBoxDetection", "MultiBoxPrior", "box_decode", "box_iou", "box_nms")  # these have cases of their own
    assert set(ops.OPS) & set(KERNELS) - {f"_contrib_{name}" for name in boxes} == {case.op for case in TABLE}


# ---- exact integers -------------------------------------------------------------------------------------------------

def qparams(bits: int, signed: bool, scale: Any, zero: Any = 0, granularity: str = "tensor", **more: Any) -> QParams:
    return QParams(bits=bits, signed=signed, granularity=granularity, scale=scale, zero_point=zero, **more)


def loops(case: Case, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Accumulator of a (de)convolution or dense layer, by Python integers. x, w: codes without zero point."""
    node = case.graph()[0].find("node")
    if case.op == "FullyConnected":
        flat = x.reshape(len(x), -1).tolist()
        return np.array([[sum(a * b for a, b in zip(row, unit)) for unit in w.tolist()] for row in flat], object)
    groups, stride, dilate, pad = (ops.attr(node, key) for key in ("num_group", "stride", "dilate", "pad"))
    kernel, filters = w.shape[2:], ops.attr(node, "num_filter")
    shape = run(case.graph()[0], case.graph()[1])[0].shape
    out = np.zeros(shape, object)
    for image, o, i in product(range(len(x)), range(filters), range(x.shape[1])):
        group = o // (filters // groups)
        if i // (x.shape[1] // groups) != group:
            continue
        for tap in np.ndindex(*kernel):
            if case.op == "Convolution":
                factor = int(w[(o, i % (x.shape[1] // groups), *tap)])
            else:
                factor = int(w[(i, o % (filters // groups), *tap)])
            small, large = (shape[2:], x.shape[2:]) if case.op == "Convolution" else (x.shape[2:], shape[2:])
            for at in np.ndindex(*small):  # one window position; the other end may fall into the padding
                to = tuple(a * s + t * d - p for a, s, t, d, p in zip(at, stride, tap, dilate, pad))
                if all(0 <= t < n for t, n in zip(to, large)):
                    source, target = (to, at) if case.op == "Convolution" else (at, to)
                    out[(image, o, *target)] += int(x[(image, i, *source)]) * factor
    return out


INTEGER = [
    conv(data=(2, 4, 5, 6)), conv(data=(1, 4, 5, 5), pad=(1, 1), stride=(2, 2), bias=False),
    conv(data=(1, 4, 6, 6), num_group=2, pad=(1, 0)), conv(filters=4, data=(2, 4, 5, 5), num_group=4, pad=(1, 1)),
    conv(filters=8, data=(1, 4, 6, 6), num_group=4, pad=(2, 2), dilate=(2, 2), stride=(2, 1)),
    conv(data=(1, 3, 7, 7), dilate=(2, 3)), conv(kernel=(1, 1), data=(1, 5, 3, 3)),
    conv(kernel=(3,), data=(1, 4, 7), pad=(1,)),
    deconv(data=(1, 4, 4, 3), stride=(2, 2), pad=(1, 1), adj=(1, 0)), deconv(data=(1, 4, 3, 3), num_group=2, bias=True),
    deconv(filters=4, data=(1, 4, 3, 3), num_group=4, stride=(2, 2)), dense((3, 2, 4), 5, 8),
]
WEIGHTS = ["tensor", "channel", "group"]


def weight_params(case: Case, granularity: str) -> QParams:
    """Signed 8-bit weights with distinct scales and zero points."""
    axis = 1 if case.op == "Deconvolution" else 0
    count = case.shapes[1][axis]
    groups = case.attrs.get("num_group", 1)
    if granularity == "group":
        axis, count = 0, groups if case.op != "FullyConnected" else count
    if granularity == "tensor":
        return qparams(8, True, 0.013, 3)
    return qparams(8, True, 0.01 * (1 + np.arange(count)), np.arange(count) - 1, granularity, axis=axis, groups=groups)


@pytest.mark.parametrize("granularity", WEIGHTS)
@pytest.mark.parametrize("case", INTEGER, ids=str)
def test_accumulation_equals_python_integers(case: Case, granularity: str) -> None:
    rng = np.random.default_rng(11)
    xp, wp = qparams(8, False, 0.02, 7), weight_params(case, granularity)
    xq = rng.integers(0, 256, case.shapes[0]).astype(np.int32)
    wq = rng.integers(-128, 128, case.shapes[1]).astype(np.int32)
    node = case.graph()[0].find("node")
    shape = [-1 if i == wp.axis else 1 for i in range(wq.ndim)]
    zero = wp.zero_point if granularity == "tensor" else np.repeat(
        wp.zero_point, wq.shape[wp.axis] // len(wp.zero_point)).reshape(shape)
    want = loops(case, xq - 7, wq - zero)
    found = accumulate(node, Tensor(codes=xq, qp=xp), Tensor(codes=wq, qp=wp))
    assert found.shape == want.shape and (found == want.astype(np.float64)).all()
    assert len(np.unique(found)) > 10


def quantized(case: Case, granularity: str, xp: QParams, bias_bits: int,
              fused: Fused | None = None) -> tuple[Graph, dict, QParams]:
    """x -> fake_quantize -> op(fake-quantized weight and bias)."""
    g, feeds = case.graph()
    node, wp = g.find("node"), weight_params(case, granularity)
    node.fused = fused
    g.insert_after(g.find("x0"), "fake_quantize", "xq", quant=xp)
    g.insert_after(g.find("x1"), "fake_quantize", "wq", quant=wp)
    for name in [name for name in feeds if name != "x0"]:
        g.params[name] = feeds[name]
    if bias_bits and len(case.shapes) > 2:
        scale = channel_scales(node, wp, feeds["x1"].shape)
        assert scale is not None
        bp = qparams(32, True, np.float64(xp.scale) * scale, 0, "channel")
        g.insert_after(g.find("x2"), "fake_quantize", "bq", quant=bp)
    return g, {"x0": feeds["x0"]}, wp


@pytest.mark.parametrize("bias_bits", [0, 32])
@pytest.mark.parametrize("granularity", WEIGHTS)
@pytest.mark.parametrize("case", INTEGER, ids=str)
def test_integer_path_of_a_graph(case: Case, granularity: str, bias_bits: int) -> None:
    """real = relu((acc + bias codes) * (s_x s_w[c]) + float bias), each rounded to float32, not by the float path."""
    xp = qparams(8, False, 0.02, 50)
    g, feeds, wp = quantized(case, granularity, xp, bias_bits, Fused("relu"))
    node = g.find("node")
    tensors = {n.name: out[0] for n, _, out in Executor(g).walk(feeds)}
    acc = accumulate(node, tensors["xq"], tensors["wq"])
    groups = case.attrs.get("num_group", 1)
    if case.op == "Deconvolution" and granularity == "channel":
        per_channel = np.tile(np.float64(wp.scale), groups)
    else:
        channels = acc.shape[1]
        per_channel = np.repeat(np.float64(np.atleast_1d(wp.scale)), channels // max(1, wp.scale.size))
    shape = (1, -1) + (1,) * (acc.ndim - 2)
    scale = (np.float64(xp.scale) * per_channel).reshape(shape)
    if len(case.shapes) > 2:
        bias = g.params["x2"].reshape(shape)
        if bias_bits:
            codes = np.rint(g.params["x2"].reshape(shape) / scale.astype(np.float32))
            assert (tensors["bq"].codes.reshape(shape) == codes).all()
            acc = acc + codes
    want = acc.astype(np.float32) * scale.astype(np.float32)
    if len(case.shapes) > 2 and not bias_bits:
        want = want + bias
    want = np.maximum(want, 0)
    assert want.dtype == np.float32
    found = tensors["node"].real
    assert (found == want).all() and found.std() > 0 and found.min() == 0
    # the float path agrees to float32's rounding
    floats = KERNELS[node.op](node, *(tensors[p.node.name].real for p in g.inputs(node)))
    np.testing.assert_allclose(found, floats, rtol=1e-4, atol=1e-4 * np.abs(floats).max())


@pytest.mark.parametrize("case", INTEGER[:6], ids=str)
def test_blocks_do_not_change_the_result(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(*case.graph())[0]
    monkeypatch.setattr(linear, "BLOCK", 1)
    np.testing.assert_allclose(run(*case.graph())[0], whole, rtol=1e-5, atol=1e-5)


def test_float32_products_are_used_only_where_they_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums below 2**24 go through float32, larger ones through float64, and both are exact at the edge."""
    node = dense((1, 2), 1, 2, bias=False).graph()[0].find("node")
    used = []
    monkeypatch.setitem(linear.LINEAR, "FullyConnected",
                        lambda n, x, w: used.append(x.dtype) or linear.fully_connected(n, x, w))
    wide = qparams(16, False, 1.0)
    x = Tensor(codes=np.array([[65535, 1]], np.int32), qp=wide)
    for weights, dtype in (([255, 0], np.float32), ([256, 0], np.float32), ([257, 0], np.float64),
                           ([257, 258], np.float64), ([65535, 65535], np.float64)):
        w = Tensor(codes=np.array([weights], np.int32), qp=wide)
        assert partial_sum_bound(node, x, w) >= 65535 * weights[0] + weights[1]
        assert accumulate(node, x, w)[0, 0] == 65535 * weights[0] + weights[1]
        assert used.pop() == dtype
    # the one before last would be wrong in float32
    assert np.float32(65535) * np.float32(257) + np.float32(258) != 65535 * 257 + 258


def test_partial_sums_stay_inside_the_bound() -> None:
    rng = np.random.default_rng(0)
    node = dense((1, 50), 3, 50, bias=False).graph()[0].find("node")
    for zero in (0, 100, 255):
        x = Tensor(codes=rng.integers(0, 256, (1, 50)).astype(np.int32), qp=qparams(8, False, 1.0, zero))
        w = Tensor(codes=rng.integers(-128, 128, (3, 50)).astype(np.int32), qp=qparams(8, True, 1.0, 5))
        terms = x.centered * w.centered
        worst = max(terms.clip(0).sum(1).max(), (-terms).clip(0).sum(1).max())
        assert worst <= partial_sum_bound(node, x, w)


@pytest.mark.parametrize("case", [
    one("Flatten"), one("Reshape", shape="(0, -1)"), one("transpose"), one("SwapAxis", dim1=1, dim2=2),
    pool(kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max", pooling_convention="full"),
    pool(global_pool=True, pool_type="max"), one("UpSampling", scale=2, sample_type="nearest"),
    one("Pad", mode="constant", pad_width=(0, 0, 0, 0, 1, 1, 1, 1)), one("slice_axis", axis=1, begin=1, end=3),
    one("expand_dims", axis=0), one("Dropout"), Case("slice_like", {"axes": (2,)}, [IMAGE, (1, 1, 3)]),
    Case("SliceChannel", {"num_outputs": 2}, [IMAGE], n_out=2)], ids=str)
def test_codes_pass_through(case: Case) -> None:
    g, feeds = case.graph()
    qp = qparams(8, False, 0.013, 77)
    q = g.insert_after(g.find("x0"), "fake_quantize", "q", quant=qp)
    found = Executor(g).run_tensors(feeds)
    plain = Case(*case)
    for tensor, want in zip(found, run(plain.graph()[0], {**feeds, "x0": run(g, feeds, [Port(q)])[0]})):
        assert tensor.qp is qp and tensor.codes.dtype == np.int32
        assert tensor.codes.min() >= 0 and tensor.codes.max() <= 255
        assert (tensor.real == want).all() and want.std() > 0


def test_concat_keeps_codes_only_of_equal_params() -> None:
    case = Case("Concat", {"dim": 1, "num_args": 2}, [IMAGE, IMAGE])
    for other, kept in ((0.02, True), (0.021, False)):
        g, feeds = case.graph()
        g.insert_after(g.find("x0"), "fake_quantize", quant=qparams(8, True, 0.02))
        g.insert_after(g.find("x1"), "fake_quantize", quant=qparams(8, True, other, source=("x0",)))
        (found,) = Executor(g).run_tensors(feeds)
        assert (found.qp is not None) == kept
        a, b = (quantize(feeds[n], qparams(8, True, s), "mxnet") for n, s in (("x0", 0.02), ("x1", other)))
        if kept:
            assert (found.codes == np.concatenate([a, b], 1)).all()
        want = [q.astype(np.float32) * np.float32(step) for q, step in ((a, 0.02), (b, other))]
        assert (found.real == np.concatenate(want, 1)).all()


@pytest.mark.parametrize("op,fused,want", [
    ("Convolution", Fused("relu"), lambda y: np.maximum(y, 0)),
    ("Convolution", Fused("clip", 0.5, 1.5), lambda y: np.clip(y, 0.5, 1.5)),
    ("Convolution", Fused("tanh"), np.tanh),
    ("elemwise_add", Fused("clip", 0.5, 3), lambda y: np.clip(y, 0.5, 3)),
    ("FullyConnected", Fused("clip", 0, 6), lambda y: np.clip(y, 0, 6)),
    ("Deconvolution", Fused("sigmoid"), lambda y: 1 / (1 + np.exp(-y)))])
def test_fused_activations(op: str, fused: Fused, want: Any) -> None:
    g, feeds = next(case for case in TABLE if case.op == op).graph()
    plain = run(g, feeds)[0]
    g.find("node").fused = fused
    found = run(g, feeds)[0]
    np.testing.assert_allclose(found, want(plain), rtol=1e-6)
    assert (found != plain).any()


# ---- the interpreter ------------------------------------------------------------------------------------------------

CHAIN = """
    %data = input
    %w = param float32 (4, 3, 3, 3)
    %a = Convolution(%data, %w) {kernel=(3, 3) num_filter=4 no_bias=True}
    %b = SliceChannel(%a) -> 2 {num_outputs=2}
    %c = elemwise_add(%b:0, %b:1)
    %label = input
    %out = SoftmaxOutput(%c, %label)
    return %out, %c
"""


def test_watch_and_heads_and_labels() -> None:
    g = Graph.parse(CHAIN)
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 5)).astype(np.float32)
    out, c = run(g, {"data": x})
    b1, again, w = run(g, {"data": x}, [Port(g.find("b"), 1), Port(g.find("c")), Port(g.find("w"))])
    b0 = run(g, {"data": x}, [Port(g.find("b"))])[0]
    assert (again == c).all() and (b0 + b1 == c).all() and (w == g.params["w"]).all()
    np.testing.assert_allclose(out.reshape(2, -1).sum(1), 1, rtol=1e-5)


def test_only_what_is_needed_runs_and_values_are_freed() -> None:
    g = Graph.parse(CHAIN)
    x = np.ones((1, 3, 5, 5), np.float32)
    assert [n.name for n, _, _ in Executor(g, [Port(g.find("a"))]).walk({"data": x})] == ["data", "w", "a"]
    import weakref

    class Seen(np.ndarray):
        pass

    alive: dict[str, Any] = {}
    for node, _, outputs in Executor(g).walk({"data": x}):
        if node.op != "null":
            outputs[0]._real = outputs[0].real.view(Seen)
            alive[node.name] = weakref.ref(outputs[0]._real)
        if node.name == "out":
            del outputs
            assert alive["a"]() is None and alive["c"]() is not None


def test_weights_are_quantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    g, feeds, _ = quantized(INTEGER[0], "channel", qparams(8, False, 0.02), 32)
    calls: list[tuple] = []
    monkeypatch.setattr(reference, "quantize", lambda x, qp, r: calls.append(x.shape) or quantize(x, qp, r))
    executor = Executor(g)
    first, second = executor.run(feeds)[0], executor.run(feeds)[0]
    assert (first == second).all()
    assert len(calls) == 4  # data twice, weight and bias once


def test_a_decision_without_numbers_is_transparent() -> None:
    g, feeds = one("relu").graph()
    g.insert_after(g.find("x0"), "fake_quantize", quant=qparams(8, False, 1.0).spec)
    assert (run(g, feeds)[0] == np.maximum(feeds["x0"], 0)).all()


LENT = """
%data = input
%w = param float32 (2, 3)
%odd = MyOp(%data, %w)
%r = Activation(%odd) {act_type=relu}
%n = Activation(%data) {act_type=tanh}
return %r, %n
"""


def test_an_op_without_a_kernel_is_lent() -> None:
    g = Graph.parse(LENT)
    x = np.arange(-3, 3, dtype=np.float32).reshape(2, 3)
    asked = []

    def lend(node: Node, inputs: Sequence[np.ndarray], fixed: Sequence[bool]) -> list[np.ndarray]:
        asked.append((node.name, list(fixed)))
        return [inputs[0] * 2 + inputs[1]]

    found = Executor(g, run_op=lend).run({"data": x})
    assert (found[0] == np.maximum(x * 2 + g.params["w"], 0)).all()
    assert (found[1] == np.tanh(x)).all()
    assert asked == [("odd", [False, True])]


def test_what_its_reader_decides_on_is_lent_with_the_reader() -> None:
    g = Graph.parse("%data = input\n%begin = _zeros() {shape=(0, 3)}\n%sum = broadcast_add(%data, %begin)\nreturn %sum")

    def lend(node: Node, inputs: Sequence[np.ndarray | Node], fixed: Sequence[bool]) -> list[np.ndarray]:
        assert (node.name, inputs[1]) == ("sum", g.find("begin"))
        return [inputs[0] + 1]

    assert (Executor(g, run_op=lend).run({"data": np.ones((2, 3))})[0] == 2).all()
    with pytest.raises(GraphError, match="begin:_zeros: found shape"):
        Executor(g).run({"data": np.ones((2, 3))})


def test_what_cannot_be_lent_is_unknown_with_all_that_depends_on_it() -> None:
    g = Graph.parse(LENT)

    def refuse(*_: object) -> list[np.ndarray]:
        raise UnsupportedError("no")

    executor = Executor(g, run_op=refuse)
    assert list(executor.known_tensors({"data": np.ones((2, 3))})) == [Port(g.find("n"))]
    with pytest.raises(UnsupportedError, match="r: its value is unknown"):
        executor.run({"data": np.ones((2, 3))})


def test_errors_name_the_node() -> None:
    g = Graph.parse("%data = input\n%odd = MyOp(%data)\nreturn %odd")
    with pytest.raises(UnsupportedError, match=r"odd:MyOp.*kernel\('MyOp'\)"):
        run(g, {"data": np.ones(3)})
    with pytest.raises(DataError, match="want also data"):
        run(g, {"dta": np.ones(3)})
    g = Graph.parse(CHAIN)
    with pytest.raises(GraphError, match=r"a:Convolution: found weight \(4, 3, 3, 3\), want \(4, 2, 3, 3\)"):
        run(g, {"data": np.ones((1, 2, 5, 5))})
    stranger = Graph.parse(CHAIN)
    with pytest.raises(GraphError, match="outside the graph"):
        Executor(g, [Port(stranger.find("a"))])


def test_a_kernel_can_be_added_and_its_failure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KERNELS, "MyOp", raising=False)

    @kernel("MyOp")
    def my_op(node: Node, x: np.ndarray) -> np.ndarray:
        return x.reshape(2, -1)

    monkeypatch.setitem(KERNELS, "MyOp", my_op)
    g = Graph.parse("%data = input\n%odd = MyOp(%data)\nreturn %odd")
    assert run(g, {"data": np.arange(4)})[0].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(GraphError, match="odd:MyOp: failed on inputs of"):
        run(g, {"data": np.arange(3)})
    KERNELS.pop("MyOp")


# ---- real networks --------------------------------------------------------------------------------------------------

@pytest.mark.mxnet
@pytest.mark.cases("squeezenet1.1", "mobilenetv1_0.75_192_bn", "imagenet1k_sample/val.rec")
@pytest.mark.parametrize("name,size,preprocess", [
    ("squeezenet1.1", 224, Preprocess(crop=224, bgr=True, mean=(104.00698793, 116.66876762, 122.67891434))),
    ("mobilenetv1_0.75_192_bn", 192, Preprocess(crop=192, mean=(128.0,) * 3, std=(128.0,) * 3))])
def test_real_network_equals_mxnet(name: str, size: int, preprocess: Preprocess) -> None:
    g = load(f"{CASES / name / name}-symbol.json", f"{CASES / name / name}-0000.params")
    x = np.concatenate([b.feeds["data"] for b in open_data(IMAGES, preprocess, select="::500", limit=2)])
    assert x.shape == (2, 3, size, size)
    executor = Executor(g)
    executor.run({"data": x[:1]})
    found: list[np.ndarray] = []
    assert calls(lambda: found.extend(executor.run({"data": x}))) < 500 * len(g)  # no loop over values
    want = mxnet_runtime.run(g, {"data": x})[0]
    assert want.std(0).max() > 0
    assert np.abs(found[0] - want).max() <= 1e-4 * np.abs(want).max()
