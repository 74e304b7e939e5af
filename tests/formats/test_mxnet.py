"""MXNet checkpoints: every generation of files in, MXNet's own bytes out."""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
import time

import numpy as np
import pytest
from checkpoints import GENERATIONS, arrays, doc, generation, null
from helpers import CASES, MXNET, run_mxnet

from qgraph.errors import FormatError, GraphError, MissingDependencyError, OptionError, QGraphError, UnsupportedError
from qgraph.files import write_files
from qgraph.formats.gluon import from_gluon
from qgraph.formats.mxnet import load
from qgraph.formats.mxnet_writer import lower_float, save, split_params, to_json, to_mxnet
from qgraph.formats.ndarray import dump_params, read_params, write_params
from qgraph.ir import ops
from qgraph.ir.graph import Fused, Graph, Port
from qgraph.quant.spec import QSpec

CASE_NAMES = ["squeezenet1.1", "mobilenetv1_0.75_192_bn", "cifar_resnet20_v1"]
SIZES = {"squeezenet1.1": 224, "mobilenetv1_0.75_192_bn": 192, "cifar_resnet20_v1": 32}


def case(name: str) -> str:
    return str(CASES / name / name)


EXPECTED = """\
%data = input {__shape__=(16, 3, 8, 8)}
%conv_weight = param float32 (4, 3, 3, 3)
%conv = Convolution(%data, %conv_weight) {kernel=(3,3) no_bias=True num_filter=4}
%bn_gamma = param float32 (4)
%bn_beta = param float32 (4)
%bn_moving_mean = param float32 (4)
%bn_moving_var = param float32 (4)
%bn = BatchNorm(%conv, %bn_gamma, %bn_beta, %bn_moving_mean, %bn_moving_var) {eps=0.001}
%softmax_label = input
%softmax = SoftmaxOutput(%bn, %softmax_label) {multi_output=True}
return %softmax
"""


# ---- symbols in -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key", GENERATIONS)
def test_every_generation_gives_the_same_graph(key):
    g = load(generation(key), arrays())
    assert g.text().replace("(4,)", "(4)") == EXPECTED
    arg, aux = split_params(g)
    assert set(arg) == {"conv_weight", "bn_gamma", "bn_beta"} and list(aux) == ["bn_moving_mean", "bn_moving_var"]


def test_half_precision_becomes_float32_throughout() -> None:
    nodes = [null("data"), {"op": "Cast", "name": "half", "attrs": {"dtype": "float16"}, "inputs": [[0, 0, 0]]},
             null("w"), {"op": "elemwise_mul", "name": "out", "inputs": [[1, 0, 0], [2, 0, 0]]}]
    g = load({"nodes": nodes, "arg_nodes": [0, 2], "heads": [[3, 0, 0]], "attrs": {"mxnet_version": ["int", 10901]}},
             {"w": np.full((2, 3), 2, np.float16)})
    assert g.find("half").attrs == {"dtype": "float32"} and g.params["w"].dtype == np.float32


@pytest.mark.parametrize("key", GENERATIONS)
def test_symbol_may_be_text_dict_path_or_mx_symbol(key, tmp_path):
    text = json.dumps(generation(key))
    (tmp_path / "m-symbol.json").write_text("\ufeff" + text, encoding="utf-8")

    class Symbol:
        def tojson(self):
            return text

    want = load(generation(key)).text()
    for symbol in (text, "\n " + text, tmp_path / "m-symbol.json", str(tmp_path / "m-symbol.json"), Symbol()):
        assert load(symbol).text() == want


@pytest.mark.mxnet
def test_upgrade_of_0_8_agrees_with_mxnet():
    import mxnet as mx
    old = generation("param")
    old["nodes"][-1]["op"] = "Softmax"  # the old alias
    old["nodes"][-1]["param"] = {}
    old["nodes"].insert(6, {"op": "LeakyReLU", "name": "prelu", "param": {"act_type": "prelu"}, "inputs": [[5, 0]]})
    old["nodes"][-1]["inputs"] = [[6, 0]]
    old["heads"] = [[7, 0]]
    theirs = json.loads(mx.sym.load_json(json.dumps(old)).tojson())
    ours = json.loads(to_json(load(old)))

    def shape(d):
        return [(ops.ALIASES.get(n["op"], n["op"]), n["name"], [i[:2] for i in n["inputs"]]) for n in d["nodes"]]

    assert shape(ours) == shape(theirs)
    assert len(shape(ours)) == 12
    assert ours["heads"] == theirs["heads"] and ours["node_row_ptr"] == theirs["node_row_ptr"]


