"""The passes that quantize: golden graphs, what each one promises in numbers, idempotence, errors. No MXNet needed.

A golden file lies in ``golden/quantization/<pass>``: comments, the graph before, ``# ---``, the graph after.  Comments
that say something to this test:

    # with option=value ...             options of the pass
    # range %x -1 2                     what calibration found: an entry of the table that the pass is given
    # feed %data (1, 4, 2, 2) 0.5 1     an input of the images that the pass is given: uniform between these numbers
    # values %w 1 2 -3                  of a parameter: before it is set to them, behind ``# ---`` they are wanted
    # original %w 1 2 -3                of a parameter of the float network that the pass is given
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from helpers import GOLDEN
from networks import steps, table, table_of

from qgraph.analysis.codes import drop_quantizers
from qgraph.analysis.observed import observed_ports
from qgraph.commands.line import bound
from qgraph.errors import CalibrationError, OptionError, PassError, UnsupportedError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import REGISTRY, Pass, PassManager, read_options
from qgraph.passes.bake_weights import BakeWeights
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.insert_fake_quantize import InsertFakeQuantize, layer_verdicts
from qgraph.passes.integer_flow import IntegerFlow
from qgraph.passes.quantize_bias import QuantizeBias
from qgraph.passes.share_scales import ShareScales
from qgraph.passes.signed_residual import SignedResidual
from qgraph.quant.spec import QParams, QSpec, fake_quantize
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.semantics.interpreter import run
from qgraph.targets.mxnet import int8 as mxnet_int8
from qgraph.targets.registry import TARGETS, get_target

FILES = sorted((GOLDEN / "quantization").glob("*/*.txt"))


def case_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def read_graph(text: str, word: str = "values") -> tuple[Graph, list[str]]:
    """(graph, names of the parameters whose values are given)"""
    g = Graph.parse(text)
    given = re.findall(rf"^# (?:{word}) %(\w+) (.+)$", text, re.M)
    for name, numbers in given:
        shape = g.params[name].shape
        g.params[name] = np.array(numbers.split(), np.float32).reshape(shape)
    return g, [name for name, _ in given]


def read_known(text: str) -> dict[str, Any]:
    """The table, the images and the float network."""
    original = read_graph(text, "values|original")[0] if "# original %" in text else None
    if original is not None:
        drop_quantizers(original)
    rng = np.random.default_rng(0)
    ranges = re.findall(r"^# range %(\w+) (\S+) (\S+)$", text, re.M)
    feeds = re.findall(r"^# feed %(\w+) \(([\d, ]+)\) (\S+) (\S+)$", text, re.M)
    entries = {name: (float(low), float(high)) for name, low, high in ranges}
    return {"original": original, "table": table(**entries) if entries else None,
            "feeds": {name: rng.uniform(float(low), float(high), tuple(map(int, shape.split(",")))).astype(np.float32)
                      for name, shape, low, high in feeds} or None}


def read_case(path: Path) -> tuple[Pass, Graph, Graph, list[str]]:
    """(pass, before, after, names of the parameters whose values are wanted)"""
    before, _, after = path.read_text().partition("# ---\n")
    words = [w for line in before.splitlines() if line.startswith("# with ") for w in line[7:].split()]
    options: dict[str, Any] = {"exclude": tuple(w[8:] for w in words if w.startswith("exclude="))}
    cls = REGISTRY[path.parent.name]
    options = {k: v for k, v in options.items() if v}
    options.update(read_options(cls, " ".join(w for w in words if not w.startswith("exclude="))))
    want, names = read_graph(after)
    return bound(cls(**options), **read_known(before)), read_graph(before)[0], want, names


# ---- golden files, idempotence, honesty -----------------------------------------------------------------------------

@pytest.mark.parametrize("path", FILES, ids=case_id)
def test_golden(path: Path) -> None:
    step, g, want, names = read_case(path)
    same = g.text() == want.text() and all(np.array_equal(g.params[n], want.params[n]) for n in names)
    digest = g.digest()
    changed = step.run(g)
    g.verify()
    assert g.text() == want.text()
    for name in names:
        assert np.array_equal(g.params[name], want.params[name]), (name, g.params[name].ravel().tolist())
    assert (changed == 0) == same == (g.digest() == digest)


def test_every_quantizing_pass_has_a_change_and_a_no_change_case() -> None:
    changes: dict[str, set[bool]] = {"equalize": set()}  # in the line of every target
    changes.update({name: set() for target in TARGETS for name in get_target(target).passes})
    for path in FILES:
        step, g, _, _ = read_case(path)
        changes[path.parent.name].add(step.run(g) > 0)
    float_passes = {"fuse-relu"}  # see test_float.py
    assert {name for name, seen in changes.items() if seen != {True, False}} == float_passes


@pytest.mark.parametrize("path", FILES, ids=case_id)
def test_a_second_run_changes_nothing(path: Path) -> None:
    step, g, _, _ = read_case(path)
    step.run(g)
    digest = g.digest()
    assert step.run(g) == 0 and g.digest() == digest


# Tengine's int8 models are so from inputs to outputs, and have no form of one op of these
CARRIED = [(name, target) for name in networks.NETWORKS for target in TARGETS
           if target != "tengine" or name not in ("float_between", "deconvolution", "upsampling")]


def all_large() -> tuple[Graph, dict[str, np.ndarray]]:
    """Activations near the top of their range, read with weights of one sign in pairs: products overflow 16 bits."""
    n = networks.Net(2, channels=8, size=8)
    eye = n.g.add_param("eye", np.eye(8, dtype=np.float32)[:, :, None, None])
    signs = np.repeat(n.rng.choice([-1, 1], (6, 4)), 2, axis=1)[:, :, None, None]
    w = n.g.add_param("w", (signs * n.rng.uniform(0.9, 1, signs.shape)).astype(np.float32))
    x = n.conv(n.x, 8, 1, name="conv0", bias=False, weight=eye)
    g = n.done(n.conv(x, 6, 1, "", name="conv1", bias=False, weight=w))
    PassManager(networks.passes.PIPELINES["float"]).run(g)
    return g, {"data": n.rng.uniform(2.4, 3, (2, *n.shape)).astype(np.float32)}


def build(name: str) -> tuple[Graph, dict[str, np.ndarray]]:
    return all_large() if name == "all_large" else networks.build(name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), [*CARRIED, *(("all_large", target) for target in TARGETS)])
def test_every_step_on_every_network_once_and_again(name: str, target: str) -> None:
    """The PassManager verifies each step and that its count is honest; a second run of the step changes nothing.

    But limit-weights searches on from the scales that it has chosen.
    """
    g, feeds = build(name)
    manager: PassManager = PassManager(())
    for step in steps(target, table_of(g, feeds), feeds, g.copy()):
        manager = PassManager((step,), records=manager.records)
        manager.run(g)
        digest = g.digest()
        changed = step.run(g)
        assert (changed == 0) == (g.digest() == digest), step.name
        assert changed == 0 or step.name == "limit-weights", step.name
    assert {r.name for r in manager.records} == set(get_target(target).passes)
    assert all(isinstance(n.quant, QParams) for n in g.nodes("fake_quantize"))
    assert Graph.parse(g.text()).text() == g.text()


@pytest.mark.parametrize(("target", "name"), [
    ("mxnet", "round-weights"), ("mxnet", "pair-channels"), ("mxnet", "limit-saturation"), ("onnx", "limit-weights")])
def test_passes_that_look_at_images_change_something(target: str, name: str) -> None:
    """So that what is said of them above is not said of passes that do nothing."""
    g, feeds = all_large()
    manager = PassManager(tuple(steps(target, table_of(g, feeds), feeds)))
    manager.run(g)
    assert [r.changed > 0 for r in manager.records if r.name == name] == [True]


@pytest.mark.parametrize("name", ["concats", "residual_linear", "dead_channels", "shared_weight_both_signs"])
def test_the_result_is_the_same_each_time(name: str) -> None:
    digests = set()
    for _ in range(2):
        g, feeds = networks.build(name)
        PassManager(tuple(steps("mxnet", table_of(g, feeds)))).run(g)
        digests.add(g.digest())
    assert len(digests) == 1


@pytest.mark.parametrize(("step", "needs"), [
    (IntegerFlow(), "insert-fake-quantize"), (ShareScales(), "insert-fake-quantize"),
    (Calibrate(), "insert-fake-quantize"), (SignedResidual(), "calibrate"), (QuantizeBias(), "calibrate"),
    (BakeWeights(), "calibrate")], ids=lambda v: v.name if isinstance(v, Pass) else "")
def test_what_must_run_before(step: Pass, needs: str) -> None:
    g, _ = networks.build("dense_only")
    with pytest.raises(PassError, match=f"{step.name}: needs {needs} before it in the pipeline"):
        PassManager((step,)).run(g)


# ---- exact arithmetic: quantized graphs in the reference ------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), CARRIED)
def test_quantized_networks_are_near_the_float_ones(name: str, target: str) -> None:
    g, feeds = networks.build(name)
    want = run(g, feeds)
    PassManager(tuple(steps(target, table_of(g, feeds)))).run(g)
    for a, b in zip(want, run(g, feeds)):
        noise = float(((a - b).astype(np.float64) ** 2).sum())
        assert noise < 10 ** -2.5 * float((a.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_any_one_layer_may_be_excluded(name: str) -> None:
    """Left in float, each in turn: the rest is still quantized, and can be written."""
    g, feeds = networks.build(name)
    calibration = table_of(g, feeds)
    layers = [n.name for n in g.nodes() if ops.kind(n) == ops.COMPUTE]
    for layer in layers:
        q = g.copy()
        PassManager(tuple(steps("mxnet", calibration, exclude=(layer,)))).run(q)
        assert all(p.node.op != "fake_quantize" for p in q.inputs(q.find(layer))[1:])
        written = mxnet_int8.lower(q)
        assert layer in {n.name for n in written.nodes(g.find(layer).op)}
        assert len(layers) < 3 or any(n.op.startswith("_sg_") for n in written.nodes())


# ---- insert-fake-quantize -------------------------------------------------------------------------------------------

def test_verdicts_name_every_layer_and_the_reason() -> None:
    g, _ = networks.build("grouped")
    verdicts = {n.name: why for n, why in layer_verdicts(g, get_target("mxnet"), ("last", "op:FullyConnected")).items()}
    assert verdicts == {"conv0": "", "conv1": "MXNet's int8 kernel computes grouped convolutions with wrong scales",
                        "conv2": "", "conv3": "", "fc": "excluded by 'last'"}


@pytest.mark.parametrize("exclude", ["conv0", "first", "*0", "op:Convolution", "activation"])
def test_excluded_layers_have_no_quantizer(exclude: str) -> None:
    """By name, glob, op, or the name of the activation that was fused into the layer."""
    g, _ = networks.build("conv_pool_conv")
    InsertFakeQuantize(exclude=(exclude,)).run(g)
    conv = g.find("conv0")
    assert all(p.node.op != "fake_quantize" for p in g.inputs(conv))
    assert any(p.node.op == "fake_quantize" for p in g.inputs(g.find("fc")))


@pytest.mark.parametrize("options", [{"act_signed": "maybe"}, {"weight_bits": 1}, {"granularity": "block"},
                                     {"target": "mxnt"}, {"exclude": ("conv77",)}])
def test_wrong_options_change_nothing(options: dict[str, Any]) -> None:
    g, _ = networks.build("conv_pool_conv")
    digest = g.digest()
    with pytest.raises(OptionError):
        InsertFakeQuantize(**options).run(g)
    assert g.digest() == digest


def test_what_a_target_cannot_carry_names_the_one_that_can() -> None:
    g, _ = networks.build("conv_pool_conv")
    can = "mxnet-sim or onnx.* can"
    with pytest.raises(UnsupportedError, match=f"target mxnet cannot carry --weight-bits 4 exactly; {can}"):
        InsertFakeQuantize(target="mxnet", weight_bits=4).run(g)


# ---- integer-flow ---------------------------------------------------------------------------------------------------

def kernels_write_integers(g: Graph) -> None:
    """Wherever the integer engine rounds there is a quantizer: behind every quantized convolution, but for the one
    operand of a sum that is accumulated, and for those that can write floats."""
    for node in g.nodes():
        if node.op != "Convolution" or g.inputs(node)[1].node.op != "fake_quantize":
            continue
        for reader, _ in g.uses(node):
            if reader.op == "elemwise_add":
                assert g.has_one_use(node)
                assert [r.op for r, _ in g.uses(reader)] == ["fake_quantize"]
                others = [p for p in g.inputs(reader) if p.node is not node]
                assert len(others) == 1
            else:
                assert reader.op == "fake_quantize" or "pooling" in g.inputs(node)[0].node.name, (node, reader)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_rounding_has_its_quantizer(name: str) -> None:
    g, _ = networks.build(name)
    PassManager((InsertFakeQuantize(target="mxnet"), IntegerFlow())).run(g)
    kernels_write_integers(g)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_names_of_ranges_are_in_the_table(name: str) -> None:
    """What calibration asks for was observed in the float graph, whatever was excluded."""
    g, feeds = networks.build(name)
    known = {p.key for p in observed_ports(g)}
    for exclude in [(), *networks.exclusions(g)]:
        q = g.copy()
        PassManager((InsertFakeQuantize(target="mxnet", exclude=exclude), IntegerFlow(), ShareScales())).run(q)
        for fq in q.nodes("fake_quantize"):
            source = q.inputs(fq)[0]
            if q.param(source) is None:
                assert set(fq.quant.source or (source.key,)) <= known, fq  # type: ignore[union-attr]


# ---- share-scales ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["concats", "concat_shared_readers", "constant_activation"])
def test_inputs_of_a_concatenation_have_one_scale(name: str) -> None:
    g, feeds = networks.build(name)
    PassManager(tuple(steps("mxnet", table_of(g, feeds)))).run(g)
    assert g.nodes("Concat")
    for concat in g.nodes("Concat"):
        found = set()
        pending = [p.node for p in g.inputs(concat)]
        while pending:
            node = pending.pop()
            if node.op == "fake_quantize":
                found.add((float(node.quant.scale), node.quant.signed))  # type: ignore[union-attr]
            else:
                pending += [p.node for p in g.inputs(node)]
        assert len(found) == 1


# ---- calibrate ------------------------------------------------------------------------------------------------------

PAIR = """
    %data = input
    %x = fake_quantize(%data) {auto8 tensor}
    %w = param float32 (4, 3, 1, 1)
    %w_q = fake_quantize(%w) {s8 channel narrow}
    %a = Convolution(%x, %w_q) {kernel=(1, 1) no_bias=True num_filter=4}
    %y = fake_quantize(%a) {auto8 tensor source="a|other"}
    return %y"""


def test_ranges_come_from_the_table() -> None:
    g = Graph.parse(PAIR)
    weight = np.arange(-6, 6, dtype=np.float32).reshape(4, 3, 1, 1)
    g.params["w"] = weight
    assert Calibrate(table=table(data=(0.0, 51.0), a=(-1.0, 2.0), other=(-25.6, 1.0))).run(g) == 3
    x, y, w = (g.find(n).quant for n in ("x", "y", "w_q"))
    assert isinstance(x, QParams) and isinstance(y, QParams) and isinstance(w, QParams)
    assert (x.dtype, y.dtype, w.dtype) == ("u8", "s8", "s8")
    assert np.isclose(x.scale, 0.2) and np.isclose(y.scale, 0.2)
    assert np.allclose(w.scale, np.array([6, 3, 2, 5]) / 127)


@pytest.mark.parametrize(("granularity", "groups", "want"), [("tensor", 1, 6.0), ("group", 2, [6.0, 5.0]),
                                                             ("channel", 1, [6.0, 3.0, 2.0, 5.0])])
def test_weights_have_the_range_of_their_part(granularity: str, groups: int, want: Any) -> None:
    g = Graph.parse(PAIR)
    g.params["w"] = np.arange(-6, 6, dtype=np.float32).reshape(4, 3, 1, 1)
    g.find("w_q").quant = QSpec(4, True, True, granularity, groups=groups)
    Calibrate(table=table(data=(0, 1), a=(0, 1), other=(0, 1))).run(g)
    assert np.allclose(g.find("w_q").quant.scale, np.array(want) / 7)  # type: ignore[union-attr]


@pytest.mark.parametrize(("low", "bits"), [(0.0, None), (-1.0, 64)])
def test_weights_of_layers_that_read_signed_codes_are_limited(low: float, bits: int | None) -> None:
    g = Graph.parse(PAIR)
    Calibrate(signed_input_limit=64, table=table(data=(low, 1), a=(0, 1), other=(0, 1))).run(g)
    assert g.find("w_q").quant.qmax == (bits or 127)  # type: ignore[union-attr]
    assert g.find("w_q").quant.qmin == -(bits or 127)  # type: ignore[union-attr]


def test_missing_tables_and_ranges() -> None:
    with pytest.raises(CalibrationError, match="no calibration table"):
        Calibrate().run(Graph.parse(PAIR))
    with pytest.raises(CalibrationError, match="no range for other"):
        Calibrate(table=table(data=(0, 1), a=(0, 1))).run(Graph.parse(PAIR))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    g, _ = networks.build("conv_pool_conv")
    bad = g.params["conv1_weight"].copy()
    bad[3, 2, 1, 1] = value
    g.params["conv1_weight"] = bad
    full = table(**{p.key: (0.0, 1.0) for p in observed_ports(g)})
    with pytest.raises(CalibrationError, match="conv1_weight: found NaN or Inf among the weights"):
        PassManager(tuple(steps("mxnet", full))).run(g)


def test_dead_channels_and_constant_tensors_have_a_step() -> None:
    g = Graph.parse(PAIR)
    g.params["w"] = np.zeros((4, 3, 1, 1), np.float32)
    Calibrate(table=table(data=(0, 0), a=(5, 5), other=(0, 0))).run(g)
    assert g.find("x").quant.scale == 1 and (g.find("w_q").quant.scale == 1).all()  # type: ignore[union-attr]
    assert np.isclose(g.find("y").quant.scale, 5 / 255)  # type: ignore[union-attr]


# ---- signed-residual ------------------------------------------------------------------------------------------------

def residual(readers: int) -> tuple[Graph, Graph]:
    """(before, after) with the operand read `readers` times, the rest of the line the same."""
    g, feeds = networks.build("residual_downsample" if readers == 1 else "residual_signed_other_reader")
    line = steps("mxnet", table_of(g, feeds))
    at = [s.name for s in line].index("signed-residual")
    PassManager(tuple(line[:at])).run(g)
    after = g.copy()
    assert SignedResidual().run(after) == 1
    return g, after


def test_moving_both_biases_loses_nothing() -> None:
    """The operand has the same codes, 128 higher, and the sum the same ones (but for ties, which float32 may turn)."""
    before, after = residual(1)
    feeds = networks.build("residual_downsample")[1]
    add = next(n for n in before.nodes("elemwise_add") if any(p.node.quant and p.node.quant.signed
                                                              for p in before.inputs(n)))
    operand = next(p.node for p in before.inputs(add) if p.node.quant)
    result = before.uses(add)[0][0]
    (x, y), (x2, y2) = ([t.codes for t in Reference(g, [Port(g.find(n.name)) for n in (operand, result)])
                         .run_tensors(feeds)] for g in (before, after))
    assert x.min() == -128 or x.max() == 127
    assert (x + 128 == x2).mean() > 0.999 and (y == y2).mean() > 0.999 and len(np.unique(y)) > 100
    largest = np.float32(1e3)
    x, x2 = (Reference(g, [Port(g.find(operand.name))]).run_tensors({"data": feeds["data"] * largest})[0].codes
             for g in (before, after))
    assert x.min() == -128 and x.max() == 127 and (x + 128 == x2).mean() > 0.999  # saturates at the same places


def test_halving_keeps_the_range() -> None:
    before, after = residual(2)
    changed = [(a, b) for a, b in zip(before.nodes("fake_quantize"), after.nodes("fake_quantize"))
               if a.quant.key != b.quant.key]  # type: ignore[union-attr]
    assert len(changed) == 1
    old, new = (n.quant for n in changed[0])
    assert isinstance(old, QParams) and isinstance(new, QParams)
    assert (old.qmax, new.qmax) == (255, 127)
    assert np.isclose(old.scale * 255, new.scale * 127, rtol=1e-6)


def test_the_arrays_of_a_copy_are_left_alone() -> None:
    g, feeds = networks.build("residual_downsample")
    digest = g.digest()
    PassManager(tuple(steps("mxnet", table_of(g, feeds)))).run(g.copy())
    assert g.digest() == digest


# ---- quantize-bias, bake-weights ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("granularity", ["layer", "group", "channel"])
def test_biases_are_whole_numbers_of_the_accumulator(name: str, granularity: str) -> None:
    g, feeds = networks.build(name)
    PassManager(tuple(steps("mxnet-sim", table_of(g, feeds), granularity=granularity))).run(g)
    for node in g.nodes():
        inputs = g.inputs(node)
        if ops.kind(node) != ops.COMPUTE or len(inputs) < 3 or inputs[2].node.op != "fake_quantize":
            continue
        x, w, b = (p.node.quant for p in inputs)
        assert isinstance(b, QParams) and b.bits == 32
        step = np.float64(x.scale) * w.scale  # type: ignore[union-attr]
        repeat = len(b.scale) // max(np.size(step), 1)
        assert np.allclose(b.scale, np.repeat(step, repeat), rtol=1e-6)
        baked = g.param(g.inputs(inputs[2].node)[0])
        assert baked is not None
        assert np.abs(baked / b.scale - np.rint(baked / b.scale)).max() < 1e-2


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_baked_parameters_are_on_their_grid(name: str) -> None:
    g, feeds = networks.build(name)
    PassManager(tuple(steps("mxnet", table_of(g, feeds)))).run(g)
    checked = 0
    for fq in g.nodes("fake_quantize"):
        array = g.param(g.inputs(fq)[0])
        if array is not None:
            assert isinstance(fq.quant, QParams)
            assert np.array_equal(fake_quantize(array, fq.quant), array)
            checked += 1
    assert checked


def test_a_parameter_with_a_float_reader_is_copied() -> None:
    g = Graph.parse("""
        %data = input
        %x = fake_quantize(%data) {u8 tensor scale=0.1 zp=0}
        %w = param float32 (4, 3)
        %w_q = fake_quantize(%w) {s8 channel narrow scale=[0.01,0.01,0.01,0.01] zp=0}
        %a = FullyConnected(%x, %w_q) {no_bias=True num_hidden=4}
        %b = FullyConnected(%data, %w) {no_bias=True num_hidden=4}
        return %a, %b""")
    original = g.params["w"].copy()
    assert BakeWeights().run(g) == 1
    assert np.array_equal(g.params["w"], original)
    assert g.params["w_baked"].shape == (4, 3) and not np.array_equal(g.params["w_baked"], original)
    assert g.find("w_baked").origin == ("w",)
    assert BakeWeights().run(g) == 0


def test_what_is_not_calibrated_cannot_be_baked() -> None:
    g = Graph.parse(PAIR)
    with pytest.raises(CalibrationError, match="w_q: not calibrated"):
        BakeWeights().run(g)


def test_two_layers_with_one_bias_but_two_scales() -> None:
    """The bias is rounded for each of them."""
    g = Graph()
    data: Node = g.add("null", name="data")
    bias = g.add_param("bias", np.array([0.33, -0.7], np.float32))
    heads = []
    for name, size in (("a", 1.0), ("b", 7.0)):
        weight = g.add_param(f"{name}_w", np.full((2, 3), size, np.float32))
        heads.append(Port(g.add("FullyConnected", [data, weight, bias], name, num_hidden=2)))
    g.heads = heads
    PassManager(tuple(steps("mxnet-sim", table(data=(0.0, 1.0))))).run(g)
    for head in g.heads:
        fq = g.inputs(head.node)[2].node
        baked = g.param(g.inputs(fq)[0])
        assert baked is not None and isinstance(fq.quant, QParams)
        assert np.array_equal(baked, fake_quantize(np.array([0.33, -0.7], np.float32), fq.quant, "mxnet"))