def test_hidden_attributes_are_dropped_and_old_argmax_is_mended():
    nodes = [null("data"), {"op": "argmax", "name": "a", "inputs": [[0, 0, 0]],
                            "attr": {"axis": "-1", "keepdims": "1", "mirror_stage": "1", "__x__": "2",
                                     "bias_wd_mult": "0"}}]
    assert load(doc(nodes, [[1, 0, 0]], 904)).find("a").attrs == {"keepdims": "1"}
    assert load(doc(nodes, [[1, 0, 0]], 905)).find("a").attrs == {"axis": "-1", "keepdims": "1"}


def test_duplicate_names():
    relu = {"op": "relu", "inputs": [[0, 0, 0]], "name": "a"}
    nodes = [null("x"), relu, {**relu, "inputs": [[1, 0, 0]]}, {**relu, "name": "a_1", "inputs": [[2, 0, 0]]},
             null("x"), {"op": "elemwise_add", "name": "x", "inputs": [[3, 0, 0], [4, 0, 0]]},
             {**relu, "name": "", "inputs": [[5, 0, 0]]}]
    g = load(doc(nodes, [[6, 0, 0]]), {"x": np.ones(3)})
    assert [n.name for n in g.toposort()] == ["x", "a", "a_2", "a_1", "x_1", "relu"]
    add = g.find("x_1")
    assert [p.node.name for p in g.inputs(add)] == ["a_1", "x"] and g.params["x"].dtype == np.float32


def test_multi_output_and_unread_nodes():
    nodes = [null("data"), {"op": "SliceChannel", "name": "s", "attrs": {"num_outputs": "3"}, "inputs": [[0, 0, 0]]},
             {"op": "_custom_thing", "name": "c", "inputs": [[1, 1, 0]]}, null("stray"),
             {"op": "relu", "name": "dead", "inputs": [[3, 0, 0]]}]
    g = load(doc(nodes, [[2, 4, 0], [1, 2, 0]]))
    assert {n.name: n.n_out for n in g.toposort()} == {"data": 1, "s": 3, "c": 5}
    assert g.heads == [Port(g.find("c"), 4), Port(g.find("s"), 2)] and len(g) == 3


def test_attribute_names_that_are_python_words():
    nodes = [null("data"), {"op": "Custom", "name": "c", "attrs": {"name": "n", "op": "o", "inputs": "i", "self": "s"},
                            "inputs": [[0, 0, 0]]}]
    assert load(doc(nodes, [[1, 0, 0]])).find("c").attrs == {"name": "n", "op": "o", "inputs": "i", "self": "s"}


@pytest.mark.parametrize("node, words", [
    ({"op": "_foreach", "subgraphs": []}, "control flow"),
    ({"op": "_while_loop"}, "control flow"),
    ({"op": "_CachedOp", "subgraphs": [doc([null("x")], [[0, 0, 0]])]}, "subgraph"),
    ({"op": "relu", "attrs": {"__storage_type__": "1"}}, "row_sparse"),
    ({"op": "cast_storage"}, "sparse"),
    ({"op": "fake_quantize"}, "qgraph's own"),
])
def test_refused_by_name(node, words):
    with pytest.raises(UnsupportedError, match=rf"bad.*{words}"):
        load(doc([null("data"), {"name": "bad", "inputs": [[0, 0, 0]], **node}], [[1, 0, 0]]))


@pytest.mark.parametrize("text, words", [
    ("{", "not JSON"), ("[]", "no such file"), ('{"nodes": 3}', 'list "nodes"'), ('{"nodes": []}', "heads"),
    ('{"nodes": [], "heads": [[0,0,0]]}', "found node 0"),
    ('{"nodes": [{"op":"null","name":"a","inputs":[]}], "heads": [[0,0,0,0]]}', "want .node, output"),
    ('{"nodes": [{"op":"null","name":"a","inputs":[]}], "heads": [[true,0]]}', "want .node, output"),
    ('{"nodes": [{"op":"null","name":"a","inputs":[]}], "heads": [[0,1]]}', "a variable must have"),
    ('{"nodes": [{"op":"null","name":"","inputs":[]}], "heads": [[0,0]]}', "a variable must have"),
    ('{"nodes": [{"op":"relu","name":"a","inputs":[[0,0]]}], "heads": [[0,0]]}', "found node 0"),
    ('{"nodes": [{"op":"relu","name":"a","inputs":[[1,0]]},{"op":"null","name":"x"}], "heads": [[0,0]]}', "node 1"),
    ('{"nodes": [{"op":"null","name":"x"},{"op":"relu","name":"a","inputs":[[-1,0]]}], "heads": [[1,0]]}', "node -1"),
    ('{"nodes": [{"op":"null","name":"x"}], "heads": [[-1,0]]}', "found node -1"),
    ('{"nodes": [{"op":"null","name":"x"}], "heads": [[0,-1]]}', "found output -1"),
    ('{"nodes": [{"op":"null","name":"a","attrs":{"k":1}}], "heads": [[0,0]]}', "want a string"),
    ('{"nodes": [{"op":"null","name":"a","attrs":[]}], "heads": [[0,0]]}', "want an object"),
    ('{"nodes": [{"op":"null","name":7}], "heads": [[0,0]]}', "two strings"),
    ('{"nodes": [{"op":"null","name":"a"}], "heads": [[0,0]], "attrs": {"mxnet_version": 3}}', "mxnet_version"),
    ('{"nodes": [{"op":"null","name":"a"}], "heads": [[0,%s]]}' % ("9" * 5000), "5000 digits"),
    ('{"nodes": [{"op":"null","name":"a"}], "heads": [[0,99999999]]}', "found output 99999999"),
    ('{"nodes": [{"op":"null","name":"\\ud800"}], "heads": [[0,0]]}', "surrogates"),
    ('{"nodes": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    (json.dumps(doc([null("d"), {"op": "elemwise_add", "name": "a", "inputs": [[0, 0, 0]]}], [[1, 0, 0]])), "1 inputs"),
    (json.dumps(doc([null("d"), {"op": "SliceChannel", "name": "a", "attrs": {"num_outputs": "9" * 9},
                                 "inputs": [[0, 0, 0]]}], [[1, 0, 0]])), "num_outputs"),
    (json.dumps(doc([null("d"), null("w"), {"op": "Convolution", "name": "a", "attrs": {"no_bias": "maybe"},
                                            "inputs": [[0, 0, 0], [1, 0, 0]]}], [[2, 0, 0]])), "no_bias"),
])
def test_broken_symbols(text, words):
    with pytest.raises(FormatError, match=words):
        load(text)


def test_broken_arguments(tmp_path):
    loop: dict = {}
    loop["nodes"] = loop
    for symbol in (loop, {"nodes": {1, 2}}, 3, None, tmp_path, tmp_path / "no.json", "a\0b"):
        with pytest.raises(FormatError):
            load(symbol)
    (tmp_path / "latin.json").write_bytes(b'{"nodes": "\xff"}')
    with pytest.raises(FormatError, match="latin.json: byte 11: not UTF-8"):
        load(tmp_path / "latin.json")
    for params in (3, {"x": object()}, {1: np.ones(1)}, {"arg:x": np.ones(1), "aux:x": np.ones(1)}, {"x": ["a"]}):
        with pytest.raises(FormatError):
            load(generation("attrs"), params)


def test_missing_and_unused_arrays(caplog):
    some = arrays()
    del some["arg:conv_weight"], some["aux:bn_moving_var"]
    with pytest.raises(FormatError, match=r"2 of .*: conv_weight \(weight of conv\), bn_moving_var \(moving_var of"):
        load(generation("param"), some)
    with caplog.at_level(logging.INFO, "qgraph"):
        load(generation("param"), {**arrays(), "arg:other": np.ones(2)})
    assert "other" in caplog.text
    with pytest.raises(FormatError, match="save_parameters"):
        load(generation("param"), {"features.0.weight": np.ones(2)})


# ---- symbols out ----------------------------------------------------------------------------------------------------

def own_json(text: str) -> str:
    import mxnet as mx
    return mx.sym.load_json(text).tojson()


@pytest.mark.mxnet
@pytest.mark.parametrize("key", GENERATIONS)
def test_text_is_mxnets_own(key):
    text = to_json(load(generation(key), arrays()))
    assert own_json(text) == text
    assert to_json(load(text, arrays())) == text


@pytest.mark.mxnet
def test_text_is_mxnets_own_with_odd_names_and_long_lists():
    import mxnet as mx
    data = mx.sym.var('d"a\\t\ta\n\x01é')
    parts = [mx.sym.Activation(data, act_type="tanh", name=f"t{i}") for i in range(12)]
    sym = mx.sym.Concat(*parts, name="cat")
    extra = [mx.sym.Pooling(sym, kernel=(2, 2), pool_type=kind, name=kind) for kind in ("max", "avg")]
    extra += [mx.sym.LRN(sym, nsize=3), mx.sym.Dropout(sym), mx.sym.L2Normalization(sym), mx.sym.InstanceNorm(sym),
              mx.sym.LayerNorm(sym), mx.sym.SliceChannel(sym, num_outputs=4)[3], mx.sym.contrib.quantize_v2(sym)[0],
              mx.sym.Pooling(sym, global_pool=True, pool_type="max"), mx.sym.LeakyReLU(sym, act_type="rrelu")]
    text = mx.sym.Group(extra).tojson()
    g = load(text)
    assert own_json(to_json(g)) == to_json(g)
    assert json.loads(to_json(g), strict=False)["node_row_ptr"] == json.loads(text, strict=False)["node_row_ptr"]
    assert g.data_inputs()[0].name == 'd"a\\t\ta\n\x01é'


def fused_symbol():
    import mxnet as mx
    data = mx.sym.var("data")
    conv = mx.sym.Convolution(data, kernel=(3, 3), num_filter=4, name="conv")
    relu = mx.sym.Activation(mx.sym.BatchNorm(conv, name="bn", fix_gamma=False), act_type="relu", name="relu")
    return mx, relu, relu.get_backend_symbol("MKLDNN")


@pytest.mark.mxnet
def test_fused_subgraphs_are_carried():
    mx, plain, fused = fused_symbol()
    values = {f"{k}": np.random.default_rng(1).uniform(0.5, 1, s).astype(np.float32) for k, s in zip(
        ["conv_weight", "conv_bias", "bn_gamma", "bn_beta", "bn_moving_mean", "bn_moving_var"],
        [(4, 3, 3, 3)] + [(4,)] * 5)}
    g = load(fused, values)
    node = g.heads[0].node
    assert node.op == "_sg_mkldnn_conv"
    assert json.loads(node.attrs["__subgraphs__"])[0]["nodes"][3]["op"] == "Convolution"
    text = to_json(g)
    assert own_json(text) == text and to_json(load(text, values)) == text
    assert sorted(split_params(g)[1]) == ["bn_moving_mean", "bn_moving_var"]
    feeds = {"data": np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)}
    np.testing.assert_allclose(run_mxnet(g, feeds)[0], run_mxnet(load(plain, values), feeds)[0], rtol=1e-4, atol=1e-5)
    g.heads[0].node.attrs["__subgraphs__"] = '[{"nodes": 1}]'
    with pytest.raises(FormatError, match="nodes"):
        to_json(g)


def activation_graph() -> Graph:
    g = Graph()
    data = g.add("null", name="data")
    weight = g.add_param("w", np.ones((2, 3, 1, 1), np.float32))
    conv = g.add("Convolution", [data, weight], "conv", origin=["conv0", "relu0"], kernel=(1, 1), num_filter=2,
                 no_bias=True)
    add = g.add("elemwise_add", [conv, conv], "add", origin=["add", "w"])
    total = g.add("broadcast_add", [add, conv], "sum")
    conv.fused, add.fused, total.fused = Fused("relu"), Fused("clip", 0, 6), Fused("sigmoid")
    g.heads = [Port(total), Port(conv)]
    return g


def test_lower_float():
    g = activation_graph()
    before = g.digest()
    assert lower_float(g).text() == """\
%data = input
%w = param float32 (2, 3, 1, 1)
%conv = Convolution(%data, %w) {kernel=(1, 1) no_bias=True num_filter=2}
%relu0 = Activation(%conv) {act_type=relu}
%add = elemwise_add(%relu0, %relu0)
%add_act = clip(%add) {a_max=6 a_min=0}
%sum = broadcast_add(%add_act, %relu0)
%sum_act = Activation(%sum) {act_type=sigmoid}
return %sum_act, %relu0
"""
    assert g.digest() == before
    g.insert_after(g.find("conv"), "fake_quantize", quant=QSpec())
    with pytest.raises(UnsupportedError, match="freeze"):
        to_json(g)


@pytest.mark.mxnet
def test_lowered_activations_run_in_mxnet():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    conv = np.maximum(x.sum(1, keepdims=True).repeat(2, 1), 0)
    want = 1 / (1 + np.exp(-(np.clip(conv * 2, 0, 6) + conv)))
    got = run_mxnet(activation_graph(), {"data": x})
    np.testing.assert_allclose(got[0], want, rtol=1e-5)
    np.testing.assert_allclose(got[1], conv, rtol=1e-5, atol=1e-6)


@pytest.mark.mxnet
def test_integer_params_bind(tmp_path):
    import mxnet as mx
    g = Graph()
    codes = g.add_param("codes", np.arange(-6, 6, dtype=np.int8).reshape(4, 3))
    scale = g.add_param("scale", np.float32(0.5))
    cast = g.add("broadcast_mul", [g.add("Cast", [codes], "cast", dtype="float32"), scale], "mul")
    g.heads = [Port(g.add("broadcast_add", [g.add("null", name="data"), cast], "add"))]
    save(g, tmp_path / "m")
    mod = mx.mod.Module.load(str(tmp_path / "m"), 0, label_names=None)
    mod.bind([("data", (4, 3))], for_training=False)
    mod.forward(mx.io.DataBatch([mx.nd.zeros((4, 3))]))
    np.testing.assert_array_equal(mod.get_outputs()[0].asnumpy(), g.params["codes"] * np.float32(0.5))
    back = load(tmp_path / "m-symbol.json", tmp_path / "m-0000.params")
    assert back.params["codes"].dtype == np.int8 and back.params["scale"].shape == (1,)


@pytest.mark.cases(*CASE_NAMES)
@pytest.mark.parametrize("name", CASE_NAMES)
def test_cases_round_trip(name, tmp_path):
    """Without MXNet in our own reader alone."""
    prefix = case(name)
    g = load(prefix + "-symbol.json", prefix + "-0000.params")
    symbol_path, params_path = save(g, tmp_path / "m", epoch=3)
    assert params_path.endswith("m-0003.params")
    again = load(symbol_path, params_path)
    assert again.digest() == g.digest()
    save(again, tmp_path / "n", epoch=3)
    for suffix in ("-symbol.json", "-0003.params"):
        assert (tmp_path / f"m{suffix}").read_bytes() == (tmp_path / f"n{suffix}").read_bytes()
    if not MXNET:
        return
    import mxnet as mx

    text = (tmp_path / "m-symbol.json").read_text(encoding="utf-8")
    assert own_json(text) == text
    x = np.random.default_rng(0).normal(size=(2, 3, SIZES[name], SIZES[name])).astype(np.float32)
    got = run_mxnet(again, {"data": x})
    sym, arg, aux = mx.model.load_checkpoint(prefix, 0)
    want = bind_mxnet(sym, arg, aux, x)
    assert np.abs(want[0] - want[1]).max() > 1e-3 * np.abs(want).max()
    np.testing.assert_array_equal(got[0], want)
    sym, arg, aux = mx.model.load_checkpoint(str(tmp_path / "m"), 3)
    np.testing.assert_array_equal(bind_mxnet(sym, arg, aux, x), want)
    block = mx.gluon.SymbolBlock.imports(symbol_path, ["data"], params_path)
    np.testing.assert_allclose(block(mx.nd.array(x)).asnumpy(), want, rtol=1e-4, atol=1e-4)


def bind_mxnet(sym, arg, aux, x):
    """The first output, op by op, by another way than `run_mxnet`."""
    import mxnet as mx

    before = os.environ.get("MXNET_SUBGRAPH_BACKEND")
    os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"
    try:
        mod = mx.mod.Module(sym, label_names=None)
        mod.bind([("data", x.shape)], for_training=False)
    finally:
        os.environ.pop("MXNET_SUBGRAPH_BACKEND")
        if before is not None:
            os.environ["MXNET_SUBGRAPH_BACKEND"] = before
    mod.set_params(arg, aux)
    mod.forward(mx.io.DataBatch([mx.nd.array(x)]))
    return mod.get_outputs()[0].asnumpy()


def test_without_mxnet(monkeypatch):
    monkeypatch.setitem(sys.modules, "mxnet", None)
    g = load(generation("param"), arrays())
    assert to_json(g)
    with pytest.raises(MissingDependencyError, match=r'pip install "qgraph\[mxnet\]"'):
        to_mxnet(g)
    with pytest.raises(MissingDependencyError):
        from_gluon(None)


@pytest.mark.slow
def test_ten_times_the_nodes_are_read_and_written_in_ten_times_the_time(tmp_path):
    def seconds(count: int) -> float:
        nodes = [null("data")] + [{"op": "relu", "name": f"r{i}", "inputs": [[i, 0, 0]]} for i in range(count)]
        (tmp_path / "s.json").write_text(json.dumps(doc(nodes, [[count, 0, 0]])))
        start = time.process_time()
        g = load(tmp_path / "s.json", {})
        assert len(g) == count + 1
        save(g, tmp_path / "out")
        return time.process_time() - start

    small, large = seconds(4_000), seconds(40_000)
    # ten times the nodes: a quadratic step would take 100 times as long; caches and a busy machine cost a factor of 2
    assert large < 30 * max(small, 0.05)


# ---- params ---------------------------------------------------------------------------------------------------------

def list_file(items: list[bytes], names: list[str] | None = None) -> bytes:
    names = [f"n{i}" for i in range(len(items))] if names is None else names
    return (struct.pack("<QQQ", 0x112, 0, len(items)) + b"".join(items) + struct.pack("<Q", len(names))
            + b"".join(struct.pack("<Q", len(n.encode())) + n.encode() for n in names))


DATA = np.arange(6, dtype=np.float32).reshape(2, 3)
TAIL = struct.pack("<iii", 1, 0, 0) + DATA.tobytes()
V0 = struct.pack("<III", 2, 2, 3) + TAIL
V1 = struct.pack("<Iiqq", 0xF993FAC8, 2, 2, 3) + TAIL
V2 = struct.pack("<Iiiqq", 0xF993FAC9, 0, 2, 2, 3) + TAIL
V3 = struct.pack("<Iiiqq", 0xF993FACA, 0, 2, 2, 3) + TAIL
SCALAR = struct.pack("<Iiiiiif", 0xF993FACA, 0, 0, 1, 0, 0, 2.5)
BFLOAT16 = struct.pack("<Iiiqiii2s", 0xF993FAC9, 0, 1, 1, 1, 0, 12, b"ab")
CSR = (struct.pack("<Iiiqiqq", 0xF993FAC9, 2, 1, 1, 2, 2, 3) + struct.pack("<iii", 1, 0, 0)
       + struct.pack("<iiqiiq", 6, 1, 3, 6, 1, 1) + struct.pack("<f4q", 1.0, 0, 1, 1, 2))


def test_every_array_generation():
    found = read_params(list_file([V0, V1, V2, V3]))
    assert list(found) == ["n0", "n1", "n2", "n3"]
    for array in found.values():
        np.testing.assert_array_equal(array, DATA)
        assert array.dtype == np.float32
    assert read_params(list_file([SCALAR]))["n0"] == np.float32(2.5)
    never = [struct.pack("<I", 0), struct.pack("<Ii", 0xF993FAC8, 0), struct.pack("<Iii", 0xF993FACA, 0, -1)]
    assert [a.shape for a in read_params(list_file(never)).values()] == [(0,)] * 3
    assert list(read_params(list_file([V0, V2], []))) == ["0", "1"]


@pytest.mark.mxnet
def test_generations_are_mxnets(tmp_path):
    import mxnet as mx
    (tmp_path / "old").write_bytes(list_file([V0, V1, V2]))
    for array in mx.nd.load(str(tmp_path / "old")).values():
        np.testing.assert_array_equal(array.asnumpy(), DATA)
    with mx.util.np_shape(True):
        mx.nd.save(str(tmp_path / "np"), {"a": mx.nd.array(DATA), "s": mx.np.array(2.5).as_nd_ndarray()})
    found = read_params(tmp_path / "np")
    np.testing.assert_array_equal(found["a"], DATA)
    assert found["s"].shape == () and found["s"] == 2.5
    sparse = {kind: mx.nd.array(DATA).tostype(kind) for kind in ("csr", "row_sparse")}
    mx.nd.waitall()  # MXNet would save what is not computed yet
    mx.nd.save(str(tmp_path / "csr"), {"dense": mx.nd.ones(2), "matrix": sparse["csr"]})
    with pytest.raises(UnsupportedError, match="csr: matrix: found csr storage"):
        read_params(tmp_path / "csr")
    mx.nd.save(str(tmp_path / "rsp"), {"rows": sparse["row_sparse"], "dense": mx.nd.ones(2)})
    with pytest.raises(UnsupportedError, match="rsp: rows: found row_sparse storage"):
        read_params(tmp_path / "rsp")
    mx.nd.save(str(tmp_path / "bf16"), {"brain": mx.nd.array(DATA).astype(np.dtype([("bfloat16", np.uint16)]))})
    with pytest.raises(UnsupportedError, match="bf16: brain: found bfloat16"):
        read_params(tmp_path / "bf16")


DTYPES = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool"]


@pytest.mark.mxnet
def test_writing_is_bit_identical_to_mxnet(tmp_path):
    import mxnet as mx
    rng = np.random.default_rng(0)
    values = {f"arg:{dtype}é": (rng.normal(size=(3, 1, 4)) * 50).astype(dtype) for dtype in DTYPES}
    values["scalar"] = np.float32(3)
    values["strided"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    mx.nd.save(str(tmp_path / "theirs"), {k: mx.nd.array(np.atleast_1d(v), dtype=v.dtype) for k, v in values.items()})
    write_params(tmp_path / "ours", values)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    back = read_params(tmp_path / "ours")
    assert list(back) == list(values)
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], np.atleast_1d(value))
        assert back[name].dtype == value.dtype
    write_params(tmp_path / "empty", {})
    mx.nd.save(str(tmp_path / "nothing"), {})
    assert (tmp_path / "empty").read_bytes() == (tmp_path / "nothing").read_bytes()
    assert read_params(tmp_path / "empty") == {}
    for bad in (np.empty((0, 3), np.float32), np.array(["a"]), np.ones(2, complex)):
        with pytest.raises(UnsupportedError, match="odd"):
            write_params(tmp_path / "bad", {"odd": bad})
    assert not (tmp_path / "bad").exists()


def test_loading_widens_floats_only():
    values = {"conv_weight": np.ones((4, 3, 3, 3), np.float16), "bn_gamma": np.ones(4, np.int8),
              **{f"bn_{n}": np.ones(4) for n in ("beta", "moving_mean", "moving_var")}}
    g = load(generation("param"), values)
    assert {k: v.dtype.name for k, v in g.params.items()} == {
        "conv_weight": "float32", "bn_gamma": "int8", "bn_beta": "float32", "bn_moving_mean": "float32",
        "bn_moving_var": "float32"}


HUGE = struct.pack("<Iii4q", 0xF993FAC9, 0, 4, 1 << 40, 1 << 40, 1 << 40, 1 << 40) + TAIL


@pytest.mark.parametrize("content, words", [
    (b"", "byte 0: truncated: found 0 bytes, want 24"),
    (b"PK\3\4" + bytes(60), "byte 0: not an MXNet params file"),
    (struct.pack("<QQQ", 0x112, 0, 1 << 62), "byte 16: found a claim of 4611686018427387904 arrays"),
    (list_file([V2])[:60], "byte 52: truncated: found 8 bytes, want 12|byte 60|bytes left"),
    (list_file([HUGE]), "bytes left"),
    (list_file([struct.pack("<Iii2q", 0xF993FAC9, 0, 2, 0, 1 << 62) + TAIL]), "bytes left"),
    (list_file([struct.pack("<Iiiq", 0xF993FAC9, 0, 1, -3) + TAIL]), "no negative dimension"),
    (list_file([struct.pack("<Iii", 0xF993FAC9, 0, 33) + bytes(400)]), "33 dimensions"),
    (list_file([struct.pack("<Iii", 0xF993FAC9, 7, 1) + bytes(40)]), "storage type 7"),
    (list_file([struct.pack("<I", 0xF993FACB) + bytes(40)]), "array magic 0xf993facb"),
    (list_file([V2[:-36] + struct.pack("<iii", 1, 0, 77) + bytes(24)]), "type flag 77"),
    (list_file([V2], ["a", "b"]), "2 names for 1 arrays"),
    (list_file([V2, V2], ["a", "a"]), "'a' twice"),
    (list_file([V2])[:-2] + b"\xff\xff", "not UTF-8"),
    (list_file([V2])[:-10] + struct.pack("<Q", 1 << 60) + b"n0", "want 1152921504606846976 of a name"),
    (list_file([BFLOAT16], ["brain"]), "brain: found bfloat16"),
    (list_file([V2, CSR], ["d", "matrix"]), "matrix: found csr"),
])
def test_broken_params(content, words, tmp_path):
    (tmp_path / "x.params").write_bytes(content)
    with pytest.raises((FormatError, UnsupportedError), match=rf"x\.params: (.*)({words})"):
        read_params(tmp_path / "x.params")
    with pytest.raises((FormatError, UnsupportedError), match=words):
        read_params(content)


def test_params_places(tmp_path):
    for path in (tmp_path, tmp_path / "none", "a\0b", "/dev/zero"):
        with pytest.raises(FormatError):
            read_params(path)


def test_bytes_behind_the_end_are_ignored_loudly(caplog):
    read_params(list_file([V2]) + b"tail")
    assert "4 bytes behind" in caplog.text


# ---- Gluon ----------------------------------------------------------------------------------------------------------

@pytest.mark.mxnet
def test_from_gluon_equals_export(tmp_path):
    import mxnet as mx
    from mxnet.gluon import nn

    net = nn.HybridSequential()
    net.add(nn.Conv2D(4, 3, activation="relu"), nn.BatchNorm(), nn.GlobalAvgPool2D(), nn.Dense(5))
    with pytest.raises(OptionError, match="initialize"):
        from_gluon(nn.Dense(3, in_units=4))
    mx.random.seed(0)
    net.initialize(mx.init.Xavier())
    with pytest.raises(OptionError, match="give the shapes"):
        from_gluon(net)
    g = from_gluon(net, (2, 3, 8, 8))
    assert not net._active and g.data_inputs()[0].attrs == {"__shape__": "(2, 3, 8, 8)"}
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    want = net(mx.nd.array(x)).asnumpy()
    assert np.abs(want[0] - want[1]).max() > 1e-4
    np.testing.assert_allclose(run_mxnet(g, {"data": x})[0], want, rtol=1e-5, atol=1e-6)
    net.hybridize()
    net(mx.nd.array(x))
    net.export(str(tmp_path / "e"))
    exported = load(tmp_path / "e-symbol.json", tmp_path / "e-0000.params")
    assert from_gluon(net).digest() == exported.digest()


@pytest.mark.parametrize("where", ["input", "head"])
def test_an_output_that_a_layer_does_not_have(where, tmp_path):
    body = {"nodes": [{"op": "null", "name": n, "inputs": []} for n in ("data", "w")]
            + [{"op": "FullyConnected", "name": "d", "attrs": {"num_hidden": "3", "no_bias": "True"},
                "inputs": [[0, 0, 0], [1, 0, 0]]},
               {"op": "Activation", "name": "a", "attrs": {"act_type": "relu"},
                "inputs": [[2, int(where == "input"), 0]]}],
            "arg_nodes": [0, 1], "heads": [[3, 0, 0]] if where == "input" else [[2, 3, 0]],
            "attrs": {"mxnet_version": ["int", 10901]}}
    path = tmp_path / "m-symbol.json"
    path.write_text(json.dumps(body))
    with pytest.raises(FormatError, match=r"\(d:FullyConnected\): its output [13] is read, but it has one"):
        load(path)


@pytest.mark.mxnet
def test_from_gluon_several_inputs_and_outputs():
    import mxnet as mx
    from mxnet.gluon import nn

    class Two(nn.HybridBlock):
        def __init__(self):
            super().__init__()
            self.dense = nn.Dense(3)

        def hybrid_forward(self, F, x, y):
            z = self.dense(x)
            return [z, (z + y, F.split(y, num_outputs=3, axis=1))]

    net = Two()
    net.initialize()
    g = from_gluon(net, (2, 4), (2, 3))
    assert [n.name for n in g.data_inputs()] == ["data0", "data1"] and len(g.heads) == 5
    assert [h.index for h in g.heads] == [0, 0, 0, 1, 2]
    named = from_gluon(net, {"left": (2, 4), "right": (2, 3)})
    assert [n.name for n in named.data_inputs()] == ["left", "right"]
    assert [n.name for n in from_gluon(net).data_inputs()] == ["data0", "data1"]
    with pytest.raises(UnsupportedError, match="1 symbols"):
        from_gluon(net, (2, 4))
    with pytest.raises(UnsupportedError, match="HybridBlock"):
        from_gluon(mx.gluon.Block())
    with pytest.raises(OptionError, match="positive"):
        from_gluon(net, (2, -4), (2, 3))


def test_a_block_inside_says_how_the_network_is_traced():
    mx = pytest.importorskip("mxnet")
    from contextlib import contextmanager

    from mxnet.gluon import nn

    from qgraph.formats.gluon import TRACING

    class Scaled(nn.HybridBlock):
        scale = None

        def hybrid_forward(self, F, x):
            return x if self.scale is None else F.broadcast_mul(x, F.var("scale", shape=(1, 3)))

    @contextmanager
    def tracing(block):
        assert block is net
        inner.scale = np.float32([[1, 2, 3]])
        yield {"scale": inner.scale}
        inner.scale = None

    inner, net = Scaled(), nn.HybridSequential()
    net.add(nn.Dense(3, in_units=4), inner)
    net.initialize()
    plain = from_gluon(net)
    setattr(inner, TRACING, tracing)
    scaled = from_gluon(net)
    assert inner.scale is None and not plain.nodes("broadcast_mul") and len(scaled.nodes("broadcast_mul")) == 1
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(run_mxnet(scaled, {"data": x})[0], net(mx.nd.array(x)).asnumpy() * np.float32([[1, 2, 3]]))


# ---- output files ---------------------------------------------------------------------------------------------------

def test_write_files(tmp_path):
    target = tmp_path / "real"
    target.write_bytes(b"old")
    os.chmod(target, 0o640)
    (tmp_path / "link").symlink_to(target)
    write_files({str(tmp_path / "link"): "é", str(tmp_path / "b"): lambda s: s.write(b"2"), str(tmp_path / "c"): b"3"})
    assert target.read_bytes() == "é".encode() and (tmp_path / "link").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c", "link", "real"]


def test_write_files_leaves_everything_untouched_on_error(tmp_path, monkeypatch):
    old = tmp_path / "a"
    old.write_bytes(b"old")

    def failing(error):
        def write(stream):
            stream.write(b"half")
            raise error
        return write

    for error, kind, words in [(OSError(28, "No space left on device"), QGraphError, "b: .*disk is full"),
                               (KeyboardInterrupt("c"), KeyboardInterrupt, "c"), (GraphError("m"), GraphError, "m")]:
        with pytest.raises(kind, match=words):
            write_files({str(old): b"new", str(tmp_path / "b"): failing(error)})
    with pytest.raises(QGraphError, match="does not exist; create it"):
        write_files({str(old): b"new", str(tmp_path / "no" / "b"): b""})
    (tmp_path / "d").mkdir()
    with pytest.raises(QGraphError, match="not a regular file"):
        write_files({str(old): b"new", str(tmp_path / "d"): b""})
    monkeypatch.setattr(os, "open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(QGraphError, match="no permission"):
        write_files({str(old): b"new"})
    assert old.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == ["a", "d"]


def test_dump_params_needs_only_a_stream():
    import io

    stream = io.BytesIO()
    dump_params(stream, {"a": DATA})
    np.testing.assert_array_equal(read_params(stream.getvalue())["a"], DATA)


